"""The agent's program: `python -m controlled_rollout.agent --workspace FILE --namespace NAME …`."""

import argparse
import asyncio
import contextlib
import logging
import secrets
import signal
import socket
import sys
from asyncio.sslproto import SSLProtocol
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from controlled_rollout.agent.fence import fenced
from controlled_rollout.agent.health import serve_health
from controlled_rollout.agent.leadership import Leadership
from controlled_rollout.agent.namespace_work import work_for
from controlled_rollout.cli.workspace_file import read_workspace
from controlled_rollout.cluster.api import Api
from controlled_rollout.cluster.pod_client import SERVICE_ACCOUNT_FOLDER, open_pod_client
from controlled_rollout.errors import ControlledRolloutError, WorkspaceError
from controlled_rollout.workspace import Workspace

__all__ = ["main", "workspaces_of"]

log = logging.getLogger(__name__)

MAX_NAMESPACES: Final = 100
# asyncio has a buffer of 256 KiB for each TLS connection, and each watch is one: 30 of them would take 8 MB.
TLS_BUFFER_BYTES: Final = 65_536


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an agent until SIGTERM or SIGINT; return the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    SSLProtocol.max_size = TLS_BUFFER_BYTES
    try:
        asyncio.run(_run(workspaces_of(options), options.health_port))
    except ControlledRolloutError as error:
        log.error("%s", error)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the agent's options."""
    parser = argparse.ArgumentParser(prog="controlled_rollout.agent", description=__doc__)
    parser.add_argument(
        "--workspace", type=Path, required=True, metavar="FILE", help="the workspace's settings, as the steps have them"
    )
    parser.add_argument(
        "--namespace",
        action="append",
        default=[],
        dest="namespaces",
        help="a namespace whose endpoints the agent looks after; may be repeated (else that of the workspace)",
    )
    parser.add_argument(
        "--service-account",
        type=Path,
        default=SERVICE_ACCOUNT_FOLDER,
        metavar="FOLDER",
        help="the folder with the token and the cluster's ca.crt (else where a pod has them)",
    )
    parser.add_argument("--health-port", type=int, metavar="PORT", help="where the liveness probe is answered")
    return parser


def workspaces_of(options: argparse.Namespace) -> list[Workspace]:
    """Return a workspace for each namespace; they differ in that alone.

    Raises:
        WorkspaceError: The workspace is not on Kubernetes, or the namespaces are too many or not different.
    """
    workspace = read_workspace(options.workspace, by_schema=False)
    if workspace.target != "kubernetes":
        raise WorkspaceError(f"{options.workspace} has target {workspace.target!r}: an agent is for 'kubernetes'")
    namespaces = options.namespaces or [workspace.namespace]
    if len({*namespaces}) != len(namespaces) or len(namespaces) > MAX_NAMESPACES:
        raise WorkspaceError(f"name each namespace once, and at most {MAX_NAMESPACES}: {', '.join(namespaces)}")
    settings = workspace.model_dump(exclude_unset=True)
    open_client = partial(open_pod_client, options.service_account)
    return [
        Workspace.from_settings({**settings, "namespace": name, "open_cluster": open_client}) for name in namespaces
    ]


async def _run(workspaces: Sequence[Workspace], health_port: int | None) -> None:
    """Seek the Lease of each namespace, and work there while it is held, until a signal to end comes."""
    identity = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    loop, running = asyncio.get_running_loop(), asyncio.current_task()
    assert running is not None  # noqa: S101 - asyncio.run has made it
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        async with contextlib.AsyncExitStack() as stack:
            if health_port is not None:
                await stack.enter_async_context(await serve_health(health_port))
            api = await stack.enter_async_context(Api.open(workspaces[0]))
            async with asyncio.TaskGroup() as tasks:
                for workspace in workspaces:
                    leadership = Leadership(api, workspace.namespace, identity)
                    fenced_workspace = fenced(workspace, leadership.may_act)
                    tasks.create_task(leadership.run(partial(work_for, fenced_workspace)))


if __name__ == "__main__":
    sys.exit(main())
