"""Files that are either whole or not there, and private from their first byte."""

import os
import tempfile
from pathlib import Path

__all__ = ["create_once", "private_folder", "replace"]


def private_folder(path: Path) -> Path:
    """Create a folder (and its parents) that only its owner may enter; return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def replace(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Put `content` in the place of whatever `path` holds, in one step; readable by its owner only."""
    temporary = _written(path, content, durable=durable)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def create_once(path: Path, content: bytes) -> None:
    """Create `path` with `content` in one step.

    Raises:
        FileExistsError: Somebody was faster; their file is untouched.
    """
    temporary = _written(path, content, durable=True)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _written(path: Path, content: bytes, *, durable: bool) -> Path:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
