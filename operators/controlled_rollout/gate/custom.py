"""The claims about the author's own metrics: means and categories."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.categories import any_difference, difference_beyond, total_variation
from controlled_rollout.gate.claims import Finding, alarm_threshold, claim_of
from controlled_rollout.gate.columns import Columns, Values
from controlled_rollout.gate.means import LEAST_BINS, LEAST_VALUES, Differences, differences, log_mixture, scale_of
from controlled_rollout.gate.mixture import more_needed
from controlled_rollout.gate.model import Gate, Mean

__all__ = ["Custom", "weigh"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Custom:
    """What was found about the author's metrics; indices count from the first judged bin."""

    alarms: tuple[Finding, ...]
    splits: tuple[Finding, ...]
    passes: tuple[Finding, ...]


def weigh(judged: Columns, gate: Gate) -> Custom:
    """Ask the claims of every metric that the bins carry; a pass also waits for one that they do not carry yet."""
    alarms: list[Finding] = []
    splits: list[Finding] = []
    passes: list[Finding] = []
    for name, setting in gate.means.items():
        if name in judged.means:
            found = differences(*judged.means[name])
            alarms.append(
                _mean_worse(name, setting, found, judged, alarm_threshold(gate, name, latency=bool(judged.slow)))
            )
            if setting.pass_margin is not None:
                passes.append(_mean_not_worse(name, setting.worse, setting.pass_margin, found, judged, gate))
        elif setting.pass_margin is not None:
            nothing = claim_of(f"{name} is not worse", "pass", 0.0, 1 / gate.beta, False, "no values yet")
            passes.append(Finding(nothing))
    for name in judged.categories:
        finding = _category_differs(name, judged, gate)
        (alarms if finding.claim.kind == "alarm" else splits).append(finding)
    return Custom(tuple(alarms), tuple(splits), tuple(passes))


def _mean_worse(name: str, setting: Mean, found: Differences, judged: Columns, threshold: float) -> Finding:
    """Alarm: the treatment's mean is worse than control's by more than the margin."""
    path = _path(found, 1.0 if setting.worse == "higher" else -1.0, setting.margin)
    peak, first = _reached(path, math.log(threshold))
    detail = f"{_means(found, judged.means[name])}, {setting.margin:.3g} tolerated"
    claim = claim_of(f"{name} is {setting.worse}", "alarm", peak, threshold, first is not None, detail)
    return Finding(claim, first)


def _mean_not_worse(name: str, worse: str, margin: float, found: Differences, judged: Columns, gate: Gate) -> Finding:
    """Pass: the treatment's mean is worse than control's by less than the pass margin."""
    sign, goal = (1.0 if worse == "lower" else -1.0), -math.log(gate.beta)
    path = _path(found, sign, -margin)
    peak, first = _reached(path, goal)
    needed: int | None = 0
    if first is None:
        total, variance = _sums(found, sign, -margin)
        served, scale = float(judged.treatment.sum()), scale_of(found)

        def expected(more: Floats) -> Floats:
            grown = 1 + more / served
            return log_mixture(total[-1] * grown, variance[-1] * grown, scale)

        needed = more_needed(expected, goal) if served and len(path) and found.ready is not None else None
    detail = f"{_means(found, judged.means[name])}, {margin:.3g} worse to be ruled out"
    return Finding(claim_of(f"{name} is not worse", "pass", peak, 1 / gate.beta, first is not None, detail, needed))


def _category_differs(name: str, judged: Columns, gate: Gate) -> Finding:
    """Split or alarm: the categories are not distributed alike, or differ by more than is tolerated."""
    setting, found = gate.categories[name], judged.categories[name]
    fails = setting.on_difference == "fail"
    threshold = alarm_threshold(gate, name, latency=bool(judged.slow)) if fails else 1 / gate.split_alpha
    if setting.tolerance:
        evidence = difference_beyond(found, setting.tolerance, math.log(threshold))
        claimed = f"{name} differs by more than {setting.tolerance:g}"
    else:
        evidence = any_difference(found, math.log(threshold))
        claimed = f"{name} differs"
    variation = total_variation(found)
    detail = f"{len(found)} categories, total variation "
    detail += "not known" if variation is None else f"{variation:.3g}"
    reached = evidence.first is not None
    claim = claim_of(claimed, "alarm" if fails else "split", evidence.peak, threshold, reached, detail)
    return Finding(claim, evidence.first)


def _sums(found: Differences, sign: float, margin: float) -> tuple[Floats, Floats]:
    """Return S and V after every bin, for the claim that `sign` times the difference is above `margin`."""
    return np.cumsum(found.weight * (sign * found.difference - margin)), np.cumsum(found.variance)


def _path(found: Differences, sign: float, margin: float) -> Floats:
    """Return the log of the evidence after every bin; none before there are values enough."""
    total, variance = _sums(found, sign, margin)
    if found.ready is None:
        return np.zeros(len(total))
    path = log_mixture(total, variance, scale_of(found))
    path[: found.ready] = 0.0
    return path


def _reached(path: Floats, goal: float) -> tuple[float, int | None]:
    first = np.flatnonzero(path >= goal)
    return max(0.0, float(path.max(initial=0.0))), int(first[0]) if len(first) else None


def _means(found: Differences, values: tuple[Values, Values]) -> str:
    if found.ready is None:
        return f"fewer than {LEAST_BINS} bins or {LEAST_VALUES} values of each version"
    own, others = (float((arm.count * arm.mean).sum() / arm.count.sum()) for arm in values)
    difference = float((found.weight * found.difference).sum() / found.weight.sum())
    return f"{own:.4g} against control's {others:.4g}, difference {difference:+.3g}"
