"""Asks the process that evaluates: the library takes seconds to import, and memory that a trigger must not keep."""

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Lock
from typing import IO, Final

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.expectations.result import Counted, Validation, ValidationRequest
from controlled_rollout.expectations.server import LAST_CHARACTERS, Answer, TimedRequest

__all__ = ["count_in_process", "validate_in_process"]

TIMEOUT: Final = timedelta(minutes=5)
# It reads local files and nothing else: no credentials.
VARIABLES: Final = (
    "PATH", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "COVERAGE_PROCESS_CONFIG",
)  # fmt: skip
# No statistics are sent, nothing is written into a home, and forks have no threads to lose.
SET_VARIABLES: Final = {
    "HOME": os.devnull,
    "GX_ANALYTICS_ENABLED": "false",
    "PYTHONWARNINGS": "ignore",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
ENDING: Final = timedelta(seconds=5)


def count_in_process(request: ValidationRequest, *, timeout: timedelta = TIMEOUT) -> Counted:
    """Count rows and unexpected rows by bin in a process of its own.

    Args:
        request: What to count; with `bin_width`.
        timeout: The most time that it takes.

    Raises:
        EvidenceUnavailableError: A package is missing, a part cannot be read, or it takes too long.
    """
    answer = _ask_server(request, timeout)
    assert answer.counted is not None  # noqa: S101 - that was asked
    return answer.counted


def validate_in_process(request: ValidationRequest, *, timeout: timedelta = TIMEOUT) -> Validation:
    """Evaluate all expectations of a collection on all rows in a process of its own; see `count_in_process`."""
    answer = _ask_server(request, timeout)
    assert answer.validation is not None  # noqa: S101 - that was asked
    return answer.validation


@dataclass
class _Server:
    """A process that has the library loaded, and forks for each request.

    Attributes:
        python: The interpreter that it runs.
        owner: The process that has started it: a fork of that one starts its own.
        process: The process.
        control: Where sockets are sent to it.
        log: What it has written to stdout and stderr.
    """

    python: str = field(default_factory=lambda: sys.executable)
    owner: int = field(default_factory=os.getpid)
    process: subprocess.Popen[bytes] = field(init=False)
    control: socket.socket = field(init=False)
    log: IO[bytes] = field(init=False)

    def __post_init__(self) -> None:
        """Start it; its import goes on while it is asked."""
        self.control, its_end = socket.socketpair()
        self.log = tempfile.TemporaryFile()
        variables = {name: os.environ[name] for name in VARIABLES if name in os.environ} | SET_VARIABLES
        with its_end:
            self.process = subprocess.Popen(  # noqa: S603 - this Python, and a module of our own
                [self.python, "-m", "controlled_rollout.expectations"],
                env=variables,
                stdin=its_end.fileno(),
                stdout=self.log,
                stderr=self.log,
            )

    @property
    def is_usable(self) -> bool:
        """Whether this process may ask it."""
        return self.owner == os.getpid() and self.python == sys.executable and self.process.poll() is None

    def ask(self, request: bytes, *, deadline: float) -> bytes:
        """Return what a fork answers; nothing if it has ended without an answer.

        Raises:
            TimeoutError: There is no answer in time.
        """
        connection, its_end = socket.socketpair()
        with connection:
            with its_end:
                socket.send_fds(self.control, [b"?"], [its_end.fileno()])
            answer = bytearray()
            connection.settimeout(_seconds_left(deadline))
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while True:
                connection.settimeout(_seconds_left(deadline))
                if not (chunk := connection.recv(65_536)):
                    return bytes(answer)
                answer += chunk

    def has_ended(self) -> int | None:
        """Return its exit code, after a moment for it to end; None if it goes on."""
        try:
            return self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return None

    def output(self) -> str:
        """Return what the process has written to stdout and stderr."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace").strip()

    def end(self) -> None:
        """End it: nobody asks any more. A fork of the process that has started it only closes its copies."""
        self.control.close()
        if self.owner != os.getpid():
            return
        try:
            self.process.wait(timeout=ENDING.total_seconds())
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


_server: _Server | None = None
_lock = Lock()


def _running_server() -> _Server:
    """Return the server of this process; start one if there is none, or it has ended."""
    global _server
    with _lock:
        if _server is not None and not _server.is_usable:
            _server.end()
            _server = None
        if _server is None:
            _server = _Server()
        return _server


@atexit.register
def end_server() -> None:
    """End the server of this process, if there is one."""
    global _server
    with _lock:
        if _server is not None:
            _server.end()
            _server = None


def _seconds_left(deadline: float) -> float:
    """Return the seconds until a moment of the monotonic clock; raise TimeoutError if it is over."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _ask_server(request: ValidationRequest, timeout: timedelta) -> Answer:
    """Return the answer to a request; raise EvidenceUnavailableError if there is none."""
    seconds = timeout.total_seconds()
    message = TimedRequest(request=request, seconds=max(1, round(seconds))).model_dump_json().encode()
    deadline = time.monotonic() + seconds
    about = f"the expectations about {request.collection!r}"
    while True:
        server = _running_server()
        try:
            found = server.ask(message, deadline=deadline)
        except TimeoutError as error:
            raise EvidenceUnavailableError(
                f"{about} were not evaluated within {seconds:g} s: give fewer, simpler regular expressions, or collect "
                "a smaller share of the requests"
            ) from error
        except OSError:  # it has just ended
            found = b""
        if found:
            answer = Answer.model_validate_json(found)
            if answer.fault:
                raise EvidenceUnavailableError(f"{about} could not be evaluated: {answer.fault}")
            return answer
        code = server.has_ended()
        if code is None:
            raise EvidenceUnavailableError(
                f"{about} could not be evaluated: the process that did was killed, perhaps because memory ran out"
            )
        if code:
            raise EvidenceUnavailableError(_why_ended(about, code, server.output()))
        # It was idle, and has ended between two requests: the next one answers.


def _why_ended(about: str, code: int, output: str) -> str:
    """Return why no process evaluates."""
    if "No module named" in output:
        missing = output.rpartition("No module named")[2].strip()
        return (
            f"evaluating expectations needs the package {missing}: install airflow-provider-controlled-rollout with "
            "the extra data"
        )
    return f"{about} could not be evaluated (exit code {code}): {' '.join(output[-LAST_CHARACTERS:].split())}"
