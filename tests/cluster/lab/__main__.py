"""`python -m tests.cluster.lab`: the lab from the command line."""

import argparse
import sys
from pathlib import Path

from .cluster import Lab
from .errors import LabError
from .images import base_image


def main() -> int:
    """Do what the arguments say; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    base = commands.add_parser("base-image", help="push the base image for Python environments, print its reference")
    base.add_argument("--registry", required=True, help="host:port of a registry that takes plain HTTP")
    up = commands.add_parser("up", help="bring the lab up; what runs is left alone")
    down = commands.add_parser("down", help="end exactly what `up` started, and remove it")
    for command in (up, down):
        command.add_argument("--folder", type=Path, help="where the lab lives (default: in the cache's folder)")
    options = parser.parse_args()
    try:
        if options.command == "up":
            print(Lab.up(options.folder))
            return 0
        if options.command == "down":
            return 0 if Lab.down(options.folder) else 1
        print(base_image(options.registry))  # noqa: T201
    except LabError as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
