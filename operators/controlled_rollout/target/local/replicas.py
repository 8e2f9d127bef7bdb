"""Replicas: one process each, started, watched, replaced and drained; and the set of them that is a version."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlled_rollout.endpoint import Version
from controlled_rollout.target.local.probe import status_of
from controlled_rollout.target.local.processes import (
    MARK,
    BackOff,
    Child,
    LogFile,
    how_it_ended,
    inherited_environment,
)
from controlled_rollout.target.protocol import ReplicaState, ReplicaStatus, VersionStatus

__all__ = ["Launch", "Replica", "RunningVersion"]

Changed = Callable[[], None]

STARTING_PROBE_S: Final = 0.05
PROBE_TIMEOUT_S: Final = 2.0
FAILED_STARTS: Final = 3
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
HEALTHY_S: Final = 60.0
# What a replica may take on top of its scoring timeout to end after SIGTERM.
STOP_MARGIN_S: Final = 5.0
# A replica that left the router's list may still be given a request that a worker thread was just routing.
SETTLE_S: Final = 0.2
STATUS_LOG_LINES: Final = 40

_socket_numbers: Iterator[int] = itertools.count(1)


@dataclass(frozen=True)
class Launch:
    """How a replica of one version is started. Equal launches need no new replicas.

    Attributes:
        image: The image's reference.
        python: The interpreter of the image's environment.
        runtime_folder: Where the scoring runtime's package is.
        app_root, entry_script, model_dir: What the runtime loads.
        worker_count, concurrency, scoring_timeout_ms, max_wait_ms: The version's own settings.
    """

    image: str
    python: Path
    runtime_folder: Path
    app_root: Path
    entry_script: str
    model_dir: Path
    worker_count: int
    concurrency: int
    scoring_timeout_ms: int
    max_wait_ms: int

    def argv(self, socket: Path, health: Path) -> list[str]:
        """Return the command line of a replica."""
        return [
            str(self.python),
            "-m",
            "controlled_rollout_scoring",
            "--bind",
            f"unix:{socket}",
            "--health",
            f"unix:{health}",
        ]

    def environment(self, runtime: Path) -> dict[str, str]:
        """Return the environment of a replica."""
        return inherited_environment() | {
            MARK: str(runtime),
            "PYTHONPATH": str(self.runtime_folder),
            "PYTHONUNBUFFERED": "1",
            "AML_APP_ROOT": str(self.app_root),
            "AZUREML_ENTRY_SCRIPT": self.entry_script,
            "AZUREML_MODEL_DIR": str(self.model_dir),
            "WORKER_COUNT": str(self.worker_count),
            "REPLICA_MAX_CONCURRENT_REQUESTS": str(self.concurrency),
            "SCORING_TIMEOUT_MS": str(self.scoring_timeout_ms),
            "MAX_REQUEST_WAIT_TIME_MS": str(self.max_wait_ms),
            "DRAIN_TIMEOUT_S": str(math.ceil(self.scoring_timeout_ms / 1000)),
        }


class Replica:
    """One process of a version, replaced when it dies or hangs, until `stop` is called.

    Attributes:
        name: Unique in its version.
        state: Where it is in its life.
        restarts: How often it was started again.
        last_exit: How it ended last, in words.
        failed_starts: Starts in a row that ended before the replica was ready.
        socket: Where it takes requests; a new one for every start.
    """

    def __init__(
        self, name: str, launch: Launch, version: Version, runtime: Path, log: LogFile, changed: Changed
    ) -> None:
        self.name = name
        self.launch = launch
        self.state = ReplicaState.STARTING
        self.restarts = 0
        self.last_exit: str | None = None
        self.failed_starts = 0
        self.socket = runtime / "unused"
        self.log = log
        self._version = version
        self._runtime = runtime
        self._changed = changed
        self._child: Child | None = None
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._keep_running(), name=f"replica {name}")

    @property
    def ready(self) -> bool:
        """Whether it may get requests."""
        return self.state is ReplicaState.READY

    @property
    def pid(self) -> int | None:
        """The process id while a process runs."""
        return self._child.pid if self._child else None

    def status(self) -> ReplicaStatus:
        """Return how it is."""
        return ReplicaStatus(name=self.name, state=self.state, restarts=self.restarts, last_exit=self.last_exit)

    def watch(self, version: Version) -> None:
        """Take over new probe settings."""
        self._version = version

    def leave(self) -> None:
        """Take it off the router's list for good; it goes on answering until `stop`."""
        self._set(ReplicaState.STOPPING)

    async def stop(self) -> None:
        """Let the process finish what it is answering, then end it."""
        self.leave()
        self._stopping.set()
        if self._child:
            await self._child.stop(self.launch.scoring_timeout_ms / 1000 + STOP_MARGIN_S)
        await self._task

    async def _keep_running(self) -> None:
        pauses = BackOff(FIRST_PAUSE_S, LONGEST_PAUSE_S, HEALTHY_S)
        while not self._stopping.is_set():
            started = time.monotonic()
            await self._run_once()
            if self.state is ReplicaState.STOPPING:
                return
            self._set(ReplicaState.WAITING)
            await _event_within(self._stopping, pauses.after(time.monotonic() - started))
            self.restarts += 1

    async def _run_once(self) -> None:
        """Start the process and stay until it has ended."""
        number = next(_socket_numbers)
        self.socket, health = self._runtime / f"r{number}.sock", self._runtime / f"h{number}.sock"
        self._set(ReplicaState.STARTING)
        self.log.note(f"replica {self.name} starts, image {self.launch.image}")
        try:
            self._child = await Child.start(
                self.launch.argv(self.socket, health),
                env=self.launch.environment(self._runtime),
                log=self.log,
                cwd=self.launch.app_root,
            )
        except OSError as error:
            self._ended(f"could not be started: {error}", was_ready=False)
            return
        exited = asyncio.create_task(self._child.wait())
        if self._stopping.is_set():
            self._child.kill()
        try:
            complaint, was_ready = await self._watch(exited, health)
            if complaint and not exited.done():
                await self._child.stop(STOP_MARGIN_S)
            code = await exited
        finally:
            self._child = None
            for path in (self.socket, health):
                path.unlink(missing_ok=True)
        if not self._stopping.is_set():
            self._ended(complaint or how_it_ended(code), was_ready=was_ready)

    def _ended(self, how: str, *, was_ready: bool) -> None:
        self.last_exit = how
        self.failed_starts = 0 if was_ready else self.failed_starts + 1
        self.log.note(f"replica {self.name} {how}")
        self._changed()

    async def _watch(self, exited: "asyncio.Task[int]", health: Path) -> tuple[str | None, bool]:
        """Return why the process has to end (None if it ended by itself), and whether it was ever ready."""
        budget_s = self._version.initial_delay_seconds
        deadline = time.monotonic() + budget_s
        successes = 0
        while not exited.done():
            ready = await status_of(health, "/ready", PROBE_TIMEOUT_S) == 200
            successes = successes + 1 if ready else 0
            if successes >= self._version.success_threshold:
                break
            if time.monotonic() > deadline:
                return f"was not ready within {budget_s} s", False
            await asyncio.wait([exited], timeout=STARTING_PROBE_S)
        if exited.done():
            return None, False
        self.failed_starts = 0
        self._set(ReplicaState.READY)
        return await self._watch_liveness(exited, health), True

    async def _watch_liveness(self, exited: "asyncio.Task[int]", health: Path) -> str | None:
        misses = 0
        while not exited.done():
            await asyncio.wait([exited], timeout=self._version.period_seconds)
            if exited.done() or self._stopping.is_set():
                break
            alive = await status_of(health, "/live", self._version.timeout_seconds) == 200
            misses = 0 if alive else misses + 1
            if misses >= self._version.failure_threshold:
                self._set(ReplicaState.WAITING)
                return f"did not answer its health check {misses} times in a row"
        return None

    def _set(self, state: ReplicaState) -> None:
        """Go over to another state; there is no way back from stopping."""
        if self.state not in (state, ReplicaState.STOPPING):
            self.state = state
            self._changed()


async def _event_within(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


class RunningVersion:
    """The replicas of one version: how many there are, which of them get requests, which are being replaced.

    The number of replicas is set by `scale`; the autoscaler, once there is one, calls just that.

    Attributes:
        spec: The version as it is wanted now.
        retiring: Whether it is on its way out.
    """

    def __init__(self, spec: Version, launch: Launch, *, runtime: Path, logs_folder: Path, changed: Changed) -> None:
        self.spec = spec
        self.retiring = False
        self._launch = launch
        self._wanted = spec.replicas_at_start
        self._runtime = runtime
        self._logs_folder = logs_folder
        self._changed = changed
        self._names = itertools.count(1)
        self._current: list[Replica] = []
        self._leaving: list[Replica] = []
        self._stops: set[asyncio.Task[None]] = set()
        self._fill()

    @property
    def replicas(self) -> list[Replica]:
        """All of them, those that leave last."""
        return [*self._current, *self._leaving]

    @property
    def up_to_date(self) -> bool:
        """Whether no replica of an older definition serves any more."""
        return not self._leaving or all(not replica.ready for replica in self._leaving)

    @property
    def ready(self) -> bool:
        """Whether all the replicas that it should have answer."""
        return len([replica for replica in self._current if replica.ready]) >= self._wanted

    @property
    def failed(self) -> bool:
        """Whether a replica has ended so often before it was ready that waiting will not help.

        It goes on being started, with the longest pause in between: what it misses may come back.
        """
        return any(replica.failed_starts >= FAILED_STARTS for replica in self._current)

    def sockets(self) -> list[Path]:
        """Return where the replicas that may get requests take them."""
        return [replica.socket for replica in self.replicas if replica.ready]

    def update(self, spec: Version, launch: Launch) -> None:
        """Take over a new definition; where it needs new processes, the old ones serve until the new are ready."""
        if spec.replicas_at_start != self.spec.replicas_at_start:
            self._wanted = spec.replicas_at_start
        self.spec = spec
        if launch != self._launch:
            self._launch = launch
            self._leaving += self._current
            self._current = []
        for replica in self._current:
            replica.watch(spec)
        self._fill()

    def scale(self, replicas: int) -> None:
        """Set the number of replicas that run now."""
        self._wanted = replicas
        while len(self._current) > replicas:
            leaving = self._current.pop()
            leaving.leave()
            self._leaving.append(leaving)
        self._fill()
        self._changed()

    def look(self) -> None:
        """Let the replicas of the old definition leave once those of the new one are all ready."""
        if not self.ready or self.retiring:
            return
        for replica in self._leaving:
            replica.leave()

    def off_the_list(self) -> list[Replica]:
        """Return the replicas that the router is to get no more, and that still have to be stopped."""
        return [replica for replica in self._leaving if replica.state is ReplicaState.STOPPING]

    def end(self, replicas: Iterable[Replica]) -> None:
        """Stop replicas that the router is known to have taken off its list."""
        for replica in replicas:
            self._leaving.remove(replica)
            self._track(asyncio.create_task(_stop_after(replica, SETTLE_S)))

    async def stop(self) -> None:
        """End all replicas, each after it has answered what it was asked."""
        self.retiring = True
        await asyncio.gather(*(replica.stop() for replica in self.replicas), *self._stops)
        self._current, self._leaving = [], []

    def status(self, *, requests: int, active: int) -> VersionStatus:
        """Return how the version is."""
        worst = max(self._current, key=lambda replica: replica.failed_starts, default=None)
        failing = worst if worst and worst.failed_starts else None
        cause = None
        if failing and not self.ready:
            times = f"{failing.failed_starts} times" if failing.failed_starts > 1 else "once"
            cause = f"replica {failing.name} {failing.last_exit}; failed {times} during start"
        elif not self.ready:
            cause = next(
                (f"replica {r.name} {r.last_exit}" for r in self._current if not r.ready and r.last_exit), None
            )
        return VersionStatus(
            name=self.spec.name,
            ready=self.ready and self.up_to_date,
            wanted_replicas=self._wanted,
            failed=self.failed,
            cause=cause,
            log_tail="\n".join(failing.log.tail(STATUS_LOG_LINES)) if failing else "",
            replicas=tuple(replica.status() for replica in self.replicas),
            requests=requests,
            active=active,
        )

    def _fill(self) -> None:
        while len(self._current) < self._wanted:
            name = f"{self.spec.name}-{next(self._names)}"
            log = LogFile(self._logs_folder / f"{name}.log")
            self._current.append(Replica(name, self._launch, self.spec, self._runtime, log, self._changed))

    def _track(self, task: "asyncio.Task[None]") -> None:
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)


async def _stop_after(replica: Replica, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await replica.stop()
