"""Latency where a version refuses requests: a slower model fails, one with too few replicas does not."""

import heapq
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate import Bin, Counts, Gate, Outcome, judge
from tests.unit.gate.rollouts import BEGIN, MINUTE

GATE = Gate()
WAIT_S = 0.5
PER_S = 10.0
MINUTES = 30


class Replicas(NamedTuple):
    """How many requests a version scores at the same time, and how long one takes in the median."""

    slots: int
    median_s: float


HEALTHY = Replicas(slots=4, median_s=0.1)


class Traffic(NamedTuple):
    """One version's requests: when each came, how long it was scored (not a number: refused) and how long it took."""

    arrived: np.ndarray
    scored_s: np.ndarray
    took_s: np.ndarray


def traffic(rng: np.random.Generator, replicas: Replicas) -> Traffic:
    """Return the requests of a version that scores first who came first, and refuses who has waited for too long."""
    number = rng.poisson(PER_S * 60 * MINUTES)
    arrived = np.sort(rng.uniform(0, 60 * MINUTES, number))
    needs = replicas.median_s * np.exp(0.3 * rng.standard_normal(number))
    free = [0.0] * replicas.slots
    scored, took = np.full(number, np.nan), np.full(number, np.nan)
    for index, (at, need) in enumerate(zip(arrived, needs, strict=True)):
        begins = max(at, free[0])
        if begins - at <= WAIT_S:
            heapq.heapreplace(free, begins + need)
            scored[index], took[index] = need, begins + need - at
    return Traffic(arrived, scored, took)


def thresholds() -> list[float]:
    """Return control's quantiles as they are before a rollout, while it has room."""
    before = traffic(np.random.default_rng(0), HEALTHY)
    return [float(np.nanquantile(before.took_s, q)) for q in GATE.latency_quantiles]


LIMITS = thresholds()


def counts(requests: Traffic, minute: int, tolerance: float) -> Counts:
    """Return the counts of one minute, as a metric store tells them."""
    within = requests.arrived // 60 == minute
    took, scored = requests.took_s[within], requests.scored_s[within]
    refused = int(np.isnan(took).sum())

    def slower(durations: np.ndarray) -> tuple[int, ...]:
        return tuple(int((durations > limit * (1 + tolerance)).sum()) for limit in LIMITS)

    return Counts(
        requests=len(took), errors=0, slow=slower(took), overloaded=refused,
        scoring=(len(took) - refused, *slower(scored)),
    )  # fmt: skip


def outcomes(treatment: Replicas, control: Replicas, runs: int) -> list[tuple[Outcome, str]]:
    """Return what the gate concludes of a treatment, in so many simulated rollouts of half an hour."""
    found = []
    for seed in range(runs):
        rng = np.random.default_rng([runs, seed])
        of_treatment, of_control = traffic(rng, treatment), traffic(rng, control)
        bins = [
            Bin(
                BEGIN + minute * MINUTE,
                counts(of_control, minute, 0.0),
                counts(of_treatment, minute, GATE.latency_tolerance),
                0.5,
            )
            for minute in range(MINUTES)
        ]
        verdict = judge(bins, GATE)
        found.append((verdict.outcome, verdict.reason))
    return found


@pytest.mark.parametrize("slower", [Replicas(1, 0.15), Replicas(2, 0.3), Replicas(2, 2.0)])
def test_a_slower_model_fails_although_it_refuses_requests(slower: Replicas) -> None:
    found = outcomes(slower, HEALTHY, runs=5)

    assert {outcome for outcome, _ in found} == {Outcome.FAIL}
    assert all("latency is higher" in reason for _, reason in found)


def test_a_model_that_scores_hardly_anything_is_held() -> None:
    # Were all that it has refused as fast as can be, it would be no slower than control.
    found = outcomes(Replicas(2, 20.0), HEALTHY, runs=3)

    assert {outcome for outcome, _ in found} == {Outcome.NOT_ENOUGH_EVIDENCE}


@pytest.mark.parametrize(
    ("treatment", "control"),
    [
        (Replicas(1, 0.1), HEALTHY),  # one replica instead of four: most of the time it is full
        (HEALTHY, Replicas(1, 0.1)),
        (Replicas(1, 0.1), Replicas(1, 0.1)),
    ],
)
def test_a_healthy_model_without_room_is_not_blamed(treatment: Replicas, control: Replicas) -> None:
    found = outcomes(treatment, control, runs=20)

    # At 5 % of such rollouts at most; here none of 60 is expected to.
    assert [outcome for outcome, _ in found].count(Outcome.FAIL) <= 1
    assert Outcome.PASS not in [outcome for outcome, _ in found]
    assert all("found no room" in reason or "had no room" in reason for _, reason in found)


COUNT = st.integers(0, 60)


@given(
    treatment=st.tuples(COUNT, COUNT, COUNT), control=st.tuples(COUNT, COUNT, COUNT),
    slow=st.tuples(st.floats(0, 1), st.floats(0, 1)), number=st.integers(1, 12),
)  # fmt: skip
def test_no_truth_about_the_refused_makes_an_alarm_that_the_gate_raises_wrong(
    treatment: tuple[int, int, int], control: tuple[int, int, int], slow: tuple[float, float], number: int
) -> None:
    """What is claimed of the bounds is that the evidence is never more than with the true numbers."""
    gate = Gate(latency_quantiles=(0.5,))

    def bins(known: bool) -> list[Bin]:
        sides = []
        for (fast, slower, refused), part in ((control, slow[1]), (treatment, slow[0])):
            really, total = slower + round(part * refused), fast + slower + refused + 2
            if known:
                sides.append(Counts(total, 0, (really,)))
            else:
                sides.append(Counts(total, 0, (0,), overloaded=refused, scoring=(total - refused, slower)))
        return [Bin(BEGIN + index * MINUTE, sides[0], sides[1], None) for index in range(number)]

    def evidence(known: bool) -> float:
        [alarm] = [one for one in judge(bins(known), gate).claims if one.name == "latency is higher"]
        return alarm.present

    is_crowded = any(100 * side[2] > sum(side) + 2 for side in (treatment, control))
    if is_crowded:
        assert evidence(known=False) <= evidence(known=True) * (1 + 1e-4)


def test_a_steady_part_without_room_says_that_waiting_does_not_help() -> None:
    control = Counts(300, 1, (150, 30, 15, 3))
    bins = [
        Bin(BEGIN + minute * MINUTE, control, Counts(300, 1, (147, 29, 14, 3), overloaded=9), 0.5)
        for minute in range(600)
    ]

    verdict = judge(bins, GATE)

    assert verdict.outcome == "not_enough_evidence"
    assert "3 % of the treatment's requests found no room at it; that is above 1 %" in verdict.reason
    assert "no number of requests shows its p99: give it more replicas" in verdict.reason
    assert "'latency is not worse' needs more evidence" in verdict.reason
    assert not verdict.waits
    assert len(verdict.no_pass) == 1


@pytest.mark.parametrize(("overloaded", "outcome"), [(9, "pass"), (15, "not_enough_evidence")])
def test_a_faster_model_may_refuse_as_many_more_as_it_has_fewer_slow_ones(overloaded: int, outcome: str) -> None:
    control = Counts(600, 1, (300, 60, 30, 6))
    treatment = Counts(600, 1, (200, 30, 10, 0), overloaded=overloaded)
    bins = [Bin(BEGIN + minute * MINUTE, control, treatment, 0.5) for minute in range(600)]

    verdict = judge(bins, GATE)

    assert verdict.outcome == outcome
    assert ("no number of requests shows its p99" in verdict.reason) == (outcome != "pass")


def test_refusals_that_a_quantile_has_room_for_pass() -> None:
    gate = Gate(latency_quantiles=(0.5, 0.9))
    bins = [
        Bin(BEGIN + minute * MINUTE, Counts(300, 1, (150, 30)), Counts(300, 1, (147, 29), overloaded=6), 0.5)
        for minute in range(300)
    ]

    assert judge(bins, gate).outcome == "pass"


def test_a_version_that_has_room_again_is_told_how_much_is_missing() -> None:
    full = Counts(300, 0, (150, 30, 15, 3), overloaded=60)
    good = Counts(300, 0, (150, 30, 15, 3))
    bins = [Bin(BEGIN + m * MINUTE, good, full if m < 3 else good, 0.5) for m in range(12)]

    verdict = judge(bins, GATE)

    assert "found no room" not in verdict.reason
    assert "more requests" in verdict.reason


def test_a_control_without_room_is_no_measure() -> None:
    full = Counts(300, 0, (200, 90, 60, 30), overloaded=15)
    bins = [Bin(BEGIN + m * MINUTE, full, Counts(300, 0, (150, 30, 15, 3)), 0.5) for m in range(60)]

    verdict = judge(bins, GATE)

    assert verdict.outcome == "not_enough_evidence"
    assert "5 % of control's requests found no room at it" in verdict.reason


@pytest.mark.parametrize("scoring", [(10,), (301, 0, 0, 0, 0), (10, 11, 0, 0, 0), (-1, 0, 0, 0, 0)])
def test_impossible_scoring_times_are_refused(scoring: tuple[int, ...]) -> None:
    one = Bin(BEGIN, Counts(300, 0, (0,) * 4), Counts(300, 0, (0,) * 4, overloaded=1, scoring=scoring), 0.5)

    with pytest.raises(EvidenceError, match="scoring"):
        judge([one, Bin(BEGIN + timedelta(minutes=1), one.control, one.control, 0.5)], GATE)
