"""The command `completion`, and what a shell calls to complete a command line."""

import argparse
import os
from typing import Final

from controlled_rollout.cli.arguments import Commands
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.view import print_line

__all__ = ["add_to", "complete"]

SHELLS: Final = ("bash", "zsh", "fish")
# Set by the shell's function while it asks what may follow.
ASKED: Final = "_ARGCOMPLETE"


def add_to(commands: Commands) -> None:
    """Add the parser of `completion`."""
    completion = commands.add_parser(
        "completion",
        help="print what lets a shell complete this program's arguments",
        description='bash: eval "$(controlled-rollout completion bash)" in ~/.bashrc. zsh: the same with zsh in '
        "~/.zshrc, after compinit. fish: controlled-rollout completion fish > "
        "~/.config/fish/completions/controlled-rollout.fish",
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=_run_completion)


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what may follow, and end the process; do nothing if no shell asks."""
    if ASKED in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def _run_completion(options: argparse.Namespace) -> int:
    """Run `controlled-rollout completion`: print the shell's function; return the exit code."""
    from argcomplete.shell_integration import shellcode

    print_line(shellcode(["controlled-rollout"], shell=options.shell))
    return ExitCode.DONE
