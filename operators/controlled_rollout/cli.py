"""The command line: `controlled-rollout …`, on the same engine as the Airflow tasks, without Airflow."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.workspace import Workspace

__all__ = ["main"]

DEFAULT_ROUTER_PORT = 8088


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What stands behind the program's name; None takes the process's own.

    Returns:
        The exit code: 0 for success, 1 for an error of ours, 2 for a call that makes no sense.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ControlledRolloutError as error:
        print(f"controlled-rollout: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="controlled-rollout", description="Roll out machine-learning models: canary traffic, a gate, promotion."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_local(commands)
    _add_endpoint(commands)
    _add_score(commands)
    _add_telemetry_store(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        type=Path,
        help="the local workspace's folder (else $CONTROLLED_ROLLOUT_HOME, else ~/.controlled-rollout)",
    )


def _add_local(commands: Commands) -> None:
    local = commands.add_parser("local", help="the local workspace: a router, versions and telemetry on this machine")
    actions = local.add_subparsers(title="actions", metavar="ACTION", required=True)
    up = actions.add_parser("up", help="start it")
    _add_root(up)
    up.add_argument("--port", type=_port, default=DEFAULT_ROUTER_PORT, help="the router's port (default %(default)s)")
    up.add_argument("--foreground", action="store_true", help="stay in the foreground until Ctrl-C")
    up.set_defaults(run=_local_up)
    down = actions.add_parser("down", help="stop it; endpoints, keys and telemetry stay on disk")
    _add_root(down)
    down.set_defaults(run=_local_down)
    status = actions.add_parser("status", help="show endpoints, versions, traffic and replicas")
    _add_root(status)
    status.set_defaults(run=_local_status)


def _add_endpoint(commands: Commands) -> None:
    endpoint = commands.add_parser("endpoint", help="look at an endpoint")
    actions = endpoint.add_subparsers(title="actions", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="show an endpoint's newest revision and how it is, as JSON")
    _add_root(show)
    show.add_argument("name")
    show.set_defaults(run=_endpoint_show)


def _add_score(commands: Commands) -> None:
    score = commands.add_parser("score", help="serve a project folder on this machine as a version would be served")
    score.add_argument("folder", type=Path, help="the folder with score.py and its environment file")
    score.add_argument("--port", type=_port, default=5001, help="port on 127.0.0.1 (default %(default)s)")
    score.add_argument("--environment", type=Path, help="environment file (default: the one in the folder)")
    score.add_argument("--entry-script", default="score.py", help="entry script in the folder (default %(default)s)")
    score.add_argument(
        "--model",
        metavar="NAME=PATH",
        type=_model,
        action="append",
        default=[],
        help="a model's files; may be repeated",
    )
    _add_root(score)
    score.set_defaults(run=_score)


def _add_telemetry_store(commands: Commands) -> None:
    store = commands.add_parser(
        "telemetry-store", help="take App Insights and OTLP telemetry, answer Log Analytics queries"
    )
    store.add_argument("--port", type=_port, required=True, help="port on 127.0.0.1")
    store.add_argument("--data", type=Path, required=True, help="folder that keeps the telemetry")
    store.add_argument("--retention-days", type=float, default=30.0, help="delete older rows (default %(default)s)")
    store.add_argument("--token-file", type=Path, help="ask queries for the bearer token in this file")
    store.set_defaults(run=_telemetry_store)


def _local_up(options: argparse.Namespace) -> int:
    from controlled_rollout.target.local import supervisor

    return supervisor.up(Workspace.local(options.root), port=options.port, detach=not options.foreground)


def _local_down(options: argparse.Namespace) -> int:
    from controlled_rollout.target.local import supervisor

    return supervisor.down(Workspace.local(options.root))


def _local_status(options: argparse.Namespace) -> int:
    from controlled_rollout.target.local import supervisor

    return supervisor.status(Workspace.local(options.root))


def _endpoint_show(options: argparse.Namespace) -> int:
    from controlled_rollout.target import connect

    async def show() -> dict[str, object]:
        target = connect(Workspace.local(options.root))
        endpoint = await target.endpoint(options.name)
        status = await target.status(options.name)
        return {
            "endpoint": endpoint.model_dump(mode="json"),
            "effective_traffic": endpoint.effective_traffic(),
            "status": status.model_dump(mode="json"),
        }

    print(json.dumps(asyncio.run(show()), indent=2))
    return 0


def _score(options: argparse.Namespace) -> int:
    from controlled_rollout.image import ModelSource
    from controlled_rollout.target.local.score import serve_folder

    return serve_folder(
        options.folder,
        port=options.port,
        cache=Workspace.local(options.root).cache_folder,
        environment=options.environment,
        models=[ModelSource(name, path) for name, path in options.model],
        entry_script=options.entry_script,
    )


def _telemetry_store(options: argparse.Namespace) -> int:
    from controlled_rollout.evidence.store.server import serve

    return serve(
        port=options.port,
        data=options.data,
        retention=timedelta(days=options.retention_days),
        token_file=options.token_file,
    )


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give a number from 1 to 65535")
    return int(text)


def _model(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=PATH")
    return name, Path(path)


if __name__ == "__main__":
    sys.exit(main())
