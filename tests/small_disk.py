"""A small disk of its own, and how to fill it."""

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["fill", "fill_with_files", "small_disk"]


@contextmanager
def small_disk(folder: Path, size: str, *, files: int = 0) -> Iterator[Path]:
    """Mount a disk of a size such as `256k` and yield its folder; skip the test where only root could.

    With `files` it holds so many files and folders at most.
    """
    folder.mkdir(parents=True)
    options = f"size={size},nr_inodes={files}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Fill a disk to its last block; return the file that takes the space."""
    ballast = disk / "ballast"
    with pytest.raises(OSError, match="No space"), ballast.open("ab", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
    return ballast


def fill_with_files(disk: Path) -> None:
    """Create empty files until the disk, which has space, takes no more of them."""
    folder = disk / "files"
    folder.mkdir()
    with pytest.raises(OSError, match="No space"):
        for number in itertools.count():
            (folder / str(number)).touch()
