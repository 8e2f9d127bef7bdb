"""What the revisions of an endpoint say about its versions: who created one, when one became control. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.protocol import Revision

__all__ = ["Promotion", "SharedTraffic", "creation_of", "promotion_of", "shared_traffic"]


@dataclass(frozen=True)
class Promotion:
    """When a version became control, and which version it replaced.

    Attributes:
        at: When the revision was stored.
        former_control: The control before; None if there was none.
        who: Who promoted it: a person, or a task as `dag/run/task`.
    """

    at: datetime
    former_control: str | None
    who: str


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
            promotion = Promotion(revision.created, former, revision.change.who)
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


def _control_beside(endpoint: Endpoint, version: str) -> str | None:
    """Return the control that has traffic while the version, not being control, has some too; None if there is none."""
    traffic, control = endpoint.effective_traffic(), endpoint.control
    if control is None or control.name == version or not traffic.get(version) or not traffic[control.name]:
        return None
    return control.name


def _is_control(endpoint: Endpoint | None, version: str) -> bool:
    """Return whether the endpoint exists, has the version, and that version is control."""
    return endpoint is not None and version in endpoint.versions and endpoint.versions[version].is_control
