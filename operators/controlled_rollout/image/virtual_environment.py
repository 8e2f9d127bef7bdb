"""Building of a virtual environment with uv: a version's requirements and the scoring runtime's, solved together."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from packaging.version import Version

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cache import DiskFullError
from controlled_rollout.image.environment import Environment
from controlled_rollout.image.runtime import runtime_requirements

__all__ = ["create_virtual_environment"]

# Settings of the calling process's own environment, which is not the one that is built.
NOT_INHERITED: Final = (
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PYTHONPATH",
    "PYTHONHOME",
    "UV_PYTHON",
    "UV_SYSTEM_PYTHON",
    "UV_PROJECT",
    "UV_PROJECT_ENVIRONMENT",
    "UV_VENV_SEED",
    "UV_TARGET",
    "UV_PREFIX",
)
DISK_FULL: Final = re.compile(r"No space left on device|Disk quota exceeded|os error (?:28|122)\b")
STEP: Final = re.compile(r"(?:Resolved|Prepared|Installed|Bytecode compiled|Downloading|Building)\b")
CREDENTIALS: Final = re.compile(r"://[^/\s@]+@")
KEPT_LINES: Final = 40
TOLD_LINES: Final = 15
LINE_BYTES: Final = 1 << 20


async def create_virtual_environment(
    folder: Path, environment: Environment, *, lock: int, progress: Callable[[str], None]
) -> None:
    """Fill the empty `folder` with a virtual environment that may be moved.

    The user's own settings of uv hold: indexes, certificates, its cache.

    Args:
        folder: Where.
        environment: What.
        lock: A file descriptor that the processes inherit.
        progress: Called with a line for each step.

    Raises:
        ImageError: uv or the Python version is missing, or the requirements cannot be solved or installed.
        DiskFullError: No space is left.
    """
    uv = find_uv()
    python = _interpreter(environment)
    # The scripts of an environment name its interpreter; relocatable ones look beside themselves.
    venv = [uv, "venv", "--relocatable", "--no-project", "--allow-existing", "--python", python, str(folder)]
    code, lines = await _run(venv, folder.parent, lock=lock, progress=lambda line: None)
    if code != 0:
        raise ImageError(
            f"no Python {environment.python_version} for the environment: {_essence(lines)}\n"
            f"Install that version, or ask for one that is there (this process runs {sys.version_info.major}."
            f"{sys.version_info.minor})"
        )
    asked = folder / "requirements.txt"
    asked.write_text("".join(f"{line}\n" for line in environment.requirements), encoding="utf-8")
    # Compiled now: a replica that may not write here would compile again at each start (scikit-learn: 4 s, not 1.5 s).
    install = [uv, "pip", "install", "--python", str(folder / "bin" / "python"), "--compile-bytecode"]
    install += ["--requirements", str(asked), "--requirements", str(runtime_requirements())]
    code, lines = await _run(install, folder.parent, lock=lock, progress=progress)
    if code != 0:
        what = environment.name or ", ".join(environment.requirements[:5]) or "the scoring runtime alone"
        raise ImageError(
            f"the environment ({what}) cannot be installed:\n{_essence(lines)}\n"
            f"Installed with it is the scoring runtime, which needs {', '.join(_pins(runtime_requirements()))}"
        )


def find_uv() -> str:
    """Return the path of uv's executable.

    Raises:
        ImageError: It is not installed.
    """
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError):
        raise ImageError(
            "uv is needed to build an environment and is not installed: pip install "
            "'airflow-provider-controlled-rollout[local]'"
        ) from None


def _interpreter(environment: Environment) -> str:
    """Return what uv is asked for: the running interpreter where it will do, which uv might not find by itself."""
    asked = environment.python_version
    running = Version(".".join(map(str, sys.version_info[:3])))
    if asked in (str(running), f"{running.major}.{running.minor}", str(running.major)):
        return sys.executable
    return asked


async def _run(command: list[str], cwd: Path, *, lock: int, progress: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run uv; return its exit status and its last lines.

    Raises:
        DiskFullError: Its lines say so.
    """
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    async with _process(command, cwd, lock) as process:
        assert process.stderr is not None  # noqa: S101 - it was asked for
        while raw := await process.stderr.readline():
            line = CREDENTIALS.sub("://***@", raw.decode(errors="replace").rstrip())
            lines.append(line)
            if STEP.match(line):
                progress(f"environment: {line}")
        code = await process.wait()
    if code != 0 and (full := next(filter(DISK_FULL.search, lines), None)):
        raise DiskFullError(full.strip())
    return code, list(lines)


@contextlib.asynccontextmanager
async def _process(command: list[str], cwd: Path, lock: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process in the block; when the block ends, the process and all that it started have ended."""
    settings = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    process = await asyncio.create_subprocess_exec(
        *command,
        "--no-progress",
        "--color=never",
        # A project's configuration counts only where it stands above the cache, not where the caller happens to be.
        cwd=cwd,
        env=settings,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
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


def _pins(requirements: Path) -> list[str]:
    lines = requirements.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _essence(lines: list[str]) -> str:
    """Return the part of uv's lines that says what is wrong."""
    start = next((at for at, line in enumerate(lines) if re.match(r"\s*(error:|×)", line)), 0)
    said = [line for line in lines[start:] if line.strip()]
    return "\n".join(said[:TOLD_LINES]).strip() or "uv said nothing"
