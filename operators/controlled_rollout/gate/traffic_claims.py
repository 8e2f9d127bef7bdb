"""The claims about what every request tells: errors, latency and the split (the author's metrics: metric_claims.py)."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.duration import format_duration
from controlled_rollout.gate.claims import ClaimResult, alarm_from, alarm_threshold, pass_from
from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.crowded import crowded, latency_for_alarms, latency_for_passes
from controlled_rollout.gate.event_test import EventTest, format_rate, more_frequent, not_worse
from controlled_rollout.gate.last_control import last_control_alarms
from controlled_rollout.gate.mixture import more_needed
from controlled_rollout.gate.model import Gate
from controlled_rollout.gate.rate import evidence_path, log_evidence, rate_of_odds, upper_bound
from controlled_rollout.gate.ratio import (
    ABOVE,
    ABOVE_WEIGHTS,
    MOST_BURST,
    burstiness,
)
from controlled_rollout.gate.restarts import AlarmEvidence, Process, alarm_evidence, at_present_share, process_starts
from controlled_rollout.gate.shift import TILT_WEIGHTS, Shift, duration_shift, score_burstiness
from controlled_rollout.gate.split import check_split, split_served

__all__ = ["latency_weights", "rate_below", "split_wrong", "traffic_claims"]

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
    latency = latency_for_alarms(judged)
    at_present = at_present_share(judged)
    present = judged if at_present.all() else judged.at(at_present)
    burst = _burst_divisor(before, before.errors, gate)
    errors = {first: EventTest(span, span.errors, gate, burst) for first, span in spans.items()}
    present_errors = errors[0] if present is judged else EventTest(present, present.errors, gate, burst)
    alarms, passes = [_errors_higher(gate, errors)], [_errors_not_worse(gate, present_errors)]
    bursts: list[float] = []
    if gate.max_error_rate < 1:
        name = f"errors are below {100 * gate.max_error_rate:.3g} %"
        passes.append(rate_below(name, gate.max_error_rate, present_errors, gate))
    if gate.max_latency is not None and present.over_limit is not None:
        burst_over = 1.0 if before.over_limit is None else _burst_divisor(before, before.over_limit, gate)
        limit, quantile = gate.max_latency.duration, gate.max_latency.quantile
        shown = latency_for_passes(present)
        over = EventTest(shown, shown.over_limit or present.over_limit, gate, burst_over)
        name = f"{_format_quantile(quantile)} is below {format_duration(limit)}"
        passes.append(rate_below(name, 1 - quantile, over, gate))
    if judged.slow:
        bursts = [_burst_divisor(before, metric, gate) for metric in before.slow] or [1.0] * len(gate.latency_quantiles)
        slow = {first: _slow_events(latency.since(first), gate, bursts) for first in spans}
        shifts = {first: _duration_test(latency.since(first), before, gate) for first in spans}
        alarms.append(_latency_higher(gate, slow, shifts))
        if (full := crowded(present)).any():
            column_sets = (latency_for_passes(present), present.without(full))
            passes.append(
                _latency_not_worse_in_one_of(
                    gate, [_slow_events(column_set, gate, bursts) for column_set in column_sets]
                )
            )
        else:
            present_slow = slow[0] if present is judged else _slow_events(present, gate, bursts)
            passes.append(_latency_not_worse(gate, present_slow))
    alarms += last_control_alarms(judged, latency, before, gate, burst=burst, slow_bursts=bursts)
    return alarms, passes


def _burst_divisor(before: Columns, metric: Metric, gate: Gate) -> float:
    """Return the factor by which evidence is divided because events come in bursts; 1 if `burst_cap` handles them."""
    return 1.0 if gate.burst_cap is not None else burstiness(before.control, metric.control)


def _slow_events(span: Columns, gate: Gate, bursts: Sequence[float]) -> list[EventTest]:
    """Return the requests slower than each quantile as events."""
    return [EventTest(span, metric, gate, burst) for metric, burst in zip(span.slow, bursts, strict=True)]


def _errors_higher(gate: Gate, errors: Mapping[int, EventTest]) -> ClaimResult:
    """Test the alarm claim: error odds above the tolerated ratio, and a rate difference above the tolerated one.

    Args:
        gate: What the treatment has to show.
        errors: By first bin the errors of each process.
    """
    threshold = alarm_threshold(gate, "errors", latency=bool(errors[0].judged.slow))
    evidence = more_frequent(errors, ratio=gate.error_ratio, difference=gate.error_difference, threshold=threshold)
    event = errors[evidence.since]
    detail = event.rates_text() + event.difference_text(gate.error_difference)
    detail += event.bursts_text(MOST_BURST) + _since_text(event.judged, evidence.since)
    return alarm_from("errors are higher", "alarm", evidence, threshold, detail)


def _since_text(span: Columns, first: int) -> str:
    """Return as text since when evidence counts that does not count from the rollout's start; else empty."""
    return f", since the split changed at {span.starts[0]:%H:%M:%S}" if first else ""


def _duration_test(judged: Columns, before: Columns, gate: Gate) -> Shift:
    """Return the test that the treatment's durations as a whole are longer; a part of the latency alarm."""
    burst = 1.0
    if before.slow and gate.burst_cap is None:
        burst = score_burstiness(before.control, [metric.control for metric in before.slow], gate.latency_quantiles)
    return duration_shift(
        judged.treatment, judged.control, judged.slow, gate.latency_quantiles, burst=burst, cap=gate.burst_cap
    )


def latency_weights(n_quantiles: int) -> list[float]:
    """Return the weights of the latency alarm's components: first each quantile's ratios, then the tilts."""
    part = QUANTILES_PART / n_quantiles
    by_quantile = [part * weight for _ in range(n_quantiles) for weight in ABOVE_WEIGHTS]
    return by_quantile + [(1 - QUANTILES_PART) * weight for weight in TILT_WEIGHTS]


def _latency_higher(gate: Gate, slow: Mapping[int, Sequence[EventTest]], shifts: Mapping[int, Shift]) -> ClaimResult:
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
        f"{_format_quantile(quantile)} exceeded by {event.rates_text()}{event.bursts_text()}"
        for quantile, event in zip(gate.latency_quantiles, slow[evidence.since], strict=True)
    ]
    detail = ", ".join(parts) + _since_text(slow[evidence.since][0].judged, evidence.since)
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
    # Nobody asks how near the split's present evidence is.
    evidence = AlarmEvidence(check.peak, check.wrong_since, now=0.0, since=0)
    return alarm_from("split is wrong", "split", evidence, threshold, detail), left_out


def _errors_not_worse(gate: Gate, errors: EventTest) -> ClaimResult:
    """Test the pass claim: error odds below `pass_ratio` times control's, or an acceptable rate."""
    result = not_worse(errors, gate.acceptable_error_rate, pass_ratio=gate.pass_ratio, beta=gate.beta)
    hits, requests = float(errors.metric.treatment.sum()), float(errors.judged.treatment.sum())
    bound = upper_bound(hits / errors.burst, requests / errors.burst, gate.beta / 2)
    detail = (
        f"odds below {gate.pass_ratio:g} times control's, or rate below {100 * gate.acceptable_error_rate:.3g} %; "
        f"rate now at most {100 * bound:.3g} %"
    )
    return pass_from("errors are not worse", gate, result.peak, result.reached, detail, result.needed)


def rate_below(name: str, limit: float, event: EventTest, gate: Gate) -> ClaimResult:
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
    detail = f"{format_rate(hits, requests)} of {served:,.0f} requests, {100 * limit:.3g} % allowed"
    return pass_from(name, gate, peak, peak >= goal, detail, needed)


def _latency_not_worse(gate: Gate, slow: Sequence[EventTest]) -> ClaimResult:
    """Pass: at no quantile are the odds of exceeding it `pass_ratio` times control's, or times what they were before.

    Control's frozen quantile q was exceeded with odds (1 - q) / q before the rollout. When no request exceeds it any
    more (a quieter hour) the ratio of the two versions stays unknown; the treatment's own rate then decides.

    Every quantile has to reach it by itself, so the weakest counts: an average would let the median's many events pass
    a tail without any. Each at 1 / beta is enough, because a false pass needs the bad one to be wrong.
    """
    results = [
        not_worse(
            event,
            rate_of_odds(gate.pass_ratio * (1 - quantile) / quantile),
            pass_ratio=gate.pass_ratio,
            beta=gate.beta,
        )
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
    return pass_from("latency is not worse", gate, results[weakest].peak, reached, detail, more)


def _latency_not_worse_in_one_of(gate: Gate, alternatives: Sequence[Sequence[EventTest]]) -> ClaimResult:
    """Pass by one of several ways to count crowded bins, each with its part of `beta`: their bounds, or not at all."""
    part = gate.model_copy(update={"beta": gate.beta / len(alternatives)})
    results = [_latency_not_worse(part, slow) for slow in alternatives]
    return max(results, key=lambda result: (result.claim.reached, result.claim.e_value))


def _format_quantile(quantile: float) -> str:
    """Return a quantile as text, such as `p95`."""
    return f"p{100 * quantile:g}"
