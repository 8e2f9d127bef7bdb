"""Means of the author's metrics: the mixture against its integral, error rates by simulation, what judge says."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate import Bin, Category, Counts, Gate, Mean, Moments, judge
from controlled_rollout.gate.means import log_mixture
from tests.unit.gate.rollouts import BEGIN, MINUTE, assert_never_falls, claim

REVENUE = Gate(means={"revenue": Mean(worse="lower", margin=0.1, pass_margin=1.0)})


def moments(values: np.ndarray) -> Moments:
    spread = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    return Moments(len(values), float(values.mean()) if len(values) else 0.0, spread)


def rollout(
    rng: np.random.Generator,
    bins: int,
    *,
    shift: float = 0.0,
    sizes: tuple[int, int] = (10, 40),
    draw: Callable[[np.random.Generator, int], np.ndarray] = lambda rng, n: rng.normal(20, 3, n),
    base: Callable[[int], float] = lambda index: 0.0,
) -> list[Bin]:
    """Return bins with a metric `revenue`; the treatment's is `shift` higher."""
    result = []
    for index in range(bins):
        treatment, control = (draw(rng, n) + base(index) for n in sizes)
        result.append(
            Bin(
                BEGIN + index * MINUTE,
                control=Counts(sizes[1], 0, means={"revenue": moments(control)}),
                treatment=Counts(sizes[0], 0, means={"revenue": moments(treatment + shift)}),
            )
        )
    return result


@pytest.mark.parametrize(("total", "variance"), [(0.0, 1.0), (12.0, 9.0), (-4.0, 3.0), (60.0, 40.0)])
def test_mixture_is_the_integral_over_a_half_normal(total: float, variance: float) -> None:
    scale = 0.3

    def density(tilt: float) -> float:
        density = float(norm.pdf(tilt, scale=math.sqrt(scale)))
        return 2 * density * math.exp(tilt * total - tilt * tilt * variance / 2)

    expected, _ = quad(density, 0, 12)

    assert float(log_mixture(total, variance, scale)) == pytest.approx(math.log(expected), abs=1e-6)


def test_extreme_difference_in_the_other_direction_is_no_evidence_and_does_not_overflow() -> None:
    result = log_mixture(np.array([-1e3, -1e6, 1e6]), np.array([10.0, 10.0, 10.0]), 1.0)

    assert np.isfinite(result).all()
    assert result[1] < result[0] < 0 < result[2]


@pytest.mark.parametrize("draw", [lambda rng, n: rng.normal(20, 3, n), lambda rng, n: rng.lognormal(3, 0.8, n)])
@pytest.mark.parametrize("sizes", [(5, 45), (1, 12)])
def test_false_alarms_on_equal_means_stay_within_alpha_while_the_base_moves(
    draw: Callable[[np.random.Generator, int], np.ndarray], sizes: tuple[int, int]
) -> None:
    rng, runs, level = np.random.default_rng(4), 120, 0.1
    gate = Gate(alpha=2 * level, means={"revenue": Mean(worse="lower")})
    wrong = 0
    for _ in range(runs):
        bins = rollout(rng, 150, draw=draw, sizes=sizes, base=lambda index: 10 * math.sin(index / 20))
        wrong += claim(judge(bins, gate), "revenue is lower").reached

    assert wrong / runs <= level + 3 * math.sqrt(level * (1 - level) / runs)


def test_lower_revenue_fails_with_the_difference_in_the_reason() -> None:
    verdict = judge(rollout(np.random.default_rng(1), 60, shift=-2.0), REVENUE)

    assert verdict.outcome == "fail"
    assert "revenue is lower" in verdict.reason
    assert "0.1 tolerated" in verdict.reason


def test_difference_in_the_good_direction_or_within_the_margin_does_not_fail() -> None:
    rng = np.random.default_rng(2)
    tolerant = Gate(means={"revenue": Mean(worse="lower", margin=1.5)})

    assert not claim(judge(rollout(rng, 60, shift=3.0), REVENUE), "revenue is lower").reached
    assert not claim(judge(rollout(rng, 60, shift=-1.0), tolerant), "revenue is lower").reached


def test_higher_mean_fails_where_higher_is_worse() -> None:
    gate = Gate(means={"revenue": Mean(worse="higher")})

    assert claim(judge(rollout(np.random.default_rng(3), 60, shift=2.0), gate), "revenue is higher").reached


def test_pass_needs_evidence_for_the_mean_and_names_the_missing_requests() -> None:
    gate = Gate(means={"revenue": Mean(worse="lower", pass_margin=0.5)})
    bins = rollout(np.random.default_rng(5), 200, sizes=(10, 30))
    early, late = judge(bins[:30], gate), judge(bins, gate)

    assert early.outcome == "not_enough_evidence"
    needed = claim(early, "revenue is not worse").needed_requests
    assert needed is not None
    assert 0 < needed < 170 * 10
    assert late.outcome == "pass"


def test_no_claim_is_reached_before_twenty_bins_and_a_hundred_values() -> None:
    bins = rollout(np.random.default_rng(6), 40, shift=-30.0, sizes=(50, 50))

    assert claim(judge(bins[:19], REVENUE), "revenue is lower").e_value == 1
    assert judge(bins[:20], REVENUE).outcome == "fail"
    few = rollout(np.random.default_rng(6), 40, shift=-30.0, sizes=(4, 50))
    assert claim(judge(few[:24], REVENUE), "revenue is lower").e_value == 1
    assert judge(few[:26], REVENUE).outcome == "fail"


def test_metric_missing_in_all_bins_keeps_the_gate_from_passing() -> None:
    bins = [
        replace(b, control=Counts(4000, 0), treatment=Counts(1000, 0)) for b in rollout(np.random.default_rng(7), 5)
    ]

    assert judge(bins, Gate()).outcome == "pass"
    verdict = judge(bins, REVENUE)
    assert verdict.outcome == "not_enough_evidence"
    assert "revenue is not judged" in verdict.reason
    # The metric has its part of alpha from the beginning: nothing established is taken back when it appears.
    assert claim(verdict, "errors are higher").threshold == pytest.approx(40)


def test_alpha_is_shared_with_means_by_weight() -> None:
    gate = Gate(means={"revenue": Mean(worse="lower")}, weights={"revenue": 3.0})

    verdict = judge(rollout(np.random.default_rng(8), 2), gate)

    assert claim(verdict, "revenue is lower").threshold == pytest.approx(4 / 3 / 0.05)
    assert claim(verdict, "errors are higher").threshold == pytest.approx(4 / 0.05)


def test_reached_thresholds_stay_reached_and_the_order_of_bins_does_not_matter() -> None:
    rng = np.random.default_rng(9)
    bins = rollout(rng, 60, shift=-1.0) + [replace(b, start=b.start + 60 * MINUTE) for b in rollout(rng, 60, shift=3.0)]
    looks = [claim(judge(bins[:count], REVENUE), "revenue is lower") for count in range(5, 121, 5)]

    assert_never_falls([look.e_value for look in looks])
    assert looks[-1].reached
    assert judge(bins[::-1], REVENUE) == judge(bins, REVENUE)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (Moments(-1, 0.0, 0.0), "count = -1 is negative"),
        (Moments(2.5, 0.0, 0.0), "count = 2.5 is not a whole number"),  # type: ignore[arg-type]
        (Moments(3, math.nan, 0.0), "mean = nan is not a finite number"),
        (Moments(3, 1.0, -0.1), "variance = -0.1 is not a number of 0 or more"),
        (Moments(3, 1.0, math.inf), "variance = inf is not a number of 0 or more"),
    ],
)
def test_impossible_moments_are_refused_with_where_they_are(bad: Moments, problem: str) -> None:
    bins = [Bin(BEGIN, Counts(5, 0), Counts(5, 0, means={"revenue": bad}))]

    with pytest.raises(EvidenceError, match=rf"12:00:00\+00:00: treatment means\['revenue'\]\.{problem}"):
        judge(bins, REVENUE)


@pytest.mark.parametrize("means", [{"errors": Mean(worse="lower")}, {"a": Mean(worse="lower", margin=0)}])
def test_ambiguous_metric_names_are_refused(means: dict[str, Mean]) -> None:
    with pytest.raises(ValueError, match="would name two metrics"):
        Gate(means=means, categories={"a": Category()})


def test_constant_metric_is_no_evidence() -> None:
    bins = rollout(np.random.default_rng(1), 40, draw=lambda rng, n: np.full(n, 7.0))

    assert claim(judge(bins, REVENUE), "revenue is lower").e_value == 1
