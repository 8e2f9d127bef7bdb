"""One kind of event in the judged bins (errors, slow requests, wrong answers): its test, its rates, a pass's needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.mixture import MixtureResult, log_sum_exp, mix, more_needed, settle
from controlled_rollout.gate.model import Gate
from controlled_rollout.gate.rate import evidence_path, log_evidence
from controlled_rollout.gate.ratio import (
    ABOVE,
    ABOVE_WEIGHTS,
    BETTER,
    MOST_BURST,
    OddsRatio,
    bounded_discount,
    rate_difference,
    rate_differs,
)
from controlled_rollout.gate.restarts import AlarmEvidence, Process, alarm_evidence

__all__ = ["EventTest", "NotWorse", "format_difference", "format_rate", "more_frequent", "not_worse", "pass_ratios"]

Floats = NDArray[np.float64]


class EventTest:
    """One kind of event (errors, or requests slower than one quantile) in the judged bins, with its odds-ratio test."""

    def __init__(self, judged: Columns, metric: Metric, gate: Gate, burst: float) -> None:
        """Prepare the odds-ratio test of this kind of event."""
        self.judged = judged
        self.metric = metric
        self.burst = burst
        self.odds = self.odds_for_alarm = OddsRatio(
            judged.treatment, judged.control, metric, burst=burst, cap=gate.burst_cap
        )
        if burst > MOST_BURST:
            bounded, cap = bounded_discount(burst)
            self.odds_for_alarm = OddsRatio(judged.treatment, judged.control, metric, burst=bounded, cap=cap)
        self.n_bins = len(judged.starts)

    def rates_text(self) -> str:
        """Return the event's rate in both versions as text."""
        treatment = format_rate(self.metric.treatment, self.judged.treatment)
        return f"{treatment} against control's {format_rate(self.metric.control, self.judged.control)}"

    def difference_text(self, tolerated: float) -> str:
        """Return the difference of the two rates and what of it is tolerated as text; empty if it is not known."""
        return format_difference(self.judged, self.metric, tolerated)

    def bursts_text(self, most: float = math.inf) -> str:
        """Return as text by how much the evidence is discounted for bursts, `most` times at most; empty without any."""
        return f", discounted {min(self.burst, most):.3g} times for bursts" if self.burst > 1 else ""


def more_frequent(
    tests: Mapping[int, EventTest], *, ratio: float, difference: float, threshold: float
) -> AlarmEvidence:
    """Return the evidence that the odds of an event are above a ratio to control's, where its rate differs too.

    Args:
        tests: By first bin the event's test in each process.
        ratio: The odds ratio that is tolerated.
        difference: The difference of the rates that is tolerated, as a fraction.
        threshold: The e-value to reach.
    """

    def components(test: EventTest, bins: int) -> tuple[list[Floats], Sequence[float]]:
        """Return the evidence of all ratios over `bins` bins of a process, and its weights."""
        return test.odds_for_alarm.paths(ratio, ABOVE, bins), ABOVE_WEIGHTS

    processes = [
        Process(first, partial(components, test), rate_differs(test.judged, test.metric, difference))
        for first, test in tests.items()
    ]
    return alarm_evidence(processes, tests[0].n_bins, math.log(threshold))


@dataclass(frozen=True, slots=True)
class NotWorse:
    """How far one kind of event is shown not to be worse.

    Attributes:
        peak: The log of the evidence.
        reached: Whether it was ever enough.
        needed: How many more treatment requests it needs; 0 when reached, None when it will not come by waiting.
    """

    peak: float
    reached: bool
    needed: int | None


def not_worse(event: EventTest, acceptable_rate: float, *, pass_ratio: float, beta: float) -> NotWorse:
    """Test both ways to pass: by the ratio to control, and by the treatment's own rate.

    The two ways are one e-value, each with half the weight: that is how `beta` is split between them.

    Args:
        event: The event and its test.
        acceptable_rate: A rate of the treatment that passes whatever control's is.
        pass_ratio: The odds ratio that the pass has to rule out.
        beta: Most probability of a wrong pass.
    """
    goal, ratios = -math.log(beta), pass_ratios(pass_ratio)
    weights = [*(weight / 2 for weight in _equal_weights(ratios)), 0.5]
    hits, requests = event.metric.treatment, event.judged.treatment

    def evidence_after(bins: int) -> MixtureResult:
        """Return the mixed evidence of both ways to pass over the first `bins` bins."""
        absolute = evidence_path(acceptable_rate, hits[:bins], requests[:bins], event.burst)
        return mix([*event.odds.paths(pass_ratio, ratios, bins), absolute], weights, goal, bins)

    evidence = settle(evidence_after, event.n_bins, goal)
    if evidence.reached_at is not None:
        return NotWorse(evidence.peak, True, 0)
    total, served = float(hits.sum()), float(requests.sum())

    def expected_log_evidence(more: Floats) -> Floats:
        """Return the log of the expected evidence after each number of further treatment requests."""
        grown = 1 + more / served if served else np.ones_like(more)
        parts = [_extrapolate(part, weight, grown) for part, weight in zip(evidence.parts, weights, strict=True)]
        absolute = log_evidence(acceptable_rate, total * grown / event.burst, (served + more) / event.burst)
        return log_sum_exp(np.array([*parts[:-1], absolute + math.log(0.5)]))

    return NotWorse(evidence.peak, False, more_needed(expected_log_evidence, goal))


def pass_ratios(pass_ratio: float) -> list[float]:
    """Return the alternatives of a pass claim as ratios to its null hypothesis; only those below 1.

    Args:
        pass_ratio: The odds ratio that the pass has to rule out.
    """
    return [odds / pass_ratio for odds in BETTER if odds < pass_ratio]


def _equal_weights(parts: Sequence[object]) -> list[float]:
    """Return equal weights that sum to 1, one per item."""
    return [1 / len(parts)] * len(parts)


def _extrapolate(part: float, weight: float, grown: Floats) -> Floats:
    """Return a component's log evidence at `grown` times as many requests, at its average growth so far."""
    start = math.log(weight)
    return start + (part - start) * grown


def format_rate(events: Floats, requests: Floats) -> str:
    """Return events as per cent of requests, as text; "nothing" without requests."""
    total = float(requests.sum())
    return f"{100 * float(events.sum()) / total:.3g} %" if total else "nothing"


def format_difference(judged: Columns, metric: Metric, tolerated: float) -> str:
    """Return how much the rates of an event differ and what of it is tolerated, as text; empty if it is not known."""
    difference = rate_difference(judged, metric)
    if difference is None:
        return ""
    return f", difference {100 * difference:+.3g} points, {100 * tolerated:.3g} tolerated"
