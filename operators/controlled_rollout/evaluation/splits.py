"""Since when a rollout's evidence counts, and when its split changed, from the endpoint's history. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from controlled_rollout.evidence import SplitChange
from controlled_rollout.target.history import creation_of
from controlled_rollout.target.protocol import Revision

__all__ = ["compared_since", "rollout_started", "splits_since"]


def compared_since(history: Sequence[Revision], *, control: str, treatment: str) -> datetime:
    """Return since when two versions are compared: since the rollout began, or one of them got another image after it.

    Args:
        history: The endpoint's revisions, oldest first.
        control: The version that is control in the newest revision.
        treatment: Another version that the newest revision has.
    """
    return max(rollout_started(history, treatment), creation_of(history, control).created)


def rollout_started(history: Sequence[Revision], treatment: str) -> datetime:
    """Return since when a treatment's evidence counts: its version may have been rolled out before.

    That is when the present rollout took the endpoint. Without one (a person shifts traffic by hand) it is when the
    version's share last rose from 0, or its creation.

    Args:
        history: The endpoint's revisions, oldest first.
        treatment: A version that the newest revision has.
    """
    rollout = history[-1].endpoint.rollout
    creation = creation_of(history, treatment)
    if rollout is not None and rollout.version == treatment:
        return max(rollout.started, creation.created)
    began, before = creation.created, 0.0
    for revision in history[history.index(creation) :]:
        share = revision.endpoint.effective_traffic()[treatment]
        if share > 0 and before == 0:
            began = revision.created
        before = share
    return began


def splits_since(
    history: Sequence[Revision], started: datetime, *, control: str, treatment: str
) -> tuple[SplitChange, ...]:
    """Return the treatment's share of the traffic of both versions at a time and each change since, oldest first."""
    changes: list[SplitChange] = []
    for revision in history:
        traffic = revision.endpoint.effective_traffic()
        if treatment not in traffic:
            continue
        both = traffic[treatment] + traffic.get(control, 0.0)
        share = traffic[treatment] / both if both > 0 else None
        change = SplitChange(max(revision.created, started), share, revision.number)
        if revision.created <= started:
            # What was set before the rollout began was served when it began.
            changes = [replace(change, revision=0)]
        elif not changes or changes[-1].share != change.share:
            changes.append(change)
    return tuple(changes)
