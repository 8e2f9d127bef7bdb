import json
import os
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.target.local import supervisor
from controlled_rollout.target.local.child_process import supervisor_environment
from controlled_rollout.target.local.collector_process import CollectorProcess, collected_counts, storage_credentials
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.protocol import CollectedCounts
from controlled_rollout.workspace import Workspace

SHELL = {
    "PATH": "/bin",
    "HOME": "/home/ada",
    "DATABASE_PASSWORD": "of somebody else",
    "AZURE_CLIENT_SECRET": "secret of the storage",
    "AZURE_STORAGE_SAS_TOKEN": "sig=secret",
}


def collector(folder: Path) -> CollectorProcess:
    return CollectorProcess(
        spools=folder,
        storage="https://account.blob.core.windows.net/container/team",
        credentials=storage_credentials(SHELL),
        runtime=folder / "runtime",
        log=LogFile(folder / "logs" / "collector.log"),
    )


def report(folder: Path, **fields: Any) -> None:
    (folder / "collector.json").write_text(json.dumps({"updated": 0, "problem": None, "faults": [], **fields}))


def state(replica: str, captured: int, **others: int) -> dict[str, Any]:
    counts = {"captured": captured, "dropped": 0, "unreadable": 0, "pending_bytes": 0, **others}
    return {"endpoint": "digits", "version": "v1", "replica": replica, **counts}


def test_the_collector_gets_what_signs_in_to_the_storage_and_no_other_secret() -> None:
    assert storage_credentials(SHELL) == {
        "AZURE_CLIENT_SECRET": "secret of the storage",
        "AZURE_STORAGE_SAS_TOKEN": "sig=secret",
    }


def test_no_credential_is_on_the_command_line_of_the_collector(tmp_path: Path) -> None:
    command = collector(tmp_path)._command()

    assert "secret" not in " ".join(command.arguments)
    assert command.environment["AZURE_STORAGE_SAS_TOKEN"] == "sig=secret"
    assert "DATABASE_PASSWORD" not in command.environment


def test_the_supervisor_is_handed_the_credentials_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)
    workspace = Workspace.from_settings(
        {"root": str(tmp_path), "storage": "https://account.blob.core.windows.net/container"}
    )

    descriptor = supervisor._credentials_descriptor(workspace)
    assert descriptor is not None
    command = supervisor._command(workspace, 0, "127.0.0.1", credentials=descriptor)

    assert os.get_inheritable(descriptor)
    with os.fdopen(descriptor, "rb") as file:
        assert json.load(file).items() >= storage_credentials(SHELL).items()
    assert "secret" not in " ".join(command)
    assert "secret" not in str(supervisor_environment())
    assert json.loads(command[-1])["workspace"]["storage"] == workspace.storage


def test_a_folder_needs_no_credentials(tmp_path: Path) -> None:
    assert supervisor._credentials_descriptor(Workspace.local(tmp_path)) is None


def test_what_ended_and_living_replicas_have_captured_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "digits" / "v1").mkdir(parents=True)
    (tmp_path / "digits" / "v1" / "a.json").write_text(json.dumps(state("a", 10, dropped=2)))
    living = state("b", 5, pending_bytes=7)
    report(tmp_path, spools=[state("a", 10, dropped=2), living, {**living, "version": "v2"}])

    counts = collected_counts(tmp_path, "digits", "v1")

    assert counts == CollectedCounts(captured=15, dropped=2, pending_bytes=7)
    assert collected_counts(tmp_path / "nowhere", "digits", "v1") == CollectedCounts()


def test_there_is_no_collector_in_the_status_while_there_is_nothing_to_collect(tmp_path: Path) -> None:
    assert collector(tmp_path).status() is None


async def test_the_collector_runs_while_there_is_a_spool_and_says_what_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "digits" / "v1" / "one"
    spool.mkdir(parents=True)
    (spool / "spool.json").write_text("{}")
    process = collector(tmp_path)

    status = process.status()
    assert status is not None
    assert (status.name, status.problem) == ("collector", "not running; started 0 times")

    monkeypatch.setattr(process._process, "_child", type("Child", (), {"pid": 7}))
    process._liveness.is_answering = True
    report(tmp_path, problem="the container is away", faults=["a spool is broken"])
    status = process.status()
    assert status is not None
    assert (status.pid, status.problem) == (7, "the container is away; a spool is broken")


def test_a_pipe_in_the_place_of_a_replicas_counts_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "digits" / "v1").mkdir(parents=True)
    os.mkfifo(tmp_path / "digits" / "v1" / "a.json")
    os.mkfifo(tmp_path / "collector.json")

    assert collected_counts(tmp_path, "digits", "v1") == CollectedCounts()
