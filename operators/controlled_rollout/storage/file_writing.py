"""Write a file whole: a reader never sees a part, and a crash leaves no part."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

__all__ = ["UNFINISHED", "written_whole"]

# How the names of files end that are being written, or that a crash has left.
UNFINISHED: Final = ".unfinished"


@contextmanager
def written_whole(path: Path) -> "Iterator[IO[bytes]]":
    """Context manager: open a new file that takes the place of `path` at the end of the block, durable from then on.

    An exception in the block leaves `path` as it was. Folders that are missing are created, for the owner only.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}{UNFINISHED}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
