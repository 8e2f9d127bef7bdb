"""The command `import-aksendpoint`: an endpoint of the retired Azure ML SDK as one of ours."""

import argparse
from pathlib import Path
from typing import Final

from controlled_rollout.cli.arguments import Commands
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.output import add_output_option, show, yaml_text
from controlled_rollout.errors import ArgumentError
from controlled_rollout.text_file import read_text_file

__all__ = ["add_to"]

# For an editor beside which the schema lies, and how it gets there.
HEAD: Final = (
    "# yaml-language-server: $schema=endpoint.schema.json",
    "# controlled-rollout schema endpoint > endpoint.schema.json",
)


def add_to(commands: Commands) -> None:
    """Add the parser of `import-aksendpoint`."""
    command = commands.add_parser(
        "import-aksendpoint",
        help="show an endpoint of the retired Azure ML SDK as one of this program, and what has no counterpart",
    )
    command.add_argument(
        "file", type=Path, help="the JSON of AksEndpoint.serialize(), of one service, or of a deployment configuration"
    )
    command.add_argument("--endpoint", metavar="NAME", help="the endpoint's name (default: the one in the file)")
    command.add_argument("--version", metavar="NAME", help="the version's name, for a file of one version")
    add_output_option(command)
    command.set_defaults(run=_run_import)


def _run_import(options: argparse.Namespace) -> int:
    """Run `controlled-rollout import-aksendpoint`: print the endpoint; return the exit code.

    Raises:
        ArgumentError: The file cannot be read, or what it says cannot be.
    """
    from controlled_rollout.cli.aksendpoint_json import parse_json, read_aks_endpoint

    try:
        text = read_text_file(options.file)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{options.file} cannot be read: {error}") from error
    try:
        imported = read_aks_endpoint(parse_json(text), endpoint=options.endpoint, version=options.version)
    except ArgumentError as error:
        raise ArgumentError(f"{options.file}: {error}") from error
    document, commands = imported.document(), imported.commands()
    lines = [
        *HEAD,
        *yaml_text(document).split("\n"),
        *(f"# left out: {text}" for sentence in imported.left_out for text in sentence.splitlines()),
        *(f"# note: {text}" for sentence in imported.notes for text in sentence.splitlines()),
        "# with the images in it, this file is what `deploy` takes, a version at a time:",
        *(f"#   controlled-rollout deploy -f endpoint.yaml {name}" for name in document["versions"]),
        "# with the images in place of IMAGE-OF-…, these commands make it so without a file:",
        *(f"#   {command}" for command in commands),
    ]
    found = {"left_out": list(imported.left_out), "notes": list(imported.notes)}
    show(options, {"endpoint": document, **found, "commands": commands}, lines)
    return ExitCode.DONE
