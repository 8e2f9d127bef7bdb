"""What every target refuses, and the errors that say so. Pure."""

from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from controlled_rollout.addresses import is_loopback
from controlled_rollout.endpoint import Auth, Endpoint, EndpointError
from controlled_rollout.environment_variables import SecretReference
from controlled_rollout.errors import ConflictError, EndpointNotFoundError
from controlled_rollout.target.protocol import Revision
from controlled_rollout.version import MAX_REPLICAS
from controlled_rollout.workspace import Workspace

__all__ = [
    "already_stored",
    "check_collection",
    "check_has_keys",
    "check_has_signing_keys",
    "check_replicas",
    "check_secret_keys",
    "check_supported",
    "conflict_error",
    "new_references",
    "not_found_error",
]


def already_stored(endpoint: Endpoint, newest: Revision | None) -> Endpoint | None:
    """Return the newest revision's endpoint if `endpoint` has the same content; None if `endpoint` may be stored.

    Raises:
        ConflictError: `endpoint` was made from a revision that is not the newest.
    """
    if newest and endpoint.same_as(newest.endpoint):
        return newest.endpoint
    if endpoint.revision != (newest.number if newest else 0):
        raise conflict_error(endpoint, newest)
    return None


def conflict_error(endpoint: Endpoint, newest: Revision | None) -> ConflictError:
    """Return the error for storing an endpoint that was not made from the newest revision."""
    request = f"revision {endpoint.revision + 1} of endpoint {endpoint.name!r} was to be stored"
    if newest is None:
        return ConflictError(f"{request}, but the endpoint has been deleted meanwhile: create it again from revision 0")
    return ConflictError(
        f"{request}, but revision {newest.number} exists already: {newest.change.who} stored it at "
        f"{newest.created:%Y-%m-%d %H:%M:%S %Z} ({newest.change.reason}): read the endpoint again and repeat the change"
    )


def not_found_error(name: str, existing: Iterable[str]) -> EndpointNotFoundError:
    """Return the error for an endpoint that does not exist; its message lists the endpoints that do."""
    return EndpointNotFoundError(
        f"there is no endpoint {name!r} in this workspace: it has {', '.join(existing) or 'none'}"
    )


def check_supported(endpoint: Endpoint, target: str) -> None:
    """Raise EndpointError if an endpoint asks for something that the target cannot do.

    Args:
        endpoint: The endpoint that is to be applied.
        target: The name of the target in messages, such as `local`.

    Raises:
        EndpointError: An issuer's keys are on the machine itself, and its router runs elsewhere.
    """
    uri = endpoint.token_issuer.jwks_uri if endpoint.token_issuer else ""
    if target != "local" and is_loopback(urlsplit(uri).hostname or ""):
        raise EndpointError(
            f"endpoint {endpoint.name!r} reads its issuer's keys at {uri}, which the router of the {target} target "
            "cannot reach: name an https address, or a Service of the cluster"
        )


def check_collection(endpoint: Endpoint, newest: Endpoint | None, workspace: Workspace) -> None:
    """Raise EndpointError if a new version asks for its data to be collected, and nothing in the cluster could do that.

    A version that the newest revision has already is not checked: going back depends on no setting.

    Args:
        endpoint: The endpoint that is to be applied.
        newest: Its newest revision; None if it is new.
        workspace: Where its versions run.

    Raises:
        EndpointError: The workspace is on Kubernetes and has no image of the collector, or no storage that pods reach.
    """
    if workspace.has_collector:
        return
    for name, version in endpoint.versions.items():
        if version.collect_model_data and (newest is None or name not in newest.versions):
            missing = (
                "collector_image"
                if not workspace.collector_image
                else "storage, as an address in Blob Storage that pods reach"
            )
            raise EndpointError(
                f"version {name!r} asks for collect_model_data, and workspace {workspace.name!r} has no "
                f"{missing}: set it (docs/collected-data.md), or leave collect_model_data out"
            )


def check_has_keys(endpoint: Endpoint) -> None:
    """Raise EndpointError if the callers of an endpoint have no keys.

    Raises:
        EndpointError: They have tokens, or need nothing.
    """
    if endpoint.auth is not Auth.KEY:
        tokens = f"; `controlled-rollout keys token {endpoint.name}` gives a token"
        raise EndpointError(
            f"endpoint {endpoint.name!r} has no keys: its auth is {endpoint.auth.value!r}"
            + (tokens if endpoint.has_signing_keys else "")
        )


def check_has_signing_keys(endpoint: Endpoint) -> None:
    """Raise EndpointError if an endpoint does not issue tokens itself.

    Raises:
        EndpointError: Its callers have keys or need nothing, or an outside issuer issues their tokens.
    """
    if endpoint.auth is not Auth.TOKEN:
        raise EndpointError(f"endpoint {endpoint.name!r} issues no tokens: its auth is {endpoint.auth.value!r}")
    if endpoint.token_issuer is not None:
        raise EndpointError(
            f"endpoint {endpoint.name!r} issues no tokens: its callers get them from {endpoint.token_issuer.issuer}"
        )


def check_replicas(version: str, replicas: int) -> None:
    """Raise EndpointError if a number of replicas is below 1 or above `MAX_REPLICAS`.

    Raises:
        EndpointError: It is.
    """
    if not 1 <= replicas <= MAX_REPLICAS:
        raise EndpointError(
            f"version {version!r} cannot run with {replicas} replicas: ask for 1 to {MAX_REPLICAS}, or delete it"
        )


def new_references(endpoint: Endpoint, newest: Endpoint | None) -> dict[SecretReference, str]:
    """Return the keys of secrets that versions name and those of the newest revision do not, each with a version."""
    known = set(_secret_references(newest)) if newest else set()
    return {reference: version for reference, version in _secret_references(endpoint).items() if reference not in known}


def _secret_references(endpoint: Endpoint) -> dict[SecretReference, str]:
    """Return the keys of secrets that an endpoint's versions name, each with the name of such a version."""
    return {
        reference: version.name for version in endpoint.versions.values() for reference in version.secret_references
    }


def check_secret_keys(reference: SecretReference, version: str, keys: Collection[str] | None, where: str) -> None:
    """Raise EndpointError if a secret that a version names does not exist, or does not have the key.

    Args:
        reference: What the version names.
        version: The version's name.
        keys: The keys of the secret; None if there is no secret of that name.
        where: Where it was looked for, such as `in namespace models`.

    Raises:
        EndpointError: There is no such secret, or no such key in it.
    """
    if keys is not None and reference.key in keys:
        return
    found = "there is no such secret" if keys is None else f"it has {', '.join(sorted(keys)) or 'no keys'}"
    raise EndpointError(
        f"version {version!r} takes a value from the key {reference.key!r} of the secret {reference.secret!r}, and "
        f"{where} {found}: store it with "
        f"`controlled-rollout secret {reference.secret} {reference.key}`, which reads the value from stdin"
    )
