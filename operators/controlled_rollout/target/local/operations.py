"""What clients can ask of a running supervisor: the methods of `Target`, on this side of the socket."""

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import Final, Literal

from controlled_rollout import image
from controlled_rollout.endpoint import Endpoint, Version, check_name
from controlled_rollout.errors import ImageError, TargetUnavailableError
from controlled_rollout.image.scoring_runtime import runtime_folder
from controlled_rollout.sizing import Load
from controlled_rollout.target import refusals
from controlled_rollout.target.local import envoy_config, keys
from controlled_rollout.target.local.envoy_process import Router
from controlled_rollout.target.local.load import LoadMeter
from controlled_rollout.target.local.processes import LogFile
from controlled_rollout.target.local.reconciler import Reconciler
from controlled_rollout.target.local.replicas import Launch
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.local.telemetry import TelemetryStore
from controlled_rollout.target.protocol import Change, EndpointStatus, Keys, Revision, VersionStatus
from controlled_rollout.target.transition import CLOSED

__all__ = ["Operations", "launch_from_cache"]

DELETE_TIMEOUT_S: Final = 600.0


def launch_from_cache(version: Version, cache: Path) -> Launch:
    """Return how a version's replicas are started, from the image in the cache.

    Raises:
        ImageError: The version names no image, or one that is not in the cache.
    """
    if not version.image:
        raise ImageError(f"version {version.name!r} names no image: build one and give its reference")
    found = image.load_local_image(image.ImageReference.parse(version.image), cache)
    return Launch(
        image=version.image,
        python=found.python,
        runtime_folder=runtime_folder(),
        app_root=found.app_root,
        entry_script=found.entry_script,
        model_dir=found.model_dir,
        worker_count=version.worker_count,
        concurrency=version.replica_max_concurrent_requests,
        scoring_timeout_ms=version.scoring_timeout_ms,
        max_wait_ms=version.max_request_wait_time,
    )


class Operations:
    """The endpoints of a local workspace, as its supervisor sees them."""

    def __init__(
        self,
        store: RevisionStore,
        reconciler: Reconciler,
        the_router: Router,
        telemetry: TelemetryStore,
        meter: LoadMeter,
        *,
        cache_folder: Path,
        logs_folder: Path,
    ) -> None:
        self._store = store
        self._reconciler = reconciler
        self._router = the_router
        self._telemetry = telemetry
        self._meter = meter
        self._cache_folder = cache_folder
        self._logs_folder = logs_folder
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def endpoints(self) -> list[str]:
        """Return the names of all endpoints."""
        return self._store.endpoints()

    def endpoint(self, name: str) -> Endpoint:
        """Return an endpoint's newest revision."""
        newest = self._store.newest(name)
        if newest is None:
            raise self._store.not_found(name)
        return newest.endpoint

    def history(self, name: str) -> list[Revision]:
        """Return an endpoint's revisions."""
        return self._store.history(name)

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        """Store an endpoint as its next revision and begin to make it so."""
        refusals.check_supported(endpoint, "local")
        async with self._locks[endpoint.name]:
            if already := self._store.check(endpoint):
                self._reconciler.want(already)
                return already
            await asyncio.to_thread(self._check_images, endpoint)
            stored = self._store.store(endpoint, change).endpoint
            self._reconciler.want(stored)
            return stored

    def _check_images(self, endpoint: Endpoint) -> None:
        """Refuse images that cannot be run; those that run already are known to be there."""
        newest = self._store.newest(endpoint.name)
        known = {version.image for version in newest.endpoint.versions.values()} if newest else set()
        for version in endpoint.versions.values():
            if not version.image or version.image not in known:
                launch_from_cache(version, self._cache_folder)

    async def status(self, name: str) -> EndpointStatus:
        """Return how an endpoint is."""
        endpoint = self.endpoint(name)
        activity = await self._router.activity()
        versions = {}
        for version in endpoint.versions:
            running = self._reconciler.running.get((name, version))
            cluster = envoy_config.cluster_name(name, version)
            refused = self._reconciler.refused.get((name, version))
            if running is None or running.retiring:
                versions[version] = VersionStatus(name=version, ready=False, failed=refused is not None, cause=refused)
                continue
            versions[version] = running.status(
                requests=activity.requests.get(cluster, 0) if activity else 0,
                active=activity.active.get(cluster, 0) if activity else 0,
            )
        split = self._reconciler.served.get(name, CLOSED)
        return EndpointStatus(
            name=name,
            url=f"{self.router_url}/api/v1/service/{name}/score",
            revision=endpoint.revision,
            served_revision=self._reconciler.served_revision.get(name, 0),
            versions=versions,
            weight_ppm={version: weight for version, weight in split.weights.items() if weight},
            waiting_for=split.waiting_for,
            clusters={version: envoy_config.cluster_name(name, version) for version in versions},
        )

    def load(self, name: str) -> dict[str, Load]:
        """Return the load of the versions of an endpoint, also of one that is on its way out."""
        self.endpoint(name)
        here = envoy_config.cluster_name(name, "")
        return {
            cluster.removeprefix(here): load
            for cluster, load in self._meter.loads().items()
            if cluster.startswith(here)
        }

    @property
    def router_url(self) -> str:
        """Where callers reach the router."""
        host = f"[{self._router.host}]" if ":" in self._router.host else self._router.host
        return f"http://{host}:{self._router.port}"

    def logs(self, name: str, version: str, tail: int) -> str:
        """Return the last lines of a version's log; the replica that wrote last comes last."""
        folder = self._logs_folder / check_name(name) / check_name(version)
        paths = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        lines: list[str] = []
        for path in paths:
            label = f"[{path.stem}] " if len(paths) > 1 else ""
            lines += [label + line for line in LogFile(path).tail(tail)]
        return "\n".join(lines[-tail:])

    def keys(self, name: str) -> Keys:
        """Return an endpoint's keys."""
        self.endpoint(name)
        return keys.read(self._store.endpoint_folder(name))

    async def regenerate_key(self, name: str, which: Literal["primary", "secondary"]) -> Keys:
        """Replace one key of an endpoint."""
        async with self._locks[name]:
            self.endpoint(name)
            made = keys.regenerate(self._store.endpoint_folder(name), which)
            self._reconciler.changed()
            return made

    def scale(self, name: str, version: str, replicas: int) -> None:
        """Set the number of a version's replicas."""
        self.endpoint(name).version(version)
        refusals.check_replicas(version, replicas)
        if running := self._reconciler.running.get((name, version)):
            running.scale(replicas)

    async def delete(self, name: str) -> None:
        """Delete an endpoint; return when its last replica has answered what it was asked and has ended."""
        async with self._locks[check_name(name)]:
            self._store.delete(name)
            if not await self._reconciler.remove(name, DELETE_TIMEOUT_S):
                raise TargetUnavailableError(
                    f"endpoint {name!r} is deleted, but its replicas have not ended within {DELETE_TIMEOUT_S:g} s: "
                    "call again to go on waiting, and look into supervisor.log and envoy_config.log"
                )

    async def set_telemetry(self, running: bool) -> None:
        """Start or stop the telemetry store."""
        await self._telemetry.set_running(running)

    def processes(self) -> dict[str, int]:
        """Return the child processes by name."""
        found = {"router": self._router.pid, "telemetry store": self._telemetry.pid}
        for (endpoint, _), running in self._reconciler.running.items():
            found |= {f"{endpoint}/{replica.name}": replica.pid for replica in running.replicas}
        return {name: pid for name, pid in found.items() if pid}
