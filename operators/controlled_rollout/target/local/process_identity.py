"""A process by more than its number: a number is used again, so it never decides who gets a signal."""

import os
import signal
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict

__all__ = ["ProcessIdentity"]

PROC: Final = Path("/proc")
BOOT_ID: Final = PROC / "sys/kernel/random/boot_id"
# Fields of /proc/<pid>/stat after the command's closing parenthesis.
_STATE: Final = 0
_START_TIME: Final = 19


class ProcessIdentity(BaseModel):
    """A process of this machine: its number, when it started, and what it runs.

    Attributes:
        pid: The process id.
        started: When it started, in clock ticks since the machine's boot.
        boot: The id of that boot.
        command: Its command line.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int
    started: int
    boot: str
    command: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the identity of the process that has this number now; None if there is none."""
        try:
            fields = _stat_fields(pid)
            command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            return cls(pid=pid, started=int(fields[_START_TIME]), boot=BOOT_ID.read_text().strip(), command=command)
        except (OSError, IndexError, ValueError):
            return None

    def is_running(self) -> bool:
        """Return whether this very process runs still."""
        return ProcessIdentity.of(self.pid) == self and not self._has_state("ZX")

    def is_suspended(self) -> bool:
        """Return whether this process is stopped, as by SIGSTOP, so that it answers nothing and handles no SIGTERM."""
        return self.is_running() and self._has_state("Tt")

    def send_signal(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; return False if it does not run any more or belongs to another user."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            # From here on the number cannot be given to another process unnoticed.
            if not self.is_running():
                return False
            signal.pidfd_send_signal(descriptor, number)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _has_state(self, letters: str) -> bool:
        """Return whether the process is in one of the kernel's states."""
        try:
            return _stat_fields(self.pid)[_STATE] in letters
        except (OSError, IndexError):
            return False


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat that follow the command, which may itself hold spaces and parentheses."""
    return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
