"""The command line: `controlled-rollout …`, on the same engine as the Airflow tasks, without Airflow."""

import argparse
import os
import sys
from collections.abc import Sequence

from controlled_rollout import __version__
from controlled_rollout.cli import (
    check,
    cleaning,
    completion,
    data,
    deploy,
    endpoint,
    gate,
    history,
    image,
    import_aksendpoint,
    machine,
    record,
    replicas,
    rollout,
    schema,
    secret,
)
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.visible_text import visible_text

__all__ = ["command_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the command, and return the exit code.

    Args:
        arguments: The arguments after the program's name; None for those of this process.

    Returns:
        The exit code, see `ExitCode`.

    Raises:
        SystemExit: The arguments are not valid; its code is 2.
    """
    parser = command_parser()
    completion.complete(parser)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except ControlledRolloutError as error:
        # It may repeat what others have written: nothing in it acts on the terminal.
        sys.stderr.write(f"controlled-rollout: {visible_text(str(error))}\n")
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe (`| head`): what is left is not to be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.CLOSED_PIPE
    except OSError as error:
        # A file or folder that no command expects to be like this: whose it is or what is wrong, a person can see.
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        sys.stderr.write(
            f"controlled-rollout: {where}{error.strerror or error}: check who may use it, and that it is there\n"
        )
        return ExitCode.FAILED


def command_parser() -> argparse.ArgumentParser:
    """Return the argparse parser with all commands of `controlled-rollout`."""
    parser = argparse.ArgumentParser(
        prog="controlled-rollout", description="Roll out machine-learning models: canary traffic, a gate, promotion."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    deploy.add_to(commands)
    rollout.add_to(commands)
    endpoint.add_to(commands)
    secret.add_to(commands)
    gate.add_to(commands)
    record.add_to(commands)
    image.add_to(commands)
    data.add_to(commands)
    check.add_to(commands)
    history.add_to(commands)
    replicas.add_to(commands)
    machine.add_to(commands)
    cleaning.add_to(commands)
    import_aksendpoint.add_to(commands)
    schema.add_to(commands)
    completion.add_to(commands)
    return parser
