"""Starts the process that validates: the library takes seconds to import, and memory that a trigger must not keep."""

import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Final

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.expectations.result import Counted, Validation, ValidationRequest

__all__ = ["count_in_process", "validate_in_process"]

TIMEOUT: Final = timedelta(minutes=5)
LAST_CHARACTERS: Final = 500
# It reads local files and nothing else: no credentials.
VARIABLES: Final = (
    "PATH", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "COVERAGE_PROCESS_CONFIG",
)  # fmt: skip


def count_in_process(request: ValidationRequest, *, timeout: timedelta = TIMEOUT) -> Counted:
    """Count rows and unexpected rows by bin in a process of its own.

    Args:
        request: What to count; with `bin_width`.
        timeout: The most time that it takes.

    Raises:
        EvidenceUnavailableError: A package is missing, a part cannot be read, or it takes too long.
    """
    return Counted.model_validate_json(_answer(request, timeout))


def validate_in_process(request: ValidationRequest, *, timeout: timedelta = TIMEOUT) -> Validation:
    """Evaluate all expectations of a collection on all rows in a process of its own; see `count_in_process`."""
    return Validation.model_validate_json(_answer(request, timeout))


def _answer(request: ValidationRequest, timeout: timedelta) -> bytes:
    """Return the answer of a process to a request."""
    with tempfile.TemporaryDirectory(prefix="controlled-rollout-expectations-") as folder:
        asked, answer, log = (Path(folder) / name for name in ("request.json", "answer.json", "log"))
        asked.write_text(request.model_dump_json())
        # No statistics are sent, and what the library keeps of a user goes with the folder.
        variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        variables |= {"HOME": folder, "GX_ANALYTICS_ENABLED": "false", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", __package__, str(asked), str(answer)]
        with log.open("wb") as output:
            try:
                done = subprocess.run(  # noqa: S603 - this Python, and files of our own
                    command,
                    env=variables,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=timeout.total_seconds(),
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise EvidenceUnavailableError(
                    f"the expectations about {request.collection!r} were not evaluated within "
                    f"{timeout.total_seconds():g} s: give fewer, or collect a smaller share of the requests"
                ) from error
        if done.returncode == 0:
            return answer.read_bytes()
        text = log.read_text(errors="replace").strip()
        if "No module named" in text:
            missing = text.rpartition("No module named")[2].strip()
            raise EvidenceUnavailableError(
                f"evaluating expectations needs the package {missing}: install airflow-provider-controlled-rollout "
                "with the extra data"
            )
        raise EvidenceUnavailableError(
            f"the expectations about {request.collection!r} could not be evaluated (exit code {done.returncode}): "
            f"{' '.join(text[-LAST_CHARACTERS:].split())}"
        )
