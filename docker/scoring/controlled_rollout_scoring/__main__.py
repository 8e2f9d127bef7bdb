"""`python -m controlled_rollout_scoring --bind ADDRESS`: serves the version that the environment variables describe."""

from __future__ import annotations

import os
import sys

# `-m` puts the current folder first on the path, which may be the user's project: its queue.py would hide Python's own.
if sys.path[0] == os.getcwd():
    del sys.path[0]

import argparse
import signal

from controlled_rollout_scoring.log import log
from controlled_rollout_scoring.processes import keep_out_of_read_only_files, signal_at_parent_death
from controlled_rollout_scoring.replica import serve
from controlled_rollout_scoring.settings import Address, SettingError, Settings

USAGE_ERROR = 2


def main() -> int:
    """Parse the command line and serve the version; return the exit code."""
    parent = os.getppid()
    parser = argparse.ArgumentParser(prog="controlled_rollout_scoring", description=__doc__)
    parser.add_argument("--bind", required=True, metavar="ADDRESS", help="unix:/path or HOST:PORT (port 0: any)")
    parser.add_argument("--health", metavar="ADDRESS", help="where the parent process answers /live and /ready")
    parser.add_argument(
        "--exit-with-parent",
        action="store_true",
        help="stop, with a drain, when the process that started this one ends",
    )
    options = parser.parse_args()
    keep_out_of_read_only_files()
    if options.exit_with_parent:
        signal_at_parent_death(signal.SIGTERM, parent)
    try:
        health = Address.parse(options.health) if options.health else None
        return serve(Settings.from_environment(os.environ), Address.parse(options.bind), health)
    except SettingError as error:
        log(f"cannot serve: {error}")
        return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
