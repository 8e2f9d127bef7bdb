"""A replica: one process of a version, started, probed, restarted and drained."""

import asyncio
import itertools
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from controlled_rollout.collection_settings import Collection
from controlled_rollout.endpoint import Version
from controlled_rollout.environment_variables import SecretReference
from controlled_rollout.errors import ImageError
from controlled_rollout.image import LocalImage, load_local_image
from controlled_rollout.target.local import secret_files
from controlled_rollout.target.local.child_process import RUNTIME_VARIABLE, inherited_environment
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.probe import http_status_on_socket
from controlled_rollout.target.local.process_status import ProcessStatus
from controlled_rollout.target.local.spools import end_spools, prepare_spool
from controlled_rollout.target.local.supervised_process import BackOff, Command, SupervisedProcess
from controlled_rollout.target.protocol import ReplicaState, ReplicaStatus
from controlled_rollout.workspace import Workspace

__all__ = ["LaunchSpec", "Replica"]

STARTUP_PROBE_INTERVAL_S: Final = 0.05
PROBE_TIMEOUT_S: Final = 2.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
HEALTHY_S: Final = 60.0
# How much longer than its scoring timeout a replica may take to end after SIGTERM.
STOP_MARGIN_S: Final = 5.0

_socket_numbers: Iterator[int] = itertools.count(1)


@dataclass(frozen=True)
class LaunchSpec:
    """How the replicas of a version are started. A version whose spec stays equal keeps its replicas.

    Attributes:
        image: The image.
        image_variables: The variables by which the scoring process finds it.
        worker_count: Processes that score.
        concurrency: Requests that the replica scores or queues at once.
        scoring_timeout_ms: The longest that one request may be scored.
        max_wait_ms: The longest that one request may be queued.
        environment_variables: The version's own variables, with references to secrets, by name.
        secrets_folder: The folder of the secrets.
        collection: What is kept of inputs and predictions; None for nothing.
    """

    image: LocalImage
    image_variables: Mapping[str, str]
    worker_count: int
    concurrency: int
    scoring_timeout_ms: int
    max_wait_ms: int
    environment_variables: Mapping[str, str | SecretReference]
    secrets_folder: Path
    collection: Collection | None = None

    @classmethod
    def from_cache(cls, version: Version, workspace: Workspace) -> Self:
        """Return how to start a version's replicas, from its image in the local cache.

        Raises:
            ImageError: The version names no image, or one that is not in the cache.
        """
        if not version.image:
            raise ImageError(f"version {version.name!r} names no image: build one and give its reference")
        image = load_local_image(version.image, workspace.cache_folder)
        return cls(
            image=image,
            image_variables=image.variables(),
            worker_count=version.worker_count,
            concurrency=version.replica_max_concurrent_requests,
            scoring_timeout_ms=version.scoring_timeout_ms,
            max_wait_ms=version.max_request_wait_time,
            environment_variables=version.environment_variables,
            secrets_folder=workspace.secrets_folder,
            collection=version.collected,
        )

    def command(self, runtime: Path, socket: Path, health: Path, capture: Mapping[str, str]) -> Command:
        """Return the command that starts one replica: arguments, environment variables and folder.

        Args:
            runtime: The supervisor's runtime folder.
            socket: The unix socket that takes requests.
            health: The unix socket that answers probes.
            capture: The variables that let the replica capture; none if it does not.

        Raises:
            DamagedFileError: The file of a secret that it needs cannot be read.
            WorkspaceError: It needs a secret that is not there any more.
        """
        own = {
            name: secret_files.read_value(self.secrets_folder, value) if isinstance(value, SecretReference) else value
            for name, value in self.environment_variables.items()
        }
        arguments = [
            str(self.image.python),
            "-m",
            "controlled_rollout_scoring",
            "--bind",
            f"unix:{socket}",
            "--health",
            f"unix:{health}",
        ]
        environment = (
            inherited_environment()
            | own
            | dict(capture)
            | dict(self.image_variables)
            | {
                RUNTIME_VARIABLE: str(runtime),
                "PYTHONUNBUFFERED": "1",
                "WORKER_COUNT": str(self.worker_count),
                "REPLICA_MAX_CONCURRENT_REQUESTS": str(self.concurrency),
                "SCORING_TIMEOUT_MS": str(self.scoring_timeout_ms),
                "MAX_REQUEST_WAIT_TIME_MS": str(self.max_wait_ms),
                "DRAIN_TIMEOUT_S": str(math.ceil((self.scoring_timeout_ms + self.max_wait_ms) / 1000)),
            }
        )
        return Command(arguments, environment, self.image.app_root)


class Replica:
    """One process of a version, started again when it ends or hangs, until `stop` is called.

    Attributes:
        name: Unique in its version.
        spec: How it is started.
        log: Its log.
        state: Where it is in its life.
        last_exit: How it ended last, in words; None if it never did.
        failed_starts: Starts in a row that ended before the replica was ready.
        socket: The unix socket that takes requests; another one after every start.
    """

    def __init__(
        self,
        name: str,
        spec: LaunchSpec,
        version: Version,
        *,
        runtime: Path,
        log: LogFile,
        spools_folder: Path,
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self.spec = spec
        self.log = log
        self.state = ReplicaState.STARTING
        self._starts = 0
        self.last_exit: str | None = None
        self.failed_starts = 0
        self.socket = self._health_socket = runtime / "unused"
        self._version = version
        self._runtime = runtime
        # A name that no replica has again: another one's rows would be taken for this one's.
        self._spool = spools_folder / f"{name}-{secrets.token_hex(4)}"
        self._on_change = on_change
        self._was_ready = False
        self._process = SupervisedProcess(
            f"replica {name}",
            self._next_command,
            log=log,
            back_off=BackOff(FIRST_PAUSE_S, LONGEST_PAUSE_S, HEALTHY_S),
            watch=self._probe_until_unhealthy,
            on_exit=self._record_exit,
        )
        self._process.start()

    @property
    def ready(self) -> bool:
        """Whether the replica may get requests."""
        return self.state is ReplicaState.READY

    @property
    def restarts(self) -> int:
        """How often the process was started again after its first start."""
        return max(0, self._starts - 1)

    @property
    def pid(self) -> int | None:
        """The process id; None while no process runs."""
        return self._process.pid

    def status(self) -> ReplicaStatus:
        """Return the replica's status for clients."""
        return ReplicaStatus(name=self.name, state=self.state, restarts=self.restarts, last_exit=self.last_exit)

    def process_status(self, endpoint: str) -> ProcessStatus:
        """Return the status of the replica's process."""
        problem = None if self.state is ReplicaState.READY else self.state.value
        if problem and self.last_exit:
            problem = f"{problem}: {self.last_exit}"
        return ProcessStatus(name=f"{endpoint}/{self.name}", pid=self.pid, problem=problem)

    def use_probes_of(self, version: Version) -> None:
        """Take over the probe settings of a changed version; the process goes on running."""
        self._version = version

    def begin_stopping(self) -> None:
        """Mark the replica as stopping for good: it gets no new requests, and answers open ones until `stop`."""
        self._set_state(ReplicaState.STOPPING)
        self._process.do_not_restart()

    async def stop(self) -> None:
        """Let the process answer the requests that it has, then end it."""
        self.begin_stopping()
        await self._process.stop((self.spec.scoring_timeout_ms + self.spec.max_wait_ms) / 1000 + STOP_MARGIN_S)
        end_spools(self._spool)

    def _next_command(self) -> Command:
        """Choose new sockets for the next start, set the state to STARTING and return the command."""
        number = next(_socket_numbers)
        self.socket = self._runtime / f"r{number}.sock"
        self._health_socket = self._runtime / f"h{number}.sock"
        self._starts += 1
        self._was_ready = False
        self._set_state(ReplicaState.STARTING)
        self.log.note(f"replica {self.name} starts, image {self.spec.image.reference}")
        return self.spec.command(self._runtime, self.socket, self._health_socket, self._prepare_capture())

    def _prepare_capture(self) -> Mapping[str, str]:
        """Prepare the spool of a replica that collects; return the variables for it, none where that fails."""
        if self.spec.collection is None:
            return {}
        try:
            return prepare_spool(self._spool, self.spec.collection, self.spec.secrets_folder)
        except OSError as error:
            # Serving comes first: the gate sees that nothing was collected.
            self.log.note(f"replica {self.name} collects nothing until it starts again: {error}")
            return {}

    def _record_exit(self, reason: str) -> None:
        """Remove the sockets of the ended process, and record why it ended and whether the start failed."""
        for path in (self.socket, self._health_socket):
            path.unlink(missing_ok=True)
        if self._process.is_stopping:
            return
        self.last_exit = reason
        self.failed_starts = 0 if self._was_ready else self.failed_starts + 1
        self._set_state(ReplicaState.WAITING)
        self._on_change()

    async def _probe_until_unhealthy(self, exited: "asyncio.Task[int]") -> str | None:
        """Probe the process until it ends or is unhealthy; return why it must be ended, or None if it ended itself."""
        startup_s = self._version.initial_delay_seconds
        deadline = time.monotonic() + startup_s
        successes = 0
        while not exited.done():
            is_ready = await http_status_on_socket(self._health_socket, "/ready", PROBE_TIMEOUT_S) == 200
            successes = successes + 1 if is_ready else 0
            if successes >= self._version.success_threshold:
                break
            if time.monotonic() > deadline:
                return f"was ended, because init() has not returned within initial_delay_seconds ({startup_s} s)"
            await asyncio.wait([exited], timeout=STARTUP_PROBE_INTERVAL_S)
        if exited.done():
            return None
        self._was_ready = True
        self.failed_starts = 0
        self._set_state(ReplicaState.READY)
        return await self._probe_liveness(exited)

    async def _probe_liveness(self, exited: "asyncio.Task[int]") -> str | None:
        """Probe the liveness until the process ends; return why it must be ended after too many failures, or None."""
        failures = 0
        while not exited.done():
            await asyncio.wait([exited], timeout=self._version.period_seconds)
            if exited.done() or self._process.is_stopping:
                break
            is_alive = await http_status_on_socket(self._health_socket, "/live", self._version.timeout_seconds) == 200
            failures = 0 if is_alive else failures + 1
            if failures >= self._version.failure_threshold:
                self._set_state(ReplicaState.WAITING)
                return f"did not answer its health check {failures} times in a row"
        return None

    def _set_state(self, state: ReplicaState) -> None:
        """Change the state; a replica that is stopping stays so."""
        if self.state not in (state, ReplicaState.STOPPING):
            self.state = state
            self._on_change()
