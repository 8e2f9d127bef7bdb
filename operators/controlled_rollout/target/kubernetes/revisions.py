"""The stored state: one ControllerRevision per revision of an endpoint, created only if it is the next number."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError
from controlled_rollout.target import Change, Revision
from controlled_rollout.target.kubernetes.api import Api, Object
from controlled_rollout.target.kubernetes.manifests import owner_reference
from controlled_rollout.target.kubernetes.names import (
    CONTROLLER_REVISION,
    ENDPOINT_LABEL,
    MANAGED_BY,
    endpoint_labels,
    endpoint_object,
    selector,
)

__all__ = ["check", "conflict", "endpoints_of", "history", "store"]

KEPT: Final = 200
MOST_OF_WHY: Final = 4096
WHO: Final = "controlled-rollout/who"
WHY: Final = "controlled-rollout/why"
CREATED: Final = "controlled-rollout/created"


async def history(api: Api, namespace: str, endpoint: str) -> list[Revision]:
    """Return all kept revisions of an endpoint, oldest first; none if there is no such endpoint."""
    found = await api.items(CONTROLLER_REVISION.path(namespace), labelSelector=selector(endpoint_labels(endpoint)))
    # What is being deleted belongs to an endpoint that is on its way out.
    kept = [revision for revision in found if "deletionTimestamp" not in revision["metadata"]]
    return sorted(map(_revision, kept), key=lambda revision: revision.number)


async def endpoints_of(api: Api, namespace: str) -> list[str]:
    """Return the names of all endpoints, sorted."""
    found = await api.items(CONTROLLER_REVISION.path(namespace), labelSelector=selector(MANAGED_BY))
    return sorted({revision["metadata"]["labels"][ENDPOINT_LABEL] for revision in found})


def check(endpoint: Endpoint, stored: Sequence[Revision]) -> Endpoint | None:
    """Return the stored endpoint if `endpoint` says the same as the newest revision, None if it may be stored.

    Raises:
        ConflictError: It was made from a revision that is not the newest.
    """
    newest = stored[-1] if stored else None
    if newest and endpoint.same_as(newest.endpoint):
        return newest.endpoint
    if endpoint.revision != (newest.number if newest else 0):
        raise conflict(endpoint, newest)
    return None


async def store(
    api: Api, namespace: str, endpoint: Endpoint, change: Change, *, owner: Object, stored: Sequence[Revision]
) -> Revision:
    """Store `endpoint` as the revision after its own.

    Raises:
        ConflictError: Another content is stored under that number.
    """
    number = endpoint.revision + 1
    revision = Revision(
        number=number,
        endpoint=endpoint.model_copy(update={"revision": number}),
        change=change,
        created=datetime.now(UTC),
    )
    made = await api.create(CONTROLLER_REVISION.path(namespace), _object(revision, namespace, owner))
    if made is None:
        faster = next((found for found in await history(api, namespace, endpoint.name) if found.number == number), None)
        # An answer that got lost on its way: the same revision, stored a moment ago by this very call.
        if faster is None or not faster.endpoint.same_as(revision.endpoint) or faster.change.who != change.who:
            raise conflict(endpoint, faster)
        return faster
    for old in stored[: max(0, len(stored) + 1 - KEPT)]:
        await api.delete(CONTROLLER_REVISION.path(namespace, _name(endpoint.name, old.number)))
    return revision


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


def _name(endpoint: str, number: int) -> str:
    return endpoint_object(endpoint, f"{number:08d}")


def _object(revision: Revision, namespace: str, owner: Object) -> Object:
    name = revision.endpoint.name
    return {
        "apiVersion": CONTROLLER_REVISION.version,
        "kind": CONTROLLER_REVISION.name,
        "metadata": {
            "name": _name(name, revision.number),
            "namespace": namespace,
            "labels": endpoint_labels(name),
            "annotations": {
                WHO: revision.change.who,
                WHY: revision.change.why[:MOST_OF_WHY],
                CREATED: revision.created.isoformat(),
            },
            "ownerReferences": [owner_reference(owner)],
        },
        "revision": revision.number,
        "data": revision.endpoint.model_dump(mode="json", exclude_unset=True),
    }


def _revision(found: Object) -> Revision:
    said = found["metadata"]["annotations"]
    return Revision(
        number=found["revision"],
        endpoint=Endpoint.model_validate(found["data"]),
        change=Change(who=said[WHO], why=said[WHY]),
        created=datetime.fromisoformat(said[CREATED]),
    )
