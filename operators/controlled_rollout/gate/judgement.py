"""From bins to a verdict: which claims are asked, what each has reached, and what follows.

Nothing is kept between looks: every look recomputes everything from all closed bins. "Ever reached" is answered bin by
bin, so the same bins give the same verdict however many looks there were (docs/gate.md).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from controlled_rollout.gate.columns import Columns, Metric, columns
from controlled_rollout.gate.mixture import Evidence, log_sum, mix, more_needed, settle
from controlled_rollout.gate.model import Bin, Claim, Gate, Outcome, Verdict
from controlled_rollout.gate.rate import evidence_path, log_evidence, upper_bound
from controlled_rollout.gate.ratio import ABOVE, BETTER, OddsRatio, burstiness, first_difference, rate_difference
from controlled_rollout.gate.split import split_evidence, split_served

__all__ = ["cannot_see", "judge"]

NOT_JUDGED: Final = "latency is not judged: the bins carry no counts of slow requests"
# exp() of more is more than a float can hold: infinite.
LARGEST_EXPONENT: Final = 709.0


@dataclass(frozen=True, slots=True)
class _Finding:
    """A claim, and the start index of the bin after which it was established (None if it never was)."""

    claim: Claim
    first: int | None = None


def judge(bins: Iterable[Bin], gate: Gate, *, baseline: Iterable[Bin] = ()) -> Verdict:
    """Judge a treatment against control on all closed bins since the rollout began.

    Args:
        bins: In any order; every closed bin, each time.
        gate: What the treatment has to show.
        baseline: Bins from before the rollout; control's counts in them tell how much errors come in bursts.

    Returns:
        Pass, fail, not enough evidence, or split is wrong. (`cannot_see` is for callers whose evidence cannot be read.)

    Raises:
        EvidenceError: The counts cannot be: negative, more errors than requests, two bins at one time, ...
    """
    quantiles = len(gate.latency_quantiles)
    everything = columns(bins, quantiles=quantiles)
    before = columns(baseline, quantiles=quantiles)
    left_out = everything.warm_up_bins(gate.warm_up)
    judged = everything.since(left_out)

    errors_burst = _burst(before, before.errors, gate)
    errors = OddsRatio(judged, judged.errors, burst=errors_burst, cap=gate.burst_cap)
    slow_bursts = [_burst(before, metric, gate) for metric in before.slow] or [1.0] * quantiles
    slow = [
        OddsRatio(judged, metric, burst=burst, cap=gate.burst_cap)
        for metric, burst in zip(judged.slow, slow_bursts, strict=False)
    ]

    alarms = [_errors_higher(judged, gate, errors, errors_burst)]
    passes = [_errors_not_worse(judged, gate, errors, errors_burst)]
    if slow:
        alarms.append(_latency_higher(judged, gate, slow, slow_bursts))
        passes.append(_latency_not_worse(judged, gate, slow, slow_bursts))
    alarms = [alarm if alarm.first is None else replace(alarm, first=alarm.first + left_out) for alarm in alarms]
    split = _split_wrong(everything, gate)
    return _conclude(judged, gate, alarms, split, passes, left_out)


def _burst(before: Columns, metric: Metric, gate: Gate) -> float:
    """Return by how much gains are divided: a cap on every bin's gain is the other way to bear bursts."""
    return 1.0 if gate.burst_cap is not None else burstiness(before.control, metric.control)


def cannot_see(
    reason: str, *, claims: tuple[Claim, ...] = (), control_requests: int = 0, treatment_requests: int = 0
) -> Verdict:
    """Return the verdict of a look whose evidence could not be read, or only in part: never a pass, never a fail.

    Args:
        reason: What could not be read, and why.
        claims: What was known before, if it should be shown.
        control_requests: How many of control's requests were seen all the same.
        treatment_requests: Likewise the treatment's.
    """
    return Verdict(Outcome.CANNOT_SEE, claims, reason, control_requests, treatment_requests)


def _conclude(
    judged: Columns, gate: Gate, alarms: Sequence[_Finding], split: _Finding, passes: Sequence[_Finding], left_out: int
) -> Verdict:
    """Weigh the claims: an alarm fails unless the split was known to be wrong by then; passing needs every pass."""
    first_alarm = min((alarm.first for alarm in alarms if alarm.first is not None), default=None)
    if split.first is not None and (first_alarm is None or split.first <= first_alarm):
        outcome = Outcome.SPLIT_IS_WRONG
        reason = _sentence(split.claim) + ": the comparison is not to be trusted, so nothing is rolled back for it"
    elif first_alarm is not None:
        outcome = Outcome.FAIL
        reason = "; ".join(_sentence(alarm.claim) for alarm in alarms if alarm.first is not None)
    elif all(finding.claim.reached for finding in passes):
        outcome = Outcome.PASS
        reason = "; ".join(_sentence(finding.claim) for finding in passes)
    else:
        outcome = Outcome.NOT_ENOUGH_EVIDENCE
        reason = _still_needed([finding.claim for finding in passes if not finding.claim.reached])
    notes = [reason]
    if judged.starts and gate.latency_quantiles and not judged.slow:
        notes.append(NOT_JUDGED)
    if left_out:
        notes.append(f"{left_out} {'bin' if left_out == 1 else 'bins'} of warm-up left out")
    return Verdict(
        outcome,
        tuple(finding.claim for finding in (*alarms, split, *passes)),
        "; ".join(notes),
        sum(judged.control),
        sum(judged.treatment),
    )


def _sentence(claim: Claim) -> str:
    return f"{claim.name}: e-value {claim.e_value:.3g} of {claim.threshold:.3g} ({claim.detail})"


def _still_needed(claims: Sequence[Claim]) -> str:
    parts = []
    for claim in claims:
        needed = "more evidence" if claim.needed_requests is None else f"about {claim.needed_requests:,} more requests"
        parts.append(f"{claim.name!r} needs {needed} (e-value {claim.e_value:.3g} of {claim.threshold:.3g})")
    return "; ".join(parts)


# The claims


def _errors_higher(judged: Columns, gate: Gate, errors: OddsRatio, burst: float) -> _Finding:
    """Alarm: the odds of an error are above the tolerated ratio, and the rates differ by more than is tolerated."""
    threshold = _alarm_threshold(gate, "errors", judged)
    evidence = settle(
        lambda bins: mix(errors.paths(gate.error_ratio, ABOVE, bins), _equal(ABOVE), math.log(threshold), bins),
        len(judged.starts),
        math.log(threshold),
    )
    first = evidence.first
    if first is not None:
        first = first_difference(judged, judged.errors, gate.error_difference, first)
    difference = rate_difference(judged, judged.errors)
    detail = _rates(judged, judged.errors)
    if difference is not None:
        detail += f", difference {100 * difference:+.3g} points, {100 * gate.error_difference:.3g} tolerated"
    detail += _bursts(burst)
    return _Finding(_claim("errors are higher", "alarm", evidence.peak, threshold, first is not None, detail), first)


def _latency_higher(judged: Columns, gate: Gate, slow: Sequence[OddsRatio], bursts: Sequence[float]) -> _Finding:
    """Alarm: control's quantiles are exceeded more often; e-values may be averaged whatever their dependence."""
    threshold = _alarm_threshold(gate, "latency", judged)

    def weigh(bins: int) -> Evidence:
        paths = [path for quantile in slow for path in quantile.paths(1.0, ABOVE, bins)]
        return mix(paths, _equal(paths), math.log(threshold), bins)

    evidence = settle(weigh, len(judged.starts), math.log(threshold))
    parts = [
        f"{_quantile(quantile)} exceeded by {_rates(judged, metric)}{_bursts(burst)}"
        for quantile, metric, burst in zip(gate.latency_quantiles, judged.slow, bursts, strict=True)
    ]
    reached = evidence.first is not None
    claim = _claim("latency is higher", "alarm", evidence.peak, threshold, reached, ", ".join(parts))
    return _Finding(claim, evidence.first)


def _split_wrong(everything: Columns, gate: Gate) -> _Finding:
    """Alarm of its own kind: requests do not fall to the two versions as they were set to."""
    threshold = 1 / gate.split_alpha
    evidence, checked = split_evidence(everything, math.log(threshold))
    shares = split_served(everything)
    detail = (
        "not checked: no bin with a known split"
        if shares is None
        else f"{100 * shares[0]:.3g} % served, {100 * shares[1]:.3g} % set"
    )
    first = None if evidence.first is None else checked[evidence.first]
    claim = _claim("split is wrong", "split", evidence.peak, threshold, first is not None, detail)
    return _Finding(claim, first)


def _errors_not_worse(judged: Columns, gate: Gate, errors: OddsRatio, burst: float) -> _Finding:
    """Pass: the odds of an error are below `pass_ratio` times control's, or the rate is acceptable as it is."""
    found = _not_worse(judged, gate, errors, judged.errors, gate.acceptable_error_rate, burst)
    hits, requests = sum(judged.errors.treatment), sum(judged.treatment)
    bound = upper_bound(hits / burst, requests / burst, gate.beta / 2)
    detail = (
        f"odds below {gate.pass_ratio:g} times control's, or rate below {100 * gate.acceptable_error_rate:.3g} %; "
        f"rate now at most {100 * bound:.3g} %"
    )
    return _Finding(
        _claim("errors are not worse", "pass", found.peak, 1 / gate.beta, found.reached, detail, found.needed)
    )


def _latency_not_worse(judged: Columns, gate: Gate, slow: Sequence[OddsRatio], bursts: Sequence[float]) -> _Finding:
    """Pass: at no quantile are the odds of exceeding it `pass_ratio` times control's, or times what they were before.

    Control's frozen quantile q was exceeded with odds (1 - q) / q before the rollout. When nobody exceeds it any more
    (a quieter hour) the two versions' ratio stays unknown for ever; the treatment's own rate then speaks.

    Every quantile has to show it for itself, so the weakest counts: an average would let the median's many events vouch
    for a tail that nobody has seen. Each at 1 / beta is enough, because a false pass needs the bad one to be wrong.
    """
    found = [
        _not_worse(judged, gate, odds, metric, _rate_of(gate.pass_ratio * (1 - quantile) / quantile), burst)
        for odds, metric, quantile, burst in zip(slow, judged.slow, gate.latency_quantiles, bursts, strict=True)
    ]
    weakest = min(range(len(found)), key=lambda index: found[index].peak)
    needed = [quantile.needed for quantile in found]
    known = [number for number in needed if number is not None]
    detail = (
        f"odds of exceeding below {gate.pass_ratio:g} times control's, or times those before the rollout, at every "
        f"quantile; least sure of {_quantile(gate.latency_quantiles[weakest])}"
    )
    reached = all(quantile.reached for quantile in found)
    more = max(known) if len(known) == len(needed) else None
    claim = _claim("latency is not worse", "pass", found[weakest].peak, 1 / gate.beta, reached, detail, more)
    return _Finding(claim)


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


def _not_worse(
    judged: Columns, gate: Gate, odds: OddsRatio, metric: Metric, acceptable_rate: float, burst: float
) -> _NotWorse:
    """Weigh both ways to pass: by the ratio to control, and by the treatment's own rate.

    The two ways are one e-value, each with half the weight: that is how `beta` is split between them.
    """
    goal, ratios = -math.log(gate.beta), _better(gate)
    weights = [*(weight / 2 for weight in _equal(ratios)), 0.5]

    def weigh(bins: int) -> Evidence:
        absolute = evidence_path(acceptable_rate, metric.treatment[:bins], judged.treatment[:bins], burst)
        return mix([*odds.paths(gate.pass_ratio, ratios, bins), absolute], weights, goal, bins)

    evidence = settle(weigh, len(judged.starts), goal)
    hits, requests = sum(metric.treatment), sum(judged.treatment)

    def expected(more: float) -> float:
        grown = 1 + more / requests if requests else 1.0
        parts = [_extrapolate(part, weight, grown) for part, weight in zip(evidence.parts, weights, strict=True)]
        parts[-1] = log_evidence(acceptable_rate, hits * grown / burst, (requests + more) / burst) + math.log(0.5)
        return log_sum(parts)

    reached = evidence.first is not None
    return _NotWorse(evidence.peak, reached, 0 if reached else more_needed(expected, goal))


def _rate_of(odds: float) -> float:
    return odds / (1 + odds)


def _claim(
    name: str,
    kind: Literal["alarm", "pass", "split"],
    peak: float,
    threshold: float,
    reached: bool,
    detail: str,
    needed: int | None = None,
) -> Claim:
    e_value = math.exp(peak) if peak < LARGEST_EXPONENT else math.inf
    return Claim(name, kind, e_value, threshold, reached, needed, detail)


# Thresholds, expectations, words


def _alarm_threshold(gate: Gate, metric: Literal["errors", "latency"], judged: Columns) -> float:
    """Return 1 / alpha, with alpha shared out over the metrics that are judged and over the treatments."""
    judged_metrics: tuple[Literal["errors", "latency"], ...] = ("errors", "latency") if judged.slow else ("errors",)
    total = sum(gate.weights.get(name, 1.0) for name in judged_metrics)
    return gate.treatments * total / (gate.alpha * gate.weights.get(metric, 1.0))


def _better(gate: Gate) -> list[float]:
    """Return the alternatives of a pass as ratios to its null: each has to lie below, or it would vouch for worse."""
    return [odds / gate.pass_ratio for odds in BETTER if odds < gate.pass_ratio]


def _equal(parts: Sequence[object]) -> list[float]:
    return [1 / len(parts)] * len(parts)


def _extrapolate(part: float, weight: float, grown: float) -> float:
    """Return a component's value when there are so many times more requests, if it goes on as it has on average."""
    start = math.log(weight)
    return start + (part - start) * grown


def _rates(judged: Columns, metric: Metric) -> str:
    return f"{_rate(metric.treatment, judged.treatment)} against control's {_rate(metric.control, judged.control)}"


def _rate(events: Sequence[int], requests: Sequence[int]) -> str:
    total = sum(requests)
    return f"{100 * sum(events) / total:.3g} %" if total else "nothing"


def _bursts(burst: float) -> str:
    return f", discounted {burst:.3g} times for bursts" if burst > 1 else ""


def _quantile(quantile: float) -> str:
    return f"p{100 * quantile:g}"
