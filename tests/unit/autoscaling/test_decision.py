"""The autoscaler's decision: how many replicas, for which load, after which time."""

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.autoscaling import DOWN_WINDOW_S, Decision, Floor, History, Limits, Reading, decide

NOW = 1_800_000_000.0
LIMITS = Limits(minimum=1, maximum=10, slots=1, target_utilisation=0.7)


def after(
    readings: Iterable[float | None],
    *,
    wanted: int = 1,
    limits: Limits = LIMITS,
    floor: Floor | None = None,
    history: History | None = None,
    start: float = NOW,
    ready: int | None = None,
) -> Decision:
    """Return the last decision of one a second; all replicas that are asked for are ready unless it is said."""
    decision = Decision(wanted, "", history or History())
    for second, demand in enumerate(readings):
        reading = None if demand is None else Reading(busy=demand)
        decision = decide(
            limits,
            reading,
            wanted=decision.replicas,
            ready=decision.replicas if ready is None else ready,
            now=start + second,
            history=decision.history,
            floor=floor,
        )
    return decision


def test_load_of_eight_busy_replicas_is_seen_in_the_first_reading_and_has_its_head_room_after_four() -> None:
    limits = Limits(1, 20, 1, 0.7)
    before = after([0.5] * 60)
    assert before.replicas == 1
    first = after([8.0], wanted=1, history=before.history, start=NOW + 60, limits=limits)
    assert first.replicas == 8  # all can be answered at once
    fourth = after([8.0] * 3, wanted=8, history=first.history, start=NOW + 61, limits=limits)
    assert fourth.replicas == 12  # and 70 % of the slots are busy


@pytest.mark.parametrize(("before", "then", "most_readings"), [(5.0, 8.0, 4), (5.0, 10.0, 3), (1.0, 20.0, 1)])
def test_utilisation_above_the_target_gives_more_replicas_within_a_few_readings(
    before: float, then: float, most_readings: int
) -> None:
    calm = after([before] * 10, wanted=10)
    assert calm.replicas == 10
    limits = Limits(1, 30, 1, 0.7)
    busier = after([then] * most_readings, wanted=10, history=calm.history, start=NOW + 10, limits=limits)
    assert busier.replicas > 10


def test_one_reading_that_chance_explains_starts_no_replica() -> None:
    assert after([0.5] * 20 + [3.0] + [0.0] * 3, wanted=1).replicas == 1
    assert after([5.0] * 20 + [11.0] + [4.0] * 3, wanted=8).replicas == 8


def test_requests_that_wait_in_the_router_count_as_much_as_those_that_are_answered() -> None:
    waiting = decide(LIMITS, Reading(busy=2, queued=4), wanted=2, ready=2, now=NOW)
    assert waiting.replicas == decide(LIMITS, Reading(busy=6), wanted=2, ready=2, now=NOW).replicas == 6
    assert waiting.reason == "2 busy, 4 waiting for 2 × 1 slots (300%, target 70%): 6 replicas"


def test_fewer_replicas_only_after_a_smaller_number_was_enough_for_a_whole_minute() -> None:
    busy = after([7.0] * 70, wanted=10)
    assert busy.replicas == 10
    at_59_s = after([1.0] * 60, wanted=10, history=busy.history, start=NOW + 70)
    assert at_59_s.replicas == 10
    later = after([1.0] * 4, wanted=10, history=at_59_s.history, start=NOW + 130)
    assert later.replicas == 2


def test_one_busy_moment_of_the_last_minute_keeps_the_replicas_that_it_needed() -> None:
    readings = [1.0] * 80 + [5.0] * 4 + [1.0] * 50
    assert after(readings, wanted=8).replicas == 8


def test_replicas_that_start_count_as_there() -> None:
    first = decide(Limits(1, 20, 1, 0.7), Reading(8), wanted=1, ready=1, now=NOW)
    later = after([8.0] * 30, wanted=first.replicas, history=first.history, start=NOW + 1, limits=LIMITS, ready=1)
    assert first.replicas == 8 and later.replicas == 10  # the second with a maximum of 10


def test_burst_that_grows_is_extrapolated_and_one_step_is_not() -> None:
    limits = Limits(1, 1000, 1, 1.0)
    grows = after([10.0, 10, 20, 30, 40, 50], wanted=10, limits=limits)
    assert 50 < grows.replicas <= 100
    steps = after([10.0, 10, 10, 10, 10, 50], wanted=10, limits=limits)
    assert steps.replicas == 50


def test_version_is_never_below_what_a_shift_was_sized_for_until_that_has_ended() -> None:
    floor = Floor.for_shift(6, NOW)
    idle = after([0.0] * 300, wanted=6, floor=floor)
    assert idle.replicas == 6 and "at least 6 as was just asked for" in idle.reason
    assert after([0.0] * 62, wanted=6, floor=floor, history=idle.history, start=floor.until).replicas == 1
    assert decide(LIMITS, Reading(0), wanted=1, ready=1, now=NOW, floor=Floor.for_shift(40, NOW)).replicas == 10


def test_counters_that_cannot_be_read_change_nothing() -> None:
    seen = after([0.0] * 100, wanted=5, floor=Floor.for_shift(5, NOW))
    blind = after([None] * 300, wanted=5, history=seen.history, start=NOW + 100)
    assert blind.replicas == 5
    assert blind.reason == "the router's counters cannot be read: the replicas stay as they are"


def test_after_a_time_without_counters_the_minute_for_going_down_begins_anew() -> None:
    readings = [0.0] * 50 + [None] * 30 + [0.0] * 59
    assert after(readings, wanted=5).replicas == 5
    assert after([*readings, 0.0, 0.0], wanted=5).replicas == 1
    short_gap = [0.0] * 50 + [None] * 5 + [0.0] * 7
    assert after(short_gap, wanted=5).replicas == 1


def test_version_of_which_no_replica_is_ready_keeps_its_replicas() -> None:
    decision = after([0.0] * 200, wanted=5, ready=0)
    assert (decision.replicas, decision.reason) == (5, "no replica is ready: the replicas stay as they are")


def test_restart_keeps_the_replicas_for_a_minute_and_may_add_some_at_once() -> None:
    assert after([0.0] * 60, wanted=9).replicas == 9
    assert after([0.0] * 61, wanted=9).replicas == 1
    assert after([9.0], wanted=2).replicas == 9


def test_version_scaled_to_zero_by_a_person_stays_there() -> None:
    assert decide(LIMITS, Reading(5), wanted=0, ready=0, now=NOW).replicas == 0


def test_bounds_hold_even_where_the_load_is_not_known() -> None:
    narrow = Limits(3, 5, 1, 0.7)
    assert decide(narrow, None, wanted=1, ready=1, now=NOW).replicas == 3
    assert decide(narrow, None, wanted=9, ready=9, now=NOW).replicas == 5
    assert "5 replicas of the 100 that it needs (between 3 and 5)" in after([70.0] * 4, limits=narrow).reason


def test_changes_are_as_far_apart_as_the_refresh_time_asks_for() -> None:
    slow = Limits(1, 10, 1, 0.7, refresh_s=30)
    first = after([5.0], limits=slow)
    assert first.replicas == 5
    waits = after([6.0] * 29, wanted=5, history=first.history, start=NOW + 1, limits=slow)
    assert waits.replicas == 5
    assert after([6.0], wanted=5, history=waits.history, start=NOW + 30, limits=slow).replicas == 9


def test_readings_that_come_faster_than_twice_a_second_count_as_one_and_say_the_same() -> None:
    decision = Decision(10, "", History())
    for tenth in range(1240):
        demand = 6.0 if tenth < 650 else 1.0
        decision = decide(
            LIMITS,
            Reading(demand),
            wanted=decision.replicas,
            ready=decision.replicas,
            now=NOW + tenth / 10,
            history=decision.history,
        )
        assert decision.replicas == (10 if tenth < 600 else 9)
    assert len(decision.history.demands) <= 121
    assert after([1.0] * 5, wanted=9, history=decision.history, start=NOW + 124).replicas == 2


def test_clock_that_was_set_back_takes_no_replica_away_before_a_minute() -> None:
    seen = after([0.0] * 30, wanted=5)
    assert after([0.0] * 60, wanted=5, history=seen.history, start=NOW - 1000).replicas == 5
    ended = Floor(5, NOW + 10_000)
    assert ended.at(NOW) == 0


@pytest.mark.parametrize(
    "limits", [(0, 1, 1, 0.7), (2, 1, 1, 0.7), (1, 1, 0, 0.7), (1, 1, 1, 0.0), (1, 1, 1, 1.1), (1, 1, 1, math.nan)]
)
def test_settings_that_no_version_can_have_are_refused(limits: tuple[int, int, int, float]) -> None:
    with pytest.raises(ValueError, match="no settings of an autoscaler"):
        Limits(*limits)


@pytest.mark.parametrize(
    "text", ["", "5", "x until 3", "-1 until 3", "5 until", "5 until nan", "5 until x", "٥ until 1"]
)
def test_damaged_text_of_a_floor_is_none(text: str) -> None:
    assert Floor.parse(text) is None


@given(st.integers(0, 10**6), st.floats(0, 1e10))
def test_floor_is_read_as_it_was_written(replicas: int, until: float) -> None:
    assert Floor.parse(str(Floor(replicas, until))) == Floor(replicas, until)


# Properties

settings = st.builds(
    lambda minimum, more, slots, target, refresh_s: Limits(minimum, minimum + more, slots, target, refresh_s),
    st.integers(1, 20),
    st.integers(0, 40),
    st.integers(1, 8),
    st.floats(0.05, 1.0),
    st.sampled_from([1.0, 1.0, 5.0]),
)
demands = st.floats(0, 500) | st.sampled_from([0.0, 0.7, 1.0, 7.0])
readings = st.lists(st.none() | st.builds(Reading, demands, st.floats(0, 50)), max_size=90)
floors = st.none() | st.builds(Floor, st.integers(0, 80), st.floats(NOW - 100, NOW + 700))


def run(
    limits: Limits, given_readings: Iterable[Reading | None], wanted: int, floor: Floor | None, step_s: float = 1.0
) -> tuple[Decision, float]:
    decision = Decision(wanted, "", History())
    now = NOW
    for reading in given_readings:
        decision = decide(
            limits,
            reading,
            wanted=decision.replicas,
            ready=decision.replicas,
            now=now,
            history=decision.history,
            floor=floor,
        )
        now += step_s
    return decision, now


@given(settings, readings, st.integers(1, 90), floors, st.booleans())
def test_replicas_stay_between_minimum_and_maximum_and_not_below_the_floor(
    limits: Limits, given_readings: list[Reading | None], wanted: int, floor: Floor | None, is_blind: bool
) -> None:
    decision, now = run(limits, given_readings, wanted, floor)
    last = decide(
        limits,
        None if is_blind else Reading(3),
        wanted=decision.replicas,
        ready=1,
        now=now,
        history=decision.history,
        floor=floor,
    )
    assert limits.minimum <= last.replicas <= limits.maximum
    assert last.replicas >= min(limits.maximum, floor.at(now) if floor else 0)
    assert len(last.history.demands) <= 2 * DOWN_WINDOW_S + 1


@given(settings, readings, st.integers(1, 90), floors, demands, st.floats(0, 200))
def test_more_load_never_gives_fewer_replicas(
    limits: Limits,
    given_readings: list[Reading | None],
    wanted: int,
    floor: Floor | None,
    demand: float,
    more: float,
) -> None:
    before, now = run(limits, given_readings, wanted, floor)
    less_load, more_load = (
        decide(
            limits,
            Reading(busy),
            wanted=before.replicas,
            ready=before.replicas,
            now=now,
            history=before.history,
            floor=floor,
        ).replicas
        for busy in (demand, demand + more)
    )
    assert less_load <= more_load


@given(settings, readings, st.integers(1, 90), demands)
def test_constant_load_changes_the_number_up_and_down_once_at_most(
    limits: Limits, given_readings: list[Reading | None], wanted: int, demand: float
) -> None:
    decision, now = run(limits, given_readings, wanted, None)
    numbers = [decision.replicas]
    for second in range(200):
        decision = decide(
            limits,
            Reading(demand),
            wanted=decision.replicas,
            ready=decision.replicas,
            now=now + second,
            history=decision.history,
        )
        numbers.append(decision.replicas)
    went_down = next((i for i in range(1, len(numbers)) if numbers[i] < numbers[i - 1]), len(numbers))
    assert numbers[:went_down] == sorted(numbers[:went_down])
    assert numbers[went_down:] == sorted(numbers[went_down:], reverse=True)
    needed = max(1, math.ceil(demand / limits.target_utilisation / limits.slots * (1 - 1e-9)))
    assert numbers[-1] == min(limits.maximum, max(limits.minimum, needed))


@given(settings, st.lists(demands, min_size=130, max_size=180), st.integers(1, 60))
def test_what_was_taken_away_was_not_needed_in_the_minute_before(
    limits: Limits, given_demands: list[float], wanted: int
) -> None:
    decision = Decision(wanted, "", History())
    for second, demand in enumerate(given_demands):
        before = decision.replicas
        decision = decide(
            limits, Reading(demand), wanted=before, ready=before, now=NOW + second, history=decision.history
        )
        if decision.replicas < min(before, limits.maximum):
            last_minute = given_demands[max(0, second - 60) : second + 1]
            assert second >= 60
            slots = decision.replicas * limits.slots
            assert max(last_minute) <= (slots + 2 * math.sqrt(slots)) * (1 + 1e-6)
