"""Commands that build: run to their end, line by line, and ended with all that they started when nobody waits."""

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

__all__ = ["CREDENTIALS", "essence", "run"]

DISK_FULL: Final = re.compile(r"[Nn]o space left on device|Disk quota exceeded|os error (?:28|122)\b")
CREDENTIALS: Final = re.compile(r"://[^/\s@]+@")
KEPT_LINES: Final = 40
TOLD_LINES: Final = 15
LINE_BYTES: Final = 1 << 20


async def run(
    command: Sequence[str],
    cwd: Path,
    *,
    environment: Mapping[str, str],
    lock: int,
    line: Callable[[str], None] = lambda line: None,
) -> tuple[int, list[str]]:
    """Run a command; return its exit status and its last lines.

    Args:
        command: The program and its arguments.
        cwd: Where it runs.
        environment: Its environment variables.
        lock: A file descriptor that the process and all that it starts inherit.
        line: Called with each line that it writes, to either stream; passwords in addresses are taken out.

    Raises:
        DiskFullError: Its lines say so.
    """
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    async with _process(command, cwd, environment, lock) as process:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        while raw := await process.stdout.readline():
            said = CREDENTIALS.sub("://***@", raw.decode(errors="replace").rstrip())
            lines.append(said)
            line(said)
        code = await process.wait()
    if code != 0 and (full := next(filter(DISK_FULL.search, lines), None)):
        raise DiskFullError(full.strip())
    return code, list(lines)


def essence(lines: list[str], start: str = r"\s*(error:|×)") -> str:
    """Return the part of a failed command's lines that says what is wrong.

    From the first that matches `start` on; the last ones, where none does.
    """
    first = next((at for at, line in enumerate(lines) if re.match(start, line)), None)
    said = [line for line in lines[first or 0 :] if line.strip()]
    told = said[-TOLD_LINES:] if first is None else said[:TOLD_LINES]
    return "\n".join(told).strip() or "it said nothing"


@contextlib.asynccontextmanager
async def _process(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], lock: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process in the block; when the block ends, the process and all that it started have ended."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=LINE_BYTES,
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
