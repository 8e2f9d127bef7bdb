"""What versions have collected of one caller can be deleted, in every layout."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout.cli import main
from controlled_rollout.errors import StorageError
from controlled_rollout.expectations.report import DataReport
from controlled_rollout.expectations.result import ExpectationResult, Validation
from controlled_rollout.storage.erasure import ErasedRows, UnreadableFile, erase_rows, find_rows
from controlled_rollout.storage.folder import FolderFiles
from controlled_rollout_collector.entries import Entry
from controlled_rollout_collector.layouts import LAYOUTS
from controlled_rollout_collector.parts import Replica, make_parts
from tests.unit.collector.spools import entry

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
MINE = entry(rows=({"age": 30.0}, {"age": 31.0}))
OTHER = replace(
    MINE, request_id="6f9d8bb8-8e54-4d53-8f9e-5f4d8a2f0002", correlation_id="theirs", rows=({"age": "50\r"},)
)


def stored(folder: Path, layout: str, *entries: Entry, age: timedelta = timedelta(hours=1)) -> list[Path]:
    """Ship entries as the collector does, so long ago; return the files."""
    files = []
    for part in make_parts(entries, Replica("digits", "v1", "r1"), LAYOUTS[layout], "1f2e3d4c-00000007"):
        file = folder / part.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(part.content)
        os.utime(file, times=((NOW - age).timestamp(),) * 2)
        files.append(file)
    return files


def rows_of(folder: Path, identity: str) -> list[ErasedRows]:
    """Return what is found of an id; every file can be read."""
    found = list(find_rows(FolderFiles(folder), identity, NOW))
    assert not [one for one in found if isinstance(one, UnreadableFile)]
    return [one for one in found if isinstance(one, ErasedRows)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("identity", [MINE.correlation_id, MINE.request_id])
def test_the_rows_of_one_id_are_deleted_and_no_others(layout: str, identity: str, tmp_path: Path) -> None:
    [mixed] = stored(tmp_path / "mixed", layout, MINE, OTHER)
    [alone] = stored(tmp_path / "alone", layout, OTHER)
    storage = FolderFiles(tmp_path / "mixed")

    [found] = rows_of(tmp_path / "mixed", identity)
    assert (found.rows, found.requests, found.is_new) == (
        1 if layout == "jsonl" else 2,
        frozenset([MINE.request_id]),
        False,
    )
    erase_rows(storage, found)

    assert rows_of(tmp_path / "mixed", identity) == []
    [left] = rows_of(tmp_path / "mixed", "theirs")
    assert (left.rows, left.content) == (1, None)
    if layout == "csv":
        assert mixed.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_without_other_rows_is_deleted(layout: str, tmp_path: Path) -> None:
    [file] = stored(tmp_path, layout, MINE)
    storage = FolderFiles(tmp_path)

    for found in rows_of(tmp_path, "mine"):
        erase_rows(storage, found)

    assert not file.exists()


def test_a_part_that_a_collector_may_still_write_is_named_as_such(tmp_path: Path) -> None:
    stored(tmp_path, "parquet", MINE, OTHER, age=timedelta(seconds=5))

    assert [found.is_new for found in rows_of(tmp_path, "mine")] == [True]


OTHERS_FILES = {
    "notes.parquet": b"no part\n",
    "empty.parquet": b"",
    "half.parquet": b"PAR1 and then the disk was full",
    "notes.csv": b"id,note\n1,mine\n",
    "empty.csv": b"",
    "short.csv": b"$aml_dc_correlation_id,$aml_request_id\nmine\n",
    "text.csv": b"\xff\xfe",
    "notes.jsonl": b"no part\n",
    "list.jsonl": b"[]\n",
    "other.jsonl": b"{}\n",
}


def test_a_file_that_is_no_part_is_named_and_left_and_all_others_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "storage"
    for name, content in OTHERS_FILES.items():
        (storage / "collected" / "a").mkdir(parents=True, exist_ok=True)
        (storage / "collected" / "a" / name).write_bytes(content)
    [part] = stored(storage, "parquet", MINE)

    assert main(["erase", "mine", "--root", str(tmp_path), "--yes"]) == 1

    shown = capsys.readouterr().out
    assert [name for name in OTHERS_FILES if f"cannot be read: {storage}/collected/a/{name} (" not in shown] == []
    assert shown.endswith(
        "2 rows deleted\n10 files could not be read and were left: see whether they are parts, and delete them if so\n"
    )
    assert not part.exists()
    assert {file.name: file.read_bytes() for file in (storage / "collected" / "a").iterdir()} == OTHERS_FILES


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_callers_own_column_is_not_taken_for_the_id(layout: str, tmp_path: Path) -> None:
    names = ("$aml_dc_correlation_id", "$aml_request_id", "$correlation_id", "$request_id", "correlationid")
    [part] = stored(tmp_path, layout, replace(MINE, rows=(dict.fromkeys(names, "theirs"),)), OTHER)

    assert {name: [one.rows for one in rows_of(tmp_path, name)] for name in ("mine", "theirs")} == {
        "mine": [1],
        "theirs": [1],
    }
    assert part.exists()


def test_an_id_that_capture_has_cut_off_is_found(tmp_path: Path) -> None:
    stored(tmp_path, "parquet", replace(MINE, correlation_id="x" * 200))

    assert len(rows_of(tmp_path, "x" * 300)) == 1


def test_reports_that_show_a_value_of_one_of_its_requests_are_deleted(tmp_path: Path) -> None:
    stored(tmp_path / "storage", "parquet", MINE, OTHER)
    reports = tmp_path / "storage" / "reports" / "digits"
    reports.mkdir(parents=True)
    for name, request in {"mine": MINE.request_id, "theirs": f"1{MINE.request_id}"}.items():
        result = ExpectationResult(name="age", success=False, rows=2, unexpected=1, examples=((request, 30.0),))
        validations = {"inputs": Validation(results=(result,), rows=2, part=1.0)}
        report = DataReport("digits", "v1", "suite", NOW, NOW, validations)
        (reports / f"{name}.html").write_text(report.as_html())
        (reports / f"{name}.md").write_text(report.as_markdown())

    assert main(["erase", "mine", "--root", str(tmp_path), "--yes"]) == 0

    assert {file.name for file in reports.iterdir()} == {"theirs.html", "theirs.md"}


def test_an_empty_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="an empty id names nobody"):
        list(find_rows(FolderFiles(tmp_path), "", NOW))


def test_the_command_shows_first_and_deletes_with_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(tmp_path / "storage", "parquet", MINE, OTHER)
    [new] = stored(tmp_path / "storage", "csv", MINE)
    os.utime(new)
    command = ["erase", "mine", "--root", str(tmp_path)]

    assert main(command) == 0
    assert capsys.readouterr().out.endswith("4 rows can be deleted: repeat with --yes\n")
    assert main([*command, "--output", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["deleted"], document["rows"], document["unreadable"]) == (False, 4, [])
    assert [part["still_written"] for part in document["parts"]].count(True) == 1
    assert main([*command, "--yes"]) == 1
    assert capsys.readouterr().out.endswith("a collector may still write them: repeat it in two minutes\n")
    assert [found.rows for found in rows_of(tmp_path / "storage", "mine")] == [2]
