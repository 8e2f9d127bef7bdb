"""What a step of a rollout can show, before it begins: the evidence's mean path at constant rates.

The log of every likelihood-ratio process grows, on average, by a constant per request (the difference of the two odds
ratios' Kullback-Leibler divergences from the truth). When the evidence expected after a time reaches the threshold,
about half of the rollouts have reached it (Wald, 1945). The author's own metrics and bursts are left out:
nothing is known of them beforehand.
"""

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate.claims import alarm_threshold, better, latency_weights, rate_of
from controlled_rollout.gate.mixture import log_sum, more_needed
from controlled_rollout.gate.model import Gate, Power
from controlled_rollout.gate.odds import Margins
from controlled_rollout.gate.rate import log_evidence
from controlled_rollout.gate.ratio import ABOVE, ABOVE_WEIGHTS

__all__ = ["power"]

Floats = NDArray[np.float64]

LONGEST: Final = timedelta(days=30)
# The growth per request is that of so large a bin.
LARGE: Final = 1e7
USUAL_QUANTILE: Final = 0.95


def power(
    gate: Gate,
    *,
    share: float,
    requests_per_second: float,
    error_rate: float,
    within: timedelta,
    latency: bool,
) -> Power:
    """Say what a step can show (`Gate.power` has the arguments).

    Raises:
        EvidenceError: A value cannot be.
    """
    _check(share, requests_per_second, error_rate, within)
    quantiles = gate.latency_quantiles if latency else ()
    per_second = share * requests_per_second
    needed = [_needed(gate, share, error_rate, gate.acceptable_error_rate)]
    needed += [_needed(gate, share, 1 - q, rate_of(gate.pass_ratio * (1 - q) / q)) for q in quantiles]
    requests = None if None in needed else max(number for number in needed if number is not None)
    time = None if requests is None else requests / per_second
    if time is not None and time > LONGEST.total_seconds():
        requests = time = None

    seen = per_second * within.total_seconds()
    goal = math.log(alarm_threshold(gate, "errors", latency=bool(quantiles)))
    error = _smallest(
        lambda rate: _alarm(seen, share, error_rate, rate, gate.error_ratio, ABOVE_WEIGHTS) >= goal,
        error_rate + gate.error_difference,
    )
    slow = usual = None
    if quantiles:
        usual = min(quantiles, key=lambda quantile: abs(quantile - USUAL_QUANTILE))
        normal, weights = 1 - usual, latency_weights(len(quantiles))[: len(ABOVE)]
        goal = math.log(alarm_threshold(gate, "latency", latency=True))
        slow = _smallest(lambda part: _alarm(seen, share, normal, part, 1.0, weights) >= goal, normal)
    passes = None if time is None else timedelta(seconds=math.ceil(time))
    return Power(share, requests_per_second, error_rate, within, passes, requests, error, slow, usual)


def _check(share: float, requests_per_second: float, error_rate: float, within: timedelta) -> None:
    for name, value, possible, wanted in (
        ("share", share, 0 < share < 1, "above 0 and below 1 (it is a fraction, not per cent)"),
        ("requests_per_second", requests_per_second, 0 < requests_per_second < math.inf, "above 0 and finite"),
        ("error_rate", error_rate, 0 <= error_rate < 1, "0 or more and below 1 (it is a fraction, not per cent)"),
        ("within", within, within > timedelta(0), "longer than nothing"),
    ):
        if not possible:
            raise EvidenceError(f"{name} = {value} cannot be: give one that is {wanted}")


def _needed(gate: Gate, share: float, rate: float, acceptable_rate: float) -> int | None:
    """Return about how many requests of the treatment a pass claim needs when it is as good as control."""
    ratios = better(gate)
    gains = [_growth(share, rate, rate, gate.pass_ratio, ratio) for ratio in ratios]

    def expected(requests: Floats) -> Floats:
        by_ratio = [math.log(0.5 / len(ratios)) + gain * requests for gain in gains]
        absolute = log_evidence(acceptable_rate, rate * requests, requests) + math.log(0.5)
        return log_sum(np.array([*by_ratio, absolute]))

    return more_needed(expected, -math.log(gate.beta))


def _alarm(requests: float, share: float, rate: float, own_rate: float, null: float, weights: Sequence[float]) -> float:
    """Return the log of an alarm's evidence after so many requests of the treatment, at its own rate."""
    grown = [
        math.log(weight) + requests * _growth(share, rate, own_rate, null, ratio)
        for ratio, weight in zip(ABOVE, weights, strict=True)
    ]
    return float(log_sum(np.array(grown)))


def _growth(share: float, rate: float, own_rate: float, null: float, ratio: float) -> float:
    """Return by how much the log likelihood ratio of odds `null * ratio` to `null` grows per treatment request."""
    a, c = LARGE * share, LARGE * (1 - share)
    events = a * own_rate + c * rate
    margins = Margins(*(np.array([value]) for value in (a, c, events)))
    gain = a * own_rate * math.log(ratio) - float((margins.log_z(null * ratio, 1) - margins.log_z(null, 1))[0])
    return gain / a


def _smallest(found: Callable[[float], bool], low: float) -> float | None:
    """Return about the smallest rate from `low` up that is found, to a thousandth of itself."""
    high = 1 - 1e-6
    if low >= high or not found(high):
        return None
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        if found(middle):
            high = middle
        else:
            low = middle
    return high
