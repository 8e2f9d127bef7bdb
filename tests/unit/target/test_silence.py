"""When a treatment is taken back because nobody looks: in time, never while somebody does, whatever clocks say."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import Endpoint, EndpointError
from controlled_rollout.rollout import OnSilence, Rollout
from controlled_rollout.target.protocol import Change, LookNote, Revision
from controlled_rollout.target.silence import (
    GAP,
    GRACE,
    MAX_PAUSE,
    FailedTries,
    Observation,
    Signs,
    TakeBack,
    Watched,
    check_silence,
    unattended_rollout,
)

BEGIN = datetime(2026, 1, 5, tzinfo=UTC)
SILENCE = timedelta(minutes=30)
EVERY = timedelta(seconds=10)
ROLLING = (
    Endpoint(name="digits")
    .create_version("v1a", is_control=True)
    .claim("v2a", owner="dag/run", at=BEGIN, on_silence=OnSilence.ROLL_BACK, silence=SILENCE)
    .create_version("v2a", traffic_percentile=10)
)


def signs(looked_s: float | None = None, endpoint: Endpoint = ROLLING, number: int = 2) -> Signs:
    """The signs of a shift at the beginning, and of a look so many seconds later by the clock of who looked."""
    newest = Revision(number=number, endpoint=endpoint, change=Change(who="dag/run/shift"), created=BEGIN)
    return Signs(newest, None if looked_s is None else LookNote(version="v2a", at=BEGIN + timedelta(seconds=looked_s)))


def changed(**changes: object) -> Endpoint:
    """The endpoint with another rollout."""
    rollout = ROLLING.rollout
    assert rollout is not None
    return ROLLING.model_copy(update={"rollout": rollout.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("endpoint", "what"),
    [
        (changed(on_silence=OnSilence.KEEP), "the author keeps it"),
        (changed(held=BEGIN), "people have been told, and one decides"),
        (ROLLING.roll_back("v2a"), "it has no traffic"),
        (ROLLING.promote("v2a"), "it is control"),
        (ROLLING.update_version("v2a", is_default=True), "it is the default, and nothing would take its place"),
        (ROLLING.release("v2a"), "a person has shifted by hand, and no run holds the endpoint"),
        (ROLLING.delete_version("v2a"), "it is deleted"),
        (changed(version="v1a"), "the version of the rollout is control"),
        (Endpoint(name="digits"), "there is nothing"),
    ],
)
def test_nothing_is_taken_back_where_nobody_has_to_look(endpoint: Endpoint, what: str) -> None:
    assert unattended_rollout(endpoint) is None, what
    check = check_silence(signs(endpoint=endpoint), None, now=BEGIN + 9 * SILENCE)
    assert (check.take_back, check.due) == (None, None)


def test_a_rollout_that_was_stored_without_the_setting_is_kept() -> None:
    document = ROLLING.model_dump(mode="json")
    del document["rollout"]["on_silence"], document["rollout"]["silence"]
    assert unattended_rollout(Endpoint.model_validate(document)) is None


class Watcher:
    """Checks every ten seconds, as the supervisor and the agent do."""

    def __init__(self, watched_since: datetime | None = None) -> None:
        self.before: Observation | None = None
        self.watched_since = watched_since

    def check(self, at_s: float, found: Signs) -> TakeBack | None:
        result = check_silence(
            found, self.before, now=BEGIN + timedelta(seconds=at_s), watched_since=self.watched_since
        )
        self.before = result.observation
        return result.take_back


def test_reason_and_what_it_was_decided_on_are_those_of_the_last_look() -> None:
    watcher = Watcher()
    for second in range(0, 3600, 10):
        order = watcher.check(second, signs(600 if second >= 600 else None))
        if order is not None:
            break
    assert order is not None
    assert second == 2400
    assert order.reason == "nobody looked since 2026-01-05 00:10:00 UTC (silence 30 min)"
    assert order.is_right(signs(600))
    assert not order.is_right(signs(601)) and not order.is_right(signs(600, number=3)) and not order.is_right(signs())
    assert TakeBack.model_validate_json(order.model_dump_json()) == order


def test_tries_that_fail_wait_ever_longer_up_to_a_minute_and_people_are_told_why() -> None:
    order, now = Watcher().check(9 * SILENCE.total_seconds(), signs()), BEGIN
    assert order is None, "who begins to watch gives others time to look"
    watcher = Watcher()
    for second in range(0, 3600, 10):
        order = watcher.check(second, signs()) or order
    assert order is not None
    tries = FailedTries(order, "the disk is full", now)
    pauses = []
    for _ in range(40):
        assert tries.is_too_soon(order, tries.last) and not tries.is_too_soon(order, tries.next)
        pauses.append((tries.next - tries.last).total_seconds())
        tries = tries.and_another(order, "the disk is full", tries.next)
    assert pauses[:6] == [2, 4, 8, 16, 32, 60]
    assert max(pauses) == MAX_PAUSE.total_seconds()
    assert not tries.is_too_soon(order, tries.last - timedelta(seconds=1)), "its clock was set back"
    assert FailedTries(order, "the disk is full", BEGIN).sentence == (
        "version 'v2a' keeps its traffic although nobody looked since 2026-01-05 00:00:00 UTC (silence 30 min): "
        "taking it back has failed once, and is tried again at 2026-01-05 00:00:02 UTC: the disk is full"
    )
    later = order.model_copy(update={"revision": order.revision + 1})
    assert not tries.is_too_soon(later, tries.last), "that is another decision"
    assert tries.and_another(later, "", tries.last).count == 1


def test_a_look_at_another_version_is_no_look_at_the_treatment() -> None:
    other = Signs(signs().newest, LookNote(version="v0a", at=BEGIN + timedelta(days=1)))
    assert other.at == BEGIN
    assert other.key == signs().key


@given(
    looks=st.lists(st.floats(1, 7200), max_size=12),
    skew_s=st.floats(-7200, 7200),
    silence_s=st.integers(1, 7200),
)
def test_it_is_taken_back_in_time_after_the_last_look_and_never_before_whatever_the_clock_of_who_looks_says(
    looks: list[float], skew_s: float, silence_s: int
) -> None:
    endpoint = changed(silence=timedelta(seconds=silence_s))
    watcher, last = Watcher(), 0.0
    found = signs(endpoint=endpoint)
    for second in range(0, 7200 + silence_s + 60, 10):
        if passed := [moment for moment in looks if last < moment <= second]:
            last = max(passed)
            found = signs(last + skew_s, endpoint)
        if watcher.check(second, found) is not None:
            # A look that is new to the watcher was within its last interval.
            assert last + silence_s - 10 <= second <= last + silence_s + 20
            return
    raise AssertionError("it is never taken back")


@given(begun_s=st.integers(0, 7200), silence_s=st.integers(1, 7200))
def test_a_watcher_that_begins_takes_nothing_back_before_others_could_look_too(begun_s: int, silence_s: int) -> None:
    found = signs(endpoint=changed(silence=timedelta(seconds=silence_s)))
    watcher = Watcher()
    grace = min(timedelta(seconds=silence_s), GRACE).total_seconds()
    due = max(silence_s, begun_s + grace)
    for second in range(begun_s, begun_s + silence_s + 200, 10):
        if watcher.check(second, found) is not None:
            assert due <= second < due + 10
            return
    raise AssertionError("it is never taken back")


@given(stops_s=st.integers(0, 7200), away_s=st.integers(0, 60), silence_s=st.integers(1, 7200))
def test_a_watcher_that_takes_over_takes_back_in_time_and_not_earlier(
    stops_s: int, away_s: int, silence_s: int
) -> None:
    """The one before has watched since long before the rollout, and has stopped so many seconds after its shift."""
    found = signs(endpoint=changed(silence=timedelta(seconds=silence_s)))
    watched = Watched(begun=BEGIN - GRACE, checked=BEGIN + timedelta(seconds=stops_s))
    begins_s = stops_s + away_s
    watcher = Watcher(Watched.after(watched, BEGIN + timedelta(seconds=begins_s)).begun)
    due = max(silence_s, begins_s)
    for second in range(begins_s, begins_s + silence_s + 200, 10):
        if watcher.check(second, found) is not None:
            assert due <= second < due + 10
            return
    raise AssertionError("it is never taken back")


@pytest.mark.parametrize(
    ("away", "goes_on"),
    [(timedelta(0), True), (GAP, True), (GAP * 1.1, False), (-timedelta(seconds=1), False)],
    ids=["at once", "within a minute", "later", "with a clock that was set back"],
)
def test_who_takes_over_goes_on_if_nobody_was_missing_for_more_than_a_minute(away: timedelta, goes_on: bool) -> None:
    before = Watched(begun=BEGIN - SILENCE, checked=BEGIN)
    after = Watched.after(before, BEGIN + away)
    assert after == Watched(begun=before.begun if goes_on else BEGIN + away, checked=BEGIN + away)


def test_a_machine_that_was_suspended_gives_everybody_time_to_look_first() -> None:
    watcher = Watcher()
    watcher.check(0, signs())
    assert watcher.check(50_000, signs()) is None
    assert watcher.check(50_010, signs(50_005)) is None
    assert watcher.check(50_000 + GRACE.total_seconds() + 10, signs(50_005)) is None
    again = Watcher()
    again.check(0, signs())
    for second in range(50_000, 50_000 + int(GRACE.total_seconds()), 10):
        assert again.check(second, signs()) is None
    assert again.check(50_000 + GRACE.total_seconds(), signs()) is not None


@given(jump_s=st.floats(-100_000, 100_000))
def test_a_clock_of_the_watcher_that_jumps_takes_nothing_back_that_is_looked_at(jump_s: float) -> None:
    """Every ten seconds somebody looks, with the same clock."""
    watcher = Watcher()
    for second in range(0, 600, 10):
        at = second + (jump_s if second >= 300 else 0.0)
        assert watcher.check(at, signs(at)) is None


def test_a_pause_that_is_no_gap_changes_nothing() -> None:
    watcher = Watcher()
    late = GAP.total_seconds()
    for second in range(0, 1800, int(late)):
        assert watcher.check(second, signs()) is None
    assert watcher.check(1800, signs()) is not None


def test_silence_has_a_least_length() -> None:
    with pytest.raises(EndpointError, match=r"silence = 0\.5 s is too short"):
        Rollout(version="v2a", owner="dag/run", started=BEGIN, silence=timedelta(seconds=0.5))
