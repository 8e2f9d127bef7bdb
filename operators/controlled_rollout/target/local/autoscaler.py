"""Makes the replicas of every version follow its load: once a second, from the router's counters."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from controlled_rollout.autoscaling import Floor, History, Reading, decide
from controlled_rollout.sizing import autoscaler_limits
from controlled_rollout.target.counters import Counters
from controlled_rollout.target.local.envoy_config import cluster_names
from controlled_rollout.target.local.replica_numbers import ReplicaNumber, ReplicaNumbers, VersionKey
from controlled_rollout.version import Version

__all__ = ["Autoscaler", "ScaledVersion"]

log = logging.getLogger(__name__)

SIZED: Final = "a step or a person has asked for this number"


class ScaledVersion(Protocol):
    """What the autoscaler needs of a running version."""

    version: Version
    retiring: bool
    wanted_replicas: int

    @property
    def ready_replicas(self) -> int:
        """How many replicas may get requests."""
        ...

    def scale(self, replicas: int) -> None:
        """Set the number of replicas that should run, and are waited for."""
        ...

    def await_at_least(self, replicas: int) -> None:
        """Wait for so many of the replicas that should run, if for fewer until now."""
        ...

    def follow_load(self, replicas: int) -> None:
        """Set the number of replicas that the load asks for."""
        ...


class Autoscaler:
    """Decides how many replicas each version has, unless its number is fixed; all that scales a version asks it.

    Args:
        running: The versions that have processes; it changes.
        numbers: Where the numbers are kept.
        clock: Returns seconds since 1970.
    """

    def __init__(
        self,
        running: Mapping[VersionKey, ScaledVersion],
        numbers: ReplicaNumbers,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._running = running
        self._numbers = numbers
        self._clock = clock
        self._histories: dict[ScaledVersion, History] = {}

    def follow(self, counters: Mapping[str, Counters] | None) -> None:
        """Decide for every version, and start or drain replicas where the number changes.

        Args:
            counters: The router's counters by cluster; None if they could not be read, which changes nothing.
        """
        now = self._clock()
        histories: dict[ScaledVersion, History] = {}
        numbers: dict[VersionKey, ReplicaNumber] = {}
        for key, running in self._running.items():
            if running.retiring or running.version.num_replicas is not None:
                continue
            number = self._numbers.get(key) or ReplicaNumber(replicas=running.wanted_replicas)
            decision = decide(
                autoscaler_limits(running.version),
                _read_load(key, counters),
                wanted=running.wanted_replicas,
                ready=running.ready_replicas,
                now=now,
                history=self._histories.get(running, History()),
                floor=number.parsed_floor,
            )
            histories[running] = decision.history
            why = number.why
            if decision.replicas != running.wanted_replicas:
                why = f"{running.wanted_replicas} → {decision.replicas} replicas: {decision.reason}"
                log.info("version %s of endpoint %s: %s", key.version, key.endpoint, why)
                self._set_replicas(key, running, decision.replicas)
            numbers[key] = number.model_copy(update={"replicas": running.wanted_replicas, "why": why})
        self._histories = histories
        self._numbers.keep(numbers)

    def set_replicas(self, key: VersionKey, replicas: int, *, at_least: bool = False) -> None:
        """Run so many replicas of a version from now on; if it is autoscaled, it has no fewer for ten minutes.

        Args:
            key: The version.
            replicas: The number.
            at_least: Whether more replicas than that stay, and a higher floor.
        """
        running = self._running.get(key)
        if running is None:
            return
        number = self._numbers.get(key)
        why: str | None = SIZED
        if at_least and running.wanted_replicas >= replicas:
            running.await_at_least(replicas)
            why = number.why if number else None
        else:
            running.scale(replicas)
        if running.version.num_replicas is None:
            before = number.parsed_floor if number and at_least else None
            floor = str(Floor.for_shift(replicas, self._clock(), before))
            changed = ReplicaNumber(replicas=running.wanted_replicas, floor=floor, why=why)
            self._numbers.keep(self._numbers.all() | {key: changed})

    def why(self, key: VersionKey) -> str | None:
        """Return why an autoscaled version has its number of replicas; None if it was not changed."""
        number = self._numbers.get(key)
        return number.why if number else None

    @staticmethod
    def _set_replicas(key: VersionKey, running: ScaledVersion, replicas: int) -> None:
        """Change the number of replicas; an error, such as a full disk, is that version's only."""
        try:
            running.follow_load(replicas)
        except OSError as error:
            log.warning("version %s of endpoint %s cannot be scaled: %s", key.version, key.endpoint, error)


def _read_load(key: VersionKey, counters: Mapping[str, Counters] | None) -> Reading | None:
    """Return what the router counts for a version now; None if it cannot be read, or does not know the version."""
    clusters = [counters[name] for name in cluster_names(*key) if name in counters] if counters else []
    if not clusters:
        return None
    return Reading(busy=sum(of.active for of in clusters), queued=sum(of.waiting for of in clusters))
