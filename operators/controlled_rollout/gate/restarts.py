"""Alarms whose evidence begins anew at each change of the split, so that health before it hides nothing after it.

An alarm's evidence is a weighted average of processes: one from the rollout's start and one from each change of the
split on. A process that has not begun stays at an e-value of 1. When a process begins is known before its first bin is
seen, so each is an e-process while the claim is false, and so is their average (Vovk and Wang, arXiv 1912.06116).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.columns import Columns
from controlled_rollout.gate.mixture import BEYOND_DOUBT, CEILING, STAGES, mixture_path

__all__ = ["AlarmEvidence", "Process", "alarm_evidence", "at_present_share", "process_starts", "process_weight"]

Floats = NDArray[np.float64]
Truths = NDArray[np.bool_]

# The weight of the process from the start, which also finds what was there before the split changed.
WEIGHT_FROM_START: Final = 0.66
# The others share the rest by 1 / k³: the first, without which every shift is blind, has five sixths of it.
DECAY: Final = 3
# The sum of 1 / k³ over all k from 1 on (Apéry's constant).
SUM_OF_ALL: Final = 1.2020569031595942


@dataclass(frozen=True, slots=True)
class Process:
    """The evidence of an alarm from one bin on.

    Attributes:
        first: The index of its first bin.
        components: From a number of bins, counted from `first`, to the paths of log evidence and their weights.
        counts: Per bin since `first` whether the difference is large enough for an alarm; None: it always is.
    """

    first: int
    components: Callable[[int], tuple[Sequence[Floats], Sequence[float]]]
    counts: Truths | None = None


@dataclass(frozen=True, slots=True)
class AlarmEvidence:
    """The averaged evidence of an alarm's processes.

    Attributes:
        peak: The log of the largest value after any bin, at least 0.
        reached_at: The index of the bin after which the threshold was first reached by processes that count; None if
            it never was.
        now: The log of the value after the newest bin, of processes that count.
        since: The first bin of the process that contributes most: where the evidence is reached, else at the newest
            bin.
    """

    peak: float
    reached_at: int | None
    now: float
    since: int


def process_starts(columns: Columns) -> tuple[int, ...]:
    """Return the bins at which an alarm's processes begin: the first, and each at which the split changes.

    A bin in which the split changed has no known share: the process begins with it. Where the treatment has had no
    request since the last process began, that one is as good as a new one.
    """
    shares, served = columns.shares, np.concatenate([[0.0], np.cumsum(columns.treatment)])
    starts = [0]
    for index in range(1, len(shares)):
        known = not math.isnan(shares[index - 1])
        if known and shares[index] != shares[index - 1] and served[index] > served[starts[-1]]:
            starts.append(index)
    return tuple(starts)


def process_weight(number: int) -> float:
    """Return the weight of a process, numbered from 0: 0.66, then 0.28, 0.035, 0.010 and so on, 1 in all."""
    if number == 0:
        return WEIGHT_FROM_START
    return (1 - WEIGHT_FROM_START) / (SUM_OF_ALL * math.pow(number, DECAY))


def at_present_share(columns: Columns) -> Truths:
    """Return for each bin whether the split in it was the present one, without a change since.

    Bins whose share is not known are not; where no share is known at all, the split is taken never to have changed.
    """
    shares = columns.shares
    known = ~np.isnan(shares)
    if not known.any():
        return np.ones(len(shares), dtype=bool)
    if not known[-1]:
        return np.zeros(len(shares), dtype=bool)
    other = np.flatnonzero(known & (shares != shares[-1]))
    present = known.copy()
    if len(other):
        present[: other[-1]] = False
        present[other[-1]] = False
    return present


def alarm_evidence(
    processes: Sequence[Process], bins: int, log_threshold: float, *, weights: Sequence[float] | None = None
) -> AlarmEvidence:
    """Return the average of an alarm's processes over all bins, or as many as are needed to exceed the threshold.

    Args:
        processes: In the order in which they begin; the first with bin 0.
        bins: How many bins there are.
        log_threshold: The value to reach.
        weights: The processes' weights; None for those of `process_weight`.
    """
    weights = [process_weight(number) for number in range(len(processes))] if weights is None else weights
    for stage in STAGES:
        if stage < bins:
            evidence = _average_process(processes, weights, stage, log_threshold)
            if evidence.reached_at is not None and evidence.peak >= log_threshold + BEYOND_DOUBT:
                return evidence
    return _average_process(processes, weights, bins, log_threshold)


def _average_process(
    processes: Sequence[Process], weights: Sequence[float], bins: int, log_threshold: float
) -> AlarmEvidence:
    """Return the average of the processes after the first `bins` bins."""
    total, counted = np.ones(bins), np.ones(bins)
    highest, terms = -math.inf, []
    for process, weight in zip(processes, weights, strict=True):
        length = bins - process.first
        if length <= 0:
            continue
        path, largest = mixture_path(*process.components(length), length)
        path *= weight
        highest = max(highest, largest + math.log(weight))
        total[process.first :] += path - weight
        if process.counts is not None:
            path = np.where(process.counts[:length], path, 0.0)
        counted[process.first :] += path - weight
        terms.append((process.first, path))
    peak = math.log(max(1.0, float(total.max(initial=1.0))))
    if highest >= CEILING:  # so far beyond any threshold that the largest component is taken for the sum
        peak = highest
    reached = np.flatnonzero(counted >= math.exp(log_threshold))
    at = int(reached[0]) if len(reached) else bins - 1
    since = max(terms, key=lambda term: term[1][at - term[0]] if at >= term[0] else -1.0, default=(0, total))[0]
    now = math.log(max(1e-300, float(counted[-1]))) if bins else 0.0
    return AlarmEvidence(peak, int(reached[0]) if len(reached) else None, now, since)
