"""When the split between control and treatment changed, from the endpoint's history. Pure."""

from collections.abc import Sequence
from datetime import datetime

from controlled_rollout.evidence import SplitChange
from controlled_rollout.target.protocol import Revision

__all__ = ["splits_since"]


def splits_since(
    history: Sequence[Revision], started: datetime, *, control: str, treatment: str
) -> tuple[SplitChange, ...]:
    """Return each change of the treatment's share of the traffic of both versions since a time, oldest first."""
    changes: list[SplitChange] = []
    for revision in history:
        traffic = revision.endpoint.effective_traffic()
        if revision.created < started or treatment not in traffic:
            continue
        both = traffic[treatment] + traffic.get(control, 0.0)
        share = traffic[treatment] / both if both > 0 else None
        if not changes or changes[-1].share != share:
            changes.append(SplitChange(revision.created, share))
    return tuple(changes)
