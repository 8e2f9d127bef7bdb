"""Rollouts to judge: simulated bins and bins with given counts."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from controlled_rollout.gate import Bin, Claim, Counts, Verdict
from controlled_rollout.gate.odds import Margins

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def assert_never_falls(values: Sequence[float]) -> None:
    """Assert that no value is lower than one before it, but for the last digits of a float.

    How long a vector is decides in which order its parts are added up: the same bins in a longer rollout may give an
    e-value that differs in its last digit.
    """
    highest = 0.0
    for value in values:
        assert value >= highest * (1 - 1e-12)
        highest = max(highest, value)


def binomial(rng: random.Random, n: int, p: float) -> int:
    """Return a binomial draw; exact for few, by waiting times for rare events."""
    if p <= 0:
        return 0
    if p >= 1:
        return n
    if n * p > 200 and n * (1 - p) > 200:
        return min(n, max(0, round(rng.gauss(n * p, (n * p * (1 - p)) ** 0.5))))
    return sum(rng.random() < p for _ in range(n))


def claim(verdict: Verdict, name: str) -> Claim:
    """Return the claim of a verdict that has a name."""
    return next(result for result in verdict.claims if result.name == name)


def minute(
    index: int,
    treatment: Sequence[int],
    control: Sequence[int],
    *,
    share: float | None = None,
    slow: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> Bin:
    """Return one bin from (requests, errors) of both versions and their slow requests, the treatment's first."""
    return Bin(
        BEGIN + index * MINUTE,
        control=Counts(control[0], control[1], tuple(slow[1])),
        treatment=Counts(treatment[0], treatment[1], tuple(slow[0])),
        share=share,
    )


def odds_times(rate: float, ratio: float) -> float:
    """Return the rate whose odds are `ratio` times those of `rate`."""
    return ratio * rate / (1 - rate + ratio * rate)


def simulated(
    rng: random.Random,
    bins: int,
    *,
    per_minute: int = 300,
    share: float = 0.5,
    control_rate: float = 0.005,
    treatment_rate: float = 0.005,
    slow_ratio: float | None = None,
) -> list[Bin]:
    """Return a rollout at constant rates; with `slow_ratio` latency is judged, at that odds ratio of exceeding."""
    result = []
    for index in range(bins):
        a = binomial(rng, per_minute, share)
        c = per_minute - a
        slow: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        if slow_ratio is not None:
            quantiles = (0.5, 0.1, 0.05, 0.01)
            slow = (
                tuple(binomial(rng, a, odds_times(q, slow_ratio)) for q in quantiles),
                tuple(binomial(rng, c, q) for q in quantiles),
            )
        errors = binomial(rng, a, treatment_rate), binomial(rng, c, control_rate)
        result.append(minute(index, (a, errors[0]), (c, errors[1]), share=share, slow=slow))
    return result


def log_normalisers(a: Sequence[int], c: Sequence[int], t: Sequence[int], psi: float) -> list[float]:
    """Return log Z(psi) of bins with these margins, up to a constant."""
    margins = Margins(*(np.array(values, dtype=np.float64) for values in (a, c, t)))
    return [float(value) for value in margins.log_z(psi, len(t))]
