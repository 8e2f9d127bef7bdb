"""The whole distribution's evidence: exact against enumeration, fair under its null, monotone."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom, norm

from controlled_rollout.gate.columns import Metric
from controlled_rollout.gate.shift import TILTS, Shift, duration_shift, score_burstiness, scores
from tests.examples import examples

QUANTILES = (0.5, 0.9, 0.99)


def shift(
    treatment: Sequence[int], control: Sequence[int], quantiles: Sequence[float] = QUANTILES, **settings: float
) -> Shift:
    """Return the evidence of one bin from each version's requests per class, the fastest first."""

    def above(counts: Sequence[int]) -> list[np.ndarray]:
        return [np.array([float(sum(counts[k:]))]) for k in range(1, len(counts))]

    slow = [Metric(x, y) for x, y in zip(above(treatment), above(control), strict=True)]
    return duration_shift(
        np.array([float(sum(treatment))]), np.array([float(sum(control))]), slow, quantiles, **settings
    )


def gain(treatment: Sequence[int], control: Sequence[int], tilt: float) -> float:
    return float(shift(treatment, control).gains(tilt, 1)[0])


def compositions(total: int, sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return every way to take `total` requests from classes of these sizes."""
    return [way for way in product(*(range(size + 1) for size in sizes)) if sum(way) == total]


def chance(way: Sequence[int], sizes: Sequence[int]) -> float:
    ways = math.prod(math.comb(size, taken) for size, taken in zip(sizes, way, strict=True))
    return ways / math.comb(sum(sizes), sum(way))


@pytest.mark.parametrize("drawn", [1, 4, 12, 19])
@pytest.mark.parametrize("sizes", [(10, 6, 3, 1), (0, 12, 8, 0), (3, 3, 7, 7)])
@pytest.mark.parametrize("tilt", TILTS)
def test_mean_e_value_is_one_for_equal_versions(drawn: int, sizes: tuple[int, ...], tilt: float) -> None:
    mean = 0.0
    for treatment in compositions(drawn, sizes):
        control = [size - taken for size, taken in zip(sizes, treatment, strict=True)]
        mean += chance(treatment, sizes) * math.exp(gain(treatment, control, tilt))

    assert mean == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("drawn", [17, 40, 150])
@pytest.mark.parametrize("tilt", TILTS)
def test_mean_e_value_of_the_expansion_is_one_for_equal_versions(drawn: int, tilt: float) -> None:
    sizes = (150, 120, 30)
    draws = np.random.default_rng(drawn).multivariate_hypergeometric(sizes, drawn, 1)[0]
    control = np.array(sizes) - draws
    score = scores((0.5, 0.9))
    first = hypergeom(sum(sizes), sizes[0], drawn)
    mean = 0.0
    for x in range(drawn + 1):
        second = hypergeom(sizes[1] + sizes[2], sizes[1], drawn - x)
        for y in range(drawn - x + 1):
            p = first.pmf(x) * second.pmf(y) if drawn - x - y <= sizes[2] else 0.0
            mean += p * math.exp(tilt * (score @ np.array([x, y, drawn - x - y])))
    exact = tilt * float(score @ draws) - math.log(mean)

    assert float(shift(draws, control, (0.5, 0.9)).gains(tilt, 1)[0]) == pytest.approx(exact, abs=5e-5)


classes = st.lists(st.integers(0, 30), min_size=4, max_size=4)


@given(classes, classes, st.sampled_from(TILTS), st.integers(0, 2))
@examples(150)
def test_slower_treatment_or_faster_control_never_lowers_the_evidence(
    treatment: list[int], control: list[int], tilt: float, index: int
) -> None:
    treatment, control = [n + 1 for n in treatment], [n + 1 for n in control]
    slower, faster = treatment[:], control[:]
    slower[index], slower[index + 1] = treatment[index] - 1, treatment[index + 1] + 1
    faster[index], faster[index + 1] = control[index] + 1, control[index + 1] - 1

    assert gain(slower, control, tilt) >= gain(treatment, control, tilt) - 1e-6
    assert gain(treatment, faster, tilt) >= gain(treatment, control, tilt) - 1e-6


def test_swapping_treatment_and_control_changes_the_sign_only() -> None:
    """Leaving out control's requests is choosing the treatment's."""
    few, many = (3, 2, 1, 1), (20, 9, 3, 1)
    score = scores(QUANTILES)
    for tilt in TILTS:
        log_z = [
            tilt * float(score @ np.array(treatment)) - gain(treatment, control, tilt)
            for treatment, control in ((few, many), (many, few))
        ]
        total = tilt * float(score @ (np.array(few) + np.array(many)))
        opposite = _log_mean(few, many, -tilt)
        assert log_z[1] == pytest.approx(total + opposite, abs=1e-9)
        assert log_z[0] == pytest.approx(_log_mean(few, many, tilt), abs=1e-9)


def _log_mean(treatment: Sequence[int], control: Sequence[int], tilt: float) -> float:
    sizes, score = [x + y for x, y in zip(treatment, control, strict=True)], scores(QUANTILES)
    ways = compositions(sum(treatment), sizes)
    return math.log(math.fsum(chance(way, sizes) * math.exp(tilt * float(score @ np.array(way))) for way in ways))


def test_scores_are_a_normal_variables_means_between_its_quantiles() -> None:
    result = scores((0.9, 0.5))

    assert result == pytest.approx(
        [-norm.pdf(0) / 0.5, (norm.pdf(0) - norm.pdf(norm.ppf(0.9))) / 0.4, norm.pdf(norm.ppf(0.9)) / 0.1]
    )
    assert result @ np.array([0.5, 0.4, 0.1]) == pytest.approx(0)


@pytest.mark.parametrize(
    ("treatment", "control"),
    [
        ((10**9, 10**8, 10**7, 0), (10**9, 10**8, 10**7, 1)),
        ((0, 0, 0, 10**9), (10**9, 0, 0, 0)),
        ((0, 0, 0, 5), (0, 0, 0, 10**9)),
        ((0, 0, 0, 0), (10, 5, 3, 1)),
        ((1, 0, 0, 0), (0, 0, 0, 1)),
        ((0, 0, 0, 0), (0, 0, 0, 0)),
    ],
)
def test_extreme_counts_give_numbers(treatment: tuple[int, ...], control: tuple[int, ...]) -> None:
    for tilt in TILTS:
        assert math.isfinite(gain(treatment, control, tilt))
        assert math.isfinite(gain(control, treatment, tilt))


def test_bin_with_one_latency_class_is_no_evidence() -> None:
    assert gain((0, 7, 0, 0), (0, 90, 0, 0), 0.4) == 0


def test_burstiness_divides_the_gain_and_the_cap_bounds_it() -> None:
    treatment, control = (5, 5, 5, 5), (50, 30, 8, 1)
    plain = gain(treatment, control, 0.8)

    assert float(shift(treatment, control, burst=4.0).gains(0.8, 1)[0]) == pytest.approx(plain / 4)
    assert float(shift(treatment, control, cap=1.5).gains(0.8, 1)[0]) == pytest.approx(math.log(1.5))


def test_burstiness_of_scores_is_one_for_independent_requests_and_more_when_whole_minutes_are_slow() -> None:
    rng = np.random.default_rng(3)

    def result(slow_minutes: float) -> float:
        chances = np.where(rng.random((400, 1)) < slow_minutes, [[0.2, 0.4, 0.4]], [[0.5, 0.4, 0.1]])
        counts = np.array([rng.multinomial(200, row) for row in chances]).astype(float)
        return score_burstiness(counts.sum(axis=1), [counts[:, 1] + counts[:, 2], counts[:, 2]], (0.5, 0.9))

    assert result(0) == pytest.approx(1, abs=0.2)
    assert result(0.1) > 5
    assert score_burstiness(np.array([5.0]), [np.array([2.0])], (0.5,)) == 1
    assert score_burstiness(np.array([5.0, 6.0]), [np.zeros(2)], (0.5,)) == 1
