"""Parts of the storage as files of this machine: those of a folder where they are, those of a container copied once."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlled_rollout.storage import Storage, StoredFile
from controlled_rollout.storage.folder import FolderFiles

__all__ = ["PartFiles"]

DOWNLOADS_AT_ONCE: Final = 8
MOST_BYTES: Final = 10 * 2**30


@dataclass(frozen=True)
class PartFiles:
    """Gives parts as local files.

    Attributes:
        storage: Where the parts are.
        cache: The folder of copies. A copy's name is made from the part's name and etag, so it is never out of date.
        most_bytes: The most that copies take together; those that were not used for longest are deleted.
    """

    storage: Storage
    cache: Path
    most_bytes: int = MOST_BYTES

    def paths(self, parts: Sequence[StoredFile]) -> list[str]:
        """Return the path of each part; what is not here yet is copied.

        Raises:
            StorageError: A part cannot be read.
        """
        if isinstance(self.storage, FolderFiles):
            return [self.storage.address_of(part.name) for part in parts]
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="parts") as pool:
            paths = list(pool.map(self._copied, parts))
        self._make_room(keep=set(paths))
        return paths

    def _copied(self, part: StoredFile) -> str:
        """Return the path of a part's copy."""
        identity = "\0".join((self.storage.address, part.name, part.etag))
        path = self.cache / f"{hashlib.sha256(identity.encode()).hexdigest()[:40]}.parquet"
        try:
            os.utime(path)
        except FileNotFoundError:
            self.cache.mkdir(parents=True, exist_ok=True)
            self.storage.download(part.name, path)
        return str(path)

    def _make_room(self, *, keep: set[str]) -> None:
        """Delete the copies that were not used for longest until the others take no more than they may."""
        found: list[tuple[float, int, str]] = []
        with suppress(FileNotFoundError), os.scandir(self.cache) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process was faster
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.most_bytes:
                return
            if path not in keep:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size
