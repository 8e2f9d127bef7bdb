"""The record: what is appended is read back in order, whatever crash came between."""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout import record
from controlled_rollout.errors import EndpointError, RecordUnavailableError
from controlled_rollout.record import Decision, file_storage
from controlled_rollout.record.decision import Step
from controlled_rollout.record.file_storage import FilePart
from controlled_rollout.record.reconstruction import recorded_looks
from controlled_rollout.record.storage import AppendConflict
from controlled_rollout.workspace import Workspace
from tests.unit import record_lines as lines


def decision(version: str, reason: str = "", step: Step = "look") -> Decision:
    return Decision(
        time=datetime(2026, 1, 5, tzinfo=UTC),
        endpoint="digits",
        version=version,
        step=step,
        who="somebody",
        reason=reason,
        verdict={"claims": [{"e_value": 3.5}]},
    )


def test_decisions_are_read_back_in_order_and_by_version(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    written = [decision("v1a", "1"), decision("v2b", "2"), decision("v1a", "3")]
    for decision_ in written:
        record.append(workspace, decision_)

    assert list(record.read(workspace, "digits")) == written
    assert [d.reason for d in record.read(workspace, "digits", version="v1a")] == ["1", "3"]
    assert record.last(workspace, "digits", "v1a") == written[2]
    assert record.last(workspace, "digits", "v9x") is None
    record.append(workspace, decision("v1a", "4", step="hold"))
    assert [d.reason for d in record.read(workspace, "digits", step="hold")] == ["4"]
    last = record.last(workspace, "digits", "v1a")
    assert last and last.reason == "4"
    assert list(record.read(workspace, "letters")) == []


def test_a_line_that_a_crash_cut_short_is_passed_over(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    record.append(workspace, decision("v1a"))
    file = workspace.records_folder / "digits.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    record.append(workspace, decision("v2b"))
    record.append(workspace, decision("v3c"))

    assert list(record.read(workspace, "digits")) == [decision("v2b"), decision("v3c")]


def test_the_record_is_for_its_owner_only_and_stays_in_its_folder(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    record.append(workspace, decision("v1a"))
    assert (workspace.records_folder / "digits.jsonl").stat().st_mode & 0o077 == 0
    with pytest.raises(EndpointError):
        list(record.read(workspace, "../../etc/passwd"))


def test_writer_that_waited_while_the_file_became_full_appends_to_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.local(tmp_path)
    record.append(workspace, decision("v1a"))
    opened, open_file = threading.Event(), os.open

    def open_and_tell(*arguments: Any) -> int:
        descriptor = open_file(*arguments)
        opened.set()
        return descriptor

    with record.storage_of(workspace, "digits").appending() as appender:
        monkeypatch.setattr(os, "open", open_and_tell)
        writer = threading.Thread(target=record.append, args=(workspace, decision("v2b")))
        writer.start()
        assert opened.wait(30)
        appender.retire()
    writer.join(30)

    parts = record.storage_of(workspace, "digits").parts()
    assert [[one.version for one in record.read_part(part)] for part in parts] == [["v1a"], ["v2b"]]


def test_file_that_was_deleted_meanwhile_has_no_lines(tmp_path: Path) -> None:
    assert list(FilePart(tmp_path / "gone.jsonl").lines()) == []


def test_appending_gives_up_after_many_conflicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def conflict(*arguments: object) -> None:
        raise AppendConflict

    monkeypatch.setattr(file_storage._Appender, "write", conflict)

    with pytest.raises(RecordUnavailableError, match="changed by other writers 50 times in a row"):
        record.append(Workspace.local(tmp_path), decision("v1a"))


def test_a_file_of_the_same_place_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    lines.append(workspace, lines.bins(3))
    file = workspace.records_folder / "digits.jsonl"
    inode = file.stat().st_ino
    other = Workspace.local(tmp_path / "other")
    for number in range(4, 9):
        lines.append(other, lines.bins(number, seed=2), version="v3c")
    # As `cp` does: the file stays, and has another content, which is longer.
    file.write_bytes((other.records_folder / "digits.jsonl").read_bytes())
    assert file.stat().st_ino == inode

    lines.append(workspace, lines.bins(4))

    assert [look.problem for look in recorded_looks(record.read(workspace, "digits"))] == [""] * 6


def test_a_records_file_and_its_name_are_on_disk_when_its_first_line_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(file_storage, "sync_folder", synced.append)
    workspace = Workspace.local(tmp_path)
    record.append(workspace, decision("v1a"))
    assert synced == [workspace.records_folder]
    record.append(workspace, decision("v1a"))
    assert synced == [workspace.records_folder]
    with record.storage_of(workspace, "digits").appending() as appender:
        appender.retire()
    assert synced == [workspace.records_folder] * 2
