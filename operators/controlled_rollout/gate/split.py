"""Whether the split served is the split set: a sample-ratio check that holds at every look."""

import math
from typing import Final

from controlled_rollout.gate.columns import Columns
from controlled_rollout.gate.mixture import Evidence, follow, mix
from controlled_rollout.gate.ratio import ABOVE

__all__ = ["split_evidence", "split_served"]

BOTH_SIDES: Final = (*(1 / ratio for ratio in reversed(ABOVE)), *ABOVE)
# A version that should have no request at all may have stray ones (sent to it by name, or in flight when the split
# changed): up to this part of the traffic is no evidence of a wrong split.
STRAY: Final = 0.001


def split_evidence(columns: Columns, log_threshold: float) -> tuple[Evidence, list[int]]:
    """Return the evidence that the split is wrong, and the indices of the bins where it could be checked.

    Every request is an event that falls to the treatment with probability w, the set part; the alternatives are the
    odds g w / (1 - w), on both sides.
    """
    checked = [
        index
        for index, share in enumerate(columns.shares)
        if share is not None and columns.treatment[index] + columns.control[index]
    ]
    rows = [
        (columns.shares[index] or 0.0, columns.treatment[index], columns.treatment[index] + columns.control[index])
        for index in checked
    ]

    def gain(ratio: float, bins: int) -> list[float]:
        step = math.log(ratio)
        costs = {share: _cost(share, ratio) for share in {row[0] for row in rows[:bins]}}
        return [
            treated * step - total * cost if (cost := costs[share]) is not None else 0.0
            for share, treated, total in rows[:bins]
        ]

    paths = follow(BOTH_SIDES, len(rows), gain)
    weight = 1 / len(BOTH_SIDES)
    return mix(paths, [weight] * len(BOTH_SIDES), log_threshold, len(rows)), checked


def _cost(share: float, ratio: float) -> float | None:
    """Return log(1 + w (g - 1)), or None where a version that should have no request could only have fewer."""
    if share == 0:
        return math.log1p(STRAY * (ratio - 1)) if ratio > 1 else None
    if share == 1:
        return math.log(ratio + STRAY * (1 - ratio)) if ratio < 1 else None
    return math.log1p(share * (ratio - 1))


def split_served(columns: Columns) -> tuple[float, float] | None:
    """Return the treatment's part of the requests as served and as set; None where no split is known."""
    served = total = 0
    expected = 0.0
    for share, treated, others in zip(columns.shares, columns.treatment, columns.control, strict=True):
        if share is not None:
            served += treated
            total += treated + others
            expected += share * (treated + others)
    return (served / total, expected / total) if total else None
