"""Child processes: a minimal environment, output in a bounded log file, an end in bounded time."""

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from controlled_rollout.target.local import files

__all__ = ["MARK", "BackOff", "Child", "LogFile", "inherited_environment"]

# Every child carries it, with the supervisor's runtime folder as the value (see warden.py).
MARK: Final = "CONTROLLED_ROLLOUT_RUNTIME"
LOG_LIMIT_BYTES: Final = 4 * 1024 * 1024
PIPE_CHUNK: Final = 65536
# More than a pipe holds; bounded, because a stranger may hold its other end and go on writing.
LAST_CHUNKS: Final = 64

# What a child may know of its caller's environment: nothing that could be a secret.
_INHERITED: Final = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)


def inherited_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the harmless part of the caller's environment."""
    source = os.environ if environment is None else environment
    return {name: value for name, value in source.items() if name in _INHERITED or name.startswith("LC_")}


@dataclass
class BackOff:
    """Growing pauses between attempts.

    Attributes:
        first_s: The first pause.
        longest_s: No pause is longer.
        healthy_s: After so long a run the next pause is the first one again.
    """

    first_s: float
    longest_s: float
    healthy_s: float
    _next_s: float = 0.0

    def after(self, run_s: float) -> float:
        """Return how long to wait after a run of so many seconds."""
        if not self._next_s or run_s >= self.healthy_s:
            self._next_s = self.first_s
        pause, self._next_s = self._next_s, min(self._next_s * 2, self.longest_s)
        return pause


class LogFile:
    """A log file that stays below a size: the older half lies beside it as `<name>.1`."""

    def __init__(self, path: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
        self.path = path
        self._limit = limit_bytes // 2
        files.private_folder(path.parent)

    @property
    def older(self) -> Path:
        """What was rotated away last."""
        return self.path.with_name(self.path.name + ".1")

    def write(self, data: bytes) -> None:
        """Append; a disk that is full loses lines of a log, nothing else."""
        with contextlib.suppress(OSError):
            if self.path.exists() and self.path.stat().st_size + len(data) > self._limit:
                self.path.replace(self.older)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "ab", buffering=0) as file:
                file.write(data)

    def note(self, text: str) -> None:
        """Append a line of the supervisor's own."""
        self.write(f"--- {datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n".encode())

    def tail(self, lines: int) -> list[str]:
        """Return the last lines, oldest first."""
        last: deque[str] = deque(maxlen=lines)
        for path in (self.older, self.path):
            with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
                last.extend(line.rstrip("\n") for line in file)
        return list(last)


class Child:
    """A running child process in a session of its own."""

    def __init__(self, process: asyncio.subprocess.Process, log: LogFile, pipe: int) -> None:
        self._process = process
        self._log = log
        self._pipe = pipe
        asyncio.get_running_loop().add_reader(pipe, self._copy_output)

    @classmethod
    async def start(cls, argv: Sequence[str], *, env: Mapping[str, str], log: LogFile, cwd: Path | None = None) -> Self:
        """Start a process whose output goes into `log`.

        Raises:
            OSError: It could not be started.
        """
        read, write = os.pipe()
        os.set_blocking(read, False)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env=dict(env),
                cwd=cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                start_new_session=True,
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        return cls(process, log, read)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for the end; return the exit code, or minus the signal's number."""
        code = await self._process.wait()
        # What the process leaves behind must not outlive it.
        self._signal(signal.SIGKILL)
        for _ in range(LAST_CHUNKS):
            if self._pipe < 0 or not self._copy_output():
                break
        self._close()
        return code

    async def stop(self, grace_s: float) -> int:
        """Ask the process to end, and end it when it has not after `grace_s`."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        try:
            return await asyncio.wait_for(self.wait(), grace_s)
        except TimeoutError:
            self._log.note(f"process {self.pid} did not end within {grace_s:g} s and was killed")
            self._signal(signal.SIGKILL)
            return await self.wait()

    def kill(self) -> None:
        """End the process and everything in its session at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _copy_output(self) -> bool:
        """Move one piece of output into the log; return whether there was any."""
        try:
            data = os.read(self._pipe, PIPE_CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._log.write(data)
        else:
            self._close()
        return bool(data)

    def _close(self) -> None:
        if self._pipe >= 0:
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1


def how_it_ended(code: int) -> str:
    """Return an exit code in words."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
