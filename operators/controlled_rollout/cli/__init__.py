"""The command line: `controlled-rollout …`, on the same engine as the Airflow tasks, without Airflow."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from controlled_rollout.cli import check, data, endpoint, image, machine, record, rollout, secret
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.visible_text import visible_text

__all__ = ["command_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the command, and return the exit code.

    Args:
        arguments: The arguments after the program's name; None for those of this process.

    Returns:
        The exit code: 0 for success, 1 for a `ControlledRolloutError` or an `OSError`, 2 for invalid arguments.
    """
    options = command_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ControlledRolloutError as error:
        # It may repeat what others have written: nothing in it acts on the terminal.
        sys.stderr.write(f"controlled-rollout: {visible_text(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader has closed the pipe (`| head`): what is left is not to be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        # A file or folder that no command expects to be like this: whose it is or what is wrong, a person can see.
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        sys.stderr.write(
            f"controlled-rollout: {where}{error.strerror or error}: check who may use it, and that it is there\n"
        )
        return 1


def command_parser() -> argparse.ArgumentParser:
    """Return the argparse parser with all commands of `controlled-rollout`."""
    parser = argparse.ArgumentParser(
        prog="controlled-rollout", description="Roll out machine-learning models: canary traffic, a gate, promotion."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    rollout.add_to(commands)
    endpoint.add_to(commands)
    secret.add_to(commands)
    record.add_to(commands)
    image.add_to(commands)
    data.add_to(commands)
    check.add_to(commands)
    machine.add_to(commands)
    return parser
