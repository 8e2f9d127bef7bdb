"""Mixtures of likelihood-ratio processes: their path over the bins, their peak, and when they would arrive.

All values are natural logarithms. A path has one value per bin, the evidence after that bin; it starts from 0 (an
e-value of 1) before the first. A path that ends early is too low to matter from there on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

__all__ = ["Evidence", "alive_bins", "follow", "log_sum", "mix", "more_needed", "settle"]

# A component this far below an e-value of 1 (4e-18) can no longer be seen in a sum with it.
DEAD: Final = -40.0
# Evidence this much beyond its threshold (a million times) is followed no further ...
BEYOND_DOUBT: Final = math.log(1e6)
# ... which is asked after so many bins, and then of all.
STAGES: Final = (512, 4096)
# What will not arrive within so many requests will not arrive by waiting.
FAR: Final = 10**12


@dataclass(frozen=True, slots=True)
class Evidence:
    """A mixture's evidence.

    Attributes:
        peak: The largest value ever, 0 (before the first bin) included.
        first: The index of the bin after which the threshold was first reached; None if never.
        parts: The components' values after the last bin, weights included; minus infinity where too low to matter.
    """

    peak: float
    first: int | None
    parts: tuple[float, ...]


def settle(weigh: Callable[[int], Evidence], bins: int, log_threshold: float) -> Evidence:
    """Return the evidence of all bins, or of the first ones where those are a million times enough.

    Args:
        weigh: From a number of bins to the evidence of the first so many.
        bins: How many there are.
        log_threshold: The value to reach.
    """
    for stage in STAGES:
        if stage < bins and (evidence := weigh(stage)).peak >= log_threshold + BEYOND_DOUBT:
            return evidence
    return weigh(bins)


def alive_bins(path: Sequence[float]) -> int:
    """Return how many bins there are up to the last after which the path is not yet too low to matter."""
    alive = len(path)
    while alive and path[alive - 1] < DEAD:
        alive -= 1
    return alive


def follow(
    ratios: Sequence[float],
    bins: int,
    gain: Callable[[float, int], list[float]],
    can_matter: Callable[[float, int], int] | None = None,
) -> list[list[float]]:
    """Return the path of every ratio, each only as far as it can matter.

    In log g every gain is concave and is 0 at g = 1 (the log of a likelihood ratio of an exponential family, also when
    tempered or capped). So a ratio farther from 1 on the same side is dead wherever a nearer one is.

    Args:
        ratios: The ratios g of the alternative's odds to the null's; none of them 1.
        bins: How many bins there are.
        gain: From a ratio and a number of bins to the log likelihood ratios of the first so many bins.
        can_matter: From the ratio nearest above 1 and a number of bins to how many of them its path, by a bound that
            is cheaper than the path, can be alive in.
    """
    paths: dict[float, list[float]] = {}
    for side in (sorted(g for g in ratios if g > 1), sorted((g for g in ratios if g < 1), reverse=True)):
        alive = can_matter(side[0], bins) if can_matter is not None and side and side[0] > 1 else bins
        for g in side:
            path = list(accumulate(gain(g, alive)))
            alive = alive_bins(path)
            paths[g] = path[:alive]
    return [paths[g] for g in ratios]


def mix(paths: Sequence[Sequence[float]], weights: Sequence[float], log_threshold: float, bins: int) -> Evidence:
    """Return the evidence of the weighted sum of the paths.

    Args:
        paths: At least one; those shorter than `bins` are too low to matter afterwards.
        weights: One per path, adding up to 1.
        log_threshold: The value to reach.
        bins: How many bins there are.
    """
    logs = [math.log(weight) for weight in weights]
    if not bins:
        return Evidence(0.0, None, tuple(logs))
    parts = tuple(path[-1] + log if len(path) == bins else -math.inf for path, log in zip(paths, logs, strict=True))
    length = max(map(len, paths))
    if not length:
        return Evidence(0.0, None, parts)
    shifted = [
        [value + log for value in path] + [-math.inf] * (length - len(path))
        for path, log in zip(paths, logs, strict=True)
    ]
    # The sum of k terms lies between the largest term and k times that: only bins where it matters are summed.
    slack = math.log(len(paths))
    largest = list(map(max, *shifted)) if len(shifted) > 1 else list(shifted[0])
    highest = max(largest)
    peak = 0.0
    if highest + slack > 0:
        last: tuple[float, ...] = ()
        for index, value in enumerate(largest):
            if value + slack >= highest:
                row = tuple(path[index] for path in shifted)
                if row != last:
                    peak = max(peak, log_sum(row))
                    last = row
    first = None
    if peak >= log_threshold:
        first = next(
            index
            for index, value in enumerate(largest)
            if value + slack >= log_threshold and log_sum([path[index] for path in shifted]) >= log_threshold
        )
    return Evidence(peak, first, parts)


def more_needed(log_value: Callable[[float], float], log_threshold: float) -> int | None:
    """Return about how many more requests bring the evidence to the threshold, None if it does not come.

    Args:
        log_value: From a number of further requests to the evidence expected then.
        log_threshold: The value to reach.
    """
    high = 1
    while log_value(high) < log_threshold:
        high *= 2
        if high > FAR:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if log_value(middle) < log_threshold:
            low = middle
        else:
            high = middle
    return high


def log_sum(values: Sequence[float]) -> float:
    """Return the logarithm of the sum of the exponentials, without overflow."""
    largest = max(values)
    if largest == -math.inf:
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values))
