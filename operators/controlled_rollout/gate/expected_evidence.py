"""How fast evidence grows at constant rates: requests until a pass, and the smallest regressions that are found.

The log of every likelihood-ratio process grows, on average, by a constant per request (the difference of the two odds
ratios' Kullback-Leibler divergences from the truth). When the evidence expected after a time reaches the threshold,
about half of the rollouts have reached it (Wald, 1945). The author's own metrics and bursts are left out: they are not
known beforehand.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.claims import alarm_threshold
from controlled_rollout.gate.event_test import pass_ratios
from controlled_rollout.gate.mixture import log_sum_exp, more_needed
from controlled_rollout.gate.model import Gate
from controlled_rollout.gate.odds import Margins
from controlled_rollout.gate.rate import log_evidence, rate_of_odds
from controlled_rollout.gate.ratio import ABOVE, ABOVE_WEIGHTS
from controlled_rollout.gate.restarts import process_weight
from controlled_rollout.gate.traffic_claims import latency_weights

__all__ = ["detectable_error_rate", "detectable_slow_share", "requests_to_pass"]

Floats = NDArray[np.float64]

# The growth per request is that of so large a bin.
LARGE: Final = 1e7


def requests_to_pass(gate: Gate, share: float, error_rate: float, quantiles: Sequence[float]) -> int | None:
    """Return about how many treatment requests a pass needs if the treatment is like control; None if it never passes.

    Args:
        gate: What the treatment has to show.
        share: The treatment's part of the two versions' traffic.
        error_rate: The share of control's requests that are errors.
        quantiles: The latency quantiles that are judged.
    """
    needed = [_requests_needed(gate, share, error_rate, gate.acceptable_error_rate)]
    needed += [_requests_needed(gate, share, 1 - q, rate_of_odds(gate.pass_ratio * (1 - q) / q)) for q in quantiles]
    known = [number for number in needed if number is not None]
    return max(known) if len(known) == len(needed) else None


def detectable_error_rate(
    gate: Gate, share: float, error_rate: float, requests: float, *, latency: bool
) -> float | None:
    """Return about the smallest treatment error rate that alarms within `requests` requests; None if none does."""
    goal = math.log(alarm_threshold(gate, "errors", latency=latency))
    return _smallest_rate(
        lambda rate: _expected_alarm(requests, share, error_rate, rate, gate.error_ratio, ABOVE_WEIGHTS) >= goal,
        error_rate + gate.error_difference,
    )


def detectable_slow_share(gate: Gate, share: float, quantile: float, requests: float, n_quantiles: int) -> float | None:
    """Return about the smallest share of requests slower than control's quantile that alarms; None if none does."""
    normal, weights = 1 - quantile, latency_weights(n_quantiles)[: len(ABOVE)]
    goal = math.log(alarm_threshold(gate, "latency", latency=True))
    return _smallest_rate(lambda part: _expected_alarm(requests, share, normal, part, 1.0, weights) >= goal, normal)


def _requests_needed(gate: Gate, share: float, rate: float, acceptable_rate: float) -> int | None:
    """Return about how many treatment requests one pass claim needs if both versions are alike; None if never."""
    ratios = pass_ratios(gate.pass_ratio)
    gains = [_expected_growth(share, rate, rate, gate.pass_ratio, ratio) for ratio in ratios]

    def expected_log_evidence(requests: Floats) -> Floats:
        """Return the log of the pass claim's expected evidence after each number of treatment requests."""
        by_ratio = [math.log(0.5 / len(ratios)) + gain * requests for gain in gains]
        absolute = log_evidence(acceptable_rate, rate * requests, requests) + math.log(0.5)
        return log_sum_exp(np.array([*by_ratio, absolute]))

    return more_needed(expected_log_evidence, -math.log(gate.beta))


def _expected_alarm(
    requests: float, share: float, control_rate: float, treatment_rate: float, null: float, weights: Sequence[float]
) -> float:
    """Return the log of an alarm's expected evidence after a number of treatment requests at one share.

    It is that of the process that begins at the first change of the split; a rollout's first share is judged sooner.
    """
    grown = [
        math.log(weight) + requests * _expected_growth(share, control_rate, treatment_rate, null, ratio)
        for ratio, weight in zip(ABOVE, weights, strict=True)
    ]
    return math.log(process_weight(1)) + float(log_sum_exp(np.array(grown)))


def _expected_growth(share: float, control_rate: float, treatment_rate: float, null: float, ratio: float) -> float:
    """Return the expected log likelihood ratio of odds `null * ratio` to odds `null` per treatment request."""
    a, c = LARGE * share, LARGE * (1 - share)
    events = a * treatment_rate + c * control_rate
    margins = Margins(*(np.array([value]) for value in (a, c, events)))
    gain = a * treatment_rate * math.log(ratio) - float((margins.log_z(null * ratio, 1) - margins.log_z(null, 1))[0])
    return gain / a


def _smallest_rate(alarms: Callable[[float], bool], low: float) -> float | None:
    """Return the smallest rate above `low` for which `alarms` is true, by bisection to 0.1 %; None if there is none."""
    high = 1 - 1e-6
    if low >= high or not alarms(high):
        return None
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        if alarms(middle):
            high = middle
        else:
            low = middle
    return high
