"""The promised error rates, by simulation: looks after every bin, base rates and splits that move, bursts."""

import math
import random
from collections.abc import Callable

import pytest

from controlled_rollout.gate import Bin, Gate, judge
from unit.gate.rollouts import binomial, minute, odds_times

RUNS = 250


def most(level: float) -> float:
    """Return the largest share of runs that agrees with `level`: three standard errors above it."""
    return level + 3 * math.sqrt(level * (1 - level) / RUNS)


def rollout(
    rng: random.Random,
    *,
    rate: Callable[[int], float],
    share: Callable[[int, list[Bin]], float],
    ratio: float = 1.0,
    per_minute: int = 40,
    minutes: int = 40,
) -> list[Bin]:
    bins: list[Bin] = []
    for index in range(minutes):
        a = binomial(rng, per_minute, share(index, bins))
        base = rate(index)
        errors = binomial(rng, a, odds_times(base, ratio)), binomial(rng, per_minute - a, base)
        bins.append(minute(index, (a, errors[0]), (per_minute - a, errors[1])))
    return bins


def constant(_: int) -> float:
    return 0.08


def diurnal(index: int) -> float:
    return 0.08 + 0.07 * math.sin(index / 6)


def incident(index: int) -> float:
    return 0.6 if 15 <= index < 22 else 0.03


def half(_: int, __: list[Bin]) -> float:
    return 0.5


def growing(index: int, _: list[Bin]) -> float:
    return min(0.9, 0.05 + index / 40)


def greedy(_: int, bins: list[Bin]) -> float:
    """Return more traffic after a good minute: a ramp that depends on what was seen."""
    return 0.8 if not bins or bins[-1].treatment.errors <= 1 else 0.1


@pytest.mark.parametrize(
    ("rate", "share"),
    [
        (constant, half),
        (constant, greedy),
        (diurnal, growing),
        (diurnal, greedy),
        (incident, half),
        (incident, growing),
    ],
)
def test_treatment_as_good_as_tolerated_fails_at_most_as_often_as_said(
    rate: Callable[[int], float], share: Callable[[int, list[Bin]], float]
) -> None:
    rng, gate = random.Random(f"{rate.__name__} {share.__name__}"), Gate(alpha=0.2, error_ratio=1.0, error_difference=0)

    # Alarms are sticky, so the last look fails whenever any look would have (a property of its own, tested).
    failed = sum(judge(rollout(rng, rate=rate, share=share), gate).outcome == "fail" for _ in range(RUNS))

    assert failed / RUNS <= most(0.2)


@pytest.mark.parametrize("share", [half, greedy])
def test_treatment_with_twice_the_odds_passes_at_most_as_often_as_said(
    share: Callable[[int, list[Bin]], float],
) -> None:
    rng, gate = random.Random(share.__name__), Gate(alpha=1e-9, beta=0.2, acceptable_error_rate=1e-4)

    passed = sum(judge(rollout(rng, rate=diurnal, share=share, ratio=2.0), gate).outcome == "pass" for _ in range(RUNS))

    assert passed / RUNS <= most(0.2)


def test_healthy_treatment_whose_errors_come_in_bursts_is_spared_by_the_baseline() -> None:
    rng = random.Random(8)

    def burst(requests: int) -> int:
        return min(requests, 6 * binomial(rng, 1, 0.1))

    plain = tempered = 0
    for _ in range(RUNS):
        before = [minute(-1 - i, (0, 0), (20, burst(20))) for i in range(60)]
        bins = [minute(i, (20, burst(20)), (20, burst(20))) for i in range(40)]
        plain += judge(bins, Gate(alpha=0.1)).outcome == "fail"
        tempered += judge(bins, Gate(alpha=0.1), baseline=before).outcome == "fail"

    assert plain / RUNS > most(0.1)
    assert tempered / RUNS <= most(0.1)
