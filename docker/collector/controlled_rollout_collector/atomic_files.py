"""Files that are written in one step and that only their owner can read."""

import json
import os
from pathlib import Path
from typing import Any, Final

__all__ = ["sync_file", "write_atomically", "write_json"]

# How the names of files end that are being written; who lists a storage leaves them out.
UNFINISHED: Final = ".unfinished"


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file in one step: a reader sees the old content or the new one, never a part.

    Args:
        path: The file, of which only one process at a time is a writer.
        content: Its new content.
        durable: Whether it has to be on disk when this returns.

    Raises:
        OSError: It is not written.
    """
    # Always the same name: what a killed process leaves is what the next attempt writes.
    hidden = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(descriptor)
        hidden.replace(path)
    except OSError:
        hidden.unlink(missing_ok=True)
        raise
    if durable:
        sync_file(path.parent)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file like `write_atomically`; it need not be on disk when this returns."""
    write_atomically(path, json.dumps(content).encode(), durable=False)


def sync_file(path: Path) -> None:
    """Write what is in a file, or the names in a folder, to its disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
