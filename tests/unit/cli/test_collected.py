"""What `status` says of collected data where the target does not count it itself."""

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.cli.collected import with_collected
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import StorageError
from controlled_rollout.evidence.collected import version_data
from controlled_rollout.target.protocol import (
    CollectedCounts,
    EndpointStatus,
    ReplicaState,
    ReplicaStatus,
    VersionStatus,
)
from controlled_rollout.version import Version
from controlled_rollout.workspace import Workspace

IMAGE = "registry.example/digits@sha256:" + "0" * 64
ENDPOINT = Endpoint(name="digits").create_version("one", image=IMAGE, collect_model_data=True)
STATE = {"shipped_until": 1.0, "unreadable": 0, "watched_since": 1.0, "updated": 1.0}


def status(collected: CollectedCounts | None = None, running: tuple[str, ...] = ()) -> EndpointStatus:
    replicas = tuple(ReplicaStatus(name=name, state=ReplicaState.READY) for name in running)
    version = VersionStatus(name="one", ready=True, collected=collected, replicas=replicas)
    return EndpointStatus(name="digits", url="", revision=1, served_revision=1, versions={"one": version})


async def test_the_counts_of_all_replicas_are_summed_from_the_storage(tmp_path: Path) -> None:
    folder = tmp_path / "storage" / "collected" / "digits" / "one" / "_state"
    folder.mkdir(parents=True)
    for replica, final in (("a", True), ("b", False)):
        state = {**STATE, "replica": replica, "captured": 7, "dropped": 2, "pending_bytes": 3, "final": final}
        (folder / f"{replica}.json").write_text(json.dumps(state))

    seen = await with_collected(Workspace.local(tmp_path), ENDPOINT, status())

    assert seen.versions["one"].collected == CollectedCounts(captured=14, dropped=4, unreadable=0, pending_bytes=6)
    assert seen.warnings == ()


async def test_a_running_replica_that_has_stopped_writing_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "storage" / "collected" / "digits" / "one" / "_state"
    folder.mkdir(parents=True)
    # The second has ended without saying so, as on a lost node.
    for replica, updated in (("running", 1.0), ("gone", 1.0), ("at-work", time.time())):
        state = {**STATE, "replica": replica, "captured": 1, "dropped": 0, "pending_bytes": 0, "final": False}
        (folder / f"{replica}.json").write_text(json.dumps(state | {"updated": updated}))

    seen = await with_collected(Workspace.local(tmp_path), ENDPOINT, status(running=("running", "at-work")))

    [warning] = seen.warnings
    assert warning.startswith("replica running has not said since 1970-01-01 00:00:01 UTC what it has captured")


@pytest.mark.parametrize(
    ("content", "warning"),
    [(None, "no replica of version 'one' has reported"), ("{}", "what version 'one' has captured is not known")],
)
async def test_a_version_of_which_nothing_can_be_read_is_a_warning(
    content: str | None, warning: str, tmp_path: Path
) -> None:
    if content is not None:
        folder = tmp_path / "storage" / "collected" / "digits" / "one" / "_state"
        folder.mkdir(parents=True)
        (folder / "a.json").write_text(content)

    seen = await with_collected(Workspace.local(tmp_path), ENDPOINT, status())

    assert seen.versions["one"].collected is None
    [only] = seen.warnings
    assert only.startswith(warning)


async def test_a_storage_that_does_not_answer_is_waited_for_once_for_all_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"v{number}a" for number in range(6)]
    together = threading.Barrier(len(names) * 2)

    def silent(workspace: Workspace, endpoint: str, version: str) -> Any:
        together.wait(30)
        raise StorageError(f"{endpoint} is away")

    monkeypatch.setattr(version_data, "read_states", silent)
    endpoint = Endpoint(
        name="digits",
        versions={
            name: Version(name=name, image=IMAGE, collect_model_data=True, is_default=name == "v0a") for name in names
        },
    )
    versions = {name: VersionStatus(name=name, ready=True) for name in names}
    before = EndpointStatus(name="digits", url="", revision=1, served_revision=1, versions=versions)

    workspace = Workspace.local(tmp_path)
    seen = await asyncio.gather(*(with_collected(workspace, endpoint, before) for _ in range(2)))

    assert [len(status.warnings) for status in seen] == [6, 6]


async def test_what_the_target_has_counted_is_left_as_it_is(tmp_path: Path) -> None:
    counted = status(CollectedCounts(captured=1))

    assert await with_collected(Workspace.local(tmp_path), ENDPOINT, counted) == counted
    assert await with_collected(Workspace.local(tmp_path), None, status()) == status()
