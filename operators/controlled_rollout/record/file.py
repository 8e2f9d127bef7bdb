"""The record's files: appended to by many processes at once, bounded in size, never rewritten."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from controlled_rollout.endpoint import check_name
from controlled_rollout.workspace import Workspace

__all__ = ["KEPT_FILES", "MAX_FILE_BYTES", "Appender", "appending", "files_of", "record_file"]

# An endpoint's record is at most KEPT_FILES + 1 files of this size, the oldest deleted first: 144 MiB.
MAX_FILE_BYTES: Final = 16 * 2**20
KEPT_FILES: Final = 8


def record_file(workspace: Workspace, endpoint: str) -> Path:
    """Return the file that an endpoint's decisions are appended to."""
    return workspace.records_folder / f"{check_name(endpoint)}.jsonl"


def files_of(file: Path) -> list[Path]:
    """Return the files of a record that exist, oldest first: full ones carry the time at which they were."""
    full = sorted(file.parent.glob(f"{file.stem}.*.jsonl"))
    return [*full, file] if file.exists() else full


class Appender:
    """One record file, held alone for the time of one append.

    Attributes:
        file: Its path.
        descriptor: Open for reading and appending.
    """

    def __init__(self, file: Path, descriptor: int) -> None:
        self.file = file
        self.descriptor = descriptor

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return os.fstat(self.descriptor).st_size

    @property
    def inode(self) -> int:
        """Tells this file from one that took its name later."""
        return os.fstat(self.descriptor).st_ino

    def read_from(self, offset: int) -> bytes:
        """Return what stands behind `offset`."""
        parts = []
        while part := os.pread(self.descriptor, 1 << 20, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def write(self, line: bytes) -> int:
        """Append one line; it is on disk when this returns. Returns the file's length then."""
        size = self.size
        # A crash may have cut the line before: it must not take this one with it.
        torn = size > 0 and os.pread(self.descriptor, 1, size - 1) != b"\n"
        rest = memoryview(b"\n" + line + b"\n" if torn else line + b"\n")
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]
        os.fsync(self.descriptor)
        return self.size

    def is_full(self, more: int) -> bool:
        """Whether a line of `more` bytes belongs into a new file."""
        return self.size > 0 and self.size + more >= MAX_FILE_BYTES

    def retire(self) -> None:
        """Put the file aside under the present time, and delete the oldest beyond those that are kept."""
        self.file.rename(self.file.with_name(f"{self.file.stem}.{datetime.now(UTC):%Y%m%dT%H%M%S%f}.jsonl"))
        full = sorted(self.file.parent.glob(f"{self.file.stem}.*.jsonl"))
        for old in full[:-KEPT_FILES]:
            old.unlink(missing_ok=True)


@contextmanager
def appending(file: Path) -> Iterator[Appender]:
    """Hold a record file for one append; other writers wait."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            appender = Appender(file, descriptor)
            if _is_still(file, appender.inode):
                yield appender
                return
        finally:
            os.close(descriptor)


def _is_still(file: Path, inode: int) -> bool:
    """Whether the file has not been put aside while its lock was waited for."""
    try:
        return file.stat().st_ino == inode
    except FileNotFoundError:
        return False
