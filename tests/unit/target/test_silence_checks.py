"""What a watcher remembers of all endpoints: right whatever its own clock does, and whoever's clock the signs carry."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.rollout import OnSilence
from controlled_rollout.target.protocol import Change, LookNote, Revision
from controlled_rollout.target.silence import MAX_PAUSE, TakeBack
from controlled_rollout.target.silence_checks import SilenceChecks
from controlled_rollout.target.watch_clock import WatchClock

BEGIN = datetime(2026, 1, 5, tzinfo=UTC)
SILENCE = timedelta(minutes=30)
JUMPS = [-86_400, -3_600, 3_600, 86_400]


class Machine:
    """A machine with a watcher that checks one canary every ten seconds, and a clock that can be set."""

    def __init__(self, *, watched_since: datetime | None = None) -> None:
        self.seconds, self.set_by = 0.0, 0.0
        clock = WatchClock(lambda: self.now, lambda: self.seconds)
        self.checks = SilenceChecks(watched_since=watched_since, clock=clock)
        self.newest = self.shifted_at(BEGIN)

    @property
    def now(self) -> datetime:
        """The time by the machine's clock."""
        return BEGIN + timedelta(seconds=self.seconds + self.set_by)

    def shifted_at(self, at: datetime) -> Revision:
        endpoint = Endpoint(name="digits").create_version("v1a", is_control=True)
        endpoint = endpoint.claim("v2a", owner="a run", at=at, on_silence=OnSilence.ROLL_BACK, silence=SILENCE)
        endpoint = endpoint.create_version("v2a", traffic_percentile=10)
        return Revision(number=2, endpoint=endpoint, change=Change(who="a run/shift"), created=at)

    def check(self, looked: datetime | None = None) -> TakeBack | None:
        """Begin a round ten seconds later, and check the canary."""
        self.seconds += 10
        self.checks.begin_round({"digits"})
        note = LookNote(version="v2a", at=looked) if looked is not None else None
        return self.checks.check(self.newest, note)


@pytest.mark.parametrize("jump_s", JUMPS)
def test_a_clock_that_is_set_neither_takes_a_treatment_back_that_is_looked_at_now_and_then_nor_keeps_another(
    jump_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody looks every ten minutes, by the same clock: rarely enough that a new count would be too short."""
    machine, looked = Machine(), BEGIN
    for second in range(0, 7_200, 10):
        machine.set_by = jump_s if second >= 3_500 else 0.0
        looked = machine.now if second % 600 == 0 else looked
        assert machine.check(looked) is None
    assert "the clock of this machine was set" in caplog.text
    last_s = machine.seconds
    while (order := machine.check(looked)) is None:
        assert machine.seconds < last_s + SILENCE.total_seconds()
    assert order.reason.startswith(f"nobody looked since {looked:%Y-%m-%d %H:%M}"), "by the clock as it is now"


@given(jump_s=st.floats(-100_000, 100_000))
def test_a_clock_that_is_set_changes_nothing_of_when_a_treatment_is_taken_back(jump_s: float) -> None:
    machine = Machine()
    machine.check()
    while machine.check() is None:
        machine.set_by = jump_s if machine.seconds >= 900 else 0.0
    # A first check counts from a sign of before it.
    assert SILENCE.total_seconds() <= machine.seconds <= SILENCE.total_seconds() + 10


@pytest.mark.parametrize("jump_s", JUMPS)
def test_the_next_try_waits_as_long_as_ever_when_the_clock_is_set(jump_s: float) -> None:
    machine = Machine()
    while (order := machine.check()) is None:
        pass
    for _ in range(8):
        tries = machine.checks.note_end(order, "forbidden")
    assert tries is not None and tries.next - machine.now == MAX_PAUSE
    machine.set_by = jump_s
    tried_s = machine.seconds
    while machine.check() is None:
        pass
    assert machine.seconds == tried_s + MAX_PAUSE.total_seconds()
    assert machine.checks.note_end(order, "") is None
    assert machine.checks.failed_tries("digits") is None


@pytest.mark.parametrize("skew_s", [-86_400, -3_600, 0, 3_600])
def test_a_new_rollout_is_given_its_whole_silence_whatever_the_clock_of_who_shifts_says(skew_s: float) -> None:
    """The watcher has been at work for long, so it knows that there was no such rollout at its last round."""
    machine = Machine(watched_since=BEGIN - timedelta(days=9))
    machine.checks.begin_round(())
    machine.newest = machine.shifted_at(BEGIN + timedelta(seconds=skew_s))
    while machine.check() is None:
        pass
    assert SILENCE.total_seconds() <= machine.seconds <= SILENCE.total_seconds() + 20


def test_a_watcher_that_takes_over_and_cannot_read_the_first_looks_goes_on_with_the_same_count() -> None:
    """Such as while the API server is away: rounds begin, and nothing is checked."""
    machine = Machine(watched_since=BEGIN - timedelta(days=9))
    for _ in range(60):
        machine.seconds += 10
        machine.checks.begin_round({"digits"})
    while machine.check() is None:
        pass
    assert SILENCE.total_seconds() <= machine.seconds <= SILENCE.total_seconds() + 10


@pytest.mark.parametrize("jump_s", JUMPS)
def test_a_new_rollout_is_given_its_whole_silence_although_the_clock_is_set_at_that_moment(jump_s: float) -> None:
    machine = Machine(watched_since=BEGIN - timedelta(days=9))
    machine.checks.begin_round(())
    machine.set_by = jump_s
    machine.newest = machine.shifted_at(BEGIN - timedelta(days=2))  # by a clock that is far behind
    while machine.check() is None:
        pass
    assert SILENCE.total_seconds() <= machine.seconds <= SILENCE.total_seconds() + 20


def test_an_endpoint_that_is_deleted_and_made_again_with_the_same_revisions_is_given_its_whole_silence() -> None:
    machine = Machine()
    while machine.seconds < 1_700:
        assert machine.check() is None
    machine.checks.begin_round({"another"})
    assert machine.checks.names == []
    machine.newest = machine.shifted_at(machine.now)
    again_s = machine.seconds
    while machine.check() is None:
        pass
    assert machine.seconds >= again_s + SILENCE.total_seconds()


def test_a_rollout_that_is_held_is_forgotten() -> None:
    machine = Machine()
    machine.check()
    machine.checks.forget("digits")
    assert machine.checks.names == []


def test_a_clock_that_is_only_made_faster_has_not_jumped() -> None:
    machine = Machine()
    clock = WatchClock(lambda: machine.now, lambda: machine.seconds)
    machine.seconds, machine.set_by = 10.0, 0.5
    assert clock.read() == (machine.now, timedelta(0))
    machine.set_by = -3.0
    assert clock.read() == (machine.now, timedelta(seconds=-3.5))
    assert WatchClock().read()[1] == timedelta(0)
