"""Revisions as a cluster holds them, also those that somebody has edited."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import AccessError, DamagedFileError, EndpointNotFoundError
from controlled_rollout.target.kubernetes import revisions
from controlled_rollout.target.protocol import Change


class Cluster:
    """An API server with these ControllerRevisions."""

    def __init__(self, *stored: Object) -> None:
        self._stored = list(stored)

    async def items(self, path: str, **query: str) -> list[Object]:
        return self._stored


def stored(number: int, annotations: dict[str, str] | None) -> Object:
    metadata: dict[str, Any] = {"name": f"cr-digits-{number:08d}", "creationTimestamp": "2026-01-05T12:00:00Z"}
    if annotations is not None:
        metadata["annotations"] = annotations
    data = Endpoint(name="digits", revision=number).model_dump(mode="json")
    return {"metadata": metadata, "revision": number, "data": data}


async def test_a_revision_whose_annotations_were_removed_keeps_nobody_from_changing_the_endpoint() -> None:
    known = {revisions.WHO: "anna", revisions.REASON: "a new model", revisions.CREATED: "2026-01-05T11:59:59+00:00"}
    cluster = cast("Api", Cluster(stored(2, known), stored(1, None)))

    first, second = await revisions.history(cluster, "models", "digits")

    assert (first.change.who, first.change.reason, first.created) == (
        "unknown",
        "",
        datetime(2026, 1, 5, 12, tzinfo=UTC),
    )
    assert (second.change.who, second.number) == ("anna", 2)


@pytest.mark.parametrize("edited", ["", "yesterday", "2026-01-05", "2026-13-05T11:59:59+00:00"])
async def test_a_revision_whose_time_was_edited_counts_from_when_its_object_was_created(edited: str) -> None:
    [revision] = await revisions.history(
        cast("Api", Cluster(stored(1, {revisions.CREATED: edited}))), "models", "digits"
    )

    assert revision.created == datetime(2026, 1, 5, 12, tzinfo=UTC)


class Refusing(Cluster):
    """An API server that stores a revision, and deletes none."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def create(self, _path: str, body: Object) -> Object:
        return body

    async def delete(self, path: str) -> bool:
        self.asked.append(path.rpartition("/")[2])
        raise AccessError("this identity may not delete ControllerRevisions")


async def test_a_revision_is_stored_also_by_who_may_not_delete_the_oldest_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions, "KEPT", 2)
    kept = [revisions.revision_from_object(stored(number, None)) for number in (1, 2)]
    cluster = Refusing()

    revision = await revisions.store_revision(
        cast("Api", cluster),
        "models",
        kept[-1].endpoint,
        Change(who="the agent", reason="nobody looked"),
        owner={"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "cr-digits", "uid": "1"}},
        kept=kept,
    )

    assert revision.number == 3
    assert len(cluster.asked) == 1 and cluster.asked[0].endswith("00000001")


class Left:
    """An API server with a version's Deployment of an endpoint, and perhaps the object that owns all of it."""

    def __init__(self, root: Object | None, *stored: Object) -> None:
        self._root = root
        self._stored = list(stored)

    async def items(self, path: str, **query: str) -> list[Object]:
        if path.endswith("/controllerrevisions"):
            return self._stored
        labels = {"controlled-rollout/endpoint": "digits", "controlled-rollout/version": "one"}
        foreign = {"app.kubernetes.io/managed-by": "controlled-rollout"}
        return [{"metadata": {"labels": labels}}, {"metadata": {"labels": foreign}}, {"metadata": {}}]

    async def find(self, path: str) -> Object | None:
        return self._root


ROOT: dict[str, Any] = {"metadata": {"name": "controlled-rollout-digits"}}


async def test_an_endpoint_that_serves_and_has_lost_all_revisions_is_listed_and_not_taken_for_a_new_one() -> None:
    cluster = cast("Api", Left(ROOT))

    assert await revisions.endpoints_of(cluster, "models") == ["digits"]
    with pytest.raises(DamagedFileError, match=r"digits.*one.*deleted all its ControllerRevisions in namespace models"):
        await revisions.existing_history(cluster, "models", "digits")


LEAVING: dict[str, Any] = {"metadata": {**ROOT["metadata"], "deletionTimestamp": "2026-01-05T12:00:00Z"}}


@pytest.mark.parametrize("root", [None, LEAVING])
async def test_what_a_deletion_has_not_deleted_yet_is_no_endpoint(root: Object | None) -> None:
    cluster = cast("Api", Left(root))

    assert await revisions.endpoints_of(cluster, "models") == []
    with pytest.raises(EndpointNotFoundError, match="there is no endpoint 'digits'"):
        await revisions.existing_history(cluster, "models", "digits")


async def test_a_revision_of_a_newer_release_is_refused_with_its_name_and_what_to_do() -> None:
    newer = stored(7, None)
    newer["data"]["mirrored"] = True

    with pytest.raises(
        DamagedFileError, match=r"cr-digits-00000007 cannot be read: .*mirrored.* use that release here"
    ):
        await revisions.history(cast("Api", Cluster(newer)), "models", "digits")
