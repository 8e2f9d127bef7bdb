"""What the revisions of an endpoint say about its versions: who created one, when one became control. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError
from controlled_rollout.rollout import Rollout
from controlled_rollout.target.protocol import Revision

__all__ = [
    "ON_SILENCE",
    "Promotion",
    "SharedTraffic",
    "check_holder",
    "creation_of",
    "ended_by",
    "ending_of",
    "promotion_of",
    "shared_traffic",
]

# Who has rolled a treatment back that nobody looked at.
ON_SILENCE: Final = "on_silence"


@dataclass(frozen=True)
class Promotion:
    """When a version became control, and which version it replaced.

    Attributes:
        at: When the revision was stored.
        former_control: The control before; None if there was none.
        who: Who promoted it: a person, or a task as `dag/run/task`.
        rollout: The rollout of the version that it ended; None if no run held the endpoint for it.
    """

    at: datetime
    former_control: str | None
    who: str
    rollout: Rollout | None = None


@dataclass(frozen=True)
class SharedTraffic:
    """When a version and the control that it was compared with both had traffic.

    Attributes:
        control: The control then.
        since: When the version first had a share beside it.
        until: When one of the two had none any more; None if both still have.
    """

    control: str
    since: datetime
    until: datetime | None


def creation_of(history: Sequence[Revision], version: str) -> Revision:
    """Return the revision that created the present version of a name; the name may have been used before.

    With another image it is another model: what was seen of the one before says nothing about it.

    Args:
        history: The endpoint's revisions, oldest first.
        version: A version that the newest revision has.
    """
    creation = history[-1]
    image = creation.endpoint.versions[version].image
    for revision in reversed(history):
        present = revision.endpoint.versions.get(version)
        if present is None or present.image != image:
            break
        creation = revision
    return creation


def promotion_of(history: Sequence[Revision], version: str) -> Promotion | None:
    """Return when a version last became control and which version it replaced; None if it is not control now.

    Args:
        history: The endpoint's revisions, oldest first.
        version: A version's name.
    """
    promotion = None
    before: Endpoint | None = None
    for revision in history:
        endpoint = revision.endpoint
        if not _is_control(endpoint, version):
            promotion = None
        elif not _is_control(before, version):
            former = before.control.name if before is not None and before.control is not None else None
            held = before.rollout if before is not None else None
            rollout = held if held is not None and held.version == version else None
            promotion = Promotion(revision.created, former, revision.change.who, rollout)
        before = endpoint
    return promotion


def shared_traffic(history: Sequence[Revision], version: str) -> SharedTraffic | None:
    """Return when a version last had a part of the traffic beside a control; None if it never had.

    Times at which it had none in between, such as a rollout that was shifted back to 0 % and on again, are within it.

    Args:
        history: The endpoint's revisions, oldest first.
        version: A version that the newest revision has.
    """
    created = creation_of(history, version).number
    found: SharedTraffic | None = None
    image = ""
    for revision in history:
        control = _control_beside(revision.endpoint, version) if revision.number >= created else None
        if control is None:
            if found is not None and found.until is None:
                found = replace(found, until=revision.created)
        elif found is not None and (found.control, image) == (control, revision.endpoint.versions[control].image):
            found = replace(found, until=None)
        else:
            found = SharedTraffic(control, revision.created, None)
            image = revision.endpoint.versions[control].image
    return found


def ending_of(history: Sequence[Revision], version: str, owner: str) -> Revision | None:
    """Return the revision that ended the last rollout of a version by a run; None if it goes on, or never was."""
    ending: Revision | None = None
    for revision in reversed(history):
        rollout = revision.endpoint.rollout
        if rollout is not None and (rollout.version, rollout.owner) == (version, owner):
            return ending
        ending = revision
    return None


def ended_by(ending: Revision, version: str, owner: str) -> str:
    """Return a sentence on who ended a rollout, when and why."""
    reason = f" ({ending.change.reason})" if ending.change.reason else ""
    if ending.change.who == ON_SILENCE:
        return f"the traffic of {version!r} was taken back from {owner} in revision {ending.number}{reason}"
    return f"{ending.change.who} ended the rollout of {version!r} by {owner} in revision {ending.number}{reason}"


def check_holder(history: Sequence[Revision], version: str, owner: str | None) -> None:
    """Raise ConflictError if `owner` does not hold the endpoint for `version`, and say who ended its rollout.

    Args:
        history: The endpoint's revisions, oldest first.
        version: The version that is being rolled out.
        owner: The run that should hold the endpoint; None checks nothing.

    Raises:
        ConflictError: Another run holds it, or no run, or it is held for another version.
    """
    endpoint = history[-1].endpoint
    try:
        endpoint.check_holder(version, owner)
    except ConflictError as error:
        if owner is None or (ending := ending_of(history, version, owner)) is None:
            raise
        raise ConflictError(
            f"{owner} no longer holds endpoint {endpoint.name!r} to roll out {version!r}: "
            f"{ended_by(ending, version, owner)}"
        ) from error


def _control_beside(endpoint: Endpoint, version: str) -> str | None:
    """Return the control that has traffic while the version, not being control, has some too; None if there is none."""
    traffic, control = endpoint.effective_traffic(), endpoint.control
    if control is None or control.name == version or not traffic.get(version) or not traffic[control.name]:
        return None
    return control.name


def _is_control(endpoint: Endpoint | None, version: str) -> bool:
    """Return whether the endpoint exists, has the version, and that version is control."""
    return endpoint is not None and version in endpoint.versions and endpoint.versions[version].is_control
