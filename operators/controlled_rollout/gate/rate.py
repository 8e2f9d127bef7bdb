"""An upper bound on a rate that holds at every look: the Beta(1/2, 1/2) mixture of Bernoulli likelihood ratios.

For a rate p the evidence against it after n requests with x errors is B(x + 1/2, n - x + 1/2) / (B(1/2, 1/2) p^x
(1 - p)^(n - x)), a martingale that starts from 1 when p is true (Robbins, 1970; Howard and others, Time-uniform
nonparametric confidence sequences, 2021). The rates against which the evidence is still short of 1 / level form a
confidence sequence.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from controlled_rollout.gate.mixture import more_needed

__all__ = ["evidence_path", "log_evidence", "requests_without_error", "upper_bound"]

LOG_PI: Final = math.log(math.pi)  # B(1/2, 1/2) = pi


def log_evidence(rate: float, errors: float, requests: float) -> float:
    """Return the log of the evidence that the true rate is below `rate`.

    The least over all rates from `rate` up: above it, whatever the true rate is, the evidence is a fair game or less.

    Args:
        rate: Above 0 and below 1.
        errors: How many of the requests were errors; a fraction when bursts are discounted.
        requests: How many there were.
    """
    if requests <= 0:
        return 0.0
    good = requests - errors
    rate = max(rate, errors / requests)
    likelihood = errors * math.log(rate) + (good * math.log1p(-rate) if good > 0 else 0.0)
    return math.lgamma(errors + 0.5) + math.lgamma(good + 0.5) - math.lgamma(requests + 1) - LOG_PI - likelihood


def evidence_path(rate: float, errors: Sequence[int], requests: Sequence[int], burst: float) -> list[float]:
    """Return the log of the evidence that the true rate is below `rate`, after every bin.

    Args:
        rate: The acceptable rate.
        errors: The treatment's errors, per bin.
        requests: The treatment's requests, per bin.
        burst: By how much errors come in bursts (1 = independently): every count weighs 1 / burst.
    """
    return [
        log_evidence(rate, x / burst, n / burst) for x, n in zip(accumulate(errors), accumulate(requests), strict=True)
    ]


def upper_bound(errors: float, requests: float, level: float) -> float:
    """Return the rate that, at every look together, the true rate exceeds with probability `level` at most."""
    goal = -math.log(level)
    low, high = (errors / requests if requests else 1.0), 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if log_evidence(middle, errors, requests) >= goal:
            high = middle
        else:
            low = middle
    return high


def requests_without_error(rate: float, level: float) -> int:
    """Return after how many requests without a single error the upper bound is at `rate`."""
    needed = more_needed(lambda requests: log_evidence(rate, 0, requests), -math.log(level))
    assert needed is not None  # noqa: S101 - the evidence grows without end
    return needed
