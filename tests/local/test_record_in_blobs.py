"""The record in Azure Blob Storage (Azurite), for workers that share no disk: the same lines as in files."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from azure.storage.blob import BlobServiceClient

from controlled_rollout import cli, record
from controlled_rollout.errors import RecordUnavailableError, WorkspaceError
from controlled_rollout.evaluation.replay import replay
from controlled_rollout.record import Decision, blob_storage, storage, tail
from controlled_rollout.view.followed_record import FollowedRecord
from controlled_rollout.workspace import Workspace
from tests.azurite import ACCOUNT, CONTAINER
from tests.unit.record_lines import append, bins


@pytest.fixture
def workspace(blobs: BlobServiceClient, tmp_path: Path) -> Workspace:
    return Workspace.from_settings(
        {"root": str(tmp_path), "records": f"{blobs.url.rstrip('/')}/{CONTAINER}/{tmp_path.name}"}
    )


def decision(reason: str, version: str = "v2a") -> Decision:
    return Decision(
        time=datetime(2026, 1, 5, tzinfo=UTC),
        endpoint="digits",
        version=version,
        step="shift",
        who="somebody",
        reason=reason,
    )


def test_decisions_are_read_back_in_order_and_nothing_is_on_the_disk(workspace: Workspace) -> None:
    for reason in ("1", "2", "3"):
        record.append(workspace, decision(reason))

    assert [one.reason for one in record.read(workspace, "digits")] == ["1", "2", "3"]
    assert record.last(workspace, "digits", "v2a") == decision("3")
    assert list(record.read(workspace, "letters")) == []
    assert not workspace.records_folder.exists()


def test_looks_of_a_killed_worker_continue_on_another_and_replay_to_the_same_verdicts(workspace: Workspace) -> None:
    all_bins = bins(30)
    for number in range(1, 31):
        append(workspace, all_bins[:number])
        if number % 10 == 0:
            tail._tails.clear()  # as in another process

    replayed = list(replay(record.read(workspace, "digits")))

    assert len(replayed) == 30
    assert [look.difference for look in replayed] == [""] * 30
    assert cli.main(["replay", "digits", *_options(workspace)]) == 0


def _options(workspace: Workspace) -> list[str]:
    file = workspace.root / "workspace.yaml"
    file.write_text(f"root: {workspace.root}\nrecords: {workspace.records}\n")
    return ["--workspace", str(file)]


def test_many_writers_at_once_lose_no_line(workspace: Workspace) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: record.append(workspace, decision(str(number))), range(48)))

    assert sorted(int(one.reason) for one in record.read(workspace, "digits")) == list(range(48))


def test_a_full_blob_is_closed_and_only_the_newest_are_kept(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MAX_PART_BYTES", 1_000)
    monkeypatch.setattr(storage, "KEPT_PARTS", 2)
    for number in range(40):
        record.append(workspace, decision(str(number)))

    parts = record.storage_of(workspace, "digits").parts()
    assert len(parts) == 3
    assert all(sum(map(len, part.lines())) <= 1_000 for part in parts)
    kept = [int(one.reason) for one in record.read(workspace, "digits")]
    assert kept == list(range(kept[0], 40))


def test_append_with_a_lost_response_is_not_repeated(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    record.append(workspace, decision("1"))
    write = blob_storage._Appender.write
    lost = iter([True])

    def loses_its_answer(appender: blob_storage._Appender, line: bytes) -> int:
        length = write(appender, line)
        if next(lost, False):
            raise storage.AppendConflict  # the answer to a retry of the client itself
        return length

    monkeypatch.setattr(blob_storage._Appender, "write", loses_its_answer)
    record.append(workspace, decision("2"))
    record.append(workspace, decision("3"))

    assert [one.reason for one in record.read(workspace, "digits")] == ["1", "2", "3"]


def test_missing_container_is_an_error_that_names_what_to_do(blobs: BlobServiceClient, tmp_path: Path) -> None:
    nowhere = Workspace.from_settings({"root": str(tmp_path), "records": f"{blobs.url.rstrip('/')}/nothing"})

    with pytest.raises(
        RecordUnavailableError,
        match=r"record in .*/nothing/digits cannot be read or .*create the container",
    ):
        record.append(nowhere, decision("1"))


def test_the_key_of_one_account_is_not_tried_on_another(blobs: BlobServiceClient, tmp_path: Path) -> None:
    other = blobs.url.rstrip("/").replace(ACCOUNT, "another")
    elsewhere = Workspace.from_settings({"root": str(tmp_path), "records": f"{other}/{CONTAINER}"})

    with pytest.raises(WorkspaceError, match=r"an identity.s token is sent to"):
        record.append(elsewhere, decision("1"))


@pytest.mark.parametrize(
    "address",
    [
        "https://account.blob.core.windows.net",
        "http://account.blob.core.windows.net/rollouts",
        "https://account.blob.core.windows.net/rollouts?sig=secret",
        "https://example.com/rollouts",
    ],
)
def test_record_address_must_be_a_container_without_signature(address: str) -> None:
    with pytest.raises(WorkspaceError, match="records"):
        Workspace.from_settings({"records": address})


def test_record_in_files_needs_no_azure_package(tmp_path: Path) -> None:
    code = (
        "import sys; from controlled_rollout.record import storage_of; "
        "from controlled_rollout.workspace import Workspace; "
        "storage_of(Workspace.local(sys.argv[1]), 'digits').parts(); "
        "print([name for name in sys.modules if name.startswith('azure')])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_long_record_is_followed_block_by_block(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_storage, "BLOCK", 1_000)
    followed = FollowedRecord(record.storage_of(workspace, "digits"))
    assert list(followed.new_lines()) == []
    for reason in ("1", "2" * 3_000, "3"):
        record.append(workspace, decision(reason))
        [line] = followed.new_lines()
        assert Decision.model_validate_json(line.content).reason == reason
    anew = FollowedRecord(record.storage_of(workspace, "digits")).new_lines()
    assert [Decision.model_validate_json(line.content).reason[0] for line in anew] == ["1", "2", "3"]
