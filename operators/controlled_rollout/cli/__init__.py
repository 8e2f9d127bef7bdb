"""The command line: `controlled-rollout …`, on the same engine as the Airflow tasks, without Airflow."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from controlled_rollout.cli import endpoint, image, machine, record, rollout
from controlled_rollout.errors import ControlledRolloutError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What stands behind the program's name; None takes the process's own.

    Returns:
        The exit code: 0 for success, 1 for an error of ours, 2 for a call that makes no sense.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ControlledRolloutError as error:
        sys.stderr.write(f"controlled-rollout: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read has enough (`| head`): nor is there anything to flush at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="controlled-rollout", description="Roll out machine-learning models: canary traffic, a gate, promotion."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    rollout.add_to(commands)
    endpoint.add_to(commands)
    record.add_to(commands)
    image.add_to(commands)
    machine.add_to(commands)
    return parser
