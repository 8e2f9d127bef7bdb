"""The command that stores a secret for the environment variables of versions."""

import argparse
import asyncio
import getpass
import sys

from controlled_rollout.cli.arguments import Commands, add_workspace_options, workspace_of
from controlled_rollout.cli.output import add_output_option, show
from controlled_rollout.errors import ArgumentError

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the parser of the command `secret`."""
    secret = commands.add_parser("secret", help="store a value that versions name in environment_variables, from stdin")
    secret.add_argument("name", help="the secret's name")
    secret.add_argument("key", help="the key in it")
    add_output_option(secret)
    add_workspace_options(secret)
    secret.set_defaults(run=_run_secret)


def _run_secret(options: argparse.Namespace) -> int:
    """Run `controlled-rollout secret`: read a value from stdin and store it; return the exit code."""
    from controlled_rollout.target.connect import connect

    # Not as an argument: those are in the list of processes and in the shell's history.
    try:
        value = getpass.getpass("value: ") if sys.stdin.isatty() else sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"the value from stdin is no UTF-8 text ({error.reason} at byte {error.start}): encode it, such as "
            "with base64"
        ) from None

    async def store() -> None:
        """Store the value in the workspace's target."""
        async with connect(workspace_of(options)) as target:
            await target.store_secret(options.name, {options.key: value})

    asyncio.run(store())
    sentence = f"the key {options.key!r} of the secret {options.name!r} is stored: replicas that start now get it"
    show(options, {"secret": options.name, "key": options.key}, [sentence])
    return 0
