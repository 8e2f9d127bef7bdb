"""Files that are written in one step and that only their owner can read."""

import os
import tempfile
from pathlib import Path

__all__ = ["create_atomically", "create_private_folder", "write_atomically"]


def create_private_folder(path: Path) -> Path:
    """Create a folder and its parents unless they exist, with access for the owner only. Return the folder."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
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


def create_atomically(path: Path, content: bytes) -> None:
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
    """Write `content` to a new temporary file in the folder of `path`; return the temporary file's path."""
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
    """Flush a folder's entries to disk, so that a created or renamed file survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
