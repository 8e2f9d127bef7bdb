"""The command that writes what versions have collected into a file."""

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from controlled_rollout.cli.arguments import Commands, add_workspace_options, duration, workspace_of
from controlled_rollout.cli.output import add_output_option, show

__all__ = ["add_to"]

FORMATS: Final = (".csv", ".jsonl", ".parquet")


def add_to(commands: Commands) -> None:
    """Add the parser of the command `data`."""
    data = commands.add_parser("data", help="write what versions have collected into a file, inputs beside predictions")
    data.add_argument("endpoint")
    data.add_argument("versions", nargs="+", metavar="version")
    data.add_argument("--file", type=_file, required=True, metavar="FILE", help="the file: .csv, .jsonl or .parquet")
    data.add_argument(
        "--since", type=duration, default=timedelta(days=1), metavar="TIME",
        help="requests of so long ago and later (default 1 d)",
    )  # fmt: skip
    data.add_argument(
        "--until", type=duration, default=timedelta(0), metavar="TIME", help="requests of before so long ago (now)"
    )
    data.add_argument(
        "--collection", action="append", metavar="NAME",
        help="inputs, predictions, or a name that the script chose; repeat it for several (inputs and predictions)",
    )  # fmt: skip
    data.add_argument(
        "--column", action="append", metavar="NAME", help="such as predictions.label; repeat it for several (all)"
    )
    add_output_option(data)
    add_workspace_options(data)
    data.set_defaults(run=_run_data)


def _file(text: str) -> Path:
    """Return the path of the file to write.

    Raises:
        argparse.ArgumentTypeError: Its name does not say in which format.
    """
    path = Path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r}: give a name that ends with {', '.join(FORMATS)}")
    return path


def _run_data(options: argparse.Namespace) -> int:
    """Run `controlled-rollout data`: write the file, and say how many rows it has; return the exit code."""
    from controlled_rollout.evidence.collected.joined_rows import read_collected
    from controlled_rollout.evidence.collected.row_files import write_rows

    now = datetime.now(UTC)
    with read_collected(
        workspace_of(options),
        options.endpoint,
        options.versions,
        since=now - options.since,
        until=now - options.until,
        collections=options.collection or ("inputs", "predictions"),
        columns=options.column,
    ) as rows:
        count = write_rows(rows, options.file)
    show(options, {"file": str(options.file), "rows": count}, [f"{count:,} rows in {options.file}"])
    return 0
