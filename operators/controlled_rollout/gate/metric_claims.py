"""The claims about the author's own metrics: means and categories."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.categories import (
    any_difference,
    difference_beyond,
    difference_beyond_in_order,
    shift_of_buckets,
    total_variation,
)
from controlled_rollout.gate.claims import ClaimResult, alarm_from, alarm_threshold, pass_from
from controlled_rollout.gate.columns import Columns, Metric, Values
from controlled_rollout.gate.means import MIN_BINS, MIN_VALUES, Differences, differences, log_mixture, mixture_scale
from controlled_rollout.gate.mixture import more_needed
from controlled_rollout.gate.model import Category, Gate, Mean
from controlled_rollout.gate.restarts import Process, alarm_evidence, at_present_share, process_starts
from controlled_rollout.visible_text import short_text

__all__ = ["MetricClaims", "metric_claims"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MetricClaims:
    """The claims about the author's metrics; bins are counted from the first judged one."""

    alarms: tuple[ClaimResult, ...]
    splits: tuple[ClaimResult, ...]
    passes: tuple[ClaimResult, ...]


def metric_claims(judged: Columns, gate: Gate) -> MetricClaims:
    """Test the claims about every author's metric in the bins; a metric without values in them keeps the gate waiting.

    Args:
        judged: The rollout's bins, warm-up left out.
        gate: Which metrics, and what is tolerated.
    """
    alarms: list[ClaimResult] = []
    splits: list[ClaimResult] = []
    passes: list[ClaimResult] = []
    spans = {first: judged.since(first) for first in process_starts(judged)}
    present = judged.at(at_present_share(judged))
    for name, setting in gate.means.items():
        if name in judged.means:
            threshold = alarm_threshold(gate, name, latency=bool(judged.slow))
            alarms.append(_mean_worse(name, setting, spans, threshold))
            if setting.pass_margin is not None:
                passes.append(_mean_not_worse(name, setting.worse, setting.pass_margin, present, gate))
        elif setting.pass_margin is not None:
            passes.append(pass_from(f"{name} is not worse", gate, 0.0, False, "no values yet"))
    for name in [name for name in judged.categories if name in gate.categories]:
        result = _category_differs(name, spans, gate)
        (alarms if result.claim.kind == "alarm" else splits).append(result)
    return MetricClaims(tuple(alarms), tuple(splits), tuple(passes))


def _mean_worse(name: str, setting: Mean, spans: Mapping[int, Columns], threshold: float) -> ClaimResult:
    """Test the alarm claim: the treatment's mean is worse than control's by more than the margin."""
    sign = 1.0 if setting.worse == "higher" else -1.0
    by_bin = {first: differences(*span.means[name]) for first, span in spans.items()}

    def components(first: int, bins: int) -> tuple[list[Floats], list[float]]:
        """Return the evidence of one process over its first `bins` bins."""
        return [_evidence_path(by_bin[first], sign, setting.margin)[:bins]], [1.0]

    processes = [Process(first, partial(components, first)) for first in spans]
    evidence = alarm_evidence(processes, len(spans[0].starts), math.log(threshold))
    values = spans[evidence.since].means[name]
    detail = f"{_means_text(by_bin[evidence.since], values)}, {setting.margin:.3g} tolerated"
    return alarm_from(f"{name} is {setting.worse}", "alarm", evidence, threshold, detail)


def _mean_not_worse(name: str, worse: str, margin: float, judged: Columns, gate: Gate) -> ClaimResult:
    """Test the pass claim: the treatment's mean is worse than control's by less than the pass margin."""
    sign, goal = (1.0 if worse == "lower" else -1.0), -math.log(gate.beta)
    by_bin = differences(*judged.means[name])
    path = _evidence_path(by_bin, sign, -margin)
    peak, first = _peak_and_first_reached(path, goal)
    needed: int | None = 0
    if first is None:
        total, variance = _cumulated_sums(by_bin, sign, -margin)
        served, scale = float(judged.treatment.sum()), mixture_scale(by_bin)

        def expected_log_evidence(more: Floats) -> Floats:
            """Return the log of the expected evidence after each number of further treatment requests."""
            grown = 1 + more / served
            return log_mixture(total[-1] * grown, variance[-1] * grown, scale)

        needed = more_needed(expected_log_evidence, goal) if served and len(path) and by_bin.ready is not None else None
    detail = f"{_means_text(by_bin, judged.means[name])}, {margin:.3g} worse to be ruled out"
    return pass_from(f"{name} is not worse", gate, peak, first is not None, detail, needed)


def _category_differs(name: str, spans: Mapping[int, Columns], gate: Gate) -> ClaimResult:
    """Test the split or alarm claim: the categories' shares differ by more than is tolerated."""
    setting = gate.categories[name]
    kind: Literal["alarm", "split"] = "alarm" if setting.on_difference == "fail" else "split"
    threshold = 1 / gate.split_alpha
    if kind == "alarm":
        threshold = alarm_threshold(gate, name, latency=bool(spans[0].slow))
    processes = [
        Process(first, partial(_category_evidence, setting, span.categories[name])) for first, span in spans.items()
    ]
    evidence = alarm_evidence(processes, len(spans[0].starts), math.log(threshold))
    claimed = f"{name} differs by more than {setting.tolerance:g}" if setting.tolerance else f"{name} differs"
    counts = spans[evidence.since].categories[name]
    variation = total_variation(counts)
    detail = f"{len(counts)} categories, total variation "
    detail += "not known" if variation is None else f"{variation:.3g}{_most_different(counts)}"
    return alarm_from(claimed, kind, evidence, threshold, detail)


def _most_different(counts: Mapping[str, Metric]) -> str:
    """Return the words on the category whose share differs most between the versions; empty if all are alike."""
    totals = [sum(float(getattr(metric, arm).sum()) for metric in counts.values()) for arm in ("treatment", "control")]

    def shares(metric: Metric) -> tuple[float, float]:
        """Return the category's share in the treatment and in control."""
        return float(metric.treatment.sum()) / totals[0], float(metric.control.sum()) / totals[1]

    name, (part, other) = max(
        ((name, shares(metric)) for name, metric in counts.items()), key=lambda one: abs(one[1][0] - one[1][1])
    )
    return f", {short_text(name)!r} {100 * part:.3g} % against control's {100 * other:.3g} %" if part != other else ""


def _category_evidence(
    setting: Category, counts: Mapping[str, Metric], bins: int
) -> tuple[list[Floats], Sequence[float]]:
    """Return the evidence of one process over its first `bins` bins, and its weights."""
    counts = {category: metric.at(slice(None, bins)) for category, metric in counts.items()}
    if not counts:
        return [np.zeros(bins)], [1.0]
    if setting.tolerance and setting.buckets is None:
        return [difference_beyond(counts, setting.tolerance)], [1.0]
    if setting.tolerance:
        return [of(counts, setting.tolerance) for of in (difference_beyond, difference_beyond_in_order)], [0.5, 0.5]
    paths, weights = any_difference(counts)
    if setting.buckets is None:
        return paths, weights
    # Half of the weight for a shift of the whole: a small one shows in no bucket by itself.
    shifted, of_shifted = shift_of_buckets(counts, setting.buckets)
    return [*paths, *shifted], [weight / 2 for weight in (*weights, *of_shifted)]


def _cumulated_sums(by_bin: Differences, sign: float, margin: float) -> tuple[Floats, Floats]:
    """Return the cumulated sum S of the differences beyond the margin, and its variance V, after each bin."""
    return np.cumsum(by_bin.weight * (sign * by_bin.difference - margin)), np.cumsum(by_bin.variance)


def _evidence_path(by_bin: Differences, sign: float, margin: float) -> Floats:
    """Return the log of the evidence after each bin; 0 before there are enough bins and values."""
    total, variance = _cumulated_sums(by_bin, sign, margin)
    if by_bin.ready is None:
        return np.zeros(len(total))
    path = log_mixture(total, variance, mixture_scale(by_bin))
    path[: by_bin.ready] = 0.0
    return path


def _peak_and_first_reached(path: Floats, goal: float) -> tuple[float, int | None]:
    """Return the highest log evidence (at least 0) and the index of the first bin that reaches the goal, or None."""
    first = np.flatnonzero(path >= goal)
    return max(0.0, float(path.max(initial=0.0))), int(first[0]) if len(first) else None


def _means_text(by_bin: Differences, values: tuple[Values, Values]) -> str:
    """Return the two means and their difference as text."""
    if by_bin.ready is None:
        return f"fewer than {MIN_BINS} bins or {MIN_VALUES} values of each version"
    treatment, control = (float((version.count * version.mean).sum() / version.count.sum()) for version in values)
    difference = float((by_bin.weight * by_bin.difference).sum() / by_bin.weight.sum())
    return f"{treatment:.4g} against control's {control:.4g}, difference {difference:+.3g}"
