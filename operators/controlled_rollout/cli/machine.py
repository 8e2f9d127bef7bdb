"""Commands that run something on this machine: the local workspace, one project folder, the telemetry store."""

import argparse
import asyncio
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from controlled_rollout.cli.arguments import (
    Commands,
    add_root_option,
    add_workspace_options,
    duration,
    environment_variable,
    model_name_and_path,
    port,
    workspace_of,
)
from controlled_rollout.cli.endpoint import readable_endpoint
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.view import endpoint_lines, print_line
from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.text_table import text_table
from controlled_rollout.visible_text import visible_text
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from controlled_rollout.target.local.process_status import ProcessStatus

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the parsers of the commands `local`, `score`, `telemetry-store`, `clean` and `erase`."""
    _add_local_command(commands)
    _add_clean_command(commands)
    _add_erase_command(commands)
    _add_score_command(commands)
    _add_telemetry_store_command(commands)


def _add_local_command(commands: Commands) -> None:
    """Add the parser of `local` with its actions `up`, `down` and `status`."""
    local = commands.add_parser("local", help="the local workspace: a router, versions and telemetry on this machine")
    actions = local.add_subparsers(title="actions", metavar="ACTION", required=True)
    up = actions.add_parser("up", help="start it")
    add_root_option(up)
    up.add_argument("--port", type=port, help="the router's port (default 8088)")
    up.add_argument(
        "--storage",
        metavar="PLACE",
        help="where collected data goes: a folder, or https://<account>.blob.core.windows.net/<container>/<prefix>; "
        "the same as the setting `storage` of the tasks' connection (default: the folder storage in the workspace)",
    )
    up.add_argument(
        "--tls", action="store_true", help="serve callers by https only, with a certificate that the workspace makes"
    )
    up.add_argument("--tls-certificate", type=Path, metavar="FILE", help="serve https with this certificate (PEM)")
    up.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    up.add_argument(
        "--endpoint-ca", type=Path, metavar="FILE", help="the authority that commands check that certificate against"
    )
    up.add_argument("--foreground", action="store_true", help="stay in the foreground until Ctrl-C")
    up.set_defaults(run=_run_local_up)
    down = actions.add_parser("down", help="stop it; endpoints, keys and telemetry stay on disk")
    add_root_option(down)
    down.set_defaults(run=_run_local_down)
    status = actions.add_parser("status", help="show endpoints, versions, traffic, replicas and processes")
    add_root_option(status)
    status.set_defaults(run=_run_local_status)


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
    clean.set_defaults(run=_run_clean)


def _add_erase_command(commands: Commands) -> None:
    """Add the parser of `erase`, which deletes what versions have collected of one request or one caller."""
    erase = commands.add_parser("erase", help="delete what versions have collected with one correlation or request id")
    erase.add_argument("id", help="the correlation id or request id, as it is in the collected rows")
    add_workspace_options(erase)
    erase.add_argument("--yes", action="store_true", help="delete it; without this option it is only shown")
    erase.set_defaults(run=_run_erase)


def _add_score_command(commands: Commands) -> None:
    """Add the parser of `score`, which serves a project folder on this machine."""
    score = commands.add_parser("score", help="serve a project folder on this machine as a version would be served")
    score.add_argument("folder", type=Path, help="the folder with score.py and its environment file")
    score.add_argument("--port", type=port, default=5001, help="port on 127.0.0.1 (default %(default)s)")
    score.add_argument("--environment", type=Path, help="environment file (default: the one in the folder)")
    score.add_argument("--entry-script", default="score.py", help="entry script in the folder (default %(default)s)")
    score.add_argument(
        "--model",
        metavar="NAME=PATH",
        type=model_name_and_path,
        action="append",
        default=[],
        help="a model's files; may be repeated",
    )
    score.add_argument(
        "--env",
        metavar="NAME[=VALUE]",
        type=environment_variable,
        action="append",
        default=[],
        help="an environment variable for the script; without a value the caller's own; may be repeated",
    )
    add_root_option(score)
    score.set_defaults(run=_run_score)


def _add_telemetry_store_command(commands: Commands) -> None:
    """Add the parser of `telemetry-store`, which runs the local telemetry store."""
    store = commands.add_parser(
        "telemetry-store", help="receive App Insights and OTLP telemetry, and answer Log Analytics queries"
    )
    store.add_argument("--port", type=port, required=True, help="port on 127.0.0.1")
    store.add_argument("--data", type=Path, required=True, help="folder that keeps the telemetry")
    store.add_argument(
        "--retention",
        type=duration,
        default=timedelta(days=30),
        metavar="DURATION",
        help="delete rows older than this, such as '12 h' (default 30 d)",
    )
    store.add_argument("--token-file", type=Path, help="require the bearer token in this file for queries")
    store.add_argument(
        "--upload-token-file", type=Path, help="require the bearer token in this file for spans and requests"
    )
    store.set_defaults(run=_run_telemetry_store)


def _run_local_up(options: argparse.Namespace) -> int:
    """Run `controlled-rollout local up`: start the supervisor; return the exit code."""
    from controlled_rollout.target.local import supervisor

    return supervisor.start_workspace(_workspace_to_start(options), port=options.port, detach=not options.foreground)


def _workspace_to_start(options: argparse.Namespace) -> Workspace:
    """Return the workspace that `local up` starts: the local one, with the settings that the options give."""
    workspace = Workspace.local(options.root)
    names = ("storage", "tls", "tls_certificate", "tls_key", "endpoint_ca")
    if asked := {name: value for name in names if (value := getattr(options, name))}:
        settings = {"root": str(workspace.root), "cache_folder": str(workspace.cache_folder)}
        return Workspace.from_settings(settings | asked)
    return workspace


def _run_local_down(options: argparse.Namespace) -> int:
    """Run `controlled-rollout local down`: stop the supervisor; return the exit code."""
    from controlled_rollout.target.local import supervisor

    return supervisor.stop_workspace(Workspace.local(options.root))


def _run_local_status(options: argparse.Namespace) -> int:
    """Run `controlled-rollout local status`: print endpoints and processes; return the exit code."""
    from controlled_rollout.target.local.client import LocalTarget
    from controlled_rollout.target.local.remains import remaining_processes

    workspace = Workspace.local(options.root)

    async def print_status() -> None:
        """Read endpoints and processes from the supervisor and print them."""
        async with LocalTarget.open(workspace) as target:
            for name in await target.endpoints():
                for line in endpoint_lines(await readable_endpoint(target, name), await target.status(name)):
                    print_line(line)
                print_line("")
            print_line(_process_table(await target.process_statuses()))

    try:
        asyncio.run(print_status())
    except TargetUnavailableError:
        if left := remaining_processes(workspace):
            print_line(_process_table(left))
        raise
    return 0


def _process_table(processes: "list[ProcessStatus]") -> str:
    """Return a table with a line for each process: what it is, its process id, and what is wrong with it."""
    rows = [
        (process.name, f"{process.pid or '-'} ({process.problem})" if process.problem else str(process.pid))
        for process in processes
    ]
    return text_table([("process", "pid"), *rows])


def _run_erase(options: argparse.Namespace) -> int:
    """Run `controlled-rollout erase`: show or delete the collected rows of one id; return the exit code."""
    from controlled_rollout.storage import open_storage
    from controlled_rollout.storage.erasure import UnreadableFile, erase_rows, find_reports, find_rows

    storage = open_storage(workspace_of(options))
    rows = new = unreadable = 0
    requests: set[str] = set()
    for found in find_rows(storage, options.id, datetime.now(UTC)):
        address = storage.address_of(found.name)
        if isinstance(found, UnreadableFile):
            print_line(f"cannot be read: {address} ({found.problem})")
            unreadable += 1
            continue
        print_line(f"{found.rows:>8,} rows  {address}{' (still written)' * found.is_new}")
        requests |= found.requests
        rows += found.rows
        new += found.is_new
        if options.yes and not found.is_new:
            erase_rows(storage, found)
    for report in find_reports(storage, requests | {options.id}):
        print_line(f"{'':>8} report {storage.address_of(report)}")
        if options.yes:
            storage.delete(report)
    if not options.yes:
        print_line(f"{rows:,} rows can be deleted: repeat with --yes")
    elif new:
        print_line(f"{new} parts were left, because a collector may still write them: repeat it in two minutes")
    else:
        print_line(f"{rows:,} rows deleted")
    if unreadable:
        print_line(
            f"{unreadable} files could not be read and were left: see whether they are parts, and delete them if so"
        )
    return ExitCode.FAILED if unreadable or (options.yes and new) else 0


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
    rows = [(each.what, f"{each.size / 1e6:,.1f}", str(each.path)) for each in leftovers]
    rows += [(each.what, f"{each.size / 1e6:,.1f}", each.address) for each in old_files]
    print_line(text_table([("what", "MB", "path"), *rows]))
    if options.yes:
        freed = delete_leftovers(leftovers)
        for name in [name for each in old_files for name in each.names]:
            storage.delete(name)
        print_line(f"{(freed + sum(each.size for each in old_files)) / 1e6:,.1f} MB freed")
    else:
        size = sum(each.size for each in leftovers) + sum(each.size for each in old_files)
        print_line(f"{size / 1e6:,.1f} MB can be freed: repeat with --yes")
    return 0


def _run_score(options: argparse.Namespace) -> int:
    """Run `controlled-rollout score`: serve a project folder until it is stopped; return the exit code."""
    from controlled_rollout.image import ModelSource
    from controlled_rollout.target.local.serve_folder import serve_folder

    try:
        return serve_folder(
            options.folder,
            port=options.port,
            cache=Workspace.local(options.root).cache_folder,
            environment=options.environment,
            models=[ModelSource(name, path) for name, path in options.model],
            entry_script=options.entry_script,
            environment_variables=dict(options.env),
        )
    except WorkspaceError as error:
        # A port that is in use has the same exit code in all commands that listen on one.
        sys.stderr.write(f"controlled-rollout: {visible_text(str(error))}\n")
        return ExitCode.WRONG_ARGUMENTS


def _run_telemetry_store(options: argparse.Namespace) -> int:
    """Run `controlled-rollout telemetry-store` until it is stopped; return the exit code."""
    from controlled_rollout.telemetry_store.server import serve

    return serve(
        port=options.port,
        data=options.data,
        retention=options.retention,
        token_file=options.token_file,
        upload_token_file=options.upload_token_file,
    )
