"""Whether the split served is the split set: a sample-ratio check that holds at every look."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.columns import Columns
from controlled_rollout.gate.mixture import MixtureResult, follow, mix
from controlled_rollout.gate.ratio import BOTH_SIDES

__all__ = ["split_evidence", "split_served"]

Floats = NDArray[np.float64]

# A version that should have no request at all may have stray ones (sent to it by name, or in flight when the split
# changed): up to this part of the traffic is no evidence of a wrong split.
STRAY: Final = 0.001


def split_evidence(columns: Columns, log_threshold: float) -> tuple[MixtureResult, NDArray[np.intp]]:
    """Return the evidence that the split differs from what was set, and the indices of the bins that were checked.

    Every request is an event that falls to the treatment with probability w, the set part; the alternatives are the
    odds g w / (1 - w), on both sides (Lindon and Malek, arXiv 2011.03567).
    """
    total = columns.treatment + columns.control
    checked = np.flatnonzero(~np.isnan(columns.shares) & (total > 0))
    share, treated, total = columns.shares[checked], columns.treatment[checked], total[checked]

    def gain(ratio: float, bins: int) -> Floats:
        """Return each bin's log likelihood ratio of a split whose odds are `ratio` times the set ones."""
        return treated[:bins] * _treated_gain(share[:bins], ratio) - total[:bins] * _request_cost(share[:bins], ratio)

    paths = follow(BOTH_SIDES, len(checked), gain)
    weight = 1 / len(BOTH_SIDES)
    return mix(paths, [weight] * len(BOTH_SIDES), log_threshold, len(checked)), checked


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
    known = ~np.isnan(columns.shares)
    treated = columns.treatment[known]
    requests = treated + columns.control[known]
    total = float(requests.sum())
    if not total:
        return None
    return float(treated.sum()) / total, float((columns.shares[known] * requests).sum()) / total
