"""A log file of bounded size that a supervisor and its child processes write to."""

import contextlib
import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from controlled_rollout.target.local import atomic_files

__all__ = ["LogFile"]

LOG_LIMIT_BYTES: Final = 4 * 1024 * 1024


class LogFile:
    """A log file that stays below a size: its older half is kept beside it as `<name>.1`.

    Args:
        path: The file; its folder is created.
        limit_bytes: The most that both halves take together.
    """

    def __init__(self, path: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
        self.path = path
        self._half_bytes = limit_bytes // 2
        atomic_files.create_private_folder(path.parent)

    @property
    def older(self) -> Path:
        """The path of the file that was rotated last."""
        return self.path.with_name(self.path.name + ".1")

    def write(self, data: bytes) -> None:
        """Append `data`; on a full disk it is dropped, so that logging never stops the supervisor."""
        with contextlib.suppress(OSError):
            if self.path.exists() and self.path.stat().st_size + len(data) > self._half_bytes:
                self.path.replace(self.older)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "ab", buffering=0) as file:
                file.write(data)

    def note(self, text: str) -> None:
        """Append one line written by the supervisor, with the time."""
        self.write(f"--- {datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n".encode())

    def tail(self, line_count: int) -> list[str]:
        """Return the last `line_count` lines, oldest first."""
        last: deque[str] = deque(maxlen=line_count)
        for path in (self.older, self.path):
            with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
                last.extend(line.rstrip("\n") for line in file)
        return list(last)
