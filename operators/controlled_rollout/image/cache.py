"""A workspace's cache folder: environments, images and models, each built once, whole or not at all.

    environments/<hash>/     a virtual environment
    images/<sha256>/         image.json, app/, models/
    models/<hash>/           a model that was fetched from elsewhere
    contents/                what was read of an image's layers
    containers/, scans/      working folders of buildah and of the scanners
    locks/                   one empty file per entry that was ever built

An entry is built in a folder beside its place, made read-only and renamed when it is complete. Meanwhile the builder
holds a file lock, which the kernel releases when the process dies. So a reader needs no lock, and never sees half an
entry.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cancellable_thread import in_thread

__all__ = ["Cache", "DiskFullError", "check_free_space", "remove_tree"]

ENVIRONMENTS: Final = "environments"
IMAGES: Final = "images"
LOCKS: Final = "locks"
WRITABLE: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
UNFINISHED: Final = ".building"
LOCK_POLL_S: Final = 0.05


class DiskFullError(Exception):
    """The disk is full. The cache turns this into an `ImageError` that names the folder."""


@dataclass(frozen=True)
class Cache:
    """The cache in a folder. Entries are addressed by a hash of what they are built from.

    Attributes:
        root: The folder. Made when something is built, readable by this user only.
    """

    root: Path

    @classmethod
    def at(cls, folder: Path) -> "Cache":
        """Return a `Cache` for a folder that may be relative or begin with `~`. Does not touch the disk."""
        return cls(Path(folder).expanduser().absolute())

    def find_environment(self, environment_hash: str) -> Path | None:
        """Return the folder of a built environment whose interpreter is executable, or None."""
        folder = self.environment(environment_hash)
        return folder if os.access(folder / "bin" / "python", os.X_OK) else None

    def environment(self, environment_hash: str) -> Path:
        """Return the path of an environment's folder, whether or not it exists."""
        return self.root / ENVIRONMENTS / environment_hash

    def image(self, sha256: str) -> Path:
        """Return the path of an image's folder, whether or not it exists."""
        return self.root / IMAGES / sha256

    def folder(self, name: str) -> Path:
        """Return a folder of the cache for files that are replaced as a whole; create it if it does not exist.

        Raises:
            ImageError: The cache cannot be written.
        """
        folder = self.root / name
        with self._write_errors():
            self._create_folder(folder)
        return folder

    async def build(
        self,
        folder: Path,
        is_complete: Callable[[Path], bool],
        fill: Callable[[Path, int], Awaitable[None]],
        *,
        on_wait: Callable[[], None] = lambda: None,
    ) -> bool:
        """Build the cache entry `folder` unless it exists. One process at a time builds an entry; others wait for it.

        Args:
            folder: The entry's place, two levels below the root.
            is_complete: Whether an existing entry can be used.
            fill: Fills the empty folder that it is given. Its second argument is the lock's file descriptor: a child
                process that inherits it keeps the entry locked even if this process is killed.
            on_wait: Called once if another process is building the same entry.

        Returns:
            Whether this call built it.

        Raises:
            ImageError: The cache cannot be written, or its disk is full. The cache is unchanged.
        """
        if is_complete(folder):
            return False
        unfinished = folder.with_name(f".{folder.name}{UNFINISHED}")
        with self._write_errors():
            self._create_folder(folder.parent)
            async with _wait_for_lock(self._lock_path(folder.parent.name, folder.name), on_wait) as lock:
                if is_complete(folder):
                    return False
                await in_thread(lambda _: self._remove_unfinished(folder.parent, current=unfinished))
                try:
                    unfinished.mkdir()
                    await fill(unfinished, lock)
                    await in_thread(lambda _: _make_read_only(unfinished))
                    await in_thread(lambda _: _remove_if_exists(folder))
                    unfinished.rename(folder)
                except BaseException:
                    await in_thread(lambda _: _remove_if_exists(unfinished))
                    raise
        return True

    @contextlib.asynccontextmanager
    async def exclusive_folder(self, name: str, *, on_wait: Callable[[], None]) -> AsyncIterator[tuple[Path, int]]:
        """Context manager: lock a working folder of the cache for this process, and release it on exit.

        Args:
            name: The folder's name. Its content stays from one use to the next.
            on_wait: Called once if another process has the folder.

        Yields:
            The folder, and the lock's file descriptor for child processes.

        Raises:
            ImageError: The cache cannot be written, or its disk is full.
        """
        folder = self.root / name
        with self._write_errors():
            self._create_folder(folder)
            async with _wait_for_lock(self._lock_path("folder", name), on_wait) as lock:
                yield folder, lock

    def _create_folder(self, folder: Path) -> None:
        """Create the cache's root, readable by this user only, and a folder in it."""
        # Models may be confidential: no other user of the machine gets in.
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)

    def _lock_path(self, kind: str, key: str) -> Path:
        """Return the path of the lock file of a cache entry or working folder."""
        return self.root / LOCKS / f"{kind}-{key}.lock"

    def _remove_unfinished(self, parent: Path, *, current: Path) -> None:
        """Remove folders of killed builds: `current`, locked by the caller, and all that no process has locked."""
        _remove_if_exists(current)
        for leftover in parent.glob(f".*{UNFINISHED}"):
            key = leftover.name.removeprefix(".").removesuffix(UNFINISHED)
            with _lock_if_free(self._lock_path(parent.name, key)) as lock:
                if lock is not None:
                    _remove_if_exists(leftover)

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Context manager: convert an `OSError` or `DiskFullError` to an `ImageError` that names the cache folder."""
        try:
            yield
        except DiskFullError as error:
            raise self._disk_full_error(str(error)) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full_error(f"{error.filename or self.root}: {error.strerror}") from error
            raise ImageError(f"the cache folder {self.root} cannot be written: {error}") from error

    def _disk_full_error(self, detail: str) -> ImageError:
        """Return the `ImageError` for a full disk, with the free space of the cache folder."""
        existing = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        return ImageError(
            f"the disk is full: the build needs more than the {free / 1e6:,.1f} MB that are free in the cache folder "
            f"{self.root} ({detail}). Nothing of the build was kept: free some space, or set another cache_folder"
        )


def check_free_space(needed: int, folder: Path, what: str, *, reserve: int = 0) -> None:
    """Raise `ImageError` if writing `needed` bytes would fill the disk. Writes nothing.

    Args:
        needed: Bytes to be written.
        folder: Where they would go; it need not exist.
        what: What they are, for the message.
        reserve: Bytes to be left free on the disk.

    Raises:
        ImageError: The disk has no room for them.
    """
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = max(0, shutil.disk_usage(existing).free - reserve)
    if needed > free:
        raise ImageError(
            f"{what}: {needed / 1e6:,.1f} MB are needed, and there is room for {free / 1e6:,.1f} MB in {existing}: "
            "nothing was written. Free some space, or set another cache_folder for the workspace"
        )


def _remove_if_exists(path: Path) -> None:
    """Delete a folder with its content, or a symbolic link; do nothing if it does not exist."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    elif path.exists():
        remove_tree(path)


def _make_read_only(folder: Path) -> None:
    """Take the write permission from a folder and from all that is in it: what runs it must not change it."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not os.path.islink(file := os.path.join(place, name)):
                os.chmod(file, os.stat(file).st_mode & ~WRITABLE)
        os.chmod(place, os.stat(place).st_mode & ~WRITABLE)


def remove_tree(path: Path) -> None:
    """Delete a folder of the cache with its content, although it is read-only.

    Raises:
        OSError: It cannot be deleted.
    """
    for place, _, _ in os.walk(path):
        os.chmod(place, stat.S_IRWXU)
    shutil.rmtree(path)


@contextlib.contextmanager
def _lock_if_free(path: Path) -> Iterator[int | None]:
    """Context manager: hold a file lock and yield its descriptor; yield None if another process holds the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            try:
                yield descriptor
            finally:
                # Closing is not enough: a child process that inherited the descriptor would keep the lock.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def _wait_for_lock(path: Path, on_wait: Callable[[], None]) -> AsyncIterator[int]:
    """Context manager: wait for a file lock, yield its descriptor, release it on exit. Polls, so it is cancellable."""
    waited = False
    while True:
        with _lock_if_free(path) as lock:
            if lock is not None:
                yield lock
                return
        if not waited:
            on_wait()
            waited = True
        await asyncio.sleep(LOCK_POLL_S)
