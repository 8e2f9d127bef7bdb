"""The upper bound on a rate: the published figures, and its guarantee at every look."""

import math
import random

import numpy as np
import pytest

from controlled_rollout.gate.rate import evidence_path, log_evidence, upper_bound


@pytest.mark.parametrize(("rate", "requests"), [(0.05, 116), (0.02, 320), (0.01, 680), (0.001, 8062)])
def test_requests_without_error_is_the_least_number_that_shows_the_rate(rate: float, requests: int) -> None:
    assert upper_bound(0, requests, 0.05) <= rate < upper_bound(0, requests - 1, 0.05)


def test_evidence_equals_the_integral_over_the_mixture() -> None:
    rate, errors, requests = 0.05, 1, 200
    steps = 200_000
    # Substituting q = sin(u)² takes the Beta(1/2, 1/2) density's poles away: it becomes uniform in u.
    total = 0.0
    for step in range(steps):
        q = math.sin((step + 0.5) / steps * math.pi / 2) ** 2
        total += math.exp(errors * math.log(q / rate) + (requests - errors) * math.log((1 - q) / (1 - rate)))

    assert log_evidence(rate, errors, requests) == pytest.approx(math.log(total / steps), abs=1e-6)


def test_rate_above_the_acceptable_one_is_never_evidence_for_it() -> None:
    assert log_evidence(0.01, 30, 1000) < 0
    assert log_evidence(0.01, 1000, 1000) < 0


def test_bound_is_above_the_observed_rate_and_one_without_requests() -> None:
    assert upper_bound(0, 0, 0.05) == 1
    assert upper_bound(7, 7, 0.05) == 1
    assert upper_bound(3, 1000, 0.05) > 0.003


def test_false_passes_of_a_rate_at_the_limit_stay_within_beta() -> None:
    rng, runs, level, rate = random.Random(5), 1000, 0.05, 0.02
    wrong = 0
    for _ in range(runs):
        errors = [sum(rng.random() < rate for _ in range(20)) for _ in range(40)]
        wrong += max(evidence_path(rate, np.array(errors, float), np.full(40, 20.0), 1.0)) >= -math.log(level)

    assert wrong / runs <= level + 3 * math.sqrt(level * (1 - level) / runs)


def test_bursts_discount_the_evidence() -> None:
    plain, discounted = (evidence_path(0.01, np.zeros(10), np.full(10, 100.0), burst)[-1] for burst in (1.0, 4.0))

    assert discounted == pytest.approx(log_evidence(0.01, 0, 250))
    assert discounted < plain
