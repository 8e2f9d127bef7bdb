"""Files that are written in one step and that only their owner can read."""

import os
import tempfile
from pathlib import Path

__all__ = ["create_once", "private_folder", "replace"]


def private_folder(path: Path) -> Path:
    """Create a folder and its parents unless they exist; only the owner may enter them. Return the folder."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def replace(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file in one step: a reader sees the old content or the new one, never a part.

    Args:
        path: The file.
        content: Its new content.
        durable: Whether it has to be on disk when this returns.
    """
    temporary = _write_temporary(path, content, durable=durable)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def create_once(path: Path, content: bytes) -> None:
    """Create a file in one step, on disk when this returns.

    Raises:
        FileExistsError: There is one already; it is untouched.
    """
    temporary = _write_temporary(path, content, durable=True)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _write_temporary(path: Path, content: bytes, *, durable: bool) -> Path:
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
