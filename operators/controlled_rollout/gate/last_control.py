"""A treatment that leaves control no traffic is compared with control's last bins, in alarms of their own.

The two are not served at the same time, so whatever changes meanwhile (an incident, the time of day) counts against the
treatment. Therefore it has to be clearly worse: its odds above `pass_ratio` times the most that control's may have
been. That most is an upper bound of control's rate, wrong with half of the alarm's probability; the other half is the
process's, in which each of the treatment's requests is an event with at most the rate that follows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.claims import ClaimResult, alarm_from, alarm_threshold
from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.mixture import log_evidence_paths
from controlled_rollout.gate.model import Gate
from controlled_rollout.gate.rate import rate_of_odds, upper_bound
from controlled_rollout.gate.ratio import ABOVE, ABOVE_WEIGHTS
from controlled_rollout.gate.restarts import Process, alarm_evidence

__all__ = ["LEAST_REQUESTS", "LastOfControl", "last_control_alarms", "last_of_control", "without_control"]

Floats = NDArray[np.float64]

# With a larger share than this the treatment leaves control too few requests to be compared with at the same time.
MOST_SHARE: Final = 0.99
# Of control's last requests so many are taken, in whole bins; with fewer than the least there is nothing to compare.
LAST_REQUESTS: Final = 10_000
LEAST_REQUESTS: Final = 100


@dataclass(frozen=True, slots=True)
class LastOfControl:
    """Control's last bins before the treatment took its traffic.

    Attributes:
        requests: Its requests.
        errors: Its errors.
        slow: Its requests slower than each quantile.
    """

    requests: float
    errors: float
    slow: tuple[float, ...]


def without_control(columns: Columns) -> NDArray[np.bool_]:
    """Return for each bin whether the treatment was set to have (nearly) all of the traffic in it."""
    result: NDArray[np.bool_] = columns.shares > MOST_SHARE
    return result


def last_of_control(judged: Columns, before: Columns) -> LastOfControl:
    """Return control's last bins, of the rollout and before it, before the treatment first had all the traffic.

    Args:
        judged: The rollout's bins, of which the treatment had all the traffic in some.
        before: Control's bins before the rollout.
    """
    earlier = judged.at(slice(0, int(np.argmax(without_control(judged)))))
    requests = np.concatenate([before.control, earlier.control])
    last = np.cumsum(requests[::-1])[::-1] - requests < LAST_REQUESTS

    def total(metric: Metric, of_baseline: Metric | None) -> float:
        """Return control's events of one kind in its last bins."""
        events = np.zeros(len(before.control)) if of_baseline is None else of_baseline.control
        return float(np.concatenate([events, metric.control])[last].sum())

    return LastOfControl(
        float(requests[last].sum()),
        total(earlier.errors, before.errors),
        tuple(total(metric, before.slow[k] if before.slow else None) for k, metric in enumerate(earlier.slow)),
    )


def last_control_alarms(
    judged: Columns, latency: Columns, before: Columns, gate: Gate, *, burst: float, slow_bursts: Sequence[float]
) -> list[ClaimResult]:
    """Test that the treatment, where it has all the traffic, is worse than control was last.

    Args:
        judged: The rollout's bins, warm-up left out.
        latency: The same, as alarms judge latency in them (`latency_for_alarms`).
        before: Control's bins before the rollout.
        gate: What the treatment has to show.
        burst: By how much errors come in bursts (1 = independently).
        slow_bursts: The same for the requests slower than each quantile.

    Returns:
        Nothing where the treatment never has all the traffic, or control's last requests are too few.
    """
    alone = without_control(judged)
    if not alone.any():
        return []
    control = last_of_control(judged, before)
    if control.requests < LEAST_REQUESTS:
        return []
    has_latency = bool(judged.slow)
    errors = _RateTest(judged, judged.errors, control.errors, control.requests, burst)
    least = gate.acceptable_error_rate
    results = [
        _alarm(
            "errors are higher than control's last",
            [errors],
            alarm_threshold(gate, "errors", latency=has_latency),
            gate,
            least,
        )
    ]
    if has_latency and (last := last_of_control(latency, before)).requests >= LEAST_REQUESTS:
        slow = [
            _RateTest(latency, metric, events, last.requests, burst)
            for metric, events, burst in zip(latency.slow, last.slow, slow_bursts, strict=True)
        ]
        threshold = alarm_threshold(gate, "latency", latency=True)
        results.append(_alarm("latency is higher than control's last", slow, threshold, gate, 0.0))
    return results


class _RateTest:
    """The evidence that the treatment's rate of one kind of event is above a rate."""

    def __init__(self, judged: Columns, metric: Metric, events: float, requests: float, burst: float) -> None:
        """Take the bins in which the treatment has all the traffic; the others count nothing."""
        alone = without_control(judged)
        self.hits = np.where(alone, metric.treatment, 0.0)
        self.requests = np.where(alone, judged.treatment, 0.0)
        self.burst = burst
        self.control = events, requests

    def null_rate(self, gate: Gate, level: float, least: float) -> float:
        """Return the rate that is still tolerated: `pass_ratio` times the odds that control had at most."""
        events, requests = self.control
        most = upper_bound(events / self.burst, requests / self.burst, level)
        return max(least, rate_of_odds(gate.pass_ratio * most / (1 - most))) if most < 1 else 1.0

    def paths(self, rate: float, bins: int) -> list[Floats]:
        """Return the path of log evidence that the rate is above `rate`, for each ratio of the odds."""

        def gain(ratio: float, n_bins: int) -> Floats:
            """Return each bin's log likelihood ratio of `ratio` times the odds."""
            cost = math.log1p(rate * (ratio - 1))
            return (self.hits[:n_bins] * math.log(ratio) - self.requests[:n_bins] * cost) / self.burst

        return log_evidence_paths(ABOVE, bins, gain)

    def text(self) -> str:
        """Return the treatment's rate where it has all the traffic, and control's last one, as text."""
        served, (events, requests) = float(self.requests.sum()), self.control
        treatment = f"{100 * float(self.hits.sum()) / served:.3g} %" if served else "nothing"
        return f"{treatment} against {100 * events / requests:.3g} % of control's last {requests:,.0f} requests"


def _alarm(name: str, tests: Sequence[_RateTest], threshold: float, gate: Gate, least: float) -> ClaimResult:
    """Return the alarm that some rate is above what is tolerated, averaged over the tests.

    Half of 1 / `threshold` is the probability that one of control's bounds is wrong, the other half the process's.
    """
    level = 1 / (2 * threshold * len(tests))
    rates = [test.null_rate(gate, level, least) for test in tests]
    weights = [weight / len(tests) for _ in tests for weight in ABOVE_WEIGHTS]

    def components(bins: int) -> tuple[list[Floats], list[float]]:
        """Return the evidence of all tests over the first `bins` bins, and its weights."""
        return [path for test, rate in zip(tests, rates, strict=True) for path in test.paths(rate, bins)], weights

    n_bins = len(tests[0].hits)
    evidence = alarm_evidence([Process(0, components)], n_bins, math.log(2 * threshold), weights=(1.0,))
    detail = ", ".join(test.text() for test in tests)
    return alarm_from(name, "alarm", evidence, 2 * threshold, detail)
