"""`python -m controlled_rollout_scoring --bind ADDRESS`: serves the version that the environment variables describe."""

from __future__ import annotations

import os
import sys

# `-m` puts the current folder first, which may be the user's project: its queue.py is not the one that is meant here.
if sys.path[0] == os.getcwd():
    del sys.path[0]

import argparse
import signal

from controlled_rollout_scoring.log import say
from controlled_rollout_scoring.processes import die_with_parent
from controlled_rollout_scoring.replica import serve
from controlled_rollout_scoring.settings import Address, SettingError, Settings

USAGE = 2


def main() -> int:
    """Read the command line and serve; return the exit code."""
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
    if options.exit_with_parent:
        die_with_parent(signal.SIGTERM, parent)
    try:
        health = Address.parse(options.health) if options.health else None
        return serve(Settings.from_environment(os.environ), Address.parse(options.bind), health)
    except SettingError as error:
        say(f"cannot serve: {error}")
        return USAGE


if __name__ == "__main__":
    sys.exit(main())
