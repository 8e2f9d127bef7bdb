"""A real one-node Kubernetes with a gateway, a registry and a telemetry store, without Docker."""

import argparse
import sys
import time
from pathlib import Path

from .cluster import Lab
from .errors import LabError
from .existing import Existing
from .images import base_image, make_debian
from .preparation import prepare


def main() -> int:
    """Run the command of the arguments and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.lab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="bring the lab up; processes that run already are left alone")
    down = commands.add_parser("down", help="end exactly what `up` started, and remove it")
    status = commands.add_parser("status", help="print its addresses, and which parts run")
    for command, run in ((up, _up), (down, _down), (status, _status)):
        command.add_argument("--folder", type=Path, help="the lab's folder (default: that of the lab that is up)")
        command.set_defaults(run=run)
    base = commands.add_parser("base-image", help="push the base image for Python environments, print its reference")
    base.add_argument("--registry", required=True, help="host:port of a registry that takes plain HTTP")
    base.set_defaults(run=_base_image)
    options = parser.parse_args()
    try:
        code: int = options.run(options)
    except LabError as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    return code


def _up(options: argparse.Namespace) -> int:
    if not Existing.of():
        prepare()
    began = time.monotonic()
    lab = Lab.up(options.folder)
    _print(lab.facts())
    _print({"up within": f"{time.monotonic() - began:.0f} s"})
    return 0


def _down(options: argparse.Namespace) -> int:
    began = time.monotonic()
    if Lab.down(options.folder):
        _print({"down within": f"{time.monotonic() - began:.1f} s"})
    else:
        _print({"down": "there was no lab"})
    return 0


def _status(options: argparse.Namespace) -> int:
    lab = Lab.connect(options.folder)
    _print(lab.facts())
    parts = lab.parts()
    _print({name: "running" if runs else "not running" for name, runs in parts.items()})
    return 0 if all(parts.values()) else 3


def _base_image(options: argparse.Namespace) -> int:
    make_debian()
    sys.stdout.write(f"{base_image(options.registry)}\n")
    return 0


def _print(lines: dict[str, str]) -> None:
    sys.stdout.write("".join(f"{name:<24}{value}\n" for name, value in lines.items()))


if __name__ == "__main__":
    sys.exit(main())
