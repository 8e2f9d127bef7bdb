"""Entries of the cache that nothing uses any more, and deleting them."""

import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from controlled_rollout.image.cache import ENVIRONMENTS, IMAGES, Cache
from controlled_rollout.image.inputs.remote_models import MODELS
from controlled_rollout.image.local_image import IMAGE_FILE

__all__ = ["size_of", "unused_entries"]

PROCESSES: Final = Path("/proc")


def unused_entries(cache: Cache, *, images: Collection[str], before: float) -> list[Path]:
    """Return the cache entries that no image in use needs and that nobody has used lately, largest kinds first.

    Args:
        cache: The cache.
        images: The digests of images in use, without `sha256:`. Those that a process of this user runs are added.
        before: Entries that were made or used after that are kept, in seconds since 1970.
    """
    running = _names_in_processes(cache.root)
    kept_images = {*images, *running}
    unused = [
        folder for folder in _entries(cache, IMAGES) if folder.name not in kept_images and _last_used(folder) < before
    ]
    kept_environments = running | {
        _environment_of(folder) for folder in _entries(cache, IMAGES) if folder not in unused
    }
    unused += [
        folder
        for folder in _entries(cache, ENVIRONMENTS)
        if folder.name not in kept_environments and _last_used(folder) < before
    ]
    # What was fetched is copied into the images that need it.
    return unused + [folder for folder in _entries(cache, MODELS) if _last_used(folder) < before]


def size_of(path: Path) -> int:
    """Return how many bytes deleting a file or a folder frees; files that have other names, too, free none."""
    if path.is_symlink() or not path.is_dir():
        entry = path.lstat()
        return entry.st_size if entry.st_nlink == 1 else 0
    with suppress(OSError):
        return sum(size_of(child) for child in path.iterdir())
    return 0


def _entries(cache: Cache, kind: str) -> Iterator[Path]:
    """Yield the complete entries of one kind."""
    folder = cache.root / kind
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _environment_of(image: Path) -> str:
    """Return the hash of an image's environment; empty if the image cannot be read."""

    def open_unnoticed(path: str, flags: int) -> int:
        """Open a file without a trace: reading it here is no use of the image."""
        return os.open(path, flags | os.O_NOATIME)

    try:
        with open(image / IMAGE_FILE, encoding="utf-8", opener=open_unnoticed) as file:
            return str(json.load(file)["environment_hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _last_used(entry: Path) -> float:
    """Return when an entry was made or, as far as the file system tells, read, in seconds since 1970."""
    times = [entry.stat().st_mtime]
    for name in (IMAGE_FILE, "bin/python", "pyvenv.cfg"):
        with suppress(OSError):
            times.append((entry / name).stat().st_atime)
    return max(times)


def _names_in_processes(root: Path) -> set[str]:
    """Return the names of the entries of a cache that the command or the environment of a running process names."""
    entry = re.compile(re.escape(os.fsencode(root)) + rb"/(?:images|environments)/([0-9a-f]+)")
    names: set[str] = set()
    for process in PROCESSES.glob("[0-9]*"):
        for file in ("cmdline", "environ"):
            # A process of somebody else, or one that has ended.
            with suppress(OSError):
                names.update(os.fsdecode(name) for name in entry.findall((process / file).read_bytes()))
    return names
