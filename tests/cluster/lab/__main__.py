"""`python -m tests.cluster.lab`: the lab from the command line."""

import argparse
import sys

from .errors import LabError


def main() -> int:
    """Do what the arguments say; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    base = commands.add_parser("base-image", help="push the base image for Python environments, print its reference")
    base.add_argument("--registry", required=True, help="host:port of a registry that takes plain HTTP")
    options = parser.parse_args()
    try:
        from .images import base_image

        print(base_image(options.registry))  # noqa: T201
    except LabError as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
