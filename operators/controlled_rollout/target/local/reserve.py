"""Disk space that is kept for going back: a roll-back or a new key must not fail because something has filled the disk.

The space is in files that are as large as they will ever be. One of them becomes the file that is to be written, in its
own blocks: space that is set free first could be taken by another process in that moment.
"""

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

from controlled_rollout.endpoint import Endpoint

__all__ = ["Reserve", "is_out_of_space", "may_use_reserve"]

NUMBER: Final = 16
SIZE_BYTES: Final = 64 * 1024


class Reserve:
    """Files that hold disk space in a folder.

    Args:
        folder: Where they are: on the file system of the files that may need their space.
        number: How many there are.
        size_bytes: The size of each.
    """

    def __init__(self, folder: Path, *, number: int = NUMBER, size_bytes: int = SIZE_BYTES) -> None:
        self._folder = folder
        self._number = number
        self._size_bytes = size_bytes

    def fill(self, size_bytes: int = 0) -> None:
        """Create the files that are missing or smaller than they should be, as far as there is space.

        Args:
            size_bytes: The least size of each from now on.
        """
        self._size_bytes = max(self._size_bytes, size_bytes)
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self._paths():
                if not path.exists() or path.stat().st_size < self._size_bytes:
                    _allocate(path, self._size_bytes)

    def take(self, path: Path, size_bytes: int) -> bool:
        """Move a file of at least `size_bytes` to `path`; return False if there is none. Its content is zeros."""
        for candidate in self._paths():
            with contextlib.suppress(OSError):
                if candidate.stat().st_size >= size_bytes:
                    candidate.rename(path)
                    return True
        return False

    def _paths(self) -> list[Path]:
        """Return the paths of all files that should be there."""
        return [self._folder / f"space-{number:02d}" for number in range(self._number)]


def is_out_of_space(error: OSError) -> bool:
    """Return whether a file could not be written because the disk, or the user's part of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def may_use_reserve(before: Endpoint, after: Endpoint) -> bool:
    """Return whether a change may use the reserve: it creates no version and gives no treatment more traffic. Pure.

    Args:
        before: The newest stored revision.
        after: What is to be stored.
    """
    then, now = before.effective_traffic(), after.effective_traffic()
    return all(
        name in then and (version.is_default or version.is_control or now[name] <= then[name])
        for name, version in after.versions.items()
    )


def _allocate(path: Path, size_bytes: int) -> None:
    """Create or enlarge a file whose blocks are all its own; remove it if there is no space."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
