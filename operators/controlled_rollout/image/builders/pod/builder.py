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
from controlled_rollout.cluster.pods import is_terminating, pod_problem
from controlled_rollout.errors import ImageError, TargetUnavailableError
from controlled_rollout.image.builders.build_context import ERROR_LINE, build_error, registry_auth_file
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.builders.build_secrets import build_secrets
from controlled_rollout.image.builders.pod import manifest
from controlled_rollout.image.builders.pod.context_image import push_build_context
from controlled_rollout.image.credentials import hide_credentials
from controlled_rollout.image.run_command import KEPT_LINES, error_excerpt
from controlled_rollout.image.scoring_runtime import DOCKERFILE
from controlled_rollout.polling import until
from controlled_rollout.workspace import Workspace

__all__ = ["PodBuilder"]

POLL_S: Final = 0.5
# An API server that is being upgraded does not answer for minutes.
MAX_OUTAGE_S: Final = 300.0
MAX_REMOVAL_S: Final = 60.0
# A pod that ended so long ago was left by a task that was killed and never retried.
ABANDONED_AFTER: Final = timedelta(hours=1)


class PodBuilder:
    """Builds in a pod of the workspace's cluster.

    The build context is an image in the workspace's registry, so the pod needs no volume. The pod's name is the
    environment's hash: if several tasks, on any machine, build one environment, one creates the pod and the others
    follow it.

    Args:
        workspace: Leads to the cluster. Its `builder_image` and `builder_pod_template` apply.
        namespace: Where its pods run.
        owner: The task that builds. If it was killed, a retry with the same owner takes its pod over.
    """

    def __init__(self, workspace: Workspace, namespace: str, *, owner: str) -> None:
        self._workspace = workspace
        self._owner = owner
        self._namespace = namespace

    async def build(
        self, request: BuildRequest, *, is_pushed: Callable[[], Awaitable[bool]], progress: Callable[[str], None]
    ) -> None:
        """Build and push the image in a Kubernetes pod, and report the pod's log as progress.

        Raises:
            TargetUnavailableError: The API server does not answer.
            AccessError: It does not let this identity create pods.
        """
        async with Api.open(self._workspace) as api:
            build_pod = _BuildPod(api, request, self._namespace, progress)
            await build_pod.delete_abandoned()
            while not await is_pushed():
                pod = await self._create_or_find_pod(build_pod)
                if pod is None or _pod_is_over(pod):
                    # Another task's pod is about to be deleted, or was left behind.
                    await build_pod.delete(pod)
                    continue
                await build_pod.create_secret(pod)
                async with self._delete_pod_on_exit(build_pod, pod):
                    lines, end = await build_pod.follow()
                if end is not None:
                    _raise_if_build_failed(request, end, lines)
                    return
            progress(f"{request.label}: was built by another task")

    async def _create_or_find_pod(self, build_pod: "_BuildPod") -> Object | None:
        """Create the pod, or return the pod another Airflow task created; None if that pod was just deleted."""
        workspace, request = self._workspace, build_pod.request
        template = workspace.builder_pod_template
        body = manifest.pod_manifest(
            request,
            context_image=await push_build_context(request),
            namespace=self._namespace,
            builder_image=workspace.builder_image or "",
            owner=self._owner,
            secret_name=f"{manifest.pod_name(request)}-{random.token_hex(4)}",
            secret_files=list(build_secrets(request.requirements, request.build_files[DOCKERFILE])),
            image_pull_secret=workspace.image_pull_secret,
            template=await asyncio.to_thread(manifest.read_pod_template, template) if template else None,
        )
        if pod := await build_pod.api.create(POD.path(self._namespace), body):
            build_pod.progress(f"{request.label}: building on {request.base_image} in pod {build_pod.name}")
            return pod
        existing = await build_pod.api.find(build_pod.path())
        if existing is not None and not _pod_is_over(existing):
            build_pod.progress(f"{request.label}: pod {build_pod.name} is building it, waiting")
        return existing

    @asynccontextmanager
    async def _delete_pod_on_exit(self, build_pod: "_BuildPod", pod: Object) -> AsyncIterator[None]:
        """Context manager: delete the pod on exit, also after an error, if this Airflow task created it."""
        try:
            yield
        finally:
            if pod["metadata"].get("annotations", {}).get(manifest.OWNER) == self._owner:
                await asyncio.shield(build_pod.delete(pod))


@dataclass(frozen=True)
class _PodEnd:
    """How a pod ended: the exit code of its container (None if it has none), and a description."""

    exit_code: int | None
    description: str = ""


@dataclass(frozen=True)
class _BuildPod:
    """The pod of one build, from its creation to its end."""

    api: Api
    request: BuildRequest
    namespace: str
    progress: Callable[[str], None]

    @property
    def name(self) -> str:
        """The pod's name, derived from the image's tag."""
        return manifest.pod_name(self.request)

    def path(self, subresource: str = "") -> str:
        """Return the pod's path in the Kubernetes API, or that of a subresource such as `log`."""
        return POD.path(self.namespace, self.name, subresource)

    async def delete_abandoned(self) -> None:
        """Delete pods of builds whose Airflow task was killed and never retried."""
        for pod in await self.api.items(POD.path(self.namespace), labelSelector=manifest.SELECTOR):
            ended = _pod_ended_at(pod)
            if ended and datetime.now(UTC) - ended > ABANDONED_AFTER:
                await self.api.delete(POD.path(self.namespace, pod["metadata"]["name"]))

    async def create_secret(self, pod: Object) -> None:
        """Create the Secret that the pod mounts, unless it exists. The pod does not start without it."""
        secret_name = manifest.secret_name_of(pod)
        files = build_secrets(self.request.requirements, self.request.build_files[DOCKERFILE])
        files |= {manifest.AUTH_FILE: registry_auth_file(self.request.credentials)}
        data = {file: base64.b64encode(content).decode() for file, content in files.items()}
        body = manifest.secret_manifest(secret_name, self.namespace, pod, data)
        await self.api.create(SECRET.path(self.namespace), body)

    async def follow(self) -> tuple[list[str], _PodEnd | None]:
        """Report the pod's log as progress until the pod ends; return the last log lines and how the pod ended.

        Returns:
            The log's last lines, and how the pod ended; None if it was deleted meanwhile.

        Raises:
            ImageError: The pod will never start.
            TargetUnavailableError: The API server has not answered for too long.
        """
        clock = asyncio.get_running_loop().time
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        log_position, last_answer, last_problem = "", clock(), ""
        while True:
            try:
                pod = await self.api.find(self.path())
                if pod is None or is_terminating(pod):
                    return list(lines), None
                last_answer = clock()
                last_problem = self._report_problem(pod, last_problem)
                over = _pod_is_over(pod)
                if _pod_has_started(pod):
                    log_position = await self._read_log(log_position, lines)
                if over:
                    return list(lines), _pod_end(pod)
            except TargetUnavailableError as error:
                if clock() - last_answer > MAX_OUTAGE_S:
                    raise
                self.progress(f"{self.request.label}: {error}; the pod goes on, trying again")
            await asyncio.sleep(POLL_S)

    def _report_problem(self, pod: Object, last_problem: str) -> str:
        """Report why the pod does not start, if the reason changed; return the reason that was reported last.

        Raises:
            ImageError: Waiting does not help.
        """
        problem = pod_problem(pod, datetime.now(UTC)) if not _pod_has_started(pod) else None
        if problem is None:
            return last_problem
        if problem.is_permanent:
            raise ImageError(f"the environment image cannot be built in the cluster: {problem.message}")
        if problem.message != last_problem:
            self.progress(f"{self.request.label}: {problem.message}")
        return problem.message

    async def _read_log(self, position: str, lines: "deque[str]") -> str:
        """Report log lines after the time `position` until the log ends or breaks off; return the last line's time."""
        query = {"container": manifest.CONTAINER, "follow": "true", "timestamps": "true"}
        if position:
            query["sinceTime"] = position.partition(".")[0] + "Z"
        try:
            async for log_line in self.api.log_lines(self.path("log"), **query):
                timestamp, _, text = log_line.partition(" ")
                if (time := _sortable_timestamp(timestamp)) <= position:
                    continue
                position = time
                line = hide_credentials(text.rstrip())
                lines.append(line)
                if line.strip():
                    self.progress(f"environment: {line}")
        except ApiError as error:
            if error.status not in (400, 404):  # not started, or deleted
                raise
        return position

    async def delete(self, pod: Object | None) -> None:
        """Delete a pod by uid and wait until it is gone. A new pod with the same name is not deleted.

        Raises:
            TargetUnavailableError: It does not go away.
        """
        if pod is None:
            return
        uid = pod["metadata"]["uid"]

        async def delete_again_unless_gone() -> bool:
            """Return True if the pod is gone; otherwise send the delete request again and return False."""
            current = await self.api.find(self.path())
            if current is None or current["metadata"]["uid"] != uid:
                return True
            await self.api.delete_with_uid(self.path(), uid, grace_s=0)
            return False

        if not await until(delete_again_unless_gone, MAX_REMOVAL_S, interval_s=POLL_S):
            raise TargetUnavailableError(f"pod {self.name} does not go away: check its node")


def _raise_if_build_failed(request: BuildRequest, end: _PodEnd, lines: list[str]) -> None:
    """Raise the error of a failed build; return if the pod ended with exit code 0.

    Raises:
        ImageError: It failed.
    """
    if end.exit_code == 0:
        return
    if end.exit_code == manifest.NOT_BUILT:
        raise build_error(request, lines)
    excerpt = error_excerpt(lines, ERROR_LINE)
    if end.exit_code == manifest.NOT_PUSHED:
        raise ImageError(f"the environment image cannot be pushed to {request.repository}: {excerpt}")
    if end.exit_code == manifest.NO_CONTEXT:
        raise ImageError(f"the pod cannot read the build's files from {request.repository}: {excerpt}")
    raise ImageError(f"the pod that builds the environment image failed ({end.description}): {excerpt}")


def _pod_end(pod: Object) -> _PodEnd:
    """Return the exit code of the build container and a description of how the pod ended."""
    status = pod["status"]
    for container in status.get("containerStatuses") or []:
        terminated = (container.get("state") or {}).get("terminated")
        if container["name"] == manifest.CONTAINER and terminated:
            exit_code, reason = terminated.get("exitCode"), terminated.get("reason", "")
            return _PodEnd(exit_code, f"exit code {exit_code} {reason}".strip())
    return _PodEnd(None, status.get("message") or status.get("reason") or f"phase {status.get('phase')}")


def _pod_is_over(pod: Object) -> bool:
    """Whether the pod has succeeded, failed, or is being deleted."""
    return pod["status"]["phase"] in ("Succeeded", "Failed") or is_terminating(pod)


def _pod_has_started(pod: Object) -> bool:
    """Whether the pod has left the phase Pending."""
    return bool(pod["status"]["phase"] != "Pending")


def _pod_ended_at(pod: Object) -> datetime | None:
    """Return the time at which the pod's last container ended; None if one runs or Kubernetes gives no time."""
    ends: list[str] = [
        terminated["finishedAt"]
        for container in pod["status"].get("containerStatuses") or []
        if (terminated := (container.get("state") or {}).get("terminated")) and terminated.get("finishedAt")
    ]
    return datetime.fromisoformat(max(ends)) if ends and _pod_is_over(pod) else None


def _sortable_timestamp(timestamp: str) -> str:
    """Return a log line's timestamp with nine decimals, so that timestamps sort as text."""
    seconds, _, fraction = timestamp.rstrip("Z").partition(".")
    return f"{seconds}.{fraction:0<9}"
