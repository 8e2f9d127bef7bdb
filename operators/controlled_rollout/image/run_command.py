"""Run a program to its end, line by line; cancelled, it is killed with all that it started."""

import asyncio
import contextlib
import os
import re
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from controlled_rollout.image.cache import DiskFullError
from controlled_rollout.image.credentials import hide_credentials

__all__ = ["KEPT_LINES", "error_excerpt", "run_command"]

DISK_FULL: Final = re.compile(r"[Nn]o space left on device|Disk quota exceeded|os error (?:28|122)\b")
KEPT_LINES: Final = 40
EXCERPT_LINES: Final = 15
CHUNK_BYTES: Final = 1 << 16
MAX_LINE_BYTES: Final = 1 << 20


async def run_command(
    command: Sequence[str],
    cwd: Path,
    *,
    environment: Mapping[str, str],
    lock: int,
    on_line: Callable[[str], None] = lambda line: None,
) -> tuple[int, list[str]]:
    """Run a program until it finishes; return its exit code and its last output lines.

    Args:
        command: The program and its arguments.
        cwd: Where it runs.
        environment: Its environment variables.
        lock: A file descriptor that the process and all that it starts inherit.
        on_line: Called with each line of its two outputs; passwords in addresses are taken out.

    Raises:
        DiskFullError: It failed, and one of its last lines says that the disk is full.
    """
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    async with _running_process(command, cwd, environment, lock) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        async for raw in _lines(process.stdout):
            line = hide_credentials(raw.decode(errors="replace").rstrip())
            lines.append(line)
            on_line(line)
        exit_code = await process.wait()
    if exit_code != 0 and (full := next(filter(DISK_FULL.search, lines), None)):
        raise DiskFullError(full.strip())
    return exit_code, list(lines)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines of an output; one that is too long, such as a progress bar without an end, in pieces."""
    rest: list[bytes] = []
    size = 0
    while chunk := await stream.read(CHUNK_BYTES):
        first, *others = chunk.split(b"\n")
        rest.append(first)
        size += len(first)
        for line in others:
            yield b"".join(rest)
            rest, size = [line], len(line)
        if size > MAX_LINE_BYTES:
            yield b"".join(rest)
            rest, size = [], 0
    if size:
        yield b"".join(rest)


def error_excerpt(lines: Sequence[str], start: str = r"\s*(error:|×)") -> str:
    """Return the lines of a failed program's output that describe the error.

    Args:
        lines: Its last lines.
        start: What the first line of the error matches. If no line does, the last lines are taken.
    """
    first = next((number for number, line in enumerate(lines) if re.match(start, line)), None)
    written = [line for line in lines[first or 0 :] if line.strip()]
    excerpt = written[-EXCERPT_LINES:] if first is None else written[:EXCERPT_LINES]
    return "\n".join(excerpt).strip() or "it wrote nothing"


@contextlib.asynccontextmanager
async def _running_process(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], lock: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Context manager: start a process; on exit, kill it and all its child processes."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        pass_fds=(lock,),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
