"""Commands that delete: what nothing needs any more, and what versions have collected of one request or caller."""

import argparse
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from controlled_rollout.cli.arguments import Commands, add_workspace_options, duration, workspace_of
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.output import add_output_option, is_table, show
from controlled_rollout.cli.view import print_line
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.text_table import text_table
from controlled_rollout.workspace import Workspace

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the parsers of the commands `clean` and `erase`."""
    _add_clean_command(commands)
    _add_erase_command(commands)


def _add_clean_command(commands: Commands) -> None:
    """Add the parser of `clean`, which deletes what nothing needs any more."""
    clean = commands.add_parser(
        "clean",
        help="delete images, logs and records of this machine and models and reports of the storage that nothing needs",
    )
    add_workspace_options(clean)
    clean.add_argument(
        "--older-than",
        type=duration,
        default=timedelta(days=30),
        metavar="DURATION",
        help="keep what was written or used since then (default 30 d)",
    )
    clean.add_argument("--yes", action="store_true", help="delete it; without this option it is only shown")
    add_output_option(clean)
    clean.set_defaults(run=_run_clean)


def _add_erase_command(commands: Commands) -> None:
    """Add the parser of `erase`, which deletes what versions have collected of one request or one caller."""
    erase = commands.add_parser("erase", help="delete what versions have collected with one correlation or request id")
    erase.add_argument("id", help="the correlation id or request id, as it is in the collected rows")
    add_workspace_options(erase)
    erase.add_argument("--yes", action="store_true", help="delete it; without this option it is only shown")
    add_output_option(erase)
    erase.set_defaults(run=_run_erase)


def _run_erase(options: argparse.Namespace) -> int:
    """Run `controlled-rollout erase`: show or delete the collected rows of one id; return the exit code."""
    from controlled_rollout.storage import open_storage
    from controlled_rollout.storage.erasure import UnreadableFile, erase_rows, find_reports, find_rows

    storage = open_storage(workspace_of(options))
    parts: list[dict[str, Any]] = []
    unreadable: list[dict[str, Any]] = []
    reports: list[str] = []
    requests: set[str] = set()
    for found in find_rows(storage, options.id, datetime.now(UTC)):
        address = storage.address_of(found.name)
        if isinstance(found, UnreadableFile):
            _tell(options, f"cannot be read: {address} ({found.problem})")
            unreadable.append({"address": address, "problem": found.problem})
            continue
        _tell(options, f"{found.rows:>8,} rows  {address}{' (still written)' * found.is_new}")
        requests |= found.requests
        parts.append({"address": address, "rows": found.rows, "still_written": found.is_new})
        if options.yes and not found.is_new:
            erase_rows(storage, found)
    for report in find_reports(storage, requests | {options.id}):
        reports.append(storage.address_of(report))
        _tell(options, f"{'':>8} report {reports[-1]}")
        if options.yes:
            storage.delete(report)
    rows, new = sum(part["rows"] for part in parts), sum(part["still_written"] for part in parts)
    document = {"deleted": options.yes, "rows": rows, "parts": parts, "reports": reports, "unreadable": unreadable}
    show(options, document, _erased(rows, new, len(unreadable), deleted=options.yes))
    return ExitCode.FAILED if unreadable or (options.yes and new) else 0


def _tell(options: argparse.Namespace, line: str) -> None:
    """Print a line as soon as it is known, if the result is text: there may be many files."""
    if is_table(options):
        print_line(line)


def _erased(rows: int, new: int, unreadable: int, *, deleted: bool) -> list[str]:
    """Return in sentences what was erased, or can be. Pure.

    Args:
        rows: How many rows were found.
        new: How many of their parts a collector may still write.
        unreadable: How many files could not be read.
        deleted: Whether they were deleted, and not only shown.
    """
    lines = [f"{rows:,} rows deleted"]
    if not deleted:
        lines = [f"{rows:,} rows can be deleted: repeat with --yes"]
    elif new:
        lines = [f"{new} parts were left, because a collector may still write them: repeat it in two minutes"]
    if unreadable:
        lines.append(
            f"{unreadable} files could not be read and were left: see whether they are parts, and delete them if so"
        )
    return lines


def _run_clean(options: argparse.Namespace) -> int:
    """Run `controlled-rollout clean`: show or delete what nothing needs any more; return the exit code."""
    from controlled_rollout.evidence.collected.part_files import old_copies
    from controlled_rollout.storage import open_storage
    from controlled_rollout.storage.models import find_old_files
    from controlled_rollout.target.local.leftovers import Leftover, delete_leftovers, find_leftovers
    from controlled_rollout.target.local.workspace_folder import has_workspace

    if options.root is not None and not has_workspace(Workspace.local(options.root).root):
        raise WorkspaceError(
            f"there is no workspace in {options.root}, so what its versions need is not known: nothing was deleted; "
            "correct --root, or leave it out"
        )
    before = time.time() - options.older_than.total_seconds()
    workspace = workspace_of(options)
    leftovers = find_leftovers(workspace, before=before) if workspace.target == "local" else []
    copies = old_copies(workspace.cache_folder, before=before)
    leftovers += [Leftover("copy of a part", path, size) for path, size in copies]
    storage = open_storage(workspace)
    old_files = find_old_files(storage, before=datetime.fromtimestamp(before, UTC))
    found: list[dict[str, Any]] = [
        {"what": each.what, "bytes": each.size, "path": str(each.path)} for each in leftovers
    ]
    found += [{"what": each.what, "bytes": each.size, "path": each.address} for each in old_files]
    if is_table(options):
        rows = [(str(each["what"]), f"{each['bytes'] / 1e6:,.1f}", str(each["path"])) for each in found]
        print_line(text_table([("what", "MB", "path"), *rows]))
    size = sum(each.size for each in old_files)
    if options.yes:
        size += delete_leftovers(leftovers)
        for name in [name for each in old_files for name in each.names]:
            storage.delete(name)
        sentence = f"{size / 1e6:,.1f} MB freed"
    else:
        size += sum(each.size for each in leftovers)
        sentence = f"{size / 1e6:,.1f} MB can be freed: repeat with --yes"
    show(options, {"deleted": options.yes, "bytes": size, "found": found}, [sentence])
    return 0
