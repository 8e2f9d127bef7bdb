"""What every target refuses, decided and said in one place. Pure."""

from collections.abc import Iterable
from typing import Final

from controlled_rollout.endpoint import Auth, Endpoint, EndpointError
from controlled_rollout.errors import ConflictError, EndpointNotFoundError
from controlled_rollout.target.protocol import Revision

__all__ = ["already_stored", "check_replicas", "check_supported", "conflict", "not_found"]

MOST_REPLICAS: Final = 100


def already_stored(endpoint: Endpoint, newest: Revision | None) -> Endpoint | None:
    """Return the stored endpoint if `endpoint` says the same as the newest revision, None if it may be stored.

    Raises:
        ConflictError: It was made from a revision that is not the newest.
    """
    if newest and endpoint.same_as(newest.endpoint):
        return newest.endpoint
    if endpoint.revision != (newest.number if newest else 0):
        raise conflict(endpoint, newest)
    return None


def conflict(endpoint: Endpoint, newest: Revision | None) -> ConflictError:
    """Return the error that says who was faster."""
    asked = f"revision {endpoint.revision + 1} of endpoint {endpoint.name!r} was to be stored"
    if newest is None:
        return ConflictError(
            f"{asked}, but there is no such endpoint any more: somebody deleted it; create it again from revision 0"
        )
    return ConflictError(
        f"{asked}, but revision {newest.number} is already there: {newest.change.who} stored it at "
        f"{newest.created:%Y-%m-%d %H:%M:%S %Z} ({newest.change.why}): read the endpoint again and decide anew"
    )


def not_found(name: str, others: Iterable[str]) -> EndpointNotFoundError:
    """Return the error that says that there is no such endpoint, and which there are."""
    return EndpointNotFoundError(
        f"there is no endpoint {name!r} in this workspace: it has {', '.join(others) or 'none'}"
    )


def check_supported(endpoint: Endpoint, target: str) -> None:
    """Refuse what no target can do yet.

    Args:
        endpoint: What is to be applied.
        target: What people call the target, such as `local`.

    Raises:
        EndpointError: The endpoint asks for it.
    """
    if endpoint.auth is Auth.TOKEN:
        raise EndpointError(
            f"endpoint {endpoint.name!r} asks for tokens: the {target} target does not know them yet; use auth='key'"
        )
    for version in endpoint.versions.values():
        if version.collect_model_data:
            raise EndpointError(
                f"version {version.name!r} asks for collect_model_data: the {target} target cannot collect inputs and "
                "predictions yet; leave it out"
            )


def check_replicas(version: str, replicas: int) -> None:
    """Refuse a number of replicas that nobody means.

    Raises:
        EndpointError: It is below 1 or above 100.
    """
    if not 1 <= replicas <= MOST_REPLICAS:
        raise EndpointError(
            f"version {version!r} cannot run with {replicas} replicas: ask for 1 to {MOST_REPLICAS}, or delete it"
        )
