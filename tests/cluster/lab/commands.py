"""Run a command."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import LabError

__all__ = ["run"]


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    input: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a command and return its standard output.

    Raises:
        LabError: It failed; the message has its last lines.
    """
    command = [os.fspath(part) for part in argv]
    try:
        done = subprocess.run(command, input=input, cwd=cwd, env=env, capture_output=True, text=True)
    except OSError as error:
        raise LabError(f"{command[0]} could not be started: {error}") from error
    if done.returncode:
        last_lines = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-20:])
        raise LabError(f"`{' '.join(command)[:300]}` ended with {done.returncode}:\n{last_lines}")
    return done.stdout
