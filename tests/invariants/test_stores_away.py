"""A failing rollout whose record, metric store or target is away for ten minutes, from any of its steps on.

The real tasks, steps, looks, gate and record run on simulated surroundings, in simulated time.
"""

from collections.abc import Callable

import pytest

from controlled_rollout.errors import AccessError, TargetUnavailableError
from tests.invariants.simulated_airflow import Options
from tests.invariants.world import BROKEN, World

AWAY_S = 600.0
MINUTE_S = 60.0
TICK_S = 2.0
END_S = 3_600.0
VERSION = "two"

# From which moment on: before a task runs, or while the gate waits, or once its alarm has reached Airflow.
MOMENTS = ("check", "roll_out", "shift_10", "gate_10", "gate_10 waits", "gate_10 alarms", "roll_back")


def record_away(world: World, until: float) -> None:
    world.record.unavailable_until = until


def record_full(world: World, until: float) -> None:
    world.record.full_until = until


def record_hangs(world: World, until: float) -> None:
    world.record.hangs_until = until


def store_away(world: World, until: float) -> None:
    world.store.unavailable_until = until


def store_nonsense(world: World, until: float) -> None:
    world.store.nonsense_until = until


def target_away(world: World, until: float) -> None:
    world.target.outage = TargetUnavailableError("503: the target does not answer")
    world.target.unavailable_until = until


def target_refuses(world: World, until: float) -> None:
    world.target.outage = AccessError("401: the token is not valid")
    world.target.unavailable_until = until


# With a store that has to be read, or a target that has to be changed, an alarm is visible once that is back.
UNSEEN = (store_away, store_nonsense, target_away, target_refuses)
FAULTS = (record_away, record_full, record_hangs, *UNSEEN)


class FailingRollout:
    """A rollout whose treatment fails all requests, from its first one on or from a moment on.

    Args:
        fault: What is away from a moment on; None for nothing.
        moment: From which moment on.
        breaks_at: From which moment on the treatment fails; empty for its first request.

    Attributes:
        broken: Since when it fails, in seconds; None if always.
        began: When the treatment got its first traffic, in seconds; None if it never did.
        alarmed: When a look failed for the first time, as the record tells.
        ended: When it had no traffic any more.
    """

    def __init__(
        self, fault: Callable[[World, float], None] | None = None, moment: str = "", *, breaks_at: str = ""
    ) -> None:
        self.world = World()
        self.broken: float | None = None
        if not breaks_at:
            self.world.traffic.error_rates[VERSION] = BROKEN
        self.run = self.world.start_run(VERSION, Options())
        self.away_until: float | None = None
        self.began: float | None = None
        self.ended: float | None = None
        while self.world.clock.seconds < END_S and not self.run.is_over:
            if fault is not None and self.away_until is None and self._is_at(moment):
                self.away_until = self.world.clock.seconds + AWAY_S
                fault(self.world, self.away_until)
            if breaks_at and self.broken is None and self._is_at(breaks_at):
                self.broken = self.world.clock.seconds
                self.world.target.advance()
                self.world.traffic.error_rates[VERSION] = BROKEN
            self._take_step()
        self.world.close()

    @property
    def alarmed(self) -> float:
        failed = [look.time for look in self.world.decisions if look.outcome == "fail"]
        return self.world.clock_seconds(failed[0])

    def _is_at(self, moment: str) -> bool:
        """Return whether a moment has come."""
        name, _, what = moment.partition(" ")
        task = self.run.task(name)
        if what == "waits":
            return task.state == "deferred"
        return task in self.world.runnable() and (task.state == "deferred") == (what == "alarms")

    def _take_step(self) -> None:
        """Run one task that can run, or let a little time pass; note whether the treatment has traffic after it."""
        ready = self.world.runnable()
        if ready:
            self.world.run_task(ready[0])
        else:
            self.world.pass_time(TICK_S)
        if self.world.target.split.weights.get(VERSION, 0):
            self.began, self.ended = self.began or self.world.clock.seconds, None
        elif self.began is not None and self.ended is None:
            self.ended = self.world.clock.seconds


def test_a_failing_rollout_is_rolled_back_within_a_minute_of_its_alarm() -> None:
    undisturbed = FailingRollout()
    assert undisturbed.began is not None
    assert undisturbed.ended is not None
    assert undisturbed.began < undisturbed.alarmed <= undisturbed.ended <= undisturbed.alarmed + MINUTE_S


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_failing_rollout_is_rolled_back_within_a_minute_whatever_is_away(
    fault: Callable[[World, float], None], moment: str
) -> None:
    undisturbed = FailingRollout()
    rollout = FailingRollout(fault, moment)

    assert rollout.away_until is not None, "the moment did not come"
    assert rollout.run.is_over
    assert rollout.run.task("promote").state != "success"
    newest = rollout.world.newest
    assert newest is not None
    assert newest.rollout is None
    assert newest.effective_traffic().get(VERSION, 0) == 0
    if rollout.began is None:
        return  # it was given up before it got any traffic
    assert undisturbed.began is not None
    assert rollout.ended is not None
    visible = rollout.began + undisturbed.alarmed - undisturbed.began
    if fault in UNSEEN:
        visible = max(visible, rollout.away_until)
    assert rollout.ended <= visible + MINUTE_S


@pytest.mark.parametrize(("moment", "gate"), [("shift_50", "gate_10"), ("promote", "gate_50")])
@pytest.mark.parametrize("fault", [record_away, record_hangs], ids=lambda fault: fault.__name__)
def test_while_a_step_forward_waits_for_the_record_looks_go_on(
    fault: Callable[[World, float], None], moment: str, gate: str
) -> None:
    seen_by_its_gate = FailingRollout(breaks_at=f"{gate} waits")
    assert seen_by_its_gate.broken is not None
    rollout = FailingRollout(fault, moment, breaks_at=moment)
    assert rollout.broken is not None
    assert rollout.ended is not None

    visible = rollout.broken + seen_by_its_gate.alarmed - seen_by_its_gate.broken
    assert rollout.ended <= visible + MINUTE_S
    newest = rollout.world.newest
    assert newest is not None
    assert newest.effective_traffic().get(VERSION, 0) == 0
