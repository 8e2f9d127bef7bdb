"""Mixtures of likelihood-ratio processes: their path over the bins, their peak, and when they would arrive.

All values are natural logarithms. A path has one value per bin, the evidence after that bin; it starts from 0 (an
e-value of 1) before the first. A path that ends early is too low to matter from there on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BEYOND_DOUBT",
    "CEILING",
    "STAGES",
    "MixtureResult",
    "log_evidence_paths",
    "log_sum_exp",
    "mix",
    "mixture_path",
    "more_needed",
    "relevant_bins",
    "settle",
]

Floats = NDArray[np.float64]

# A component this far below an e-value of 1 (4e-18) no longer changes a sum with it.
NEGLIGIBLE: Final = -40.0
# Evidence this much beyond its threshold (a million times) is followed no further ...
BEYOND_DOUBT: Final = math.log(1e6)
# ... which is checked after so many bins, and then after all.
STAGES: Final = (256, 1024)
# Evidence that does not reach its threshold within so many requests never will.
FAR: Final = 10**12
# exp() of more might not fit into a float.
CEILING: Final = 600.0
# How many points a search evaluates at once.
POINTS: Final = 33


@dataclass(frozen=True, slots=True)
class MixtureResult:
    """A mixture's evidence.

    Attributes:
        peak: The largest value ever, 0 (before the first bin) included.
        reached_at: The index of the bin after which the threshold was first reached; None if never.
        parts: The components' values after the last bin, weights included; minus infinity where too low to matter.
    """

    peak: float
    reached_at: int | None
    parts: tuple[float, ...]


def settle(evidence_after: Callable[[int], MixtureResult], bins: int, log_threshold: float) -> MixtureResult:
    """Return the evidence of all bins, or only of as many as are needed to exceed the threshold a million times.

    Args:
        evidence_after: From a number of bins to the evidence of the first so many.
        bins: How many there are.
        log_threshold: The value to reach.
    """
    for stage in STAGES:
        if stage < bins and (evidence := evidence_after(stage)).peak >= log_threshold + BEYOND_DOUBT:
            return evidence
    return evidence_after(bins)


def relevant_bins(path: Floats) -> int:
    """Return the number of bins up to the last one at which a path of log evidence is not negligible."""
    if len(path) and path[-1] >= NEGLIGIBLE:
        return len(path)
    relevant = np.flatnonzero(path >= NEGLIGIBLE)
    return int(relevant[-1]) + 1 if len(relevant) else 0


def log_evidence_paths(
    ratios: Sequence[float],
    bins: int,
    gain: Callable[[float, int], Floats],
    can_matter: Callable[[float, int], int] | None = None,
) -> list[Floats]:
    """Return the path of log evidence of each ratio, computed only as far as it can matter.

    In log g every gain is concave and is 0 at g = 1 (the log of a likelihood ratio of an exponential family, also when
    tempered or capped). So a ratio farther from 1 on the same side is negligible wherever a nearer one is.

    Args:
        ratios: The ratios g of the alternative's odds to the null's; none of them 1.
        bins: How many bins there are.
        gain: From a ratio and a number of bins to the log likelihood ratios of the first so many bins.
        can_matter: From the ratio nearest above 1 and a number of bins to how many of them its path, by a bound that
            is cheaper than the path, may not be negligible in.
    """
    paths: dict[float, Floats] = {}
    for side in (sorted(g for g in ratios if g > 1), sorted((g for g in ratios if g < 1), reverse=True)):
        n_bins = can_matter(side[0], bins) if can_matter is not None and side and side[0] > 1 else bins
        for g in side:
            path = np.cumsum(gain(g, n_bins))
            n_bins = relevant_bins(path)
            paths[g] = path[:n_bins]
    return [paths[g] for g in ratios]


def mix(paths: Sequence[Floats], weights: Sequence[float], log_threshold: float, bins: int) -> MixtureResult:
    """Return the evidence of a weighted sum of likelihood ratios, given the path of the log of each.

    Args:
        paths: At least one; those shorter than `bins` are too low to matter afterwards.
        weights: One per path, adding up to 1 at most.
        log_threshold: The value to reach.
        bins: How many bins there are.
    """
    logs = [math.log(weight) for weight in weights]
    if not bins:
        return MixtureResult(0.0, None, tuple(logs))
    parts = tuple(
        float(path[-1]) + log if len(path) == bins else -math.inf for path, log in zip(paths, logs, strict=True)
    )
    total, highest = mixture_path(paths, weights, bins)
    peak = math.log(max(1.0, float(total.max(initial=0.0))))
    if highest >= CEILING:  # so far beyond any threshold that the largest component is taken for the sum
        peak = highest
    reached = np.flatnonzero(total >= math.exp(log_threshold))
    return MixtureResult(peak, int(reached[0]) if len(reached) else None, parts)


def mixture_path(paths: Sequence[Floats], weights: Sequence[float], bins: int) -> tuple[Floats, float]:
    """Return a weighted sum of likelihood ratios after each bin, and the log of its largest term.

    Args:
        paths: The path of the log of each; those shorter than `bins` are too low to matter afterwards.
        weights: One per path, adding up to 1 at most.
        bins: How many bins there are.
    """
    total, highest = np.zeros(bins), -math.inf
    for path, weight in zip(paths, weights, strict=True):
        if len(path):
            weighted = path + math.log(weight)
            highest = max(highest, float(weighted.max()))
            total[: len(path)] += np.exp(np.minimum(weighted, CEILING))
    return total, highest


def more_needed(log_value: Callable[[Floats], Floats], log_threshold: float) -> int | None:
    """Return about how many more requests bring the log evidence to the threshold; None if it never gets there.

    Args:
        log_value: From numbers of further requests to the evidence expected then.
        log_threshold: The value to reach.
    """
    steps: Floats = 2.0 ** np.arange(math.ceil(math.log2(FAR)), dtype=np.float64)
    enough = np.flatnonzero(log_value(steps) >= log_threshold)
    if not len(enough):
        return None
    high = int(steps[enough[0]])
    low = high // 2
    while high - low > 1:
        points: Floats = np.unique(np.linspace(low, high, POINTS, dtype=np.float64).round())
        index = int(np.flatnonzero((log_value(points) >= log_threshold) | (points == high))[0])
        low, high = (int(points[index - 1]), int(points[index])) if index else (low, low + 1)
    return high


def log_sum_exp(values: Floats) -> Floats:
    """Return log(sum(exp(values))) over the first axis, without overflow."""
    largest = np.max(values, axis=0)
    base = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        result: Floats = base + np.log(np.exp(values - base).sum(axis=0))
    return result
