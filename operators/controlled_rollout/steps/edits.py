"""How each step changes an endpoint, or why it is refused. Pure: a step applies its edit to the newest revision."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from controlled_rollout.defaults import SILENCE
from controlled_rollout.endpoint import LEAST_SHARE, Auth, Endpoint
from controlled_rollout.errors import (
    ConflictError,
    EndpointError,
    EndpointNotFoundError,
    NameTakenError,
    NothingToDoError,
)
from controlled_rollout.rollout import OnSilence
from controlled_rollout.tokens import TokenIssuer
from controlled_rollout.version import Version, check_settings

__all__ = ["deploy", "hold", "promote", "retire", "roll_back", "shift"]

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


def deploy(
    endpoint: Endpoint,
    version: str,
    *,
    image: str,
    owner: str,
    at: datetime,
    settings: Mapping[str, Any],
    auth: Auth | TokenIssuer | None = None,
    sticky: str | None = None,
    run_date: datetime | None = None,
    on_silence: OnSilence = OnSilence.KEEP,
    silence: timedelta = SILENCE,
    about: Mapping[str, Any] = NOTHING,
) -> Endpoint:
    """Return the endpoint with a new version at 0 %, held by `owner`; a first version becomes control and is not held.

    Raises:
        ConflictError: Another run holds the endpoint or is next.
        NameTakenError: The version exists with another image or other settings.
        NothingToDoError: The control is of a later run.
        EndpointError: A rule was broken, or a setting is not one.
    """
    check_settings(settings)
    endpoint.check_callers(auth, sticky)
    stored, endpoint = endpoint, _described(endpoint, about)
    existing = endpoint.versions.get(version)
    if existing is not None and (other := _differences(endpoint, existing, image, settings)):
        is_treatment = endpoint.rollout is not None and endpoint.rollout.version == version
        # A treatment may be rolled back and deleted: then its name is free.
        raise (ConflictError if is_treatment else NameTakenError)(
            f"endpoint {endpoint.name!r} already has a version {version!r} with {other}: choose another name"
        )
    if existing is not None and existing.is_control:
        if endpoint is not stored and endpoint.rollout is not None:
            # As of every deployment beside another rollout: without telemetry, say, its gate would see nothing.
            endpoint.claim(version, owner=owner, at=at)
        return endpoint
    settings = {**settings, "image": image, **({} if run_date is None else {"run_date": run_date})}
    if not endpoint.versions:
        return endpoint.create_version(version, is_control=True, **settings)
    _check_newer(endpoint, version, run_date)
    if endpoint.rollout is None:
        endpoint.check_turn(owner, run_date=run_date or at, at=at)
    claimed = endpoint.claim(version, owner=owner, at=at, on_silence=on_silence, silence=silence).without_waiting(owner)
    return claimed if existing is not None else claimed.create_version(version, **settings)


def _described(endpoint: Endpoint, about: Mapping[str, Any]) -> Endpoint:
    """Return an endpoint with other fields of its own, such as its description; the endpoint itself if none differs."""
    if all(getattr(endpoint, name) == value for name, value in about.items()):
        return endpoint
    return Endpoint(**{**{name: getattr(endpoint, name) for name in Endpoint.model_fields}, **about})


def _differences(endpoint: Endpoint, existing: Version, image: str, settings: Mapping[str, Any]) -> str:
    """Return in words how an existing version differs from the one that is to be rolled out; empty if it does not."""
    if existing.image != image:
        return f"image {existing.image!r}, not {image!r}"
    wanted = endpoint.update_version(existing.name, **settings).versions[existing.name]
    others = [name for name in settings if getattr(wanted, name) != getattr(existing, name)]
    return f"other settings ({', '.join(others)})" if others else ""


def _check_newer(endpoint: Endpoint, version: str, run_date: datetime | None) -> None:
    """Raise NothingToDoError if the control is of a later run than the version.

    Raises:
        NothingToDoError: It is.
    """
    control = endpoint.control
    if control is None or control.run_date is None or run_date is None or control.run_date <= run_date:
        return
    raise NothingToDoError(
        f"version {version!r} is of the run of {run_date:%Y-%m-%d %H:%M:%S %Z}, and the control {control.name!r} of "
        f"endpoint {endpoint.name!r} of a later one ({control.run_date:%Y-%m-%d %H:%M:%S %Z}): an older model does not "
        "replace a newer one; to go back to it, deploy it by hand or roll the control back"
    )


def shift(
    endpoint: Endpoint,
    version: str,
    *,
    percentile: float,
    owner: str | None,
    who: str = "",
    at: datetime | None = None,
) -> Endpoint:
    """Return the endpoint with another percentile for a version; raise if `owner` does not hold it.

    A shift by hand (without `owner`) of a treatment that a run is rolling out ends that rollout: the run's evidence is
    about another share, and its next step would undo what a person has decided.

    Args:
        endpoint: The endpoint.
        version: The version.
        percentile: Its per cent of the traffic.
        owner: The run that has to hold the endpoint; None for a shift by hand.
        who: Who shifts by hand: who holds the endpoint oneself goes on holding it, and is on hold no longer.
        at: The present, of a shift by hand.

    Raises:
        NothingToDoError: The version is control already, in the rollout of `owner`.
        ConflictError: `owner` no longer holds the endpoint.
        EndpointError: A rule was broken.
    """
    if owner is not None and endpoint.control is not None and endpoint.control.name == version:
        raise NothingToDoError(
            f"version {version!r} is the control of endpoint {endpoint.name!r} and has the traffic already"
            + (": first version, nothing to compare with" if len(endpoint.versions) == 1 else "")
        )
    endpoint.check_holder(version, owner)
    if 0 < percentile < LEAST_SHARE or 100 - LEAST_SHARE < percentile < 100:
        raise EndpointError(
            f"version {version!r} of endpoint {endpoint.name!r} cannot have {percentile} % of the traffic: the least "
            f"share of a version is {LEAST_SHARE:g} %; give 0, {LEAST_SHARE:g} to {100 - LEAST_SHARE:g}, or 100"
        )
    shifted = endpoint.shift(version, percentile)
    rollout = endpoint.rollout
    if rollout is None or shifted is endpoint:
        return shifted
    if owner is not None:
        # Its gate has let it go on. What is left of a hold that was refused would keep everybody from taking it back.
        return shifted.without_hold()
    if who == rollout.owner and at is not None:
        return shifted.resume(version, owner=who, at=at)
    if rollout.is_of(who):
        return shifted
    return shifted.release(version)


def promote(endpoint: Endpoint, version: str, *, owner: str | None) -> Endpoint:
    """Return the endpoint with the version as default and control, and released.

    Raises:
        ConflictError: `owner` no longer holds the endpoint.
        EndpointError: There is no such version.
    """
    if owner is not None and endpoint.version(version).is_control:
        # Promoted before the run was killed, or by a person: a rollout that began since then is not the run's to end.
        return endpoint.release(version)
    promoted = endpoint.promote(version)
    if promoted is endpoint:
        return endpoint.release(version)
    endpoint.check_holder(version, owner)
    # All other versions are at 0 now, so the rollout that was under way has ended, whichever it was.
    return promoted.release(promoted.rollout.version) if promoted.rollout else promoted


def roll_back(endpoint: Endpoint, version: str, *, owner: str | None) -> Endpoint:
    """Return the endpoint with the version at 0 %, and released.

    Raises:
        EndpointNotFoundError: There is no such version (any more).
        ConflictError: `owner` is given and another run holds the endpoint for this version.
        EndpointError: The version is the default or the control.
    """
    if version not in endpoint.versions:
        raise EndpointNotFoundError(f"endpoint {endpoint.name!r} has no version {version!r} to roll back")
    if endpoint.rollout is not None and endpoint.rollout.version == version:
        endpoint.check_holder(version, owner)
    elif owner is not None and endpoint.effective_traffic()[version] > 0 and not endpoint.versions[version].is_default:
        # Somebody has ended the run's rollout since it looked, and has given the version this share.
        endpoint.check_holder(version, owner)
    return endpoint.roll_back(version).release(version)


def hold(endpoint: Endpoint, version: str, *, at: datetime) -> Endpoint:
    """Return the endpoint with its rollout on hold; the endpoint itself if it is already.

    Args:
        endpoint: The endpoint.
        version: The treatment that is being rolled out.
        at: The present.

    Raises:
        ConflictError: No run rolls the version out, or it has no traffic, so that no gate looks at it.
        EndpointError: There is no such version.
    """
    endpoint.version(version)
    if endpoint.rollout is None or endpoint.rollout.version != version:
        raise ConflictError(
            f"version {version!r} of endpoint {endpoint.name!r} is in no rollout: there is nothing to put on hold"
        )
    if not endpoint.effective_traffic()[version]:
        raise ConflictError(
            f"version {version!r} of endpoint {endpoint.name!r} has no traffic, so no gate looks at it: "
            "roll it back to end its rollout"
        )
    return endpoint.hold(version, owner=None, at=at)


def retire(endpoint: Endpoint, version: str) -> Endpoint:
    """Return the endpoint without a version that has no traffic; unchanged if it does not exist.

    Raises:
        ConflictError: The version has traffic, or a run holds the endpoint to roll it out.
        EndpointError: The version is the default.
    """
    if version not in endpoint.versions:
        return endpoint
    if endpoint.versions[version].is_default:
        raise EndpointError(
            f"version {version!r} is the default of endpoint {endpoint.name!r}, which gets whatever no other version "
            "has: promote the version that takes its place first, or delete the endpoint"
        )
    if percent := endpoint.effective_traffic()[version]:
        raise ConflictError(
            f"version {version!r} has {percent:g} % of the traffic of {endpoint.name!r}: shift it away first"
        )
    if endpoint.rollout is not None and endpoint.rollout.version == version:
        raise ConflictError(
            f"version {version!r} is being rolled out by {endpoint.rollout.owner}: promote it or roll it back first"
        )
    return endpoint.delete_version(version)
