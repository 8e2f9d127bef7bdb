"""Commands that read the record of an endpoint: replay and report."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from controlled_rollout.cli.arguments import Commands, add_workspace_options, workspace_of
from controlled_rollout.cli.view import print_line
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.text_table import text_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlled_rollout.evaluation.replay import ReplayedLook
    from controlled_rollout.record.storage import RecordPart

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the parsers of the commands `replay` and `report`."""
    replay = commands.add_parser(
        "replay", help="judge every look of a record again, and compare with what was decided then"
    )
    _add_record_arguments(replay)
    replay.set_defaults(run=_run_replay)
    report = commands.add_parser("report", help="show a rollout from its record: traffic, errors, latency, evidence")
    _add_record_arguments(report)
    report.add_argument("--picture", type=Path, metavar="FILE", help="also draw it: a .png, .svg or .pdf file")
    report.set_defaults(run=_run_report)


def _add_record_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which record is read, and of which version."""
    parser.add_argument("record", help="a file of a record, or an endpoint's name for the workspace's record of it")
    parser.add_argument("--version", help="only the looks at this version")
    add_workspace_options(parser)


def _record_parts(options: argparse.Namespace) -> "Sequence[RecordPart]":
    """Return the parts of the record that the command names: one file, or an endpoint's record in the workspace."""
    from controlled_rollout.record import storage_of
    from controlled_rollout.record.file_storage import FilePart

    named = Path(options.record)
    if named.is_file():
        return [FilePart(named)]
    if named.suffix or named.parent != Path():
        raise ControlledRolloutError(f"there is no record {options.record}: give a file, or an endpoint's name")
    parts = storage_of(workspace_of(options), options.record).parts()
    if not parts:
        raise ControlledRolloutError(
            f"there is neither a file {options.record!r} nor a record of an endpoint of that name in this workspace: "
            "give one of the two"
        )
    return parts


def _run_replay(options: argparse.Namespace) -> int:
    """Run `controlled-rollout replay`: judge all recorded looks again; return exit code 1 if one differs.

    Raises:
        ControlledRolloutError: There is no look to judge again, so nothing can be said.
    """
    from controlled_rollout.evaluation.replay import replay
    from controlled_rollout.record import read_part

    looks = [
        look
        for part in _record_parts(options)
        for look in replay(read_part(part))
        if options.version in (None, look.decision.version)
    ]
    if not looks:
        of = f"version {options.version!r}" if options.version else "any version"
        raise ControlledRolloutError(
            f"the record {options.record!r} has no look at {of}: there is nothing to judge again. Correct the name; "
            "steps by hand have no looks"
        )
    for look in looks:
        if look.difference:
            print_line(f"{_format_look_time(look)}  {look.decision.version}  {look.difference}")
    _print_outcome_counts(looks)
    different = sum(bool(look.difference) for look in looks)
    print_line(f"{len(looks)} looks, {different} of them differ" if different else f"{len(looks)} looks, all the same")
    return 1 if different else 0


def _run_report(options: argparse.Namespace) -> int:
    """Run `controlled-rollout report`: print (and draw) a rollout's summary; return the exit code."""
    from controlled_rollout.record import read_part
    from controlled_rollout.record.picture import draw
    from controlled_rollout.record.summary import summarize
    from controlled_rollout.record.text import text_of_steps, text_report

    decisions = [decision for part in _record_parts(options) for decision in read_part(part)]
    of_version = [decision for decision in decisions if options.version in (None, decision.version)]
    if options.picture is None and of_version and all(decision.step != "look" for decision in of_version):
        print_line(text_of_steps(of_version))
        return 0
    summary = summarize(decisions, version=options.version)
    print_line(text_report(summary).rstrip("\n"))
    if options.picture is not None:
        draw(summary, options.picture)
        print_line(f"\ndrawn: {options.picture}")
    return 0


def _print_outcome_counts(looks: "list[ReplayedLook]") -> None:
    """Print a table of how many looks had each outcome, by version and author."""
    counted: Counter[tuple[str, str, str]] = Counter(
        (look.decision.version, look.decision.who, look.decision.outcome or "") for look in looks
    )
    if counted:
        rows = ((*key, str(number)) for key, number in counted.items())
        print_line(text_table([("version", "who", "outcome", "looks"), *rows]))


def _format_look_time(look: "ReplayedLook") -> str:
    """Return the time of a replayed look as text, to the second."""
    return look.decision.time.isoformat(sep=" ", timespec="seconds")
