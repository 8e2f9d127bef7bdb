"""A log file of bounded size that a supervisor and its child processes write to."""

import contextlib
import os
import shutil
from collections import deque
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from controlled_rollout.target.local import atomic_files
from controlled_rollout.visible_text import visible_text

__all__ = ["LogFile", "old_logs", "remove_oldest_logs"]

LOG_LIMIT_BYTES: Final = 4 * 1024 * 1024
# The logs of all versions that have no process any more, of all endpoints together.
OLD_LOGS_LIMIT_BYTES: Final = 256 * 1024 * 1024


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
        """Return the last `line_count` lines, oldest first, with what would act on a terminal spelled out."""
        last: deque[str] = deque(maxlen=line_count)
        for path in (self.older, self.path):
            with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
                last.extend(line.rstrip("\n") for line in file)
        return [visible_text(line) for line in last]


def remove_oldest_logs(
    folder: Path, in_use: Collection[tuple[str, str]], limit_bytes: int = OLD_LOGS_LIMIT_BYTES
) -> None:
    """Delete the logs of versions without processes that exceed a size, those that were written first.

    Args:
        folder: The folder with the logs, in `<endpoint>/<version>/`.
        in_use: Endpoint and version of those that have processes: their logs stay, and do not count.
        limit_bytes: How many bytes of the newest logs of all others are kept.
    """
    kept_bytes = 0
    with contextlib.suppress(OSError):  # somebody else deletes logs as well
        for version in sorted(_version_folders(folder, in_use), key=_last_written, reverse=True):
            kept_bytes += sum(path.stat().st_size for path in version.iterdir())
            if kept_bytes > limit_bytes:
                shutil.rmtree(version, ignore_errors=True)
                if not any(version.parent.iterdir()):
                    version.parent.rmdir()


def old_logs(folder: Path, in_use: Collection[tuple[str, str]], before: float) -> list[Path]:
    """Return the folders of the logs of versions that are not in use, last written before a time.

    Args:
        folder: The folder with the logs, in `<endpoint>/<version>/`.
        in_use: Endpoint and version of those whose logs stay.
        before: In seconds since 1970.
    """
    return sorted(path for path in _version_folders(folder, in_use) if _last_written(path) < before)


def _version_folders(folder: Path, in_use: Collection[tuple[str, str]]) -> list[Path]:
    """Return the folders of the logs of versions that are not in use."""
    return [path for path in folder.glob("*/*") if path.is_dir() and (path.parent.name, path.name) not in in_use]


def _last_written(version: Path) -> float:
    """Return when a version's logs were last written, in seconds since 1970."""
    return max((path.stat().st_mtime for path in version.iterdir()), default=0.0)
