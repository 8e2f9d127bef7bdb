"""Models that one task hands to the next through the storage, and finding what of the storage is old."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

from controlled_rollout.errors import StorageError
from controlled_rollout.storage.protocol import Storage, StoredFile

__all__ = ["REPORTS", "OldFiles", "find_old_files", "hand_over_model"]

FOLDER: Final = "models/"
REPORTS: Final = "reports/"
MAX_FILES: Final = 10_000


@dataclass(frozen=True, slots=True)
class OldFiles:
    """Files of one version that were written long ago.

    Attributes:
        what: Their kind: `model` or `report`.
        address: Their folder in the storage, for people.
        names: The files.
        size: Their bytes.
    """

    what: str
    address: str
    names: tuple[str, ...]
    size: int


def hand_over_model(storage: Storage, path: Path, *, endpoint: str, version: str) -> str:
    """Copy a model into the storage, and return its path or address there, as `BuildImageOperator(models=…)` reads it.

    The place depends on endpoint, version and the path's last name only: a task that is tried again writes there again,
    and deletes what an earlier try has left.

    Args:
        storage: The workspace's.
        path: The model: a file, or a folder with at most 10,000 files.
        endpoint: The endpoint's name.
        version: The version's name, as `version_of_run(dag_run)` gives it.

    Raises:
        StorageError: The model cannot be read, or the storage cannot be written; what was written is not used.
    """
    base = f"{FOLDER}{endpoint}/{version}/{path.name}"
    files = {f"{base}{name}": file for name, file in _files_of(path)}
    for name, file in files.items():
        storage.put(name, file)
    for left in [stored.name for stored in storage.list(base)]:
        if left not in files and (left == base or left.startswith(f"{base}/")):
            storage.delete(left)
    return storage.address_of(base)


def find_old_files(storage: Storage, *, before: datetime) -> list[OldFiles]:
    """Return the models that were handed over before a time (an image has its own copy), and the reports before it.

    Raises:
        StorageError: The storage cannot be read.
    """
    old = []
    for what, folder in (("model", FOLDER), ("report", REPORTS)):
        # A model goes as a whole; reports are added to a version's folder every night.
        depth = 3 if what == "model" else 4
        for name, group in groupby(storage.list(folder), key=partial(_first_parts, depth)):
            files: list[StoredFile] = list(group)
            if max(file.modified for file in files) < before:
                names = tuple(file.name for file in files)
                old.append(OldFiles(what, storage.address_of(name), names, sum(file.size for file in files)))
    return old


def _first_parts(depth: int, file: StoredFile) -> str:
    """Return the first parts of a file's name, so many."""
    return "/".join(file.name.split("/")[:depth])


def _files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """Yield what follows the model's own name in each file's name, and the file; empty for a model that is a file.

    Raises:
        StorageError: It is neither a file nor a folder with files, or has too many of them.
    """
    if path.is_file():
        yield "", path
        return
    files = sorted(file for file in path.rglob("*") if not file.is_dir()) if path.is_dir() else []
    if not 0 < len(files) <= MAX_FILES:
        raise StorageError(
            f"{path} is no model: give a file, or a folder with 1 to {MAX_FILES:,} files ({len(files):,})"
        )
    for file in files:
        if not file.is_file():
            raise StorageError(f"{file} is neither a file nor a folder, and cannot be handed over with the model")
        yield f"/{file.relative_to(path).as_posix()}", file
