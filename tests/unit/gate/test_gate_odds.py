"""The normalisers against exact rational arithmetic and scipy, in every form and at every size."""

import math
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import nchypergeom_fisher

from controlled_rollout.gate import odds
from tests.examples import examples
from tests.unit.gate.rollouts import log_normalisers


def exact_log_z(a: int, c: int, t: int, psi: Fraction) -> float:
    """Return log Z(psi) from whole numbers only."""
    low, high = max(0, t - c), min(t, a)
    p, q = psi.numerator, psi.denominator
    total = sum(math.comb(a, x) * math.comb(c, t - x) * p**x * q ** (high - x) for x in range(low, high + 1))
    return log_of(total) - log_of(q**high)


def log_of(whole: int) -> float:
    """Return the log of a whole number too large for a float."""
    shift = max(0, whole.bit_length() - 60)
    return math.log(whole >> shift) + shift * math.log(2)


def log_ratio(a: int, c: int, t: int, psi: float, other: float) -> float:
    return log_normalisers([a], [c], [t], psi)[0] - log_normalisers([a], [c], [t], other)[0]


@pytest.mark.parametrize(
    ("a", "c", "t"),
    [
        (15, 15, 7),
        (4, 40, 30),
        (150, 150, 17),
        (150, 150, 150),
        (150, 150, 250),
        (30, 270, 60),
        (1500, 1500, 2990),
        (3, 900, 450),
        (900, 3, 450),
        (600, 5400, 1200),
    ],
)
@pytest.mark.parametrize("psi", [Fraction(1, 2), Fraction(1), Fraction(11, 10), Fraction(5, 2), Fraction(20)])
def test_normaliser_equals_the_exact_sum(a: int, c: int, t: int, psi: Fraction) -> None:
    assert log_normalisers([a], [c], [t], float(psi))[0] == pytest.approx(exact_log_z(a, c, t, psi), abs=1e-6)


@given(
    st.integers(1, 400), st.integers(1, 400), st.data(), st.sampled_from([0.25, 0.5, 1.0, 1.1, 1.375, 2.0, 5.5, 22.0])
)
@examples(100)
def test_normaliser_equals_the_exact_sum_wherever_events_are_not_rare(
    a: int, c: int, data: st.DataObject, psi: float
) -> None:
    t = data.draw(st.integers(max(1, (a + c) // odds.RARE + 1), max(1, a + c - 1)))

    computed = log_normalisers([a], [c], [t], psi)[0] if t * odds.RARE > a + c else None

    if computed is not None:
        assert computed == pytest.approx(exact_log_z(a, c, t, Fraction(psi).limit_denominator(1000)), abs=1e-5)


@pytest.mark.parametrize("psi", [1.25, 3.0, 20.0])
def test_likelihood_ratio_is_the_ratio_of_scipys_probabilities(psi: float) -> None:
    a, c, t, x = 180, 120, 60, 45
    null, other = nchypergeom_fisher(a + c, a, t, 1.1), nchypergeom_fisher(a + c, a, t, 1.1 * psi)

    computed = x * math.log(psi) - log_ratio(a, c, t, 1.1 * psi, 1.1)

    assert computed == pytest.approx(other.logpmf(x) - null.logpmf(x), rel=1e-5)


@pytest.mark.parametrize(("a", "c", "t"), [(40, 60, 50), (7, 5, 6), (300, 500, 350)])
def test_terms_log_z_by_summation_are_enough(a: int, c: int, t: int) -> None:
    for psi in (Fraction(1, 3000), Fraction(1, 2), Fraction(1), Fraction(22), Fraction(2000)):
        assert odds._log_z_by_summation(a, c, t, float(psi)) == pytest.approx(exact_log_z(a, c, t, psi), abs=1e-8)


def test_extreme_odds_ratios_fall_back_to_the_terms_log_z_by_summation() -> None:
    psi = Fraction(2000)

    assert log_normalisers([40], [60], [40], 2000.0)[0] == pytest.approx(exact_log_z(40, 60, 40, psi), abs=1e-8)


@pytest.mark.parametrize(("a", "c"), list(product((10**9, 10**8), (10**9, 10**5))))
@pytest.mark.parametrize("part", [0.06, 0.5, 0.999])
def test_huge_counts_agree_with_the_tilted_mean(a: int, c: int, part: float) -> None:
    t = int(part * (a + c))
    step = 1e-4
    # The derivative of log Z in log psi is the mean, which at these sizes solves the quadratic of the two margins.
    derivative = log_ratio(a, c, t, math.exp(step), math.exp(-step)) / (2 * step)

    assert derivative == pytest.approx(t * a / (a + c), rel=1e-6)


def test_binomial_limit_never_overstates_an_alarm() -> None:
    """With t at 5 % of the requests the expectation of the binomial form's likelihood ratio is still at most 1."""
    for a, c in ((30, 30), (200, 200), (20, 380), (380, 20)):
        t = (a + c) // odds.RARE
        distribution = nchypergeom_fisher(a + c, a, t, 1.1)
        for ratio in (1.25, 2.0, 20.0):
            cost = log_ratio(a, c, t, 1.1 * ratio, 1.1)
            expectation = sum(
                float(distribution.pmf(x)) * math.exp(x * math.log(ratio) - cost) for x in range(min(t, a) + 1)
            )
            assert expectation <= 1 + 1e-9


@pytest.mark.parametrize(("a", "c", "t"), [(8, 8, 5), (25, 75, 20), (25, 75, 90), (60, 60, 60)])
@pytest.mark.parametrize(("null", "ratio"), [(1.1, 1.25), (1.0, 20.0), (2.0, 0.25), (2.0, 0.75)])
def test_mean_likelihood_ratio_is_one_under_its_null(a: int, c: int, t: int, null: float, ratio: float) -> None:
    distribution = nchypergeom_fisher(a + c, a, t, null)
    cost = log_ratio(a, c, t, null * ratio, null)

    expectation = sum(
        float(distribution.pmf(x)) * math.exp(x * math.log(ratio) - cost) for x in range(max(0, t - c), min(t, a) + 1)
    )

    assert expectation == pytest.approx(1, abs=6e-6)


def test_bins_without_events_change_no_evidence() -> None:
    assert log_normalisers([5, 0, 7], [5, 3, 0], [0, 0, 0], 3.0) == [0.0, 0.0, 0.0]
