"""The command `schema`: the JSON Schema of a kind of file, for editors."""

import argparse

from controlled_rollout.cli.arguments import Commands
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.file_schemas import SCHEMA_NAMES, schema_of
from controlled_rollout.cli.output import add_output_option, json_text, show
from controlled_rollout.text_table import text_table

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the parser of `schema`."""
    command = commands.add_parser("schema", help="print the JSON Schema of a kind of file, for editors")
    command.add_argument(
        "name", nargs="?", choices=SCHEMA_NAMES, metavar="NAME", help="the kind of file (default: list them)"
    )
    add_output_option(command)
    command.set_defaults(run=_run_schema)


def _run_schema(options: argparse.Namespace) -> int:
    """Run `controlled-rollout schema`: print a schema, or list the kinds; return the exit code."""
    if options.name is None:
        show(options, dict(SCHEMA_NAMES), text_table(list(SCHEMA_NAMES.items())).splitlines())
    else:
        schema = schema_of(options.name)
        show(options, schema, [json_text(schema)])
    return ExitCode.DONE
