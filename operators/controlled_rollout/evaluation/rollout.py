"""What an endpoint's history says about a rollout: when it began, its splits, and which run holds it. Pure."""

from collections.abc import Sequence
from datetime import datetime

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError
from controlled_rollout.evidence import SplitChange
from controlled_rollout.target.protocol import Revision

__all__ = ["check_owner", "created_at", "splits_since"]


def created_at(history: Sequence[Revision], version: str) -> datetime:
    """Return when a version of the newest revision was created; an earlier version of the same name does not count."""
    created = history[-1].created
    for revision in reversed(history):
        if version not in revision.endpoint.versions:
            break
        created = revision.created
    return created


def splits_since(
    history: Sequence[Revision], started: datetime, *, control: str, treatment: str
) -> tuple[SplitChange, ...]:
    """Return when the treatment's part of control's and its own traffic changed, and to what, oldest first."""
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


def check_owner(endpoint: Endpoint, version: str, owner: str | None) -> None:
    """Refuse to continue a rollout that another run or a person has ended or taken over.

    Args:
        endpoint: The endpoint as it is now.
        version: The treatment.
        owner: The run that should hold the endpoint for it; None does not check.

    Raises:
        ConflictError: It does not.
    """
    if owner is None:
        return
    rollout = endpoint.rollout
    if rollout is None or (rollout.version, rollout.owner) != (version, owner):
        holder = f"{rollout.owner} holds it for {rollout.version!r}" if rollout else "no run holds it"
        raise ConflictError(
            f"{owner} no longer holds endpoint {endpoint.name!r} to roll out {version!r} ({holder}): "
            "it was promoted or rolled back meanwhile; the endpoint's history says by whom"
        )
