"""The stored state: one ControllerRevision per revision of an endpoint, created only if it is the next number."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import CONTROLLER_REVISION, MANAGED_BY
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target import refusals
from controlled_rollout.target.kubernetes.manifests import owner_reference
from controlled_rollout.target.kubernetes.names import ENDPOINT_LABEL, endpoint_labels, endpoint_object, selector
from controlled_rollout.target.protocol import Change, Revision

__all__ = ["endpoints_of", "history", "store"]

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


async def store(
    api: Api, namespace: str, endpoint: Endpoint, change: Change, *, owner: Object, stored: Sequence[Revision]
) -> Revision:
    """Store `endpoint` as the revision after its own.

    Raises:
        ConflictError: Another content is stored under that number.
    """
    revision = Revision.after(endpoint, change)
    made = await api.create(CONTROLLER_REVISION.path(namespace), _object(revision, namespace, owner))
    if made is None:
        faster = next(
            (found for found in await history(api, namespace, endpoint.name) if found.number == revision.number), None
        )
        # An answer that got lost on its way: the same revision, stored a moment ago by this very call.
        if faster is None or not faster.endpoint.same_as(revision.endpoint) or faster.change.who != change.who:
            raise refusals.conflict(endpoint, faster)
        return faster
    for old in stored[: max(0, len(stored) + 1 - KEPT)]:
        await api.delete(CONTROLLER_REVISION.path(namespace, _name(endpoint.name, old.number)))
    return revision


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
