"""What the agent repairs, when it looks at which endpoint, and how it follows what changes."""

import asyncio
import socket
import sys
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from controlled_rollout.agent import following
from controlled_rollout.agent.__main__ import TLS_BUFFER_BYTES, _parser, main, workspaces_of
from controlled_rollout.agent.following import Followed
from controlled_rollout.agent.health import serve_health
from controlled_rollout.agent.namespace_state import NamespaceState, ObservedDeployment, ObservedRoute
from controlled_rollout.agent.namespace_work import _followed, _stored_revision
from controlled_rollout.agent.repair import LOOK_INTERVAL_S, PAUSE_S, Repair, _Looked, is_settled, repairable
from controlled_rollout.cluster.api import Api, ApiError
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.target.kubernetes.drift import Drift
from controlled_rollout.target.kubernetes.names import (
    ENDPOINT_LABEL,
    endpoint_object_name,
    version_labels,
    version_object_name,
)
from controlled_rollout.target.kubernetes.reconciling import WORKED_AT
from controlled_rollout.target.protocol import Change, EndpointStatus, Revision
from controlled_rollout.workspace import Workspace
from tests.polling import until

IMAGE = "registry.example/model@sha256:" + "0" * 64
WORKSPACE = Workspace.from_settings({"target": "kubernetes", "gateway": "gateway/models", "namespace": "models"})
LONG_S = 60


def state_of(*names: str) -> NamespaceState:
    """Return a namespace with endpoints of one version that are served as they should be."""
    state = NamespaceState()
    for name in names:
        endpoint = Endpoint(name=name).create_version("one", image=IMAGE)
        change = Change(who="a test")
        state.revisions[name] = Revision(number=3, endpoint=endpoint, change=change, created=datetime.now(UTC))
        state.routes[name] = ObservedRoute({}, revision=3, is_whole=True, is_accepted=True)
        state.deployments[name] = ObservedDeployment(name, name, "one", "1")
    return state


def repair(state: NamespaceState, changed: set[str]) -> Repair:
    return Repair(cast(Api, None), WORKSPACE, state, changed)


def test_an_endpoint_is_half_done_unless_its_route_and_its_versions_are_those_of_the_newest_revision() -> None:
    state = state_of("digits")
    route = state.routes["digits"]
    assert not state.is_half_done("digits")

    for other in (ObservedRoute({}, 2, True), ObservedRoute({}, 3, False)):
        state.routes["digits"] = other
        assert state.is_half_done("digits")
    state.routes["digits"] = route
    state.deployments["left"] = ObservedDeployment("left", "digits", "two", "1")
    assert state.is_half_done("digits"), "a version that is deleted has its pods still"
    state.deployments["left"] = ObservedDeployment("left", "digits", "two", "1", is_leaving=True)
    assert not state.is_half_done("digits")
    del state.deployments["digits"]
    assert state.is_half_done("digits")
    del state.routes["digits"]
    assert state.is_half_done("digits")


def test_what_has_changed_is_looked_at_soon_and_everything_from_time_to_time() -> None:
    changed: set[str] = set()
    looks = repair(state_of("aaa", "bbb"), changed)
    now_s = time.monotonic()
    assert looks._due_endpoints(now_s) == ["aaa"], "the endpoints come one after the other"
    assert looks._due_endpoints(now_s + 2) == ["aaa", "bbb"]

    now_s = float(round(now_s))  # a whole number: a sum of others may be a little less than its parts
    for looked in looks._looked.values():
        looked.at_s = now_s
    changed.add("bbb")
    assert looks._due_endpoints(now_s + PAUSE_S - 1) == []
    assert looks._due_endpoints(now_s + PAUSE_S) == ["bbb"]
    assert looks._due_endpoints(now_s + LOOK_INTERVAL_S) == ["aaa", "bbb"]

    changed.add("deleted since")
    looks._due_endpoints(now_s)
    assert changed == {"bbb"}, "what is not there any more is not remembered"


def test_what_waiting_does_not_mend_is_tried_less_and_less_often_until_something_changes() -> None:
    changed: set[str] = set()
    state = state_of("aaa")
    state.routes["aaa"] = ObservedRoute({}, 2, True)
    looks = repair(state, changed)
    now_s = time.monotonic()
    looks._due_endpoints(now_s)
    looks._looked["aaa"] = _Looked(now_s, 8 * PAUSE_S, revision=3)

    assert looks._due_endpoints(now_s + 8 * PAUSE_S - 1) == []
    changed.add("aaa")
    assert looks._due_endpoints(now_s + PAUSE_S) == ["aaa"]


async def test_work_on_an_endpoint_a_moment_ago_does_not_make_what_is_in_vain_be_tried_more_often() -> None:
    state = state_of("aaa")
    state.routes["aaa"] = ObservedRoute({}, 2, True)
    worked = {WORKED_AT: datetime.now(UTC).isoformat()}
    state.roots[endpoint_object_name("aaa")] = {"metadata": {"annotations": worked}}
    looks = repair(state, set())
    looks._due_endpoints(time.monotonic())
    looks._looked["aaa"] = _Looked(time.monotonic(), 8 * PAUSE_S, revision=3)

    await looks._repair_and_schedule("aaa")

    assert looks._looked["aaa"].pause_s == 8 * PAUSE_S, "the agent's own last try is work, too"

    state.revisions["aaa"] = state.revisions["aaa"].model_copy(update={"number": 4})
    assert looks._due_endpoints(time.monotonic() + PAUSE_S) == ["aaa"], "a new revision may not be in vain"


def test_deployments_that_nobody_is_known_to_have_edited_are_left_with_all_the_rest_of_their_endpoint() -> None:
    missing = Drift("Service digits-one", "does not exist", "every step makes it again", "one")
    left = Drift("Deployment digits-one", "was edited by x", "it is left", "one", is_left=True)
    ours = Drift("Deployment digits-one", "was edited", "every step puts it back", "one", is_unattributed=True)

    assert repairable([missing, left]) == [missing]
    assert repairable([missing, ours]) == []
    assert repairable([]) == []


def test_an_endpoint_has_settled_when_its_newest_revision_is_served() -> None:
    status = EndpointStatus(name="digits", url="http://x", revision=3, served_revision=2)

    assert not is_settled(status)
    assert is_settled(status.model_copy(update={"served_revision": 3}))


def test_an_endpoint_whose_newest_revision_cannot_be_read_is_left_alone() -> None:
    revision = {"metadata": {"name": "r-4", "creationTimestamp": "2026-11-28T12:00:00Z"}, "revision": 4}
    good = {**revision, "data": {"name": "digits"}}
    newest = _stored_revision(good, None)

    assert newest is not None and newest.number == 4
    assert _stored_revision({**revision, "revision": 5, "data": {"of": "a later release"}}, newest) is None
    leaving = {"name": "r-4", "deletionTimestamp": "now"}
    assert _stored_revision({**good, "metadata": leaving}, newest) is None


def stored_revision(number: int, endpoint: str = "digits") -> dict[str, Any]:
    """Return the object that stores a revision."""
    metadata = {
        "name": f"{endpoint}-{number}",
        "labels": {ENDPOINT_LABEL: endpoint},
        "creationTimestamp": "2026-11-28T12:00:00Z",
    }
    return {"metadata": metadata, "revision": number, "data": {"name": endpoint}}


class Stored:
    """An API server with the stored revisions of a test."""

    def __init__(self, *numbers: int) -> None:
        self.items = [stored_revision(number) for number in numbers]

    async def get(self, _path: str, **_query: str) -> dict[str, Any]:
        return {"items": self.items, "metadata": {"resourceVersion": "5"}}


async def test_the_newest_revision_is_followed_when_older_ones_come_are_edited_or_are_no_longer_kept() -> None:
    state = NamespaceState()
    revisions = _followed(WORKSPACE, state, set())[0]
    await revisions._list(cast(Api, Stored(1, 3, 2)))
    assert state.revisions["digits"].number == 3

    for event, number in (("ADDED", 4), ("MODIFIED", 2), ("DELETED", 1)):
        revisions._apply_change(event, stored_revision(number))
    assert state.revisions["digits"].number == 4, "a history has its newest 200 revisions, and the endpoint lives on"

    revisions._apply_change("DELETED", stored_revision(4))
    revisions._apply_change("DELETED", stored_revision(3))
    assert state.revisions == {}


async def test_an_endpoint_that_was_made_anew_while_nobody_saw_it_is_not_taken_for_the_old_one() -> None:
    state = NamespaceState()
    revisions = _followed(WORKSPACE, state, set())[0]
    await revisions._list(cast(Api, Stored(49, 50)))

    await revisions._list(cast(Api, Stored(1)))

    assert state.revisions["digits"].number == 1


def listed_deployment(version: str, **metadata: Any) -> dict[str, Any]:
    """Return a version's Deployment as it is listed."""
    name = version_object_name("digits", version)
    known = {"name": name, "uid": version, "generation": 3, "resourceVersion": "5"}
    labels = version_labels("digits", version)
    return {"metadata": {**known, "labels": labels, **metadata}, "spec": {"replicas": metadata.get("replicas", 2)}}


class Listed:
    """An API server that lists what a test says."""

    def __init__(self, *items: dict[str, Any]) -> None:
        self.items = items

    async def get(self, _path: str, **_query: str) -> dict[str, Any]:
        return {"items": list(self.items), "metadata": {"resourceVersion": "5"}}


@pytest.mark.parametrize(
    ("then", "is_looked_at"),
    [
        ([listed_deployment("one")], False),
        ([listed_deployment("one", resourceVersion="9")], False),
        ([listed_deployment("one", generation=4, replicas=5)], False),
        ([listed_deployment("one"), listed_deployment("two")], False),
        ([], True),
        ([listed_deployment("one", generation=4)], True),
        ([listed_deployment("one", generation=5, replicas=5)], True),
        ([listed_deployment("one", uid="another")], True),
        ([listed_deployment("one", labels={ENDPOINT_LABEL: "another"})], True),
    ],
    ids=["same", "status", "scaled", "added", "deleted", "edited", "edited and scaled", "made anew", "relabelled"],
)
async def test_what_others_did_to_a_deployment_while_nobody_could_see_it_is_looked_at_like_what_is_seen(
    then: list[dict[str, Any]], is_looked_at: bool
) -> None:
    changed = set[str]()
    deployments = _followed(WORKSPACE, NamespaceState(), changed)[1]
    await deployments._list(cast(Api, Listed(listed_deployment("one"))))
    assert changed == set()

    await deployments._list(cast(Api, Listed(*then)))

    assert changed == ({"digits"} if is_looked_at else set())


@pytest.mark.parametrize("kind", ["route", "root"])
async def test_route_and_root_object_that_were_deleted_while_nobody_could_see_it_are_looked_for(kind: str) -> None:
    changed = set[str]()
    followed = _followed(WORKSPACE, NamespaceState(), changed)[{"route": 2, "root": 3}[kind]]
    metadata = {"name": "digits", "namespace": "models", "labels": {ENDPOINT_LABEL: "digits"}}
    await followed._list(cast(Api, Listed({"metadata": metadata, "spec": {}})))
    assert changed == set()

    await followed._list(cast(Api, Listed()))

    assert changed == {"digits"}


class Scripted:
    """An API server that has two pages of objects, and then says what a test puts in."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue()
        self.lists = 0

    async def get(self, _path: str, **query: str) -> dict[str, Any]:
        self.lists += 1
        if "continue" not in query:
            return {"items": [item("a", 1)], "metadata": {"resourceVersion": "5", "continue": "more"}}
        return {"items": [item("b", 1)], "metadata": {"resourceVersion": "5"}}

    async def watch(self, _path: str, _version: str, **_query: str) -> AsyncIterator[dict[str, Any]]:
        while True:
            event = await self.events.get()
            if isinstance(event, Exception):
                raise event
            yield event


def item(name: str, number: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": "6"}, "number": number}


async def test_objects_are_followed_page_by_page_and_change_by_change_and_listed_again_when_some_were_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "PAUSE_S", 0.01)
    api, changes = Scripted(), list[tuple[str, int | None, int | None]]()
    followed: Followed[int] = Followed(
        "/things",
        "a=b",
        lambda found: str(found["metadata"]["name"]),
        lambda found, _before: int(found["number"]) or None,
        lambda name, before, now: changes.append((name, before, now)),
    )
    items = followed.items
    running = asyncio.create_task(followed.run(cast(Api, api)))
    try:
        await until(lambda: followed.is_current, "all are known", timeout_s=LONG_S)
        assert items == {"a": 1, "b": 1}
        changes.clear()

        for event, found in (("MODIFIED", item("a", 7)), ("BOOKMARK", item("x", 1)), ("DELETED", item("b", 1))):
            api.events.put_nowait({"type": event, "object": found})
        api.events.put_nowait({"type": "ADDED", "object": item("none", 0)})
        await until(lambda: len(changes) == 2, "the changes are seen", timeout_s=LONG_S)
        assert items == {"a": 7}
        assert changes == [("a", 1, 7), ("b", 1, None)]

        api.events.put_nowait(TargetUnavailableError("away"))
        api.events.put_nowait(ApiError("too old", status=410, reason="Expired"))
        await until(lambda: api.lists == 6 and followed.is_current, "they are listed again", timeout_s=LONG_S)
        assert items == {"a": 1, "b": 1}
        assert sorted(changes[2:], key=str) == [("a", 7, 1), ("b", None, 1)], "what was missed is told"
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_the_liveness_probe_is_answered() -> None:
    async with await serve_health(0) as server:
        [port] = [one.getsockname()[1] for one in server.sockets if one.family is socket.AF_INET]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()

    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_a_connection_of_an_agent_has_a_smaller_buffer_than_asyncio_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SSLProtocol, "max_size", before := SSLProtocol.max_size)
    assert main(["--workspace", str(tmp_path / "nowhere.yaml")]) == 1

    assert SSLProtocol.max_size == TLS_BUFFER_BYTES < before


def test_an_agent_has_a_workspace_for_each_namespace_and_refuses_other_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SSLProtocol, "max_size", SSLProtocol.max_size)
    # The agent's image has no validator of JSON Schemas.
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    file = tmp_path / "workspace.yaml"
    file.write_text("target: kubernetes\ngateway: gateway/models\nnamespace: models\n")

    def found(*arguments: str) -> list[str]:
        options = _parser().parse_args(["--workspace", str(file), *arguments])
        return [workspace.namespace for workspace in workspaces_of(options)]

    assert found() == ["models"]
    assert found("--namespace=a", "--namespace=b") == ["a", "b"]
    with pytest.raises(WorkspaceError, match="once"):
        found("--namespace=a", "--namespace=a")
    with pytest.raises(WorkspaceError, match="namespace"):
        found("--namespace=Not_A_Name")
    file.write_text("target: local\n")
    with pytest.raises(WorkspaceError, match="an agent is for 'kubernetes'"):
        found()
    assert main(["--workspace", str(file)]) == 1
