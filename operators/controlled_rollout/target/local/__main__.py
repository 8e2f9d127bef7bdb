"""The supervisor in the background: `python -m controlled_rollout.target.local <settings as JSON>`."""

import json
import os
import sys
from typing import Any

from controlled_rollout.target.local.supervisor_process import StartReport, run_supervisor
from controlled_rollout.workspace import Workspace


def main(settings: dict[str, Any]) -> int:
    """Run the supervisor until it ends and return the exit code; report the start as one line of JSON on a pipe.

    Args:
        settings: `workspace` (its settings), `host` and `port` of the router, `report_pipe` (a file descriptor).
    """
    pipe = os.fdopen(settings["report_pipe"], "wb")

    def write_report(start: StartReport) -> None:
        """Write the outcome of the start to the pipe and close it."""
        with pipe:
            pipe.write(json.dumps(start).encode() + b"\n")

    # A child that held the pipe open would keep its reader waiting.
    os.set_inheritable(settings["report_pipe"], False)
    workspace = Workspace.from_settings(settings["workspace"])
    return run_supervisor(workspace, port=settings["port"], host=settings["host"], report=write_report)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
