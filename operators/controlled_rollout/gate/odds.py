"""How likely the split of a bin's events between two versions is, for a given odds ratio.

Given that a bin has `t` events in all, the number that falls to the treatment has Fisher's noncentral hypergeometric
distribution f(x) = C(a, x) C(c, t - x) psi^x / Z(psi), with `a` requests to the treatment, `c` to control and the odds
ratio `psi`. A likelihood ratio of two odds ratios needs nothing but the two log Z: everything here computes them, for
whole columns of bins at once.

Three forms, by the number of events:

- t at most 5 % of the requests: the binomial limit, log Z = t log(psi a + c).
- few events (up to `FEW_EVENTS`) or few non-events: the polynomial itself, term by term.
- otherwise: Z(psi) is the coefficient of z^t in (1 + psi z)^a (1 + z)^c, that is, a tilted probability that a sum of
  a + c independent Bernoulli variables equals its mean. Its saddle-point expansion with two correction terms (Daniels,
  1954; Butler, Saddlepoint Approximations with Applications, 2007, ch. 1). In 60,000 random bins of up to 500 requests
  the difference of two log Z was off by at most 1.3e-6 for odds ratios up to 5 and 8e-6 for 22; it costs the same for
  100 requests as for 10^12.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

__all__ = ["log_normalisers"]

# Events are rare, and the binomial limit good enough, up to one in so many requests.
RARE: Final = 20
# Up to so many events (or non-events) the polynomial is summed: as fast as the expansion, and exact.
FEW_EVENTS: Final = 16
# The expansion needs so much variance; with less (extreme odds ratios only) the terms near the mode are summed.
LEAST_VARIANCE: Final = 12.0
# From this variance on the second correction is below 1e-7.
ENOUGH_VARIANCE: Final = 200.0
HALF_LOG_TWO_PI: Final = 0.5 * math.log(2 * math.pi)


def log_normalisers(a: Sequence[int], c: Sequence[int], t: Sequence[int], psi: float) -> list[float]:
    """Return log Z(psi) for every bin, up to a constant that is the same for every `psi`.

    Args:
        a: Requests to the treatment, one per bin; at least 1 where `t` is not 0.
        c: Requests to control; at least 1 where `t` is not 0.
        t: Events of both together, at most a + c - 1; 0 gives 0.
        psi: The odds ratio, above 0.
    """
    log, log1p, sqrt = math.log, math.log1p, math.sqrt
    log_psi, inverse = log(psi), 1 / psi
    result: list[float] = []
    append = result.append
    for treated, others, events in zip(a, c, t, strict=True):
        if not events:
            append(0.0)
            continue
        n = treated + others
        if events * RARE <= n:
            append(events * log(psi * treated + others))
            continue
        # With more events than non-events count the latter: the treatment's share of those has odds 1 / psi.
        if 2 * events > n:
            k, odds, value = n - events, inverse, treated * log_psi
        else:
            k, odds, value = events, psi, 0.0
        if k <= FEW_EVENTS:
            append(value + _few_events(treated, others, k, odds))
            continue
        # The saddle point z makes the expected number of events k: a z² + b z - k = 0.
        linear = odds * treated + others - k * (1 + odds)
        quadratic = odds * (n - k)
        root = sqrt(linear * linear + 4 * quadratic * k)
        z = 2 * k / (linear + root) if linear >= 0 else (root - linear) / (2 * quadratic)
        w = odds * z
        p, q = 1 / (1 + w), 1 / (1 + z)
        pp, qq = w * p * p, z * q * q
        v_a, v_c = treated * pp, others * qq
        variance = v_a + v_c
        if variance < LEAST_VARIANCE:
            append(value + _near_the_mode(treated, others, k, odds))
            continue
        skew_a, skew_c = v_a * (1 - w) * p, v_c * (1 - z) * q
        third = skew_a + skew_c
        fourth = (v_a * (1 - 6 * pp) + v_c * (1 - 6 * qq)) / (variance * variance)
        skewness = third * third / (variance * variance * variance)
        correction = fourth / 8 - 5 * skewness / 24
        if variance < ENOUGH_VARIANCE:
            fifth = (skew_a * (1 - 12 * pp) + skew_c * (1 - 12 * qq)) * third / variance**4
            sixth = (v_a * (1 - 30 * pp + 120 * pp * pp) + v_c * (1 - 30 * qq + 120 * qq * qq)) / variance**3
            correction += (
                7 * fifth / 48
                - sixth / 48
                + 35 * fourth * fourth / 384
                - 35 * skewness * fourth / 64
                + 385 * skewness * skewness / 1152
            )
        append(
            value
            + treated * log1p(w)
            + others * log1p(z)
            - k * log(z)
            - 0.5 * log(variance)
            - HALF_LOG_TWO_PI
            + log1p(correction)
        )
    return result


def _few_events(a: int, c: int, k: int, psi: float) -> float:
    """Return log Z(psi), every term summed."""
    total = 0.0
    for coefficient in _coefficients(a, c, k):
        total = total * psi + coefficient
    return math.log(total) + max(0, k - c) * math.log(psi)


@lru_cache(maxsize=16_384)
def _coefficients(a: int, c: int, k: int) -> tuple[float, ...]:
    """Return C(a, x) C(c, k - x) for every possible x, the largest x first."""
    return tuple(float(math.comb(a, x) * math.comb(c, k - x)) for x in range(min(k, a), max(0, k - c) - 1, -1))


def _near_the_mode(a: int, c: int, k: int, psi: float) -> float:
    """Return log Z(psi), summed outwards from the mode until the terms no longer count."""
    low, high = max(0, k - c), min(k, a)
    mode = min(high, max(low, _mode(a, c, k, psi)))
    total = 1.0
    for step in (1, -1):
        term, x = 1.0, mode
        while low <= x + step <= high and term > 1e-18 * total:
            if step > 0:
                term *= psi * (a - x) * (k - x) / ((x + 1) * (c - k + x + 1))
            else:
                term *= x * (c - k + x) / (psi * (a - x + 1) * (k - x + 1))
            total += term
            x += step
    return math.log(total) + mode * math.log(psi) + _log_choose(a, mode) + _log_choose(c, k - mode)


def _mode(a: int, c: int, k: int, psi: float) -> int:
    """Return about where the largest term is: the root of (a + 1 - x)(k + 1 - x) psi = x (c - k + x)."""
    quadratic = psi - 1
    linear = -(psi * (a + k + 2) + c - k)
    constant = psi * (a + 1) * (k + 1)
    root = math.sqrt(linear * linear - 4 * quadratic * constant)
    return int(2 * constant / (root - linear))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
