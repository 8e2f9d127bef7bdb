"""The claims that a gate asks of the bins: errors, latency and the split (the author's metrics: custom.py)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.columns import Columns, Metric, columns
from controlled_rollout.gate.mixture import Evidence, log_sum, mix, more_needed, settle
from controlled_rollout.gate.model import Bin, Claim, Gate
from controlled_rollout.gate.rate import evidence_path, log_evidence, upper_bound
from controlled_rollout.gate.ratio import (
    ABOVE,
    ABOVE_WEIGHTS,
    BETTER,
    OddsRatio,
    burstiness,
    first_difference,
    rate_difference,
)
from controlled_rollout.gate.shift import TILTS, Shift, score_burstiness
from controlled_rollout.gate.split import split_evidence, split_served

__all__ = [
    "Finding",
    "Findings",
    "alarm_threshold",
    "better",
    "claim_of",
    "latency_weights",
    "rate_of",
    "weigh",
]

Floats = NDArray[np.float64]

# exp() of more is more than a float can hold: infinite.
LARGEST_EXPONENT: Final = 709.0


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim, and the index of the bin after which it was established (None if it never was)."""

    claim: Claim
    first: int | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that one look found.

    Attributes:
        alarms: Claims that fail the treatment.
        splits: Claims that the two versions did not get the same kind of traffic as was set.
        passes: Claims that a pass needs, all of them.
        notes: What was left out, in words.
        control_requests, treatment_requests: How many requests were counted, warm-up left out.
    """

    alarms: tuple[Finding, ...]
    splits: tuple[Finding, ...]
    passes: tuple[Finding, ...]
    notes: tuple[str, ...]
    control_requests: int
    treatment_requests: int


def weigh(bins: Iterable[Bin], gate: Gate, baseline: Iterable[Bin]) -> Findings:
    """Ask every claim of the bins.

    Raises:
        EvidenceError: The counts cannot be.
    """
    from controlled_rollout.gate import custom

    quantiles = len(gate.latency_quantiles)
    everything = columns(bins, quantiles=quantiles, means=gate.means, categories=gate.categories)
    before = columns(baseline, quantiles=quantiles)
    left_out = everything.warm_up_bins(gate.warm_up)
    judged = everything.since(left_out)

    errors = _Event(judged, judged.errors, gate, _burst(before, before.errors, gate))
    slow_bursts = [_burst(before, metric, gate) for metric in before.slow] or [1.0] * quantiles
    slow = [_Event(judged, metric, gate, burst) for metric, burst in zip(judged.slow, slow_bursts, strict=False)]

    alarms = [_errors_higher(gate, errors)]
    passes = [_errors_not_worse(gate, errors)]
    if slow:
        alarms.append(_latency_higher(gate, slow, _shift(judged, before, gate)))
        passes.append(_latency_not_worse(gate, slow))
    splits = [_split_wrong(everything, gate)]
    own = custom.weigh(judged, gate)
    return Findings(
        tuple(_later(alarm, left_out) for alarm in (*alarms, *own.alarms)),
        (*splits, *(_later(split, left_out) for split in own.splits)),
        (*passes, *own.passes),
        tuple(_notes(judged, gate, left_out)),
        int(judged.control.sum()),
        int(judged.treatment.sum()),
    )


def alarm_threshold(gate: Gate, metric: str, *, latency: bool) -> float:
    """Return 1 / alpha, with alpha shared out over the metrics that can fail the treatment and over the treatments.

    The author's metrics have their part from the beginning, whether bins carry them yet or not: a threshold that moved
    when one appears would take back what was established.

    Args:
        gate: The shares.
        metric: Which one.
        latency: Whether latency is judged.
    """
    metrics = ["errors", *(["latency"] if latency else []), *gate.means]
    metrics += [name for name, category in gate.categories.items() if category.on_difference == "fail"]
    total = sum(gate.weights.get(name, 1.0) for name in metrics)
    return gate.treatments * total / (gate.alpha * gate.weights.get(metric, 1.0))


def claim_of(
    name: str,
    kind: Literal["alarm", "pass", "split"],
    peak: float,
    threshold: float,
    reached: bool,
    detail: str,
    needed: int | None = None,
) -> Claim:
    """Return a claim from the log of its evidence."""
    e_value = math.exp(peak) if peak < LARGEST_EXPONENT else math.inf
    return Claim(name, kind, e_value, threshold, reached, needed, detail)


def _later(finding: Finding, bins: int) -> Finding:
    return finding if finding.first is None else replace(finding, first=finding.first + bins)


def _notes(judged: Columns, gate: Gate, left_out: int) -> Iterable[str]:
    if judged.starts:
        if gate.latency_quantiles and not judged.slow:
            yield "latency is not judged: the bins carry no counts of slow requests"
        for name in (*gate.means, *gate.categories):
            if name not in judged.means and name not in judged.categories:
                yield f"{name} is not judged: the bins carry no values of it"
    if left_out:
        yield f"{left_out} {'bin' if left_out == 1 else 'bins'} of warm-up left out"


def _burst(before: Columns, metric: Metric, gate: Gate) -> float:
    """Return by how much gains are divided: a cap on every bin's gain is the other way to bear bursts."""
    return 1.0 if gate.burst_cap is not None else burstiness(before.control, metric.control)


class _Event:
    """One kind of event in the judged bins, ready to be weighed."""

    def __init__(self, judged: Columns, metric: Metric, gate: Gate, burst: float) -> None:
        self.judged = judged
        self.metric = metric
        self.burst = burst
        self.odds = OddsRatio(judged.treatment, judged.control, metric, burst=burst, cap=gate.burst_cap)
        self.bins = len(judged.starts)

    def rates(self) -> str:
        own = _rate(self.metric.treatment, self.judged.treatment)
        return f"{own} against control's {_rate(self.metric.control, self.judged.control)}"

    def bursts(self) -> str:
        return f", discounted {self.burst:.3g} times for bursts" if self.burst > 1 else ""


def _errors_higher(gate: Gate, errors: _Event) -> Finding:
    """Alarm: the odds of an error are above the tolerated ratio, and the rates differ by more than is tolerated."""
    judged, metric = errors.judged, errors.metric
    threshold = alarm_threshold(gate, "errors", latency=bool(judged.slow))
    evidence = settle(
        lambda bins: mix(errors.odds.paths(gate.error_ratio, ABOVE, bins), ABOVE_WEIGHTS, math.log(threshold), bins),
        errors.bins,
        math.log(threshold),
    )
    first = evidence.first
    if first is not None:
        first = first_difference(judged, metric, gate.error_difference, first)
    difference = rate_difference(judged, metric)
    detail = errors.rates()
    if difference is not None:
        detail += f", difference {100 * difference:+.3g} points, {100 * gate.error_difference:.3g} tolerated"
    detail += errors.bursts()
    return Finding(claim_of("errors are higher", "alarm", evidence.peak, threshold, first is not None, detail), first)


def _shift(judged: Columns, before: Columns, gate: Gate) -> Shift:
    """Return the durations as a whole, ready to be weighed; half of the latency alarm's weight is theirs."""
    burst = 1.0
    if before.slow and gate.burst_cap is None:
        burst = score_burstiness(before.control, [metric.control for metric in before.slow], gate.latency_quantiles)
    return Shift(judged.treatment, judged.control, judged.slow, gate.latency_quantiles, burst=burst, cap=gate.burst_cap)


def latency_weights(quantiles: int) -> list[float]:
    """Return the weights of the latency alarm's components: every quantile's ratios, then the tilts of the whole."""
    by_quantile = [weight / (2 * quantiles) for _ in range(quantiles) for weight in ABOVE_WEIGHTS]
    return by_quantile + [1 / (2 * len(TILTS))] * len(TILTS)


def _latency_higher(gate: Gate, slow: Sequence[_Event], shift: Shift) -> Finding:
    """Alarm: durations exceed control's quantiles more often, one of them or as a whole.

    E-values may be averaged whatever their dependence (Vovk and Wang, arXiv 1912.06116).
    """
    threshold = alarm_threshold(gate, "latency", latency=True)

    def weigh_first(bins: int) -> Evidence:
        paths = [path for quantile in slow for path in quantile.odds.paths(1.0, ABOVE, bins)]
        return mix([*paths, *shift.paths(bins)], latency_weights(len(slow)), math.log(threshold), bins)

    evidence = settle(weigh_first, slow[0].bins, math.log(threshold))
    parts = [
        f"{_quantile(quantile)} exceeded by {event.rates()}{event.bursts()}"
        for quantile, event in zip(gate.latency_quantiles, slow, strict=True)
    ]
    reached = evidence.first is not None
    claim = claim_of("latency is higher", "alarm", evidence.peak, threshold, reached, ", ".join(parts))
    return Finding(claim, evidence.first)


def _split_wrong(everything: Columns, gate: Gate) -> Finding:
    """Alarm of its own kind: requests do not fall to the two versions as they were set to."""
    threshold = 1 / gate.split_alpha
    evidence, checked = split_evidence(everything, math.log(threshold))
    shares = split_served(everything)
    detail = (
        "not checked: no bin with a known split"
        if shares is None
        else f"{100 * shares[0]:.3g} % served, {100 * shares[1]:.3g} % set"
    )
    first = None if evidence.first is None else int(checked[evidence.first])
    claim = claim_of("split is wrong", "split", evidence.peak, threshold, first is not None, detail)
    return Finding(claim, first)


def _errors_not_worse(gate: Gate, errors: _Event) -> Finding:
    """Pass: the odds of an error are below `pass_ratio` times control's, or the rate is acceptable as it is."""
    found = _not_worse(gate, errors, gate.acceptable_error_rate)
    hits, requests = float(errors.metric.treatment.sum()), float(errors.judged.treatment.sum())
    bound = upper_bound(hits / errors.burst, requests / errors.burst, gate.beta / 2)
    detail = (
        f"odds below {gate.pass_ratio:g} times control's, or rate below {100 * gate.acceptable_error_rate:.3g} %; "
        f"rate now at most {100 * bound:.3g} %"
    )
    return Finding(
        claim_of("errors are not worse", "pass", found.peak, 1 / gate.beta, found.reached, detail, found.needed)
    )


def _latency_not_worse(gate: Gate, slow: Sequence[_Event]) -> Finding:
    """Pass: at no quantile are the odds of exceeding it `pass_ratio` times control's, or times what they were before.

    Control's frozen quantile q was exceeded with odds (1 - q) / q before the rollout. When nobody exceeds it any more
    (a quieter hour) the two versions' ratio stays unknown for ever; the treatment's own rate then speaks.

    Every quantile has to show it for itself, so the weakest counts: an average would let the median's many events vouch
    for a tail that nobody has seen. Each at 1 / beta is enough, because a false pass needs the bad one to be wrong.
    """
    found = [
        _not_worse(gate, event, rate_of(gate.pass_ratio * (1 - quantile) / quantile))
        for event, quantile in zip(slow, gate.latency_quantiles, strict=True)
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
    claim = claim_of("latency is not worse", "pass", found[weakest].peak, 1 / gate.beta, reached, detail, more)
    return Finding(claim)


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
    """Weigh both ways to pass: by the ratio to control, and by the treatment's own rate.

    The two ways are one e-value, each with half the weight: that is how `beta` is split between them.
    """
    goal, ratios = -math.log(gate.beta), better(gate)
    weights = [*(weight / 2 for weight in _equal(ratios)), 0.5]
    hits, requests = event.metric.treatment, event.judged.treatment

    def weigh_first(bins: int) -> Evidence:
        absolute = evidence_path(acceptable_rate, hits[:bins], requests[:bins], event.burst)
        return mix([*event.odds.paths(gate.pass_ratio, ratios, bins), absolute], weights, goal, bins)

    evidence = settle(weigh_first, event.bins, goal)
    if evidence.first is not None:
        return _NotWorse(evidence.peak, True, 0)
    total, served = float(hits.sum()), float(requests.sum())

    def expected(more: Floats) -> Floats:
        grown = 1 + more / served if served else np.ones_like(more)
        parts = [_extrapolate(part, weight, grown) for part, weight in zip(evidence.parts, weights, strict=True)]
        absolute = log_evidence(acceptable_rate, total * grown / event.burst, (served + more) / event.burst)
        return log_sum(np.array([*parts[:-1], absolute + math.log(0.5)]))

    return _NotWorse(evidence.peak, False, more_needed(expected, goal))


def better(gate: Gate) -> list[float]:
    """Return the alternatives of a pass as ratios to its null: each has to lie below, or it would vouch for worse."""
    return [odds / gate.pass_ratio for odds in BETTER if odds < gate.pass_ratio]


def rate_of(odds: float) -> float:
    """Return the probability that has these odds."""
    return odds / (1 + odds)


def _equal(parts: Sequence[object]) -> list[float]:
    return [1 / len(parts)] * len(parts)


def _extrapolate(part: float, weight: float, grown: Floats) -> Floats:
    """Return a component's value when there are so many times more requests, if it goes on as it has on average."""
    start = math.log(weight)
    return start + (part - start) * grown


def _rate(events: Floats, requests: Floats) -> str:
    total = float(requests.sum())
    return f"{100 * float(events.sum()) / total:.3g} %" if total else "nothing"


def _quantile(quantile: float) -> str:
    return f"p{100 * quantile:g}"
