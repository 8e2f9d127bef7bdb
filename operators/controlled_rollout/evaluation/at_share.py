"""How much of a rollout's evidence is about the treatment's present share of the traffic. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from controlled_rollout.evidence import Evidence, SplitChange
from controlled_rollout.gate import Bin

__all__ = ["AtShare", "seen_at_share"]


@dataclass(frozen=True, slots=True)
class AtShare:
    """What was seen of a treatment at its present share.

    Attributes:
        seen: For how long: from the first bin at this share to the end of the newest closed one.
        requests: The treatment's requests in the bins at this share.
        since: When the first bin at this share begins; None if there is none.
    """

    seen: timedelta = timedelta(0)
    requests: int = 0
    since: datetime | None = None


def seen_at_share(
    evidence: Evidence | None, splits: Sequence[SplitChange], *, warm_up: timedelta = timedelta(0)
) -> AtShare:
    """Return what the evidence has of the present share.

    Time that has passed shows nothing, and neither do bins whose share is not known: the split is stored before the
    router serves it, and bins are closed only when late telemetry has come. Neither does the same share before the last
    change: a split that was set and taken back at once leaves no bin between. Nor do bins of the warm-up, which the
    gate leaves out: nothing in them was judged.

    Args:
        evidence: What a look has read; None if it could not.
        splits: The splits that were set, oldest first.
        warm_up: How long after the treatment's first request the gate leaves bins out.
    """
    share = splits[-1].share if splits else None
    if evidence is None or share is None:
        return AtShare()
    judged_from = splits[-1].at
    if warm_up and (first := next((bin_.start for bin_ in evidence.bins if bin_.treatment.requests), None)) is not None:
        judged_from = max(judged_from, first + warm_up)
    bins: list[Bin] = []
    for bin_ in reversed(evidence.bins):
        if bin_.start < judged_from or (bin_.share is not None and bin_.share != share):
            break
        if bin_.share is not None:
            bins.append(bin_)
        elif not bins:
            break
    if not bins:
        return AtShare()
    return AtShare(evidence.until - bins[-1].start, sum(bin_.treatment.requests for bin_ in bins), bins[-1].start)
