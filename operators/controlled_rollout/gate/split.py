"""Whether the split served is the split set: a sample-ratio check that holds at every look."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.columns import Columns
from controlled_rollout.gate.mixture import log_evidence_paths, mixture_path
from controlled_rollout.gate.ratio import BOTH_SIDES

__all__ = ["SplitCheck", "check_split", "split_served"]

Floats = NDArray[np.float64]

# A version that should have no request at all may have stray ones (sent to it by name, or in flight when the split
# changed): up to this part of the traffic is no evidence of a wrong split.
STRAY: Final = 0.001
# A split that was wrong is right again when so many times the requests that it took to establish it have fallen as
# set, and so many bins.
QUIET_REQUESTS: Final = 2
QUIET_BINS: Final = 10
# How many bins a run of the check takes at first, and how many times as many after that.
RUN: Final = 16
LONGER: Final = 8


@dataclass(frozen=True, slots=True)
class SplitCheck:
    """Whether the split is wrong, and when it was; bins are counted from the first one.

    Attributes:
        peak: The log of the most evidence after any bin that it is wrong, since it was last right again.
        wrong_since: The bin after which it was established that it is wrong now; None if it is not.
        was_wrong: Bins in which it was wrong and is right again since: first and the one after the last, of each time.
    """

    peak: float
    wrong_since: int | None
    was_wrong: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """One run of the check, from one bin to where it establishes that the split is wrong, or to the newest bin.

    Attributes:
        peak: The log of the most evidence.
        turned: The bin from which on the evidence has grown: there the split began to be wrong.
        reached: The bin after which it was established; None if it was not.
    """

    peak: float
    turned: int
    reached: int | None


def check_split(columns: Columns, log_threshold: float) -> SplitCheck:
    """Return whether the split differs from what was set.

    Every request is an event that falls to the treatment with probability w, the set part; the alternatives are the
    odds g w / (1 - w), on both sides (Lindon and Malek, arXiv 2011.03567). Whenever it is established that the split
    is wrong the check begins again after that bin. While the split stays wrong, that is established again after about
    as many requests; so it is right again when twice as many have come, in 10 bins at least.
    """
    total = columns.treatment + columns.control
    checked = np.flatnonzero(columns.has_known_split & (total > 0))
    share, treated, total = columns.shares[checked], columns.treatment[checked], total[checked]
    requests = np.concatenate([[0.0], np.cumsum(total)])
    was_wrong: list[tuple[int, int]] = []
    first, began, established, needed = 0, 0, None, 0.0
    while True:
        run = _run(share[first:], treated[first:], total[first:], log_threshold)
        turned = first + run.turned
        quiet = requests[turned if run.reached is not None else len(checked)] - requests[first]
        bins = (turned if run.reached is not None else len(checked)) - first
        if established is not None and quiet >= QUIET_REQUESTS * needed and bins >= QUIET_BINS:
            was_wrong.append((int(checked[began]), int(checked[first - 1]) + 1))
            established = None
        if run.reached is None:
            break
        reached = first + run.reached
        if established is None:
            began, established = turned, reached
        needed = max(needed, float(requests[reached + 1] - requests[turned]))
        first = reached + 1
    peak = run.peak if established is None else max(run.peak, log_threshold)
    return SplitCheck(peak, None if established is None else int(checked[established]), tuple(was_wrong))


def _run(share: Floats, treated: Floats, total: Floats, log_threshold: float) -> _Run:
    """Return one run of the check over the given bins, computed only as far as it has to be."""
    bins = min(RUN, len(total))
    while True:
        path = _evidence_path(share[:bins], treated[:bins], total[:bins])
        reached = np.flatnonzero(path >= math.exp(log_threshold))
        if len(reached) or bins == len(total):
            break
        bins = min(LONGER * bins, len(total))
    end = int(reached[0]) if len(reached) else None
    before = np.concatenate([[1.0], path[: bins if end is None else end]])
    return _Run(
        math.log(max(1.0, float(path[: bins if end is None else end + 1].max(initial=1.0)))),
        int(len(before) - 1 - np.argmin(before[::-1])),
        end,
    )


def _evidence_path(share: Floats, treated: Floats, total: Floats) -> Floats:
    """Return the evidence that the split is wrong after each bin."""
    # Both versions were to have requests in each bin: then no alternative is impossible, and no request astray.
    divided = bool(((share > 0) & (share < 1)).all())

    def gain(ratio: float, bins: int) -> Floats:
        """Return each bin's log likelihood ratio of a split whose odds are `ratio` times the set ones."""
        if divided:
            return treated[:bins] * math.log(ratio) - total[:bins] * np.log1p(share[:bins] * (ratio - 1))
        return treated[:bins] * _treated_gain(share[:bins], ratio) - total[:bins] * _request_cost(share[:bins], ratio)

    paths = log_evidence_paths(BOTH_SIDES, len(total), gain)
    return mixture_path(paths, [1 / len(BOTH_SIDES)] * len(BOTH_SIDES), len(total))[0]


def _treated_gain(share: Floats, ratio: float) -> Floats:
    """Return the log gain per treatment request; 0 where the set share excludes such an alternative."""
    impossible = (share == 0) if ratio < 1 else (share == 1)
    return np.where(impossible, 0.0, math.log(ratio))


def _request_cost(share: Floats, ratio: float) -> Floats:
    """Return log(1 + w (g - 1)) per request; a few stray requests to a version with share 0 are tolerated."""
    if ratio > 1:
        stray = np.where(share == 0, math.log1p(STRAY * (ratio - 1)), np.log1p(share * (ratio - 1)))
        return np.where(share == 1, 0.0, stray)
    stray = np.where(share == 1, math.log(ratio + STRAY * (1 - ratio)), np.log1p(share * (ratio - 1)))
    return np.where(share == 0, 0.0, stray)


def split_served(columns: Columns) -> tuple[float, float] | None:
    """Return the treatment's share of the requests as served and as set; None if no split is known."""
    known = columns.has_known_split
    treated = columns.treatment[known]
    requests = treated + columns.control[known]
    total = float(requests.sum())
    if not total:
        return None
    return float(treated.sum()) / total, float((columns.shares[known] * requests).sum()) / total
