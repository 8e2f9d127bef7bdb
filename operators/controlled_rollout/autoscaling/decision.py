"""The decision of the autoscaler: one pure function, the same on one machine and on Kubernetes.

As azureml-fe did: utilisation is (busy + queued) / (replicas × slots of one); above the target there are more replicas
within about a second, below it fewer after about a minute. A reading is one moment and varies by chance. So there are
more replicas when the newest reading is above all slots by more than chance explains, or when the mean of the last
four, or of the last minute, is above the target by more than its standard error, or when a burst will be. There are
fewer when the smaller number would have been enough, by the same rules, at each reading of a whole minute: what that
minute has shown does not bring the replicas back, and a constant load changes nothing.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from controlled_rollout.autoscaling.floor import Floor
from controlled_rollout.autoscaling.history import History, Reading

__all__ = ["Decision", "Limits", "decide"]

# Rounding errors of floating point must not cost a replica.
ROUNDING: Final = 1e-9
# A reading is beyond chance above the slots by so many standard deviations (Poisson: the square root of the slots).
BEYOND_CHANCE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """A version's settings of the autoscaler.

    Attributes:
        minimum: The fewest replicas.
        maximum: The most replicas.
        slots: The requests that one replica answers at the same time.
        target_utilisation: The part of the slots that should be busy; above 0 and at most 1.
        refresh_s: The shortest time between two changes, in seconds.
    """

    minimum: int
    maximum: int
    slots: int
    target_utilisation: float
    refresh_s: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for settings that no version can have."""
        if not (1 <= self.minimum <= self.maximum and self.slots >= 1 and 0 < self.target_utilisation <= 1):
            raise ValueError(f"{self} are no settings of an autoscaler")


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas a version should have.

    Attributes:
        replicas: The number; equal to what is wanted already if nothing has to change.
        reason: Why, for people.
        history: What to give to the next call.
    """

    replicas: int
    reason: str
    history: History


def decide(
    limits: Limits,
    reading: Reading | None,
    *,
    wanted: int,
    ready: int,
    now: float,
    history: History = History(),  # noqa: B008 - immutable
    floor: Floor | None = None,
) -> Decision:
    """Return how many replicas a version should have; to be called about once a second for each version.

    Args:
        limits: The version's settings.
        reading: What all its routers count together; None if one of them cannot be read.
        wanted: The number of replicas that it should have until now: those that are starting count as there.
        ready: How many of them answer.
        now: The time in seconds since 1970.
        history: What the last decision has returned; an empty one after a restart.
        floor: The fewest replicas for a while, set by a shift's sizing or by a person.
    """
    if wanted == 0:
        return Decision(0, "0 replicas were asked for: the autoscaler leaves that as it is", history)
    lowest = min(limits.maximum, max(limits.minimum, floor.at(now) if floor else 0))
    bounded = min(limits.maximum, max(lowest, wanted))
    if reading is None or ready < 1:
        unknown = "the router's counters cannot be read" if reading is None else "no replica is ready"
        if bounded != wanted:
            return Decision(bounded, f"{unknown}; {_bounds_text(limits, floor, now)}", replace(history, changed=now))
        return Decision(wanted, f"{unknown}: the replicas stay as they are", history)
    history = history.with_reading(reading, now)
    required = _required_replicas(limits, history, bounded)
    replicas = min(required, limits.maximum)
    if replicas == bounded > lowest and history.shows_whole_window(now):
        replicas = max(lowest, min(bounded, _sufficient_replicas(limits, history)))
    if history.changed is not None and 0 <= now - history.changed < limits.refresh_s:
        replicas = bounded
    reason = f"{_load_text(limits, reading, wanted)}: {_change_text(limits, replicas, required)}"
    if replicas in (lowest, limits.maximum):
        reason += f" ({_bounds_text(limits, floor, now)})"
    if replicas > wanted:
        history = history.with_asked(replicas, now)
    elif replicas < wanted:
        history = replace(history, changed=now)
    return Decision(replicas, reason, history)


def _required_replicas(limits: Limits, history: History, replicas: int) -> int:
    """Return how many replicas the newest reading of a history asks for; `replicas` if these are enough."""
    newest = history.demands[-1]
    asked = [
        _replicas_for_slots(limits, estimate.mean / limits.target_utilisation)
        for estimate in (*newest.estimates, history.whole)
        if _replicas_for_slots(limits, estimate.least / limits.target_utilisation) > replicas
    ]
    if _replicas_for_slots(limits, _slots_beyond_chance(newest.latest)) > replicas:
        asked.append(_replicas_for_slots(limits, newest.latest))
    return max(asked, default=replicas)


def _sufficient_replicas(limits: Limits, history: History) -> int:
    """Return the fewest replicas with which no reading of a history would have asked for more, and what one did."""
    least = max(history.whole.least, *(estimate.least for demand in history.demands for estimate in demand.estimates))
    highest = max(demand.latest for demand in history.demands)
    asked = max(demand.asked for demand in history.demands)
    return max(
        asked, _replicas_for_slots(limits, max(_slots_beyond_chance(highest), least / limits.target_utilisation))
    )


def _slots_beyond_chance(reading: float) -> float:
    """Return the slots s for which a reading is just explained by chance: `reading = s + BEYOND_CHANCE · √s`."""
    return (math.sqrt(reading + BEYOND_CHANCE**2 / 4) - BEYOND_CHANCE / 2) ** 2


def _replicas_for_slots(limits: Limits, slots: float) -> int:
    """Return how many replicas have so many slots; at least one, whatever the limits are."""
    return max(1, math.ceil(slots / limits.slots * (1 - ROUNDING)))


def _load_text(limits: Limits, reading: Reading, wanted: int) -> str:
    """Return the load in words, such as `12 busy, 3 waiting for 8 × 2 slots (94 %, target 70 %)`."""
    utilisation = reading.demand / (wanted * limits.slots)
    return (
        f"{reading.busy:.0f} busy, {reading.queued:.0f} waiting for {wanted} × {limits.slots} slots "
        f"({utilisation:.0%}, target {limits.target_utilisation:.0%})"
    )


def _change_text(limits: Limits, replicas: int, required: int) -> str:
    """Return what the load means, such as `8 replicas`, or that more would be needed than there may be."""
    number = f"{replicas} replica" if replicas == 1 else f"{replicas} replicas"
    return f"{number} of the {required} that it needs" if required > limits.maximum >= replicas else number


def _bounds_text(limits: Limits, floor: Floor | None, now: float) -> str:
    """Return the bounds in words, such as `between 1 and 10, at least 4 for a shift`."""
    text = f"between {limits.minimum} and {limits.maximum}"
    if floor and floor.at(now) > limits.minimum:
        text += f", at least {min(floor.replicas, limits.maximum)} as was just asked for"
    return text
