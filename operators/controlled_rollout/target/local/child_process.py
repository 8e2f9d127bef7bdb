"""A child process with a minimal environment, its output in a log file, and an end in bounded time."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from controlled_rollout.target.local.log_file import LogFile

__all__ = ["RUNTIME_VARIABLE", "ChildProcess", "describe_exit", "inherited_environment", "supervisor_environment"]

# The environment variable that every child carries, with the supervisor's runtime folder as its value: the reaper
# finds the children of a killed supervisor by it.
RUNTIME_VARIABLE: Final = "CONTROLLED_ROLLOUT_RUNTIME"
PIPE_CHUNK_BYTES: Final = 65536
# More than a pipe holds; bounded, because another process may hold the pipe's other end and keep writing.
MAX_LAST_CHUNKS: Final = 64

# The variables that a child inherits: none of them holds a secret.
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

# The supervisor is this package itself, wherever Python finds it; and it is measured with what it is started by.
_INHERITED_BY_SUPERVISOR: Final = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "COVERAGE_PROCESS_CONFIG")


def supervisor_environment() -> dict[str, str]:
    """Return the variables that the supervisor inherits: a version that reads its environment finds no secret there."""
    own = {name: os.environ[name] for name in _INHERITED_BY_SUPERVISOR if name in os.environ}
    return inherited_environment() | own


def inherited_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of this process (or of `environment`) that a child may inherit."""
    source = os.environ if environment is None else environment
    return {name: value for name, value in source.items() if name in _INHERITED or name.startswith("LC_")}


class ChildProcess:
    """A running child process in a session of its own; `start` makes one."""

    def __init__(self, process: asyncio.subprocess.Process, log: LogFile, pipe: int) -> None:
        self._process = process
        self._log = log
        self._pipe = pipe
        asyncio.get_running_loop().add_reader(pipe, self._copy_output)

    @classmethod
    async def start(
        cls, command: Sequence[str], *, environment: Mapping[str, str], log: LogFile, folder: Path | None = None
    ) -> Self:
        """Start a child process in its own session, with its output going into `log`.

        Args:
            command: The program and its arguments.
            environment: All of the process's environment variables.
            log: Receives stdout and stderr.
            folder: Where the process runs; None for the supervisor's own folder.

        Raises:
            OSError: It could not be started.
        """
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(environment),
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        return cls(process, log, read_end)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait until the process has ended; return the exit code, or minus the number of the signal that ended it."""
        code = await self._process.wait()
        # Processes that it started itself end with it.
        self.kill()
        for _ in range(MAX_LAST_CHUNKS):
            if self._pipe < 0 or not self._copy_output():
                break
        self._close_pipe()
        return code

    async def stop(self, grace_s: float) -> int:
        """Send SIGTERM, and SIGKILL if the process still runs after `grace_s` seconds; return as `wait` does."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        try:
            return await asyncio.wait_for(self.wait(), grace_s)
        except TimeoutError:
            self._log.note(f"process {self.pid} did not end within {grace_s:g} s and was killed")
            self.kill()
            return await self.wait()

    def kill(self) -> None:
        """Send SIGKILL to the process and to all others in its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _copy_output(self) -> bool:
        """Move one chunk of output into the log; return whether there was any."""
        try:
            data = os.read(self._pipe, PIPE_CHUNK_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._log.write(data)
        else:
            self._close_pipe()
        return bool(data)

    def _close_pipe(self) -> None:
        """Stop reading the process's output and close the pipe; do nothing if it is closed already."""
        if self._pipe >= 0:
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = -1


def describe_exit(exit_code: int) -> str:
    """Return a phrase for an exit code, such as `exited with code 1`; a negative code is minus a signal's number."""
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"
