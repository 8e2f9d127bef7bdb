"""Files that are written in one step and that only their owner can read."""

import errno
import os
import secrets
from pathlib import Path

from controlled_rollout.target.local.reserve import Reserve, is_out_of_space

__all__ = ["create_atomically", "create_private_folder", "sync_folder", "write_atomically"]


def create_private_folder(path: Path) -> Path:
    """Create a folder and its parents unless they exist, with access for the owner only, on disk on return.

    Returns:
        The folder.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)
    return path


def write_atomically(path: Path, content: bytes, *, durable: bool = True, reserve: Reserve | None = None) -> None:
    """Write a file in one step: a reader sees the old content or the new one, never a part.

    Args:
        path: The file.
        content: Its new content.
        durable: Whether it has to be on disk when this returns.
        reserve: The space to use if the disk is full; None for none.
    """
    temporary = _write_temporary(path, content, durable=durable, reserve=reserve)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def create_atomically(path: Path, content: bytes, *, reserve: Reserve | None = None) -> None:
    """Create a file in one step, on disk when this returns.

    Args:
        path: The file.
        content: Its content.
        reserve: The space to use if the disk is full; None for none.

    Raises:
        FileExistsError: There is one already; it is untouched.
    """
    temporary = _write_temporary(path, content, durable=True, reserve=reserve)
    try:
        os.link(temporary, path)
    except OSError as error:
        if reserve is None or not is_out_of_space(error):
            raise
        # Some file systems count a second name as a file. A rename needs none; only the supervisor creates such files.
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a created or renamed file survives a crash."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_temporary(path: Path, content: bytes, *, durable: bool, reserve: Reserve | None) -> Path:
    """Write `content` to a new temporary file in the folder of `path`; return the temporary file's path."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        # A full disk may refuse the new file as well as its content: inodes are finite, or take free space themselves.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        _write(os.open(temporary, flags, 0o600), content, durable=durable)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if reserve is None or not is_out_of_space(error) or not reserve.take(temporary, len(content)):
            raise
        try:
            _write(os.open(temporary, os.O_WRONLY | os.O_CLOEXEC), content, durable=durable)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _write(descriptor: int, content: bytes, *, durable: bool) -> None:
    """Write the whole content of an open file from its beginning, and close the file."""
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.truncate()
        file.flush()
        if durable:
            os.fsync(file.fileno())
