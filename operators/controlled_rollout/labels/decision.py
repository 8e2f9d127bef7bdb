"""What follows from a look at labels: wait, confirm the version, take it back, keep it, or ask a person. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from controlled_rollout.duration import format_elapsed
from controlled_rollout.errors import EndpointError, NothingToDoError
from controlled_rollout.gate import Outcome
from controlled_rollout.target.history import promotion_of, shared_traffic
from controlled_rollout.target.protocol import Revision

__all__ = [
    "ON_DEADLINE",
    "Comparison",
    "LabelAction",
    "LabelDecision",
    "comparison_of",
    "decide",
    "is_taken_back_by",
    "version_to_judge",
    "was_control_before",
]

# What is done without a decision in time.
ON_DEADLINE: Final = ("keep", "roll_back", "ask")


class LabelAction(StrEnum):
    """What follows from a look at labels."""

    WAIT = "wait"
    CONFIRM = "confirm"
    ROLL_BACK = "roll_back"
    KEEP = "keep"
    ASK = "ask"


@dataclass(frozen=True)
class LabelDecision:
    """What follows from a look, and why, in a sentence."""

    action: LabelAction
    reason: str


@dataclass(frozen=True)
class Comparison:
    """By which requests a version is judged.

    Attributes:
        control: The version that it is compared with.
        since: They arrived from then on.
        until: They arrived before.
        waits_since: From when on a decision is waited for: the later of the run's begin and the version's going live.
    """

    control: str
    since: datetime
    until: datetime
    waits_since: datetime


def decide(
    outcome: Outcome, reason: str, *, waited: timedelta, decision_timeout: timedelta, on_deadline: str
) -> LabelDecision:
    """Return what follows from a look at labels. An outage never takes a version back, however long it lasts.

    Args:
        outcome: The outcome of the look.
        reason: The verdict's reason.
        waited: For how long a decision has been waited for.
        decision_timeout: How long it is waited for.
        on_deadline: What then: `keep`, `ask`, or `roll_back`, which keeps a version whose labels could not be seen.
    """
    if outcome is Outcome.FAIL:
        return LabelDecision(LabelAction.ROLL_BACK, reason)
    if outcome is Outcome.PASS:
        return LabelDecision(LabelAction.CONFIRM, reason)
    found = f"{outcome.value.replace('_', ' ')}: {reason}"
    if waited < decision_timeout:
        return LabelDecision(LabelAction.WAIT, found)
    late = f"no decision after {format_elapsed(waited)} (decision_timeout {format_elapsed(decision_timeout)}): {found}"
    if on_deadline == "ask":
        return LabelDecision(LabelAction.ASK, late)
    if on_deadline == "roll_back" and outcome is Outcome.NOT_ENOUGH_EVIDENCE:
        return LabelDecision(LabelAction.ROLL_BACK, late)
    return LabelDecision(LabelAction.KEEP, late)


def version_to_judge(history: Sequence[Revision], version: str | None, *, began: datetime) -> str:
    """Return the version to judge: the given one, or what was control when the run began.

    That is the same for every look of the run, whatever has become control meanwhile.

    Args:
        history: The endpoint's revisions, oldest first.
        version: The version that was given; None for the control.
        began: When the run began.

    Raises:
        EndpointError: There is no such version, or there was no control.
    """
    newest = history[-1].endpoint
    if version is None:
        then = [revision.endpoint for revision in history if revision.created <= began] or [history[0].endpoint]
        if (control := then[-1].control) is None:
            raise EndpointError(
                f"endpoint {newest.name!r} had no control at {began:%Y-%m-%d %H:%M:%S %Z}: name a version"
            )
        version = control.name
    return newest.version(version).name


def comparison_of(history: Sequence[Revision], version: str, *, began: datetime) -> Comparison:
    """Return the requests by which a version is judged, the same at every look of a run.

    Args:
        history: The endpoint's revisions, oldest first.
        version: The version.
        began: When the run began.

    Raises:
        EndpointError: The version never had traffic beside a control that it could be compared with.
        NothingToDoError: It has no traffic any more.
    """
    newest = history[-1].endpoint
    shared = shared_traffic(history, version)
    if shared is None:
        raise EndpointError(
            f"version {version!r} of endpoint {newest.name!r} never had a part of the traffic beside a control: there "
            "is nothing to compare it with; judge a version that was rolled out with a canary"
        )
    if newest.effective_traffic()[version] == 0:
        raise NothingToDoError(
            f"version {version!r} of endpoint {newest.name!r} has no traffic any more: there is nothing to decide; "
            f"revision {history[-1].number} is by {history[-1].change.who}"
        )
    promotion = promotion_of(history, version)
    live = shared.since if promotion is None else promotion.at
    # Of a version that still shares the traffic, requests after the run's begin would be others at each look.
    until = shared.until or max(began, live)
    return Comparison(shared.control, shared.since, until, waits_since=max(began, live))


def is_taken_back_by(history: Sequence[Revision], version: str, run: str) -> Revision | None:
    """Return the revision in which a task of a run took a version's traffic; None if none did since it last had any.

    Args:
        history: The endpoint's revisions, oldest first.
        version: A version that the newest revision has.
        run: The run, as `dag/run`.
    """
    ending: Revision | None = None
    for revision in reversed(history):
        if revision.endpoint.effective_traffic().get(version):
            break
        ending = revision
    return ending if ending is not None and ending.change.who.startswith(f"{run}/") else None


def was_control_before(history: Sequence[Revision], version: str, taken_back: Revision | None) -> bool:
    """Return whether a version is control; for one that was taken back, whether it was until then.

    Args:
        history: The endpoint's revisions, oldest first.
        version: The version.
        taken_back: The revision in which it was taken back; None if it was not.
    """
    before = history if taken_back is None else [one for one in history if one.number < taken_back.number]
    control = before[-1].endpoint.control if before else None
    return control is not None and control.name == version
