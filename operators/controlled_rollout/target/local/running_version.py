"""The replicas of one version: how many there are, which of them get requests, which are being replaced."""

import asyncio
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from controlled_rollout.endpoint import Version
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.replica import LaunchSpec, Replica
from controlled_rollout.target.protocol import ReplicaState, VersionStatus

__all__ = ["SETTLE_S", "RunningVersion"]

# After so many starts in a row that ended before the replica was ready, the version has failed.
MAX_FAILED_STARTS: Final = 3
# A worker thread of the router may still route a request to a replica that has just left its list.
SETTLE_S: Final = 0.2
STATUS_LOG_LINES: Final = 40


class RunningVersion:
    """The replicas of one version, from its first to its last.

    Args:
        version: The version.
        launch_spec: How its replicas are started.
        replicas: With how many it starts.
        runtime: The supervisor's runtime folder.
        logs_folder: The folder of its replicas' logs.
        spools_folder: The folder of what they collect.
        on_change: Called when something has changed.

    Attributes:
        version: The version as it should run now.
        retiring: Whether it is being removed.
        wanted_replicas: How many replicas it should have.
    """

    def __init__(
        self,
        version: Version,
        launch_spec: LaunchSpec,
        *,
        replicas: int,
        runtime: Path,
        logs_folder: Path,
        spools_folder: Path,
        on_change: Callable[[], None],
    ) -> None:
        self.version = version
        self.retiring = False
        self._launch_spec = launch_spec
        self.wanted_replicas = self._awaited_replicas = replicas
        self._runtime = runtime
        self._logs_folder = logs_folder
        self._spools_folder = spools_folder
        self._on_change = on_change
        self._replica_numbers = itertools.count(1)
        self._current: list[Replica] = []
        self._outgoing: list[Replica] = []
        self._stops: set[asyncio.Task[None]] = set()
        self._start_missing_replicas()

    @property
    def replicas(self) -> list[Replica]:
        """All replicas, the outgoing ones last."""
        return [*self._current, *self._outgoing]

    @property
    def up_to_date(self) -> bool:
        """Whether no outgoing replica may get requests any more."""
        return all(not replica.ready for replica in self._outgoing)

    @property
    def ready_replicas(self) -> int:
        """How many replicas may get requests, outgoing ones not counted."""
        return sum(replica.ready for replica in self._current)

    @property
    def ready(self) -> bool:
        """Whether as many replicas may get requests as are waited for: those that only the load asks for are not."""
        return self.ready_replicas >= self._awaited_replicas

    @property
    def failed(self) -> bool:
        """Whether it is not ready, and a replica has ended `MAX_FAILED_STARTS` times in a row before it was.

        It is still started again, with the longest pause in between: the cause may go away.
        """
        return not self.ready and any(replica.failed_starts >= MAX_FAILED_STARTS for replica in self._current)

    def sockets(self) -> list[Path]:
        """Return the sockets of the replicas that may get requests."""
        return [replica.socket for replica in self.replicas if replica.ready]

    def update(self, version: Version, launch_spec: LaunchSpec) -> None:
        """Change to a new definition of the version; old replicas serve until the new ones are ready."""
        replicas = self.wanted_replicas
        if _replica_settings(version) != _replica_settings(self.version):
            replicas = version.num_replicas or max(replicas, version.autoscale_min_replicas)
        self.version = version
        is_replaced = launch_spec != self._launch_spec
        if is_replaced:
            self._launch_spec = launch_spec
            self._outgoing += self._current
            self._current = []
        for replica in self._current:
            replica.use_probes_of(version)
        # Each replica that is replaced has its successor before it goes.
        if is_replaced or replicas != self.wanted_replicas:
            self._set_replicas(replicas)
        self._start_missing_replicas()

    def scale(self, replicas: int) -> None:
        """Set the number of replicas that should run, and are waited for; start missing ones and stop surplus ones."""
        self._set_replicas(replicas)
        self._on_change()

    def await_at_least(self, replicas: int) -> None:
        """Wait for so many of the replicas that should run, if for fewer until now."""
        self._awaited_replicas = max(self._awaited_replicas, min(replicas, self.wanted_replicas))
        self._on_change()

    def follow_load(self, replicas: int) -> None:
        """Set the number of replicas that the load asks for: the version is as ready as before meanwhile."""
        awaited = self._awaited_replicas
        self._set_replicas(replicas)
        self._awaited_replicas = min(awaited, replicas)
        self._on_change()

    def _set_replicas(self, replicas: int) -> None:
        """Start missing replicas, and begin to stop surplus ones: first those that are not ready, then the newest."""
        self.wanted_replicas = self._awaited_replicas = replicas
        while len(self._current) > replicas:
            unready = [replica for replica in self._current if not replica.ready]
            surplus = (unready or self._current)[-1]
            self._current.remove(surplus)
            surplus.begin_stopping()
            self._outgoing.append(surplus)
        self._start_missing_replicas()

    def release_outgoing(self) -> None:
        """Take the outgoing replicas off the router's list once all current ones are ready."""
        if not self.ready or self.retiring:
            return
        for replica in self._outgoing:
            replica.begin_stopping()

    def stopping_replicas(self) -> list[Replica]:
        """Return the replicas that must leave the router's list before `stop_replicas` ends them."""
        return [replica for replica in self._outgoing if replica.state is ReplicaState.STOPPING]

    def stop_replicas(self, replicas: Iterable[Replica]) -> None:
        """Begin to end replicas that the router has taken off its list; return at once."""
        for replica in replicas:
            self._outgoing.remove(replica)
            stop = asyncio.create_task(_settle_and_stop(replica))
            self._stops.add(stop)
            stop.add_done_callback(self._stops.discard)

    async def stop(self) -> None:
        """Stop all replicas; each one first answers its open requests."""
        self.retiring = True
        await asyncio.gather(*(replica.stop() for replica in self.replicas), *self._stops)
        self._current, self._outgoing = [], []

    def status(self) -> VersionStatus:
        """Return the version's state for clients, without what the router has counted."""
        failing = self._failing_replica()
        return VersionStatus(
            name=self.version.name,
            ready=self.ready and self.up_to_date,
            wanted_replicas=self.wanted_replicas,
            failed=self.failed,
            cause=self.cause,
            log_tail="\n".join(failing.log.tail(STATUS_LOG_LINES)) if failing else "",
            replicas=tuple(replica.status() for replica in self.replicas),
        )

    @property
    def cause(self) -> str | None:
        """Why the version is not ready; None if it is, or if that is not known."""
        return None if self.ready else self._not_ready_cause(self._failing_replica())

    def _failing_replica(self) -> Replica | None:
        """Return the replica whose start has failed most often in a row; None if none has."""
        worst = max(self._current, key=lambda replica: replica.failed_starts, default=None)
        return worst if worst and worst.failed_starts else None

    def _not_ready_cause(self, failing: Replica | None) -> str | None:
        """Return why the version is not ready, if the end of one of its replicas explains it; else None."""
        if failing:
            times = f"{failing.failed_starts} times" if failing.failed_starts > 1 else "once"
            return f"replica {failing.name} {failing.last_exit}; failed {times} during start"
        ended = (replica for replica in self._current if not replica.ready and replica.last_exit)
        return next((f"replica {replica.name} {replica.last_exit}" for replica in ended), None)

    def _start_missing_replicas(self) -> None:
        """Start replicas until the required number exists."""
        while len(self._current) < self.wanted_replicas:
            name = f"{self.version.name}-{next(self._replica_numbers)}"
            replica = Replica(
                name,
                self._launch_spec,
                self.version,
                runtime=self._runtime,
                log=LogFile(self._logs_folder / f"{name}.log"),
                spools_folder=self._spools_folder,
                on_change=self._on_change,
            )
            self._current.append(replica)


def _replica_settings(version: Version) -> tuple[int | None, int]:
    """Return the settings that say how many replicas a version has at least."""
    return version.num_replicas, version.replicas_at_start


async def _settle_and_stop(replica: Replica) -> None:
    """Wait until no router thread can still send requests to the replica, then stop it."""
    await asyncio.sleep(SETTLE_S)
    await replica.stop()
