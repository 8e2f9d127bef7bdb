"""Building of a virtual environment with uv: a version's requirements and the scoring runtime's, solved together."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from packaging.version import Version

from controlled_rollout.errors import ImageError
from controlled_rollout.image.environment.environment import Environment
from controlled_rollout.image.run_command import essence, run
from controlled_rollout.image.scoring_runtime import runtime_requirements

__all__ = ["create_virtual_environment", "find_uv", "runtime_pins"]

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
STEP: Final = re.compile(r"(?:Resolved|Prepared|Installed|Bytecode compiled|Downloading|Building)\b")


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
            f"no Python {environment.python_version} for the environment: {essence(lines)}\n"
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
            f"the environment ({what}) cannot be installed:\n{essence(lines)}\n"
            f"Installed with it is the scoring runtime, which needs {', '.join(runtime_pins())}"
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
    """Run uv; return its exit status and its last lines."""
    # A project's configuration counts only where it stands above the cache, not where the caller happens to be.
    return await run(
        [*command, "--no-progress", "--color=never"],
        cwd,
        environment={name: value for name, value in os.environ.items() if name not in NOT_INHERITED},
        lock=lock,
        line=lambda line: progress(f"environment: {line}") if STEP.match(line) else None,
    )


def runtime_pins() -> list[str]:
    """Return the requirements of the scoring runtime."""
    lines = runtime_requirements().read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
