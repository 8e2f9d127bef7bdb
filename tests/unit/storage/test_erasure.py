"""What versions have collected of one caller can be deleted, in every layout."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout.cli import main
from controlled_rollout.errors import StorageError
from controlled_rollout.storage.erasure import erase_rows, find_rows
from controlled_rollout.storage.folder import FolderFiles
from controlled_rollout_collector.entries import Entry
from controlled_rollout_collector.layouts import LAYOUTS
from controlled_rollout_collector.parts import Replica, make_parts
from tests.unit.collector.spools import entry

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
MINE = entry(rows=({"age": 30.0}, {"age": 31.0}))
OTHER = replace(MINE, request_id="6f9d8bb8-8e54-4d53-8f9e-5f4d8a2f0002", correlation_id="theirs", rows=({"age": 50.0},))


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("identity", [MINE.correlation_id, MINE.request_id])
def test_the_rows_of_one_id_are_deleted_and_no_others(layout: str, identity: str, tmp_path: Path) -> None:
    [mixed] = stored(tmp_path / "mixed", layout, MINE, OTHER)
    [alone] = stored(tmp_path / "alone", layout, OTHER)
    storage = FolderFiles(tmp_path / "mixed")

    [found] = find_rows(storage, identity, NOW)
    assert not found.is_new
    erase_rows(storage, found)

    assert list(find_rows(storage, identity, NOW)) == []
    [left] = find_rows(storage, "theirs", NOW)
    assert (left.rows, left.content) == (1, None)
    if layout == "csv":
        assert mixed.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_without_other_rows_is_deleted(layout: str, tmp_path: Path) -> None:
    [file] = stored(tmp_path, layout, MINE)
    storage = FolderFiles(tmp_path)

    for found in find_rows(storage, "mine", NOW):
        erase_rows(storage, found)

    assert not file.exists()


def test_a_part_that_a_collector_may_still_write_is_named_as_such(tmp_path: Path) -> None:
    stored(tmp_path, "parquet", MINE, OTHER, age=timedelta(seconds=5))

    assert [found.is_new for found in find_rows(FolderFiles(tmp_path), "mine", NOW)] == [True]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_file_that_is_no_part_is_named_and_left(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / "collected" / f"notes.{suffix}"
    file.parent.mkdir()
    file.write_text("no part\n")

    with pytest.raises(StorageError, match=rf"notes\.{suffix} cannot be read"):
        list(find_rows(FolderFiles(tmp_path), "mine", NOW))
    assert file.read_text() == "no part\n"


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
    assert main([*command, "--yes"]) == 2
    assert capsys.readouterr().out.endswith("a collector may still write them: repeat it in two minutes\n")
    assert [found.is_new for found in find_rows(FolderFiles(tmp_path / "storage"), "mine", datetime.now(UTC))] == [True]
