"""The builder in the cluster: a pod that runs buildah, named by the hash of what it builds, followed to its end."""

import asyncio
import base64
import secrets as random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import POD, SECRET
from controlled_rollout.cluster.pods import pod_held_by
from controlled_rollout.errors import ImageError, TargetUnavailableError
from controlled_rollout.image.builders.build_context import ERROR_LINE, failure, users_file
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.builders.build_secrets import build_secrets
from controlled_rollout.image.builders.pod import manifest as pod_manifest
from controlled_rollout.image.builders.pod.context_image import push_context
from controlled_rollout.image.run_command import CREDENTIALS, KEPT_LINES, essence
from controlled_rollout.polling import until
from controlled_rollout.workspace import Workspace

__all__ = ["PodBuilder"]

POLL_S: Final = 0.5
# An API server that is being upgraded is away for minutes.
OUTAGE_S: Final = 300.0
REMOVAL_S: Final = 60.0
# Nobody waits for the end of a pod that ended so long ago.
LEFT_BEHIND: Final = timedelta(hours=1)


class PodBuilder:
    """Builds in a pod of the workspace's cluster.

    The files of the build are an image in the workspace's registry, so no storage and no way into the pod is needed.
    The pod's name is the environment's hash: of several builds of one environment, in any process on any machine, one
    makes the pod and the others follow it.

    Args:
        workspace: Leads to the cluster; `builder_image`, `builder_namespace` and `builder_pod_template` count.
        owner: Who builds. A pod that the same one has begun before it was killed is its own.
    """

    def __init__(self, workspace: Workspace, *, owner: str) -> None:
        self._workspace = workspace
        self._owner = owner
        self._namespace = workspace.builder_namespace or workspace.namespace

    async def build(
        self, order: BuildRequest, *, is_there: Callable[[], Awaitable[bool]], progress: Callable[[str], None]
    ) -> None:
        """See `Builder`.

        Raises:
            TargetUnavailableError: The API server does not answer.
            AccessError: It does not let us make pods.
        """
        async with Api.open(self._workspace) as api:
            run = _Run(api, order, self._namespace, progress)
            await run.sweep()
            while not await is_there():
                pod = await self._pod(run)
                if pod is None or _is_over(pod):
                    # Somebody else's pod is about to be removed, or was left behind.
                    await run.remove(pod)
                    continue
                await run.give(pod)
                async with self._ended_with_us(run, pod):
                    lines, end = await run.follow()
                if end is not None and _outcome(order, end, lines):
                    return
            progress(f"{order.short}: built by somebody else meanwhile")

    async def _pod(self, run: "_Run") -> Object | None:
        """Make the pod, or find the one that somebody has made; None if it has gone again."""
        workspace, order = self._workspace, run.order
        template = workspace.builder_pod_template
        made = pod_manifest.pod(
            order,
            context=await push_context(order),
            namespace=self._namespace,
            image=workspace.builder_image or "",
            owner=self._owner,
            secret_name=f"{pod_manifest.pod_name(order)}-{random.token_hex(4)}",
            secrets=build_secrets(order.requirements),
            image_pull_secret=workspace.image_pull_secret,
            template=await asyncio.to_thread(pod_manifest.read_template, template) if template else None,
        )
        if pod := await run.api.create(POD.path(self._namespace), made):
            run.progress(f"{order.short}: building on {order.base_image} in pod {run.name}")
            return pod
        found = await run.api.find(run.path())
        if found is not None and not _is_over(found):
            run.progress(f"{order.short}: pod {run.name} is building it, waiting")
        return found

    @asynccontextmanager
    async def _ended_with_us(self, run: "_Run", pod: Object) -> AsyncIterator[None]:
        """Remove the pod with the block, however it ends, if it is ours."""
        try:
            yield
        finally:
            if pod["metadata"].get("annotations", {}).get(pod_manifest.OWNER) == self._owner:
                await asyncio.shield(run.remove(pod))


@dataclass(frozen=True)
class _End:
    """How a pod has ended: the exit code of its container, or why it has none."""

    code: int | None
    why: str = ""


@dataclass(frozen=True)
class _Run:
    """One pod, from its making to its end."""

    api: Api
    order: BuildRequest
    namespace: str
    progress: Callable[[str], None]

    @property
    def name(self) -> str:
        return pod_manifest.pod_name(self.order)

    def path(self, subresource: str = "") -> str:
        return POD.path(self.namespace, self.name, subresource)

    async def sweep(self) -> None:
        """Remove pods that were left by builds that were killed and never tried again."""
        for pod in await self.api.items(POD.path(self.namespace), labelSelector=pod_manifest.SELECTOR):
            ended = _ended_at(pod)
            if ended and datetime.now(UTC) - ended > LEFT_BEHIND:
                await self.api.delete(POD.path(self.namespace, pod["metadata"]["name"]))

    async def give(self, pod: Object) -> None:
        """Give a pod the Secret that it waits for, unless it has it."""
        name = pod_manifest.secret_of(pod)
        files = {**build_secrets(self.order.requirements), pod_manifest.USERS: users_file(self.order.credentials)}
        encoded = {name: base64.b64encode(content).decode() for name, content in files.items()}
        await self.api.create(SECRET.path(self.namespace), pod_manifest.secret(name, self.namespace, pod, encoded))

    async def follow(self) -> tuple[list[str], _End | None]:
        """Hand on the pod's log until it ends; return its last lines and how it ended, None if it was removed.

        Raises:
            ImageError: It will never start.
            TargetUnavailableError: The API server has been away for too long.
        """
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        seen, answered, said = "", asyncio.get_running_loop().time(), ""
        while True:
            try:
                pod = await self.api.find(self.path())
                if pod is None or "deletionTimestamp" in pod["metadata"]:
                    return list(lines), None
                answered = asyncio.get_running_loop().time()
                said = self._say_what_holds(pod, said)
                over = _is_over(pod)
                if _has_started(pod):
                    seen = await self._read_log(seen, lines)
                if over:
                    return list(lines), _end(pod)
            except TargetUnavailableError as error:
                if asyncio.get_running_loop().time() - answered > OUTAGE_S:
                    raise
                self.progress(f"{self.order.short}: {error}; the pod goes on, trying again")
            await asyncio.sleep(POLL_S)

    def _say_what_holds(self, pod: Object, said: str) -> str:
        held = pod_held_by(pod, datetime.now(UTC)) if pod["status"].get("phase") == "Pending" else None
        if held is None:
            return said
        why, hopeless = held
        if hopeless:
            raise ImageError(f"the environment image cannot be built in the cluster: {why}")
        if why != said:
            self.progress(f"{self.order.short}: {why}")
        return str(why)

    async def _read_log(self, seen: str, lines: "deque[str]") -> str:
        """Hand on the lines after the time `seen` for as long as they come, and return the last one's time."""
        query = {"container": pod_manifest.CONTAINER, "follow": "true", "timestamps": "true"}
        if seen:
            query["sinceTime"] = seen.partition(".")[0] + "Z"
        try:
            async for line in self.api.lines(self.path("log"), **query):
                stamp, _, text = line.partition(" ")
                if (at := _padded(stamp)) <= seen:
                    continue
                seen = at
                told = CREDENTIALS.sub("://***@", text.rstrip())
                lines.append(told)
                if told.strip():
                    self.progress(f"environment: {told}")
        except ApiError as error:
            if error.status not in (400, 404):  # not started, or gone
                raise
        return seen

    async def remove(self, pod: Object | None) -> None:
        """Remove a pod that we have seen, and wait until it is gone; not another one that has its name by now."""
        if pod is None:
            return
        uid = pod["metadata"]["uid"]

        async def is_gone() -> bool:
            current = await self.api.find(self.path())
            if current is None or current["metadata"]["uid"] != uid:
                return True
            await self.api.delete_only(self.path(), uid, grace_s=0)
            return False

        if not await until(is_gone, REMOVAL_S, interval_s=POLL_S):
            raise TargetUnavailableError(f"pod {self.name} does not go away: is its node still there?")


def _outcome(order: BuildRequest, end: _End, lines: list[str]) -> bool:
    """Return that the image was built.

    Raises:
        ImageError: It was not.
    """
    if end.code == 0:
        return True
    said = essence(lines, ERROR_LINE)
    if end.code == pod_manifest.NOT_BUILT:
        raise failure(order, lines)
    if end.code == pod_manifest.NOT_PUSHED:
        raise ImageError(f"the environment image cannot be pushed to {order.target}: {said}")
    if end.code == pod_manifest.NO_CONTEXT:
        raise ImageError(f"the pod cannot read the build's files from {order.target}: {said}")
    raise ImageError(f"the pod that builds the environment image failed ({end.why}): {said}")


def _end(pod: Object) -> _End:
    status = pod["status"]
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        if container["name"] == pod_manifest.CONTAINER and ended:
            reason = ended.get("reason", "")
            return _End(ended.get("exitCode"), f"exit code {ended.get('exitCode')} {reason}".strip())
    return _End(None, status.get("message") or status.get("reason") or f"phase {status.get('phase')}")


def _is_over(pod: Object) -> bool:
    return bool(pod["status"]["phase"] in ("Succeeded", "Failed") or "deletionTimestamp" in pod["metadata"])


def _has_started(pod: Object) -> bool:
    return bool(pod["status"]["phase"] != "Pending")


def _ended_at(pod: Object) -> datetime | None:
    ends: list[str] = [
        ended["finishedAt"]
        for container in pod["status"].get("containerStatuses") or []
        if (ended := (container.get("state") or {}).get("terminated")) and ended.get("finishedAt")
    ]
    return datetime.fromisoformat(max(ends)) if ends and _is_over(pod) else None


def _padded(stamp: str) -> str:
    """Return a time as it sorts: Kubernetes leaves the zeros at its end out."""
    seconds, _, fraction = stamp.rstrip("Z").partition(".")
    return f"{seconds}.{fraction:0<9}"
