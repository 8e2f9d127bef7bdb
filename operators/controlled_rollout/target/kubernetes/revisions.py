"""The stored revisions of endpoints: one ControllerRevision each, created only if its number is the next."""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import CONFIG_MAP, CONTROLLER_REVISION, DEPLOYMENT, MANAGED_BY
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import AccessError, DamagedFileError, EndpointError, TargetUnavailableError
from controlled_rollout.target import refusals
from controlled_rollout.target.kubernetes.manifests import owner_reference
from controlled_rollout.target.kubernetes.names import (
    ENDPOINT_LABEL,
    VERSION_LABEL,
    endpoint_labels,
    endpoint_object_name,
    selector,
)
from controlled_rollout.target.kubernetes.ownership import check_is_own
from controlled_rollout.target.protocol import Change, Revision

__all__ = [
    "check_not_lost",
    "endpoints_of",
    "existing_history",
    "history",
    "revision_from_object",
    "store_revision",
    "time_of",
]

log = logging.getLogger(__name__)

KEPT: Final = 200
MAX_REASON: Final = 4096
WHO: Final = "controlled-rollout/who"
REASON: Final = "controlled-rollout/reason"
CREATED: Final = "controlled-rollout/created"


async def history(api: Api, namespace: str, endpoint: str) -> list[Revision]:
    """Return all kept revisions of an endpoint, oldest first; none if there is no such endpoint."""
    stored = await api.items(CONTROLLER_REVISION.path(namespace), labelSelector=selector(endpoint_labels(endpoint)))
    # Objects that are being deleted belong to an endpoint that is being deleted.
    kept = [revision for revision in stored if "deletionTimestamp" not in revision["metadata"]]
    return sorted(map(revision_from_object, kept), key=lambda revision: revision.number)


async def existing_history(api: Api, namespace: str, endpoint: str) -> list[Revision]:
    """Return all kept revisions of an endpoint, oldest first.

    Raises:
        DamagedFileError: The endpoint is there, and a revision cannot be read, or somebody has deleted all of them.
        EndpointNotFoundError: There is no such endpoint.
    """
    if revisions := await history(api, namespace, endpoint):
        return revisions
    await check_not_lost(api, namespace, endpoint)
    raise refusals.not_found_error(endpoint, await endpoints_of(api, namespace))


async def check_not_lost(api: Api, namespace: str, endpoint: str) -> None:
    """Raise DamagedFileError if an endpoint without revisions has versions: it would be taken for a new one."""
    deployments = await api.items(DEPLOYMENT.path(namespace), labelSelector=selector(endpoint_labels(endpoint)))
    versions = sorted(_served_versions(deployments).get(endpoint, ()))
    if not versions or not await _has_root(api, namespace, endpoint):
        return
    raise DamagedFileError(
        f"endpoint {endpoint!r} has versions ({', '.join(versions)}), and somebody has deleted all its "
        f"ControllerRevisions in namespace {namespace}, which say what it is to be: it serves as before, and no step "
        "can change it; restore the newest of them from a backup of the cluster; or delete the endpoint and its keys "
        f"with `controlled-rollout delete {endpoint} --yes`, which ends its service, and deploy it again"
    )


def _served_versions(deployments: Sequence[Object]) -> dict[str, set[str]]:
    """Return the versions that have a Deployment which nobody is deleting, by endpoint."""
    found: dict[str, set[str]] = {}
    for deployment in deployments:
        labels = deployment["metadata"].get("labels") or {}
        endpoint, version = labels.get(ENDPOINT_LABEL), labels.get(VERSION_LABEL)
        if endpoint and version and "deletionTimestamp" not in deployment["metadata"]:
            found.setdefault(endpoint, set()).add(version)
    return found


async def _has_root(api: Api, namespace: str, endpoint: str) -> bool:
    """Return whether an endpoint has its root object, and nobody is deleting it with all that it owns."""
    root = await api.find(CONFIG_MAP.path(namespace, endpoint_object_name(endpoint)))
    return root is not None and "deletionTimestamp" not in root["metadata"]


async def endpoints_of(api: Api, namespace: str) -> list[str]:
    """Return the names of all endpoints, sorted; also of those whose revisions somebody has deleted."""
    labels = selector(MANAGED_BY)
    stored = await api.items(CONTROLLER_REVISION.path(namespace), labelSelector=labels)
    known = {str(name) for revision in stored if (name := revision["metadata"]["labels"].get(ENDPOINT_LABEL))}
    deployments = await api.items(DEPLOYMENT.path(namespace), labelSelector=labels)
    lost = [name for name in _served_versions(deployments).keys() - known if await _has_root(api, namespace, name)]
    return sorted({*known, *lost})


async def store_revision(
    api: Api, namespace: str, endpoint: Endpoint, change: Change, *, owner: Object, kept: Sequence[Revision]
) -> Revision:
    """Store `endpoint` as its next revision, and delete the oldest revisions beyond the 200 that are kept.

    Args:
        api: The cluster.
        namespace: Where the endpoint is.
        endpoint: The endpoint as it is to be.
        change: Who changes it and why.
        owner: The endpoint's root object.
        kept: The revisions that are kept so far, oldest first.

    Raises:
        ConflictError: That number is taken by another revision.
        NameTakenError: Somebody else has a ControllerRevision of its name.
    """
    revision = Revision.after(endpoint, change)
    created = await api.create(CONTROLLER_REVISION.path(namespace), _revision_object(revision, namespace, owner))
    if created is None:
        taken = [stored for stored in await history(api, namespace, endpoint.name) if stored.number == revision.number]
        winner = taken[0] if taken else None
        if winner is None:
            await _check_name_is_free(api, namespace, revision)
        # The same content by the same writer: this very call has stored it, and the API server's answer got lost.
        if winner is None or not winner.endpoint.same_as(revision.endpoint) or winner.change.who != change.who:
            raise refusals.conflict_error(endpoint, winner)
        return winner
    try:
        for old in kept[: max(0, len(kept) + 1 - KEPT)]:
            await api.delete(CONTROLLER_REVISION.path(namespace, _revision_object_name(endpoint.name, old.number)))
    except (AccessError, ApiError, TargetUnavailableError) as error:
        # The revision is stored, and no roll-back waits for this: the next step deletes what is too much. The agent,
        # whose Role deletes none, always leaves it to that one.
        log.warning("endpoint %s: its oldest revisions could not be deleted: %s", endpoint.name, error)
    return revision


async def _check_name_is_free(api: Api, namespace: str, revision: Revision) -> None:
    """Raise NameTakenError if somebody else has a ControllerRevision of a revision's name."""
    name = _revision_object_name(revision.endpoint.name, revision.number)
    # The Role allows to list them only, and the items of a list have no kind.
    for found in await api.items(CONTROLLER_REVISION.path(namespace), fieldSelector=f"metadata.name={name}"):
        check_is_own({"kind": CONTROLLER_REVISION.name, **found}, revision.endpoint.name)


def _revision_object_name(endpoint: str, number: int) -> str:
    """Return the name of the ControllerRevision of a revision."""
    return endpoint_object_name(endpoint, f"{number:08d}")


def _revision_object(revision: Revision, namespace: str, owner: Object) -> Object:
    """Return the ControllerRevision that stores a revision."""
    name = revision.endpoint.name
    return {
        "apiVersion": CONTROLLER_REVISION.version,
        "kind": CONTROLLER_REVISION.name,
        "metadata": {
            "name": _revision_object_name(name, revision.number),
            "namespace": namespace,
            "labels": endpoint_labels(name),
            "annotations": {
                WHO: revision.change.who,
                REASON: revision.change.reason[:MAX_REASON],
                CREATED: revision.created.isoformat(),
            },
            "ownerReferences": [owner_reference(owner)],
        },
        "revision": revision.number,
        "data": revision.endpoint.model_dump(mode="json", exclude_unset=True),
    }


def revision_from_object(resource: Object) -> Revision:
    """Return the revision that a ControllerRevision stores.

    Raises:
        DamagedFileError: It cannot be read, as when a newer release has written it.
    """
    metadata = resource["metadata"]
    try:
        endpoint = Endpoint.model_validate(resource["data"])
    except EndpointError as error:
        raise DamagedFileError(
            f"ControllerRevision {metadata['name']} cannot be read: {error}; if a newer release of controlled-rollout "
            "has written it, use that release here, too"
        ) from error
    # Somebody may have removed or edited an annotation: who and why are lost, and the endpoint goes on.
    annotations = {WHO: "unknown", REASON: ""} | (metadata.get("annotations") or {})
    return Revision(
        number=resource["revision"],
        endpoint=endpoint,
        change=Change(who=annotations[WHO], reason=annotations[REASON]),
        created=time_of(annotations.get(CREATED)) or datetime.fromisoformat(metadata["creationTimestamp"]),
    )


def time_of(text: str | None) -> datetime | None:
    """Return the time with a zone that a text says; None if it says none."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return time if time.tzinfo is not None else None
