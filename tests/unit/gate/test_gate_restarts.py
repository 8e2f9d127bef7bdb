"""Health at one share hides nothing at the next: alarms begin anew at each change of the split, passes count there."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from controlled_rollout.gate import Bin, Category, Gate, Mean, Moments, judge
from controlled_rollout.gate.columns import columns
from controlled_rollout.gate.ratio import ABOVE, ABOVE_WEIGHTS, OddsRatio
from controlled_rollout.gate.restarts import Process, alarm_evidence, at_present_share, process_starts, process_weight
from tests.unit.gate.rollouts import BEGIN, MINUTE, claim, minute, simulated

Floats = NDArray[np.float64]

GATE = Gate(latency_quantiles=())


def at_shares(*shares: float | None, requests: tuple[int, int] = (10, 90)) -> list[Bin]:
    """Return one bin per share."""
    return [minute(index, (requests[0], 0), (requests[1], 0), share=share) for index, share in enumerate(shares)]


def later(bins: Sequence[Bin], after: Sequence[Bin]) -> list[Bin]:
    """Return bins followed by others."""
    shift = len(bins) * (bins[1].start - bins[0].start)
    return [*bins, *(replace(bin_, start=bin_.start + shift) for bin_ in after)]


def starts(bins: Sequence[Bin]) -> tuple[int, ...]:
    return process_starts(columns(bins, quantiles=0))


def present(bins: Sequence[Bin]) -> list[bool]:
    return [bool(value) for value in at_present_share(columns(bins, quantiles=0))]


def test_a_process_begins_with_the_bin_in_which_the_split_changes() -> None:
    assert starts(at_shares(0.1, 0.1, None, 0.5, 0.5, 0.9)) == (0, 2, 5)
    assert starts(at_shares(None, None, 0.1)) == (0,)
    assert starts(at_shares(None, None)) == (0,)
    assert starts([]) == (0,)


def test_no_process_begins_before_the_treatment_has_had_a_request() -> None:
    idle = [minute(index, (0, 0), (100, 0), share=0.0) for index in range(3)]
    assert starts(later(idle, at_shares(None, 0.1, 0.1, 0.5))) == (0, 6)


def test_the_present_share_is_that_of_the_newest_bin_since_another_one() -> None:
    assert present(at_shares(0.1, 0.1, None, 0.5, 0.5)) == [False, False, False, True, True]
    assert present(at_shares(0.1, 0.5, 0.1)) == [False, False, True]
    # A bin of unknown share between equal ones ends nothing, and does not count itself.
    assert present(at_shares(0.1, None, 0.1)) == [True, False, True]
    # What is stored and not yet served is no share.
    assert present(at_shares(0.1, 0.1, None)) == [False, False, False]
    assert present(at_shares(None, None)) == [True, True]


def test_the_weights_of_the_processes_add_up_to_one_and_starve_none_soon() -> None:
    weights = [process_weight(number) for number in range(2000)]

    assert sum(weights) == pytest.approx(1, abs=1e-3)
    assert weights == sorted(weights, reverse=True)
    assert weights[1] > 0.8 * (1 - weights[0])
    assert weights[6] > 1 / 800


def test_the_average_is_expected_to_stay_at_one_when_the_split_moves_by_what_was_seen() -> None:
    """Summed over every outcome of three small bins of two equal versions: the weights and restarts add nothing."""
    rate, expected = 0.3, 0.0

    def alike(requests: tuple[int, int]) -> list[tuple[tuple[int, int], float]]:
        """Return the errors of both versions that a bin may have, with their probabilities."""
        chances = [[binomial_chance(n, x, rate) for x in range(n + 1)] for n in requests]
        return [((x, y), chances[0][x] * chances[1][y]) for x in range(requests[0] + 1) for y in range(requests[1] + 1)]

    for first, chance in alike((2, 2)):
        # More traffic for the treatment after an error of control's, less after one of its own.
        second_requests = (3, 1) if first[1] else (2, 2)
        for second, chance_of_second in alike(second_requests):
            third_requests = (1, 3) if second[0] else second_requests
            for third, chance_of_third in alike(third_requests):
                requests, errors = ((2, 2), second_requests, third_requests), (first, second, third)
                bins = [
                    minute(index, (n[0], x[0]), (n[1], x[1]), share=n[0] / 4)
                    for index, (n, x) in enumerate(zip(requests, errors, strict=True))
                ]
                evidence = average_of_processes(bins)
                expected += chance * chance_of_second * chance_of_third * evidence

    assert expected == pytest.approx(1, rel=1e-9)


def binomial_chance(n: int, x: int, rate: float) -> float:
    """Return the probability of `x` events in `n` requests."""
    return math.comb(n, x) * math.pow(rate, x) * math.pow(1 - rate, n - x)


def average_of_processes(bins: Sequence[Bin]) -> float:
    """Return the average of the processes that the errors are more, after the last bin."""
    counted = columns(bins, quantiles=0)

    def components(first: int, length: int) -> tuple[Sequence[Floats], Sequence[float]]:
        span = counted.since(first)
        return OddsRatio(span.treatment, span.control, span.errors).paths(1.0, ABOVE, length), ABOVE_WEIGHTS

    processes = [Process(first, partial(components, first)) for first in process_starts(counted)]
    return math.exp(alarm_evidence(processes, len(bins), math.log(1e6)).now)


def test_a_process_counts_as_one_until_it_begins() -> None:
    first, second = np.log([2.0, 4.0, 8.0]), np.log([100.0])
    processes = [Process(0, lambda bins: ([first[:bins]], [1.0])), Process(2, lambda bins: ([second[:bins]], [1.0]))]
    weights = process_weight(0), process_weight(1)

    before = alarm_evidence(processes, 2, math.log(1e6))
    after = alarm_evidence(processes, 3, math.log(1e6))

    assert math.exp(before.now) == pytest.approx(4 * weights[0] + 1 - weights[0])
    assert math.exp(after.now) == pytest.approx(8 * weights[0] + 100 * weights[1] + 1 - sum(weights))
    assert (before.since, after.since) == (0, 2)


def test_errors_that_begin_at_a_shift_are_found_about_as_fast_as_from_the_start() -> None:
    bad = simulated(random.Random(1), 30, treatment_rate=0.03)
    healthy = [
        minute(index, (300, 1 if index % 2 else 2), (2700, 14), share=0.1) for index in range(144)
    ]  # a day, in bins of ten minutes

    def minutes_until(bins: Sequence[Bin], since: int) -> int:
        return next(n for n in range(since + 1, len(bins) + 1) if judge(bins[:n], GATE).outcome == "fail") - since

    from_start = minutes_until(bad, 0)
    after_a_day = minutes_until(later(healthy, bad), len(healthy))

    assert after_a_day <= max(from_start + 1, 1.5 * from_start)
    reason = judge(later(healthy, bad), GATE).reason
    assert "since the split changed at" in reason


def test_a_difference_within_tolerance_does_not_fail_by_chance_in_the_first_bin_after_a_shift() -> None:
    tolerated = [minute(index, (100_000, 40), (100_000, 10), share=0.5) for index in range(10)]
    chance = [minute(0, (90, 1), (10, 0), share=0.9)]

    assert judge(later(tolerated, chance), GATE).outcome != "fail"


def test_health_at_one_share_is_no_pass_at_the_next() -> None:
    tenth = [minute(index, (1000, 2), (9000, 20), share=0.1) for index in range(20)]
    half = [minute(index, (50, 0), (50, 0), share=0.5) for index in range(2)]

    assert judge(tenth, GATE).outcome == "pass"
    verdict = judge(later(tenth, half), GATE)
    assert verdict.outcome == "not_enough_evidence"
    assert claim(verdict, "errors are not worse").needed_requests is not None
    assert judge(later(tenth, [minute(0, (1000, 2), (1000, 2), share=None)]), GATE).outcome == "not_enough_evidence"


def test_latency_means_and_predictions_that_turn_bad_at_a_shift_are_found_after_long_health() -> None:
    gate = Gate(
        latency_quantiles=(0.5, 0.9),
        means={"revenue": Mean(worse="lower")},
        categories={"label": Category(tolerance=0.1, on_difference="fail")},
    )

    def bins(count: int, share: float, *, slow: int, revenue: float, yes: int) -> list[Bin]:
        result = []
        for one in [minute(i, (100, 0), (100, 0), share=share, slow=((slow, 10), (50, 10))) for i in range(count)]:
            measured = [
                replace(
                    counts,
                    means={"revenue": Moments(100, mean, 4.0)},
                    categories={"label": {"yes": part, "no": 100 - part}},
                )
                for counts, mean, part in ((one.control, 20.0, 50), (one.treatment, revenue, yes))
            ]
            result.append(replace(one, control=measured[0], treatment=measured[1]))
        return result

    healthy = bins(600, 0.5, slow=48, revenue=20.5, yes=48)
    names = ("latency is higher", "revenue is lower", "label differs by more than 0.1")
    assert not any(claim(judge(healthy, gate), name).reached for name in names)
    for name, changes in zip(
        names,
        ({"slow": 80, "revenue": 20.5, "yes": 48}, {"slow": 48, "revenue": 18.0, "yes": 48},
         {"slow": 48, "revenue": 20.5, "yes": 90}),
        strict=True,
    ):  # fmt: skip
        # Stray requests apart, the split is even all the time.
        turned = later(healthy, bins(25, 0.500001, **changes))  # type: ignore[arg-type]
        assert claim(judge(turned, gate), name).reached, name


@pytest.mark.parametrize("shifts", [(10,), (5, 10, 20, 30)])
def test_false_alarms_of_a_healthy_treatment_stay_within_alpha_however_often_the_split_changes(
    shifts: tuple[int, ...],
) -> None:
    rng, runs, level = random.Random(f"{shifts}"), 250, 0.2
    gate = Gate(alpha=level, error_ratio=1.0, error_difference=0, latency_quantiles=())
    failed = 0
    for _ in range(runs):
        bins: list[Bin] = []
        for index in range(40):
            share = 0.1 + 0.1 * sum(index >= shift for shift in shifts)
            [one] = simulated(rng, 1, per_minute=60, share=share, control_rate=0.08, treatment_rate=0.08)
            bins.append(replace(one, start=BEGIN + index * MINUTE))
        failed += judge(bins, gate).outcome == "fail"

    assert failed / runs <= level + 3 * math.sqrt(level * (1 - level) / runs)


def test_an_alarm_that_leans_says_so_and_no_longer_when_the_evidence_is_gone() -> None:
    leaning = [minute(index, (150, 4), (150, 1), share=0.5) for index in range(4)]
    quiet = [minute(4 + index, (150, 0), (150, 1), share=0.5) for index in range(40)]

    now, then = (claim(judge(bins, GATE), "errors are higher") for bins in (leaning, leaning + quiet))

    assert not now.reached
    assert now.present > now.threshold / 10
    assert then.present < then.threshold / 10 < then.e_value
