"""Raw samples of counters -> growth in bins: nothing is extrapolated, nothing is guessed."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.evidence.increments import bound_at_least, growth_by_bin, growths, quantile_bounds

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
START = T0.timestamp()
MINUTE = timedelta(minutes=1)


def at(*samples: tuple[float, float]) -> list[tuple[float, float]]:
    return [(START + seconds, value) for seconds, value in samples]


def numbers(samples: list[tuple[float, float]], scrapes: list[tuple[float, float]] | None = None) -> list[int]:
    scrapes = scrapes if scrapes is not None else [(time, 10_000.0) for time, _ in samples]
    return [growth.number for growth in growths(samples, scrapes, longest=MINUTE)]


def test_a_counter_grows_by_the_difference_and_what_it_had_before_is_not_counted() -> None:
    assert numbers(at((0, 500), (15, 510), (30, 510), (45, 517))) == [10, 0, 7]


def test_a_counter_that_went_back_began_anew() -> None:
    assert numbers(at((0, 500), (15, 510), (30, 4), (45, 6))) == [10, 4, 2]


def test_growth_during_a_gap_longer_than_a_bin_is_left_out() -> None:
    assert numbers(at((0, 500), (15, 510), (90, 900), (105, 901))) == [10, 1]


def test_a_counter_that_was_not_there_at_the_scrape_before_counts_from_zero() -> None:
    scrapes = at((0, 1000), (15, 1015), (30, 1030))
    assert numbers(at((15, 3), (30, 5)), scrapes) == [3, 2]


def test_the_first_scrape_of_a_young_router_counts_and_that_of_an_old_one_does_not() -> None:
    assert numbers(at((15, 3), (30, 5)), at((15, 12), (30, 27))) == [3, 2]
    assert numbers(at((15, 3), (30, 5)), at((15, 86_400), (30, 86_415))) == [2]
    assert numbers(at((15, 3)), []) == []


def test_a_scrape_on_a_bin_s_edge_tells_of_the_bin_that_ends_there() -> None:
    scrapes = at((0, 1), (30, 31), (60, 61), (75, 76))
    grown = growths(at((0, 0), (30, 1), (60, 3), (75, 7)), scrapes, longest=MINUTE)
    assert growth_by_bin(grown, width=MINUTE, started=T0 + timedelta(seconds=30)) == {
        (T0 - MINUTE, True): 0,
        (T0, True): 1,
        (T0, False): 2,
        (T0 + MINUTE, False): 4,
    }


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_every_request_is_in_exactly_one_bin(steps: list[int]) -> None:
    total, samples = 0, [(START, 0.0)]
    for number, step in enumerate(steps, start=1):
        total += step
        samples.append((START + 15 * number, float(total)))
    by_bin = growth_by_bin(
        growths(samples, [(time, 1e6) for time, _ in samples], longest=MINUTE), width=MINUTE, started=T0
    )
    assert sum(by_bin.values()) == total


def test_quantiles_are_the_next_bound_above() -> None:
    cumulative = {1.0: 10, 5.0: 60, 10.0: 95, 25.0: 99, float("inf"): 100}
    assert quantile_bounds(cumulative, (0.5, 0.95, 0.96), fewest=100) == (5.0, 10.0, 25.0)
    assert quantile_bounds(cumulative, (0.5,), fewest=101) == ()
    # Beyond the last bound nothing is known: latency is then not judged at all.
    assert quantile_bounds(cumulative, (0.5, 0.995), fewest=100) == ()


@pytest.mark.parametrize(("value", "bound"), [(4.9, 5), (5, 5), (5.1, 10), (11, None)])
def test_the_treatment_s_threshold_is_a_bound_too(value: float, bound: float | None) -> None:
    assert bound_at_least((1, 5, 10), value) == bound
