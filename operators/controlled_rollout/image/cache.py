"""The content-addressed cache of a workspace: environments and images, built once, whole or not at all.

    environments/<hash>/     a virtual environment, or a link to one in a shared cache
    images/<sha256>/         image.json, app/, models/
    locks/                   one empty file per entry that was ever built

An entry is built in a folder beside its place and renamed when it is whole, under a lock that the kernel takes from a
process that dies. So a reader needs no lock, and never sees half an entry.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cancellable_thread import in_thread

__all__ = ["Cache", "DiskFullError", "EnvironmentPlace", "SharedCache", "check_room", "find_environment"]

ENVIRONMENTS: Final = "environments"
IMAGES: Final = "images"
LOCKS: Final = "locks"
UNFINISHED: Final = ".building"
LOCK_POLL_S: Final = 0.05


class DiskFullError(Exception):
    """What builds an entry met a full disk; the cache turns it into an `ImageError` that names the folder."""


class EnvironmentPlace(Protocol):
    """A place where a built environment may be found before it is built."""

    @property
    def name(self) -> str:
        """What people call the place."""
        ...

    def find(self, environment_hash: str) -> Path | None:
        """Return the environment's folder, or None."""
        ...


def find_environment(places: list[EnvironmentPlace], environment_hash: str) -> tuple[EnvironmentPlace, Path] | None:
    """Return the first place that has the environment, and where it is there."""
    for place in places:
        if (found := place.find(environment_hash)) is not None:
            return place, found
    return None


@dataclass(frozen=True)
class SharedCache:
    """Another workspace's cache folder, only read: what was built there need not be built here."""

    root: Path

    @property
    def name(self) -> str:
        """What people call the place."""
        return f"the shared cache {self.root}"

    def find(self, environment_hash: str) -> Path | None:
        """Return the environment's folder, or None."""
        folder = self.root / ENVIRONMENTS / environment_hash
        return folder.resolve() if has_python(folder) else None


@dataclass(frozen=True)
class Cache:
    """The cache in a folder.

    Attributes:
        root: Made when something is built.
    """

    root: Path

    @property
    def name(self) -> str:
        """What people call the place."""
        return "the cache"

    def find(self, environment_hash: str) -> Path | None:
        """Return the environment's folder, or None."""
        folder = self.environment(environment_hash)
        return folder if has_python(folder) else None

    def environment(self, environment_hash: str) -> Path:
        """Return the folder of an environment, whether or not it is there."""
        return self.root / ENVIRONMENTS / environment_hash

    def image(self, sha256: str) -> Path:
        """Return the folder of an image, whether or not it is there."""
        return self.root / IMAGES / sha256

    async def link_environment(self, environment_hash: str, shared: Path) -> None:
        """Use an environment of a shared cache as if it were built here."""
        folder = self.environment(environment_hash)

        async def make(unfinished: Path, lock: int) -> None:
            unfinished.rmdir()
            unfinished.symlink_to(shared)

        await self.build(folder, has_python, make)

    async def build(
        self,
        folder: Path,
        is_whole: Callable[[Path], bool],
        make: Callable[[Path, int], Awaitable[None]],
        *,
        waiting: Callable[[], None] = lambda: None,
    ) -> bool:
        """Build the entry `folder` unless it is there; of several that build the same, one does and the others wait.

        Args:
            folder: `environment(…)` or `image(…)`.
            is_whole: Whether an existing entry can be used.
            make: Fills the empty folder that it is given. Also given the lock's file descriptor: a process that it
                starts inherits it, so that nobody else builds while an orphan of a killed build still writes.
            waiting: Called once if somebody else is building the same.

        Returns:
            Whether it was built by this call.

        Raises:
            ImageError: The cache cannot be written, or its disk is full; it is as it was before.
        """
        if is_whole(folder):
            return False
        unfinished = folder.with_name(f".{folder.name}{UNFINISHED}")
        with self._write_errors():
            folder.parent.mkdir(parents=True, exist_ok=True)
            async with _locked(self._lock_path(folder.parent.name, folder.name), waiting) as lock:
                if is_whole(folder):
                    return False
                await in_thread(lambda stop: self._sweep(folder.parent, own=unfinished))
                try:
                    unfinished.mkdir()
                    await make(unfinished, lock)
                    await in_thread(lambda stop: _remove(folder))
                    unfinished.rename(folder)
                except BaseException:
                    await in_thread(lambda stop: _remove(unfinished))
                    raise
        return True

    @contextlib.asynccontextmanager
    async def workshop(self, name: str, *, waiting: Callable[[], None]) -> AsyncIterator[tuple[Path, int]]:
        """Give a folder for work that one process of this machine does at a time.

        Args:
            name: The folder's name; what was left in it is still there.
            waiting: Called once if somebody else is at work.

        Yields:
            The folder, and the lock's file descriptor for the processes that are started meanwhile.

        Raises:
            ImageError: The cache cannot be written, or its disk is full.
        """
        folder = self.root / name
        with self._write_errors():
            folder.mkdir(parents=True, exist_ok=True)
            async with _locked(self._lock_path("workshop", name), waiting) as lock:
                yield folder, lock

    def _lock_path(self, kind: str, key: str) -> Path:
        return self.root / LOCKS / f"{kind}-{key}.lock"

    def _sweep(self, parent: Path, *, own: Path) -> None:
        """Remove what killed builds left: ours, since we hold its lock, and any other whose lock nobody holds."""
        _remove(own)
        for leftover in parent.glob(f".*{UNFINISHED}"):
            key = leftover.name.removeprefix(".").removesuffix(UNFINISHED)
            with _lock_if_free(self._lock_path(parent.name, key)) as lock:
                if lock is not None:
                    _remove(leftover)

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except DiskFullError as error:
            raise self._disk_full(str(error)) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full(f"{error.filename or self.root}: {error.strerror}") from None
            raise ImageError(f"the cache folder {self.root} cannot be written: {error}") from None

    def _disk_full(self, detail: str) -> ImageError:
        there = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        return ImageError(
            f"the disk is full: building in the cache folder {self.root} needs more than the {free / 1e6:,.1f} MB that "
            f"are free there ({detail}). Nothing of the build was kept; free some space, or choose another folder"
        )


def check_room(needed: int, folder: Path, what: str, *, reserve: int = 0) -> None:
    """Refuse what would fill the disk.

    Args:
        needed: Bytes.
        folder: Where they would go; it need not exist.
        what: What they are, for the message.
        reserve: Bytes that are to stay free.

    Raises:
        ImageError: There is not so much room.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    room = max(0, shutil.disk_usage(there).free - reserve)
    if needed > room:
        raise ImageError(
            f"{what}: {needed / 1e6:,.1f} MB are needed, and there is room for {room / 1e6:,.1f} MB in {there}: "
            "nothing was written. Free some space, or choose another folder for the workspace"
        )


def has_python(environment: Path) -> bool:
    """Whether an environment can be used: also its base interpreter is still there."""
    return os.access(environment / "bin" / "python", os.X_OK)


def _remove(path: Path) -> None:
    """Remove a folder or a link, if it is there."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    elif path.exists():
        shutil.rmtree(path)


@contextlib.contextmanager
def _lock_if_free(path: Path) -> Iterator[int | None]:
    """Hold the lock in the block and give its descriptor; give None if somebody else holds it."""
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
                # Closing alone would leave it to whoever inherited the descriptor.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def _locked(path: Path, waiting: Callable[[], None]) -> AsyncIterator[int]:
    """Hold the lock in the block; wait for it so that cancelling the wait leaves nothing behind."""
    said = False
    while True:
        with _lock_if_free(path) as lock:
            if lock is not None:
                yield lock
                return
        if not said:
            waiting()
            said = True
        await asyncio.sleep(LOCK_POLL_S)
