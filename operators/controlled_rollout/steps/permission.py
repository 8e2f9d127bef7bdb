"""Whether a run may give its treatment more traffic: only on a positive fact about its present share. Pure.

The facts are lines of the record: that a gate let this rollout go on from this share, or that a person approved it.
Whatever is missing, or about another share, rollout or run, permits nothing. Going down asks for no permission.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.record import Decision
from controlled_rollout.target.protocol import Revision

__all__ = ["going_on", "owner_in_run", "reason_not_to_promote", "reason_not_to_shift"]

# Steps of the record that say whether the rollout may go on. A look says so only if it fails.
JUDGEMENTS: Final = ("go_on", "hold", "ask", "approve", "reject")
# Of those, what a person has to say where the promotion needs an approval: a gate's word does not count.
ANSWERS: Final = ("hold", "ask", "approve", "reject")
# And those that let nothing go on.
NO_YES: Final = ("hold", "ask", "reject")


def reason_not_to_promote(
    history: Sequence[Revision],
    newest_first: Iterable[Decision],
    version: str,
    owner: str,
    *,
    needs_approval: bool = False,
) -> str | None:
    """Return why a run must not promote its treatment, as a sentence; None if it may.

    It may if the version is control already, if a gate of this rollout has passed at the present share, or if a person
    has approved the rollout at this share; unless a later look failed, or a later hold, question or rejection is open.

    Args:
        history: The endpoint's revisions, oldest first.
        newest_first: The record's decisions about the version, newest first; read no further than is needed.
        version: The version.
        owner: The run, as `dag/run`.
        needs_approval: Whether only a person's approval permits it.
    """
    endpoint = history[-1].endpoint
    if endpoint.version(version).is_control:
        return None
    fact = _newest_judgement(endpoint, newest_first, version, owner, ANSWERS if needs_approval else JUDGEMENTS)
    if (problem := _problem_of(fact, history, version)) is not None:
        return f"{problem}: {'a person has' if needs_approval else 'a gate has to pass, or a person has'} to approve it"
    if fact is not None and fact.step == "go_on" and fact.outcome != "pass":
        return (
            f"the gate let version {version!r} go on without a pass ({fact.outcome}: {fact.reason}): the last gate "
            "before a promotion has to pass, or a person has to approve it"
        )
    return None


def reason_not_to_shift(
    history: Sequence[Revision], newest_first: Iterable[Decision], version: str, owner: str, *, percentile: float
) -> str | None:
    """Return why a run must not set its treatment to a percentile, as a sentence; None if it may.

    The first shift of a rollout and every shift down are free. A shift that raises a share needs a gate that let the
    rollout go on from this share, or an approval at it. A share that somebody has set to 0 is not raised again.

    Args:
        history: The endpoint's revisions, oldest first.
        newest_first: The record's decisions about the version, newest first; read no further than is needed.
        version: The version.
        owner: The run, as `dag/run`.
        percentile: Its per cent of the traffic after the shift.
    """
    endpoint = history[-1].endpoint
    present = endpoint.effective_traffic().get(version, 0.0)
    if percentile <= present:
        return None
    if present == 0:
        if (taken := _traffic_taken_at(history, version)) is None:
            return None
        return (
            f"version {version!r} had traffic in this rollout, and {taken.change.who} set it to 0 in revision "
            f"{taken.number}: it is not raised again by {owner}"
        )
    fact = _newest_judgement(endpoint, newest_first, version, owner, JUDGEMENTS)
    if (problem := _problem_of(fact, history, version)) is not None:
        return f"{problem}: a gate has to let it go on, or a person has to approve it"
    return None


def owner_in_run(history: Sequence[Revision], version: str, run: str) -> str | None:
    """Return as what a run rolls a version out, or has done so: its tasks are then no person who may promote it.

    Args:
        history: The endpoint's revisions, oldest first.
        version: The version.
        run: The run, as `dag/run`, or one of its mapped instances.

    Returns:
        The owner of the newest such rollout, the run or a mapped instance of it; None if the run had none.
    """
    for revision in reversed(history):
        rollout = revision.endpoint.rollout
        if rollout is not None and rollout.version == version and rollout.is_of_run(run):
            return rollout.owner
    return None


def going_on(
    history: Sequence[Revision], newest_first: Iterable[Decision], version: str, owner: str | None
) -> Decision | None:
    """Return the decision of a gate that lets the rollout go on from its present share; None if a person has to.

    Args:
        history: The endpoint's revisions, oldest first.
        newest_first: The record's decisions about the version, newest first; read no further than is needed.
        version: The version.
        owner: The run, as `dag/run`; None for whichever holds the endpoint.
    """
    fact = _newest_judgement(history[-1].endpoint, newest_first, version, owner, JUDGEMENTS)
    is_valid = fact is not None and fact.step == "go_on" and _problem_of(fact, history, version) is None
    return fact if is_valid else None


def _newest_judgement(
    endpoint: Endpoint, newest_first: Iterable[Decision], version: str, owner: str | None, steps: Sequence[str]
) -> Decision | None:
    """Return the newest of these judgements, or failed look, of the rollout that holds the endpoint; None without.

    Without an owner it may be any run's rollout, or none that holds the endpoint.
    """
    rollout = endpoint.rollout if endpoint.rollout and endpoint.rollout.version == version else None
    if owner is not None and (rollout is None or rollout.owner != owner):
        return None
    present = (endpoint.name, version, rollout.owner if rollout else None, rollout.started if rollout else None)
    for decision in newest_first:
        judges = decision.step in steps or (decision.step == "look" and decision.outcome == "fail")
        if not judges or (decision.endpoint, decision.version) != present[:2]:
            continue
        # A hold, a question or a rejection was recorded without the endpoint if the target did not answer then.
        unknown = decision.step in NO_YES and decision.run is None and decision.share is None
        is_later = unknown and (rollout is None or decision.time >= rollout.started)
        if is_later or (decision.run, decision.rollout) == present[2:]:
            return decision
    return None


def _problem_of(fact: Decision | None, history: Sequence[Revision], version: str) -> str | None:
    """Return why the newest judgement does not let a version go on from its present share; None if it does."""
    endpoint = history[-1].endpoint
    present = endpoint.effective_traffic()[version]
    at = f"version {version!r} of endpoint {endpoint.name!r} at {present:g} %"
    if fact is None:
        return f"nothing in the record of this rollout lets {at} go on"
    if fact.step not in ("go_on", "approve"):
        return f"the newest judgement of {at} is {fact.step.replace('_', ' ')!r} ({fact.reason})"
    same_share = fact.share is not None and math.isclose(fact.share, present, abs_tol=1e-9)
    if not same_share or fact.revision is None or fact.revision < _revision_of_comparison(history):
        then = "an unknown share" if fact.share is None else f"{fact.share:g} %"
        return (
            f"the newest judgement of {at} was made at {then} in revision {fact.revision}, before the split, an image "
            "or the control changed"
        )
    return None


def _revision_of_comparison(history: Sequence[Revision]) -> int:
    """Return the number of the revision since which the same images have the present split, beside the same control."""
    compared, number = _compared_in(history[-1]), history[-1].number
    for revision in reversed(history):
        if _compared_in(revision) != compared:
            break
        number = revision.number
    return number


def _compared_in(revision: Revision) -> tuple[dict[str, tuple[float, str]], str | None]:
    """Return the share and the image of each version that has traffic, and the control's name."""
    endpoint = revision.endpoint
    images = {name: (percent, endpoint.versions[name].image) for name, percent in _split_of(revision).items()}
    return images, endpoint.control.name if endpoint.control else None


def _split_of(revision: Revision) -> dict[str, float]:
    """Return the per cent of the traffic of each version that has some."""
    return {name: percent for name, percent in revision.endpoint.effective_traffic().items() if percent > 0}


def _traffic_taken_at(history: Sequence[Revision], version: str) -> Revision | None:
    """Return the revision that set a version to 0 % in the rollout that holds the endpoint; None if it had no traffic.

    Args:
        history: The endpoint's revisions, oldest first.
        version: A version that has no traffic now.
    """
    taken = history[-1]
    for revision in reversed(history):
        rollout = history[-1].endpoint.rollout
        if rollout is None or not rollout.is_same(revision.endpoint.rollout):
            return None
        if version in _split_of(revision):
            return taken
        taken = revision
    return None
