"""Commands that read the record of an endpoint: replay and report."""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from controlled_rollout.cli.arguments import Commands, add_workspace_options, workspace_of
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.output import add_output_option, is_table, show
from controlled_rollout.cli.view import print_progress
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
    add_output_option(parser)
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
    different = sum(bool(look.difference) for look in looks)
    lines = [
        f"{_format_look_time(look)}  {look.decision.version}  {look.difference}" for look in looks if look.difference
    ]
    lines += _outcome_counts(looks)
    lines.append(
        f"{len(looks)} looks, {different} of them differ" if different else f"{len(looks)} looks, all the same"
    )
    document = [
        {
            "time": look.decision.time.isoformat(),
            "version": look.decision.version,
            "who": look.decision.who,
            "outcome": look.decision.outcome,
            "difference": look.difference or None,
        }
        for look in looks
    ]
    show(options, document, lines)
    return ExitCode.FAILED if different else ExitCode.DONE


def _run_report(options: argparse.Namespace) -> int:
    """Run `controlled-rollout report`: print (and draw) a rollout's summary; return the exit code."""
    from controlled_rollout.record import read_part
    from controlled_rollout.record.picture import draw
    from controlled_rollout.record.summary import summarize
    from controlled_rollout.record.text import text_of_steps, text_report

    decisions = [decision for part in _record_parts(options) for decision in read_part(part)]
    of_version = [decision for decision in decisions if options.version in (None, decision.version)]
    has_looks = any(decision.step == "look" for decision in of_version)
    if not is_table(options):
        # The evidence is large, and `replay` reads it.
        lines: list[str] = []
    elif of_version and not has_looks and options.picture is None:
        lines = text_of_steps(of_version).splitlines()
    else:
        lines = text_report(summarize(decisions, version=options.version)).rstrip("\n").splitlines()
    show(options, [decision.model_dump(mode="json", exclude={"evidence"}) for decision in of_version], lines)
    if options.picture is not None:
        draw(summarize(decisions, version=options.version), options.picture)
        print_progress(f"drawn: {options.picture}")
    return ExitCode.DONE


def _outcome_counts(looks: "list[ReplayedLook]") -> list[str]:
    """Return a table of how many looks had each outcome, by version and author, as lines."""
    counted = Counter((look.decision.version, look.decision.who, look.decision.outcome or "") for look in looks)
    rows = ((*key, str(number)) for key, number in counted.items())
    return text_table([("version", "who", "outcome", "looks"), *rows]).splitlines()


def _format_look_time(look: "ReplayedLook") -> str:
    """Return the time of a replayed look as text, to the second."""
    return look.decision.time.isoformat(sep=" ", timespec="seconds")
