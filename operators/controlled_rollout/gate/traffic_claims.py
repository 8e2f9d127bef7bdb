"""The claims about what every request tells: errors, latency and the split (the author's metrics: metric_claims.py)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.duration import format_duration
from controlled_rollout.gate.claims import ClaimResult, alarm_from, alarm_threshold, claim_from
from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.last_control import last_control_alarms
from controlled_rollout.gate.mixture import MixtureResult, log_sum_exp, mix, more_needed, settle
from controlled_rollout.gate.model import Gate
from controlled_rollout.gate.rate import evidence_path, log_evidence, rate_of_odds, upper_bound
from controlled_rollout.gate.ratio import (
    ABOVE,
    ABOVE_WEIGHTS,
    BETTER,
    MOST_BURST,
    OddsRatio,
    bounded_discount,
    burstiness,
    rate_difference,
    rate_differs,
)
from controlled_rollout.gate.restarts import Process, alarm_evidence, at_present_share, process_starts
from controlled_rollout.gate.shift import TILT_WEIGHTS, Shift, score_burstiness
from controlled_rollout.gate.split import check_split, split_served

__all__ = ["latency_weights", "pass_ratios", "split_wrong", "traffic_claims"]

Floats = NDArray[np.float64]

# The weight of the quantiles in the latency alarm; the durations as a whole, which find most slow-downs sooner, have
# the rest.
QUANTILES_PART: Final = 0.4


def traffic_claims(judged: Columns, before: Columns, gate: Gate) -> tuple[list[ClaimResult], list[ClaimResult]]:
    """Test the alarm and the pass claims about errors and, if the bins count slow requests, about latency.

    Alarms count everything since the rollout began, passes only what came at the present share.

    Args:
        judged: The rollout's bins, warm-up left out.
        before: Control's bins before the rollout: they tell how much events come in bursts.
        gate: What the treatment has to show.
    """
    spans = {first: judged.since(first) for first in process_starts(judged)}
    at_present = at_present_share(judged)
    present = judged if at_present.all() else judged.at(at_present)
    burst = _burst_divisor(before, before.errors, gate)
    errors = {first: _Event(span, span.errors, gate, burst) for first, span in spans.items()}
    present_errors = errors[0] if present is judged else _Event(present, present.errors, gate, burst)
    alarms, passes = [_errors_higher(gate, errors)], [_errors_not_worse(gate, present_errors)]
    bursts: list[float] = []
    if gate.max_error_rate < 1:
        name = f"errors are below {100 * gate.max_error_rate:.3g} %"
        passes.append(_rate_below(name, gate.max_error_rate, present_errors, gate))
    if gate.max_latency is not None and present.over_limit is not None:
        burst_over = 1.0 if before.over_limit is None else _burst_divisor(before, before.over_limit, gate)
        limit, quantile = gate.max_latency.duration, gate.max_latency.quantile
        over = _Event(present, present.over_limit, gate, burst_over)
        name = f"{_format_quantile(quantile)} is below {format_duration(limit)}"
        passes.append(_rate_below(name, 1 - quantile, over, gate))
    if judged.slow:
        bursts = [_burst_divisor(before, metric, gate) for metric in before.slow] or [1.0] * len(gate.latency_quantiles)
        slow = {first: _slow_events(span, gate, bursts) for first, span in spans.items()}
        shifts = {first: _duration_test(span, before, gate) for first, span in spans.items()}
        present_slow = slow[0] if present is judged else _slow_events(present, gate, bursts)
        alarms.append(_latency_higher(gate, slow, shifts))
        passes.append(_latency_not_worse(gate, present_slow))
    alarms += last_control_alarms(judged, before, gate, burst=burst, slow_bursts=bursts)
    return alarms, passes


def _burst_divisor(before: Columns, metric: Metric, gate: Gate) -> float:
    """Return the factor by which evidence is divided because events come in bursts; 1 if `burst_cap` handles them."""
    return 1.0 if gate.burst_cap is not None else burstiness(before.control, metric.control)


class _Event:
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

    def rates(self) -> str:
        """Return the event's rate in both versions as text."""
        treatment = _format_rate(self.metric.treatment, self.judged.treatment)
        return f"{treatment} against control's {_format_rate(self.metric.control, self.judged.control)}"

    def bursts(self, most: float = math.inf) -> str:
        """Return the discount for bursts, at most this, as text; empty if there is none."""
        return f", discounted {min(self.burst, most):.3g} times for bursts" if self.burst > 1 else ""


def _slow_events(span: Columns, gate: Gate, bursts: Sequence[float]) -> list[_Event]:
    """Return the requests slower than each quantile as events."""
    return [_Event(span, metric, gate, burst) for metric, burst in zip(span.slow, bursts, strict=True)]


def _errors_higher(gate: Gate, errors: Mapping[int, _Event]) -> ClaimResult:
    """Test the alarm claim: error odds above the tolerated ratio, and a rate difference above the tolerated one.

    Args:
        gate: What the treatment has to show.
        errors: By first bin the errors of each process.
    """
    threshold = alarm_threshold(gate, "errors", latency=bool(errors[0].judged.slow))

    def components(event: _Event, bins: int) -> tuple[list[Floats], Sequence[float]]:
        """Return the evidence of all ratios over `bins` bins of a process, and its weights."""
        return event.odds_for_alarm.paths(gate.error_ratio, ABOVE, bins), ABOVE_WEIGHTS

    processes = [
        Process(first, partial(components, event), rate_differs(event.judged, event.metric, gate.error_difference))
        for first, event in errors.items()
    ]
    evidence = alarm_evidence(processes, errors[0].n_bins, math.log(threshold))
    event = errors[evidence.since]
    difference = rate_difference(event.judged, event.metric)
    detail = event.rates()
    if difference is not None:
        detail += f", difference {100 * difference:+.3g} points, {100 * gate.error_difference:.3g} tolerated"
    detail += event.bursts(MOST_BURST) + _since(event.judged, evidence.since)
    return alarm_from("errors are higher", "alarm", evidence, threshold, detail)


def _since(span: Columns, first: int) -> str:
    """Return as text since when evidence counts that does not count from the rollout's start; else empty."""
    return f", since the split changed at {span.starts[0]:%H:%M:%S}" if first else ""


def _duration_test(judged: Columns, before: Columns, gate: Gate) -> Shift:
    """Return the test that the treatment's durations as a whole are longer; a part of the latency alarm."""
    burst = 1.0
    if before.slow and gate.burst_cap is None:
        burst = score_burstiness(before.control, [metric.control for metric in before.slow], gate.latency_quantiles)
    return Shift(judged.treatment, judged.control, judged.slow, gate.latency_quantiles, burst=burst, cap=gate.burst_cap)


def latency_weights(n_quantiles: int) -> list[float]:
    """Return the weights of the latency alarm's components: first each quantile's ratios, then the tilts."""
    part = QUANTILES_PART / n_quantiles
    by_quantile = [part * weight for _ in range(n_quantiles) for weight in ABOVE_WEIGHTS]
    return by_quantile + [(1 - QUANTILES_PART) * weight for weight in TILT_WEIGHTS]


def _latency_higher(gate: Gate, slow: Mapping[int, Sequence[_Event]], shifts: Mapping[int, Shift]) -> ClaimResult:
    """Test the alarm claim: durations exceed control's quantiles more often, at one quantile or as a whole.

    E-values may be averaged whatever their dependence (Vovk and Wang, arXiv 1912.06116).

    Args:
        gate: What the treatment has to show.
        slow: By first bin the slow requests of each process, per quantile.
        shifts: By first bin the test of each process on durations as a whole.
    """
    threshold = alarm_threshold(gate, "latency", latency=True)
    weights = latency_weights(len(slow[0]))

    def components(first: int, bins: int) -> tuple[list[Floats], list[float]]:
        """Return the evidence of all quantiles and tilts over `bins` bins from `first` on, and its weights."""
        paths = [path for quantile in slow[first] for path in quantile.odds.paths(1.0, ABOVE, bins)]
        return [*paths, *shifts[first].paths(bins)], weights

    processes = [Process(first, partial(components, first)) for first in slow]
    evidence = alarm_evidence(processes, slow[0][0].n_bins, math.log(threshold))
    parts = [
        f"{_format_quantile(quantile)} exceeded by {event.rates()}{event.bursts()}"
        for quantile, event in zip(gate.latency_quantiles, slow[evidence.since], strict=True)
    ]
    detail = ", ".join(parts) + _since(slow[evidence.since][0].judged, evidence.since)
    return alarm_from("latency is higher", "alarm", evidence, threshold, detail)


def split_wrong(all_bins: Columns, gate: Gate) -> tuple[ClaimResult, NDArray[np.bool_]]:
    """Test the split claim: the versions do not get the shares of the requests that were set.

    Returns:
        The claim, and for each bin whether the split was wrong in it and is right again since.
    """
    threshold = 1 / gate.split_alpha
    check = check_split(all_bins, math.log(threshold))
    left_out = np.zeros(len(all_bins.starts), dtype=bool)
    for first, end in check.was_wrong:
        left_out[first:end] = True
    shares = split_served(all_bins.without(left_out))
    detail = (
        "not checked: no bin with a known split"
        if shares is None
        else f"{100 * shares[0]:.3g} % served, {100 * shares[1]:.3g} % set"
    )
    reached = check.wrong_since is not None
    claim = claim_from("split is wrong", "split", check.peak, threshold, reached, detail)
    return ClaimResult(claim, check.wrong_since), left_out


def _errors_not_worse(gate: Gate, errors: _Event) -> ClaimResult:
    """Test the pass claim: error odds below `pass_ratio` times control's, or an acceptable rate."""
    result = _not_worse(gate, errors, gate.acceptable_error_rate)
    hits, requests = float(errors.metric.treatment.sum()), float(errors.judged.treatment.sum())
    bound = upper_bound(hits / errors.burst, requests / errors.burst, gate.beta / 2)
    detail = (
        f"odds below {gate.pass_ratio:g} times control's, or rate below {100 * gate.acceptable_error_rate:.3g} %; "
        f"rate now at most {100 * bound:.3g} %"
    )
    return ClaimResult(
        claim_from("errors are not worse", "pass", result.peak, 1 / gate.beta, result.reached, detail, result.needed)
    )


def _rate_below(name: str, limit: float, event: _Event, gate: Gate) -> ClaimResult:
    """Test the pass claim that the treatment's rate of an event is below a limit, whatever control's is."""
    goal = -math.log(gate.beta)
    hits, requests = event.metric.treatment, event.judged.treatment
    path = evidence_path(limit, hits, requests, event.burst)
    peak = max(0.0, float(path.max(initial=0.0)))
    total, served = float(hits.sum()), float(requests.sum())
    needed: int | None = 0
    if peak < goal:
        rate = total / served if served else 0.0

        def expected_log_evidence(more: Floats) -> Floats:
            """Return the log of the expected evidence after each number of further treatment requests."""
            return log_evidence(limit, (total + rate * more) / event.burst, (served + more) / event.burst)

        needed = more_needed(expected_log_evidence, goal)
    detail = f"{_format_rate(hits, requests)} of {served:,.0f} requests, {100 * limit:.3g} % allowed"
    return ClaimResult(claim_from(name, "pass", peak, 1 / gate.beta, peak >= goal, detail, needed))


def _latency_not_worse(gate: Gate, slow: Sequence[_Event]) -> ClaimResult:
    """Pass: at no quantile are the odds of exceeding it `pass_ratio` times control's, or times what they were before.

    Control's frozen quantile q was exceeded with odds (1 - q) / q before the rollout. When no request exceeds it any
    more (a quieter hour) the ratio of the two versions stays unknown; the treatment's own rate then decides.

    Every quantile has to reach it by itself, so the weakest counts: an average would let the median's many events pass
    a tail without any. Each at 1 / beta is enough, because a false pass needs the bad one to be wrong.
    """
    results = [
        _not_worse(gate, event, rate_of_odds(gate.pass_ratio * (1 - quantile) / quantile))
        for event, quantile in zip(slow, gate.latency_quantiles, strict=True)
    ]
    weakest = min(range(len(results)), key=lambda index: results[index].peak)
    needed = [result.needed for result in results]
    known = [number for number in needed if number is not None]
    detail = (
        f"odds of exceeding below {gate.pass_ratio:g} times control's, or times those before the rollout, at every "
        f"quantile; least sure of {_format_quantile(gate.latency_quantiles[weakest])}"
    )
    reached = all(result.reached for result in results)
    more = max(known) if len(known) == len(needed) else None
    claim = claim_from("latency is not worse", "pass", results[weakest].peak, 1 / gate.beta, reached, detail, more)
    return ClaimResult(claim)


@dataclass(frozen=True, slots=True)
class _NotWorse:
    """How far one kind of event is shown not to be worse.

    Attributes:
        peak: The log of the evidence.
        reached: Whether it was ever enough.
        needed: How many more treatment requests it needs; 0 when reached, None when it will not come by waiting.
    """

    peak: float
    reached: bool
    needed: int | None


def _not_worse(gate: Gate, event: _Event, acceptable_rate: float) -> _NotWorse:
    """Test both ways to pass: by the ratio to control, and by the treatment's own rate.

    The two ways are one e-value, each with half the weight: that is how `beta` is split between them.
    """
    goal, ratios = -math.log(gate.beta), pass_ratios(gate)
    weights = [*(weight / 2 for weight in _equal_weights(ratios)), 0.5]
    hits, requests = event.metric.treatment, event.judged.treatment

    def evidence_after(bins: int) -> MixtureResult:
        """Return the mixed evidence of both ways to pass over the first `bins` bins."""
        absolute = evidence_path(acceptable_rate, hits[:bins], requests[:bins], event.burst)
        return mix([*event.odds.paths(gate.pass_ratio, ratios, bins), absolute], weights, goal, bins)

    evidence = settle(evidence_after, event.n_bins, goal)
    if evidence.reached_at is not None:
        return _NotWorse(evidence.peak, True, 0)
    total, served = float(hits.sum()), float(requests.sum())

    def expected_log_evidence(more: Floats) -> Floats:
        """Return the log of the expected evidence after each number of further treatment requests."""
        grown = 1 + more / served if served else np.ones_like(more)
        parts = [_extrapolate(part, weight, grown) for part, weight in zip(evidence.parts, weights, strict=True)]
        absolute = log_evidence(acceptable_rate, total * grown / event.burst, (served + more) / event.burst)
        return log_sum_exp(np.array([*parts[:-1], absolute + math.log(0.5)]))

    return _NotWorse(evidence.peak, False, more_needed(expected_log_evidence, goal))


def pass_ratios(gate: Gate) -> list[float]:
    """Return the alternatives of a pass claim as ratios to its null hypothesis; only those below 1."""
    return [odds / gate.pass_ratio for odds in BETTER if odds < gate.pass_ratio]


def _equal_weights(parts: Sequence[object]) -> list[float]:
    """Return equal weights that sum to 1, one per item."""
    return [1 / len(parts)] * len(parts)


def _extrapolate(part: float, weight: float, grown: Floats) -> Floats:
    """Return a component's log evidence at `grown` times as many requests, at its average growth so far."""
    start = math.log(weight)
    return start + (part - start) * grown


def _format_rate(events: Floats, requests: Floats) -> str:
    """Return events as per cent of requests, as text; "nothing" without requests."""
    total = float(requests.sum())
    return f"{100 * float(events.sum()) / total:.3g} %" if total else "nothing"


def _format_quantile(quantile: float) -> str:
    """Return a quantile as text, such as `p95`."""
    return f"p{100 * quantile:g}"
