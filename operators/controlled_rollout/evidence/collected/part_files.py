"""Parts of the storage by the names that engines read them by: files of this machine, or addresses for a cluster."""

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Final, Protocol, Self

from controlled_rollout.evidence.collected.completeness import ReplicaState, replica_state
from controlled_rollout.evidence.collected.parts import day_prefixes, parts_since, state_prefix
from controlled_rollout.storage import Storage, StoredFile, open_storage
from controlled_rollout.storage.folder import FolderFiles
from controlled_rollout.workspace import Workspace

__all__ = ["COPIES_FOLDER", "PartAddresses", "PartFiles", "PartNames", "old_copies"]

# The end of an account's host name for blobs, and for the same blobs as Spark reads them.
BLOB_HOST: Final = re.compile(r"https://([a-z0-9]+(?:\.z[0-9]{2})?)\.blob\.([^/]+)/([^/]+)(.*)")
DOWNLOADS_AT_ONCE: Final = 8
MOST_BYTES: Final = 10 * 2**30
# A rollout's parts are read again at each look; those of a rollout that is over are of no use.
MOST_AGE_S: Final = 7 * 86_400.0
# In the cache of a workspace.
COPIES_FOLDER: Final = "collected"


class PartNames(Protocol):
    """Parts by the names that an engine reads them by."""

    def paths(self, parts: Sequence[StoredFile]) -> list[str]:
        """Return the name of each part.

        Raises:
            StorageError: A part cannot be read.
        """
        ...


@dataclass(frozen=True)
class PartAddresses:
    """Gives parts by the addresses at which the machines of a cluster read them; nothing is copied.

    Attributes:
        storage: Where the parts are: a folder that the cluster's machines have too, or a container.
    """

    storage: Storage

    @staticmethod
    def has_names(storage: Storage) -> bool:
        """Return whether Spark can read a storage by name: not an emulator's or an edge device's, only a cloud's."""
        return isinstance(storage, FolderFiles) or BLOB_HOST.fullmatch(storage.address.rstrip("/")) is not None

    def paths(self, parts: Sequence[StoredFile]) -> list[str]:
        """Return the path of each part, or its address `abfss://…`."""
        return [f"{self._base}/{part.name}" for part in parts]

    def read_end(self, address: str, length: int) -> bytes:
        """Return the last bytes of a part, at most so many.

        Raises:
            StorageError: The part cannot be read.
        """
        return self.storage.get_end(address.removeprefix(f"{self._base}/"), length)

    @property
    def _base(self) -> str:
        """What the addresses of all parts begin with."""
        address = self.storage.address.rstrip("/")
        if match := BLOB_HOST.fullmatch(address):
            account, cloud, container, prefix = match.groups()
            return f"abfss://{container}@{account}.dfs.{cloud}{prefix}"
        return address


@dataclass(frozen=True)
class PartFiles:
    """Gives parts as local files: those of a folder where they are, those of a container copied once.

    Attributes:
        storage: Where the parts are.
        cache: The folder of copies. A copy's name is made from the part's name and etag, so it is never out of date.
        most_bytes: The most that copies take together; those that were not used for longest are deleted, and those that
            were not for a week.
    """

    storage: Storage
    cache: Path
    most_bytes: int = MOST_BYTES

    @classmethod
    def of(cls, workspace: Workspace) -> Self:
        """Return the parts in a workspace's storage; nothing is read yet."""
        return cls(open_storage(workspace), workspace.cache_folder / COPIES_FOLDER)

    def listed(
        self, endpoint: str, version: str, collection: str, *, since: datetime, until: datetime
    ) -> list[StoredFile]:
        """Return the files of a version's collection in the folders of some days.

        Raises:
            StorageError: The storage cannot be read.
        """
        prefixes = day_prefixes(endpoint, version, collection, since=since, until=until)
        return list(chain.from_iterable(map(self.storage.list, prefixes)))

    def paths_since(
        self, endpoint: str, version: str, collection: str, *, since: datetime, until: datetime
    ) -> list[str]:
        """Return the paths of the parts of a version's collection that may hold requests of a time; see `paths`."""
        listed = self.listed(endpoint, version, collection, since=since, until=until)
        return self.paths(parts_since(listed, since))

    def states(self, endpoint: str, version: str, *, since: datetime) -> Iterator[ReplicaState]:
        """Yield what collectors have said of a version's replicas; what they said before `since` is not read.

        Raises:
            EvidenceUnavailableError: A file is not what a collector writes.
            StorageError: The storage cannot be read.
        """
        for file in self.storage.list(state_prefix(endpoint, version)):
            if file.name.endswith(".json") and file.modified >= since:
                yield replica_state(file.name, self.storage.get(file.name))

    def paths(self, parts: Sequence[StoredFile]) -> list[str]:
        """Return the path of each part; what is not here yet is copied.

        Raises:
            StorageError: A part cannot be read.
        """
        # DuckDB calls files by paths without `..`, whatever they were asked for by.
        if isinstance(self.storage, FolderFiles):
            folder = os.path.realpath(self.storage.folder)
            return [f"{folder}/{part.name}" for part in parts]
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="parts") as pool:
            paths = list(pool.map(self._cached_copy, parts))
        self._make_room(keep=set(paths))
        folder = os.path.realpath(self.cache)
        return [f"{folder}/{os.path.basename(path)}" for path in paths]

    def _cached_copy(self, part: StoredFile) -> str:
        """Return the path of a part's local copy; download it if there is none."""
        identity = "\0".join((self.storage.address, part.name, part.etag))
        path = self.cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:40]}.parquet"
        try:
            os.utime(path)
        except FileNotFoundError:
            self.cache.mkdir(parents=True, exist_ok=True)
            self.storage.download(part.name, path)
        return str(path)

    def _make_room(self, *, keep: set[str]) -> None:
        """Delete the copies that were not used for longest, until the others are neither too many nor too old."""
        found = _copies_by_last_use(self.cache)
        oldest = time.time() - MOST_AGE_S
        total = sum(size for _, size, _ in found)
        for used, size, path in found:
            if total <= self.most_bytes and used >= oldest:
                return
            if path not in keep:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size


def old_copies(cache_folder: Path, *, before: float) -> list[tuple[Path, int]]:
    """Return the copies of parts in a workspace's cache that nobody has used lately, with their sizes in bytes.

    Args:
        cache_folder: The workspace's.
        before: What was used after that is left out, in seconds since 1970.
    """
    return [
        (Path(path), size) for used, size, path in _copies_by_last_use(cache_folder / COPIES_FOLDER) if used < before
    ]


def _copies_by_last_use(folder: Path) -> list[tuple[float, int, str]]:
    """Return when each copy was last used, its size and its path, the one that was not used for longest first."""
    found: list[tuple[float, int, str]] = []
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process was faster
                status = entry.stat()
                found.append((status.st_mtime, status.st_size, entry.path))
    return sorted(found)
