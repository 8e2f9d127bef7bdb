"""Build a virtual environment with uv: a version's requirements and the scoring runtime's, solved together."""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.builders.build_context import write_requirements
from controlled_rollout.image.builders.build_secrets import build_variables
from controlled_rollout.image.builders.uv import find_uv
from controlled_rollout.image.environment.environment import Environment, running_python
from controlled_rollout.image.run_command import error_excerpt, run_command
from controlled_rollout.image.scoring_runtime import install_command, install_error

__all__ = ["create_virtual_environment"]

STEP: Final = re.compile(r"(?:Resolved|Prepared|Installed|Bytecode compiled|Downloading|Building)\b")


async def create_virtual_environment(
    folder: Path, environment: Environment, *, lock: int, progress: Callable[[str], None]
) -> None:
    """Create a relocatable virtual environment in an empty folder with uv, and install the requirements.

    The user's own settings of uv apply: indexes, certificates, its cache. Other variables of this process, which may be
    secrets, are not passed on: packages may run code while they are built.

    Args:
        folder: The empty folder.
        environment: What is installed.
        lock: A file descriptor that the processes inherit.
        progress: Called with a line for each step.

    Raises:
        ImageError: A variable that the requirements name, uv or the Python version is missing, or the
            requirements cannot be solved or installed.
        DiskFullError: No space is left.
    """
    variables = build_variables(environment.requirements)
    uv = find_uv()
    python = _python_argument(environment)
    # The scripts of an environment contain its interpreter's path; relocatable ones look beside themselves.
    venv = [uv, "venv", "--relocatable", "--no-project", "--allow-existing", "--python", python, str(folder)]
    exit_code, lines = await _run(venv, folder.parent, variables, lock=lock, progress=lambda line: None)
    if exit_code != 0:
        raise ImageError(
            f"no Python {environment.python_version} for the environment: {error_excerpt(lines)}\n"
            f"Install that version, or ask for one that is there (this process runs {sys.version_info.major}."
            f"{sys.version_info.minor})"
        )
    requirements = folder / "requirements.txt"
    write_requirements(requirements, environment.requirements, environment.constraints)
    # Compiled at once: a replica that may not write here would do it at each start (scikit-learn: 4 s, not 1.5 s).
    install = install_command(uv, folder, requirements)
    exit_code, lines = await _run(install, folder.parent, variables, lock=lock, progress=progress)
    if exit_code != 0:
        what = environment.name or ", ".join(environment.requirements[:5]) or "the scoring runtime alone"
        raise install_error(exit_code, f"the environment ({what})", error_excerpt(lines))


def _python_argument(environment: Environment) -> str:
    """Return uv's `--python` argument: this process's interpreter if its version fits, else the version."""
    version, running = environment.python_version, running_python()
    if version in (str(running), f"{running.major}.{running.minor}", str(running.major)):
        return sys.executable
    return version


async def _run(
    command: list[str], cwd: Path, variables: Mapping[str, str], *, lock: int, progress: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Run uv, or a script that runs it; return its exit code and last output lines."""
    # A project's configuration applies only if it is above the cache folder, not above the caller's current folder.
    return await run_command(
        command,
        cwd,
        # Copies: a link would lead to uv's cache, so who writes into one environment would change the next.
        environment={**variables, "UV_NO_PROGRESS": "1", "NO_COLOR": "1", "UV_LINK_MODE": "copy"},
        lock=lock,
        on_line=lambda line: progress(f"environment: {line}") if STEP.match(line) else None,
    )
