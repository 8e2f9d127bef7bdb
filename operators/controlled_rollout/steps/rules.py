"""Which versions a run may roll back or retire, decided from the endpoint's history. Pure."""

from collections.abc import Sequence

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError, EndpointError, NothingToDoError
from controlled_rollout.target.history import ON_SILENCE, Promotion, creation_of, ended_by, ending_of, promotion_of
from controlled_rollout.target.protocol import Revision

__all__ = [
    "check_control_is_the_same",
    "check_is_treatment",
    "check_replacement",
    "former_control_to_restore",
    "has_created_endpoint",
    "reason_not_promoted",
    "reason_not_to_retire",
    "reason_not_to_roll_back",
    "replaced_by",
    "version_to_roll_back",
]


def version_to_roll_back(history: Sequence[Revision], version: str, owner: str) -> str:
    """Return the version that a run's roll-back is about: the one it holds the endpoint for, if it never had the other.

    A name that a template makes of the time may be another one in each task of a run.

    Args:
        history: The endpoint's revisions, oldest first; empty if there is no endpoint.
        version: The version that the task names.
        owner: The run, as `dag/run`.
    """
    rollout = history[-1].endpoint.rollout if history else None
    if rollout is None or rollout.owner != owner:
        return version
    had = any(
        each.endpoint.rollout is not None
        and (each.endpoint.rollout.version, each.endpoint.rollout.owner) == (version, owner)
        for each in history
    )
    created = version in history[-1].endpoint.versions and _is_by(creation_of(history, version), owner)
    return version if had or created else rollout.version


def reason_not_to_roll_back(history: Sequence[Revision], version: str, owner: str) -> str | None:
    """Return why a DAG run must not roll a version back, as a sentence; None if it may.

    It may also while the rollout is on hold: a gate on hold waits, so a task that failed has another reason. And it may
    finish what was taken back because nobody looked.

    Args:
        history: The endpoint's revisions, oldest first; empty if there is no endpoint.
        version: The version.
        owner: The run that would roll back, as `dag/run`.
    """
    if not history or version not in history[-1].endpoint.versions:
        return f"version {version!r} was not rolled out: there is nothing to roll back"
    endpoint = history[-1].endpoint
    holder = endpoint.rollout.owner if endpoint.rollout and endpoint.rollout.version == version else None
    creator = creation_of(history, version).change.who
    if holder not in (None, owner):
        return f"version {version!r} is in the rollout of {holder}: it is not for {owner} to roll back"
    if holder is None and not creator.startswith(f"{owner}/"):
        return f"version {version!r} was created by {creator}: it is not for {owner} to roll back"
    ending = ending_of(history, version, owner) if holder is None else None
    if ending and not _is_by(ending, owner) and not _is_left_by_silence(history, ending, version):
        return f"{ended_by(ending, version, owner)}: what is left of it is not for {owner} to roll back"
    if endpoint.versions[version].is_control:
        return f"version {version!r} is the control of endpoint {endpoint.name!r}: " + (
            "it is the first, and there is none to go back to" if len(endpoint.versions) == 1 else "it stays"
        )
    return None


def _is_left_by_silence(history: Sequence[Revision], ending: Revision, version: str) -> bool:
    """Return whether a version was taken back because nobody looked, and nobody has changed it since.

    Then it is still for its run to tidy up, once that is back.
    """
    left = ending.endpoint.versions.get(version)
    later = [revision.endpoint for revision in history if revision.number > ending.number]
    return ending.change.who == ON_SILENCE and all(
        endpoint.versions.get(version) == left and endpoint.rollout is None for endpoint in later
    )


def reason_not_promoted(history: Sequence[Revision], version: str, owner: str) -> str | None:
    """Return what ended a run's rollout, or that nothing did, as a sentence; None if its version has become control.

    Args:
        history: The endpoint's revisions, oldest first; empty if there is no endpoint.
        version: The version that the run has rolled out.
        owner: The run, as `dag/run`.
    """
    begin = next((index for index, revision in enumerate(history) if _is_of_run(revision, version, owner)), -1)
    if any(_has_as_control(revision.endpoint, version) for revision in history[begin:]):
        return None
    if ending := ending_of(history, version, owner):
        return f"version {version!r} was not promoted: {ended_by(ending, version, owner)}"
    if begin < 0:
        return f"version {version!r} was not promoted: {owner} has not rolled it out"
    percent = history[-1].endpoint.effective_traffic().get(version, 0.0)
    return (
        f"version {version!r} was not promoted and has {percent:g} % of the traffic, and no task of {owner} looks at "
        "it any more: promote it or roll it back"
    )


def _is_of_run(revision: Revision, version: str, owner: str) -> bool:
    """Return whether a revision has the version in the run's rollout, or is the run's creation of a first version."""
    endpoint = revision.endpoint
    held = endpoint.rollout is not None and (endpoint.rollout.version, endpoint.rollout.owner) == (version, owner)
    return held or (version in endpoint.versions and _is_by(revision, owner))


def _has_as_control(endpoint: Endpoint, version: str) -> bool:
    """Return whether the version is the endpoint's control."""
    return endpoint.control is not None and endpoint.control.name == version


def _is_by(revision: Revision, owner: str) -> bool:
    """Return whether a task of the run has stored the revision."""
    return revision.change.who == owner or revision.change.who.startswith(f"{owner}/")


def has_created_endpoint(history: Sequence[Revision], version: str, owner: str) -> bool:
    """Return whether the run `owner` created the endpoint and `version` is its only version.

    Args:
        history: The endpoint's revisions, oldest first; empty if there is no endpoint.
        version: The version.
        owner: The run, as `dag/run`.
    """
    return bool(
        history
        and history[0].number == 1
        and history[0].change.who.startswith(f"{owner}/")
        and list(history[-1].endpoint.versions) == [version]
    )


def check_is_treatment(history: Sequence[Revision], version: str) -> None:
    """Raise if the version to roll back is control; the message names the former control to use as replacement.

    Raises:
        EndpointError: The version is the control.
    """
    promotion = promotion_of(history, version)
    if promotion is None:
        return
    endpoint = history[-1].endpoint
    candidates = [name for name in endpoint.versions if name != version]
    known = f"{promotion.former_control!r} was control before it, " if promotion.former_control in candidates else ""
    raise EndpointError(
        f"version {version!r} is the control of endpoint {endpoint.name!r}: name the version that takes its place in "
        f"`to` ({known}there are: {', '.join(candidates) or 'none'})"
    )


def check_replacement(history: Sequence[Revision], version: str, replacement: str) -> None:
    """Raise if the version to replace is not control, unless the replacement has become control already.

    Raises:
        EndpointError: The version is a treatment, or one of the two is not there.
    """
    if not history:
        raise EndpointError(f"version {version!r} was to be replaced by {replacement!r}, and there is no such endpoint")
    endpoint = history[-1].endpoint
    endpoint.version(version)
    if endpoint.version(replacement).is_control:
        return
    if not endpoint.version(version).is_control or version == replacement:
        raise EndpointError(
            f"version {version!r} of endpoint {endpoint.name!r} is a treatment: leave `to` out to roll it back "
            f"(to={replacement!r} was given)"
        )


def former_control_to_restore(history: Sequence[Revision], version: str) -> str | None:
    """Return the control before a version that is control, to take its place again; None if the version is not control.

    Args:
        history: The endpoint's revisions, oldest first; empty if there is no endpoint.
        version: The version to roll back.

    Raises:
        EndpointError: There was no control before it, or that version has been deleted.
    """
    promotion = promotion_of(history, version)
    if promotion is None:
        return None
    endpoint, former = history[-1].endpoint, promotion.former_control
    keeps = f"version {version!r} of endpoint {endpoint.name!r} is to be rolled back, and it keeps its traffic"
    if former is None and history[0].number > 1:
        raise EndpointError(
            f"{keeps}: its promotion is older than the {len(history)} revisions that are kept, so the control before "
            "it is not known; name the version that takes its place in `to`"
        )
    if former is None:
        raise EndpointError(f"{keeps}: it is the first control, and there is none before it to go back to")
    last = next(revision.endpoint for revision in reversed(history) if _has_as_control(revision.endpoint, former))
    image = last.versions[former].image
    present = endpoint.versions.get(former)
    if present is None or present.image != image:
        what = "has been deleted" if present is None else f"is another model now, with image {present.image!r}"
        raise EndpointError(
            f"{keeps}: the control before it, {former!r}, {what}. Roll the image {image!r} out again as a new version, "
            f"and roll back {version!r} to that one; a longer keep_warm keeps a former control"
        )
    return former


def replaced_by(history: Sequence[Revision], promoted: str, owner: str | None = None) -> tuple[str, Promotion]:
    """Return the former control that `promoted` replaced, and the promotion; raise if it must not be retired.

    Args:
        history: The endpoint's revisions, oldest first.
        promoted: The version that took the former control's place.
        owner: The run that has to have promoted it; None for whoever has.

    Raises:
        NothingToDoError: There is none, it is in use again, or somebody else has promoted.
    """
    endpoint = history[-1].endpoint
    promotion = promotion_of(history, promoted)
    if promotion is None:
        raise NothingToDoError(f"version {promoted!r} is not the control of endpoint {endpoint.name!r} (any more)")
    if owner is not None and promotion.who != owner and not promotion.who.startswith(f"{owner}/"):
        raise NothingToDoError(
            f"version {promoted!r} was promoted by {promotion.who}: what it replaced is not for {owner} to retire"
        )
    if promotion.former_control is None:
        raise NothingToDoError(f"version {promoted!r} is the first control: there is none before it to retire")
    if reason := reason_not_to_retire(endpoint, promotion.former_control):
        raise NothingToDoError(reason)
    return promotion.former_control, promotion


def reason_not_to_retire(endpoint: Endpoint, former_control: str) -> str | None:
    """Return why a former control must not be deleted, as a sentence; None if it is unused or does not exist."""
    if former_control not in endpoint.versions:
        return None
    if percent := endpoint.effective_traffic()[former_control]:
        return (
            f"version {former_control!r} has {percent:g} % of the traffic of endpoint {endpoint.name!r} again: it stays"
        )
    if endpoint.rollout is not None and endpoint.rollout.version == former_control:
        return f"version {former_control!r} is being rolled out again by {endpoint.rollout.owner}: it stays"
    return None


def check_control_is_the_same(decided_on: Endpoint, newest: Endpoint, version: str) -> None:
    """Raise ConflictError if another promotion came first while this one waited: the two were decided on one control.

    Args:
        decided_on: The endpoint when the promotion began.
        newest: The endpoint now.
        version: The version that is to be promoted.

    Raises:
        ConflictError: Another version than the one to be promoted has become control meanwhile.
    """
    before, now = (endpoint.control.name if endpoint.control else None for endpoint in (decided_on, newest))
    if now not in (before, version):
        raise ConflictError(
            f"version {version!r} was to replace control {before!r} of endpoint {newest.name!r}, and {now!r} has "
            "become control meanwhile: nothing was changed; look at the endpoint, and promote again if that is right"
        )
