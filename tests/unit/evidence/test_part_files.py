"""Parts of a storage that is not on this machine: copied once, by name and etag, and not more than fit."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlled_rollout.evidence.collected.duckdb_engine import DuckDBEngine
from controlled_rollout.evidence.collected.part_files import MOST_AGE_S, PartAddresses, PartFiles
from controlled_rollout.evidence.collected.part_footers import columns_of_parts
from controlled_rollout.storage import Storage, StoredFile
from controlled_rollout.storage.blobs import BlobFiles
from controlled_rollout.storage.folder import FolderFiles
from tests.unit.evidence.collected_parts import MINUTE, T0, Exchange, write_part


@dataclass
class Container:
    """A storage like Blob Storage: its files are not files of this machine. It counts what is downloaded."""

    files: FolderFiles
    downloaded: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return "https://account.blob.core.windows.net/data"

    def address_of(self, name: str) -> str:
        return f"{self.address}/{name}"

    def put(self, name: str, content: bytes | Path) -> StoredFile:
        return self.files.put(name, content)

    def get(self, name: str, *, limit: int = 1) -> bytes:
        return self.files.get(name)

    def get_end(self, name: str, length: int) -> bytes:
        return self.files.get_end(name, length)

    def download(self, name: str, path: Path) -> None:
        self.downloaded.append(name)
        self.files.download(name, path)

    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        return self.files.list(prefix)

    def delete(self, name: str) -> None:
        self.files.delete(name)


def test_parts_of_a_folder_are_read_where_they_are(tmp_path: Path) -> None:
    storage = FolderFiles(tmp_path / "storage")
    part = storage.put("collected/a.parquet", b"1")
    assert PartFiles(storage, tmp_path / "cache").paths([part]) == [str(tmp_path / "storage/collected/a.parquet")]
    assert not (tmp_path / "cache").exists()


def test_parts_elsewhere_are_copied_once_and_again_when_they_were_written_anew(tmp_path: Path) -> None:
    storage = Container(FolderFiles(tmp_path / "storage"))
    parts = [storage.put(f"collected/{name}.parquet", name.encode()) for name in "abc"]
    files = PartFiles(storage, tmp_path / "cache")
    paths = files.paths(parts)
    assert [Path(path).read_bytes() for path in paths] == [b"a", b"b", b"c"]
    assert PartFiles(storage, tmp_path / "cache").paths(parts[::-1]) == paths[::-1]
    assert sorted(storage.downloaded) == [part.name for part in parts]

    anew = storage.put("collected/b.parquet", b"more of b")
    (path,) = files.paths([anew])
    assert Path(path).read_bytes() == b"more of b"
    assert path not in paths
    assert storage.downloaded.count(anew.name) == 2


def test_copies_that_were_not_used_for_longest_make_room(tmp_path: Path) -> None:
    storage = Container(FolderFiles(tmp_path / "storage"))
    parts = [storage.put(f"collected/{name}.parquet", bytes(100)) for name in "abcd"]
    files = PartFiles(storage, tmp_path / "cache", most_bytes=250)
    first, second = files.paths(parts[:2])
    os.utime(first, (1, 1))
    third, fourth = files.paths(parts[2:])
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {Path(third).name, Path(fourth).name}
    # What a look needs stays, even if it is more than what should be kept.
    assert all(map(os.path.exists, files.paths(parts)))
    assert second != first


def test_a_copy_that_no_look_has_used_for_a_week_is_deleted_by_the_next_one(tmp_path: Path) -> None:
    storage = Container(FolderFiles(tmp_path / "storage"))
    parts = [storage.put(f"collected/{name}.parquet", bytes(100)) for name in "abc"]
    files = PartFiles(storage, tmp_path / "cache")
    old, kept = files.paths(parts[:2])
    os.utime(old, (time.time() - MOST_AGE_S - 60,) * 2)
    os.utime(kept, (time.time() - MOST_AGE_S + 60,) * 2)

    (new,) = files.paths(parts[2:])

    assert {path.name for path in (tmp_path / "cache").iterdir()} == {Path(kept).name, Path(new).name}


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_folder_may_be_named_by_way_of_another(tmp_path: Path, is_copied: bool) -> None:
    """As `../data` is: DuckDB calls the files otherwise, and their summaries would not be found."""
    (tmp_path / "other").mkdir()
    way = tmp_path / "other" / ".."
    write_part(tmp_path / "data" / "collected" / "p.parquet", [Exchange("a", 1)], {})
    storage: Storage = FolderFiles(way / "data")
    files = PartFiles(Container(FolderFiles(way / "data")) if is_copied else storage, way / "cache")
    paths = files.paths(list(storage.list("collected/")))
    (found,) = DuckDBEngine().summaries(paths, [], since=T0, bin_width=MINUTE)
    assert sum(found.requests.values()) == 1


@pytest.mark.parametrize(
    ("storage", "name"),
    [
        (
            BlobFiles("https://account.blob.core.windows.net/data"),
            "abfss://data@account.dfs.core.windows.net/collected/a",
        ),
        (
            BlobFiles("https://account.z12.blob.storage.azure.net/data/team/"),
            "abfss://data@account.z12.dfs.storage.azure.net/team/collected/a",
        ),
        (FolderFiles(Path("/shared")), "/shared/collected/a"),
    ],
)
def test_a_cluster_reads_parts_by_their_names(storage: Storage, name: str) -> None:
    assert PartAddresses.has_names(storage)
    part = StoredFile("collected/a", 1, "etag", datetime.now(UTC))
    assert PartAddresses(storage).paths([part]) == [name]


@pytest.mark.parametrize("place", ["http://127.0.0.1:10000/account/data", "https://edge.example/account/data"])
def test_what_spark_has_no_name_for_is_copied(place: str) -> None:
    assert not PartAddresses.has_names(BlobFiles(place))


def test_the_columns_of_a_part_are_in_its_last_bytes(tmp_path: Path) -> None:
    """However long the footer is: it is read again where the first bytes do not hold it."""
    storage = FolderFiles(tmp_path)
    names = [f"{'column' * 20}-{number}" for number in range(1_000)]
    path = write_part(tmp_path / "collected" / "p.parquet", [Exchange("a", 1)], {})
    part = next(storage.list("collected/"))
    (columns,) = columns_of_parts(PartAddresses(storage).paths([part]), PartAddresses(storage).read_end).values()
    assert columns.data == []
    assert columns.type_of("$time") == "number"
    wide = write_part(Path(path), [Exchange("a", 1, [dict.fromkeys(names, "x")])], dict.fromkeys(names, "VARCHAR"))
    (columns,) = columns_of_parts([wide], PartAddresses(storage).read_end).values()
    assert columns.data == names
    assert columns.type_of(names[0]) == "text"
