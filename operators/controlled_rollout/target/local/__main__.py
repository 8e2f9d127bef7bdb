"""The supervisor's process: `python -m controlled_rollout.target.local <settings as JSON>`."""

import json
import os
import sys
from typing import Any

from controlled_rollout.target.local.supervisor_process import StartReport, run_supervisor
from controlled_rollout.workspace import Workspace


def _print_report(start: StartReport) -> None:
    """Print how the start went."""
    sys.stdout.write(start["message"] + "\n")
    sys.stdout.flush()


def main(settings: dict[str, Any]) -> int:
    """Run the supervisor until it ends and return the exit code; report the start as one line of JSON on a pipe.

    Args:
        settings: `workspace` (its settings), `host` and `port` of the router, `report_pipe` (a file descriptor; None
            for a supervisor that prints how the start went), `credentials` (a file descriptor with the variables for
            the storage as JSON; None for none).
    """
    workspace, port, host = Workspace.from_settings(settings["workspace"]), settings["port"], settings["host"]
    credentials = _read_credentials(settings["credentials"])
    if settings["report_pipe"] is None:
        return run_supervisor(workspace, port=port, host=host, report=_print_report, credentials=credentials)
    pipe = os.fdopen(settings["report_pipe"], "wb")

    def write_report(start: StartReport) -> None:
        """Write the outcome of the start to the pipe and close it."""
        with pipe:
            pipe.write(json.dumps(start).encode() + b"\n")

    # A child that held the pipe open would keep its reader waiting.
    os.set_inheritable(settings["report_pipe"], False)
    return run_supervisor(workspace, port=port, host=host, report=write_report, credentials=credentials)


def _read_credentials(descriptor: int | None) -> dict[str, str]:
    """Read the variables for the storage from a file descriptor and close it, so that no child inherits it."""
    if descriptor is None:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        credentials: dict[str, str] = json.load(file)
    return credentials


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
