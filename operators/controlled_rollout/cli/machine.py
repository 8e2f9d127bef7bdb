"""Commands that run something on this machine: the local workspace, one project folder, the telemetry store."""

import argparse
import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlled_rollout.cli.arguments import (
    Commands,
    add_root_option,
    duration,
    environment_variable,
    model_name_and_path,
    port,
)
from controlled_rollout.cli.endpoint import readable_endpoint
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.output import add_output_option, show
from controlled_rollout.cli.view import endpoint_as_json, endpoint_lines
from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.text_table import text_table
from controlled_rollout.visible_text import visible_text
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from controlled_rollout.target.local.process_status import ProcessStatus

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add the parsers of the commands `local`, `score` and `telemetry-store`."""
    _add_local_command(commands)
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
    add_output_option(status)
    add_root_option(status)
    status.set_defaults(run=_run_local_status)


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

    async def read() -> "tuple[list[dict[str, Any]], list[str], list[ProcessStatus]]":
        """Return the endpoints as JSON values and as lines of text, and the processes, from the supervisor."""
        documents, lines = [], []
        async with LocalTarget.open(workspace) as target:
            for name in await target.endpoints():
                endpoint, status = await readable_endpoint(target, name), await target.status(name)
                documents.append(endpoint_as_json(endpoint, status))
                lines += [*endpoint_lines(endpoint, status), ""]
            return documents, lines, await target.process_statuses()

    try:
        endpoints, lines, processes = asyncio.run(read())
    except TargetUnavailableError:
        if left := remaining_processes(workspace):
            _show_status(options, [], [], left)
        raise
    _show_status(options, endpoints, lines, processes)
    return 0


def _show_status(
    options: argparse.Namespace, endpoints: list[dict[str, Any]], lines: list[str], processes: "list[ProcessStatus]"
) -> None:
    """Print the endpoints, as JSON values or as lines of text, and the processes."""
    document = {"endpoints": endpoints, "processes": [process.model_dump(mode="json") for process in processes]}
    show(options, document, [*lines, _process_table(processes)])


def _process_table(processes: "list[ProcessStatus]") -> str:
    """Return a table with a line for each process: what it is, its process id, and what is wrong with it."""
    rows = [
        (process.name, f"{process.pid or '-'} ({process.problem})" if process.problem else str(process.pid))
        for process in processes
    ]
    return text_table([("process", "pid"), *rows])


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
