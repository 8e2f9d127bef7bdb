"""The client of the local supervisor: opened once, it survives a restart of the supervisor."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.target.local.client import LocalTarget
from controlled_rollout.target.local.supervisor_state import SupervisorState
from controlled_rollout.workspace import Workspace


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket must be short
        yield Workspace.local(folder)


def write_state(workspace: Workspace, socket: Path) -> None:
    """Write the state file of a supervisor that answers at a socket."""
    SupervisorState(
        pid=1,
        runtime=workspace.root,
        socket=socket,
        router_url="",
        telemetry_url="",
        telemetry_workspace_id=None,
        telemetry_token_file=Path(),
        envoy_admin=Path(),
    ).write(workspace)


class Supervisor:
    """Answers every request alike, with the list of its own endpoints by default, and counts its connections."""

    def __init__(self, workspace: Workspace, name: str, answer: tuple[int, str] | None = None) -> None:
        self._workspace = workspace
        self._status, self._body = answer or (200, f'["{name}"]')
        self._name = name
        self.connections: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Supervisor"]:
        socket = self._workspace.root / f"{self._name}.sock"
        write_state(self._workspace, socket)
        server = await asyncio.start_unix_server(self._serve, str(socket))
        try:
            yield self
        finally:
            server.close()
            for connection in self.connections:
                connection.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        body = self._body.encode()
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n%b" % (self._status, len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def test_all_calls_of_one_opening_share_a_connection(workspace: Workspace) -> None:
    async with Supervisor(workspace, "one").running() as supervisor, LocalTarget.open(workspace) as target:
        for _ in range(5):
            assert await target.endpoints() == ["one"]

    assert len(supervisor.connections) == 1


async def test_an_open_target_follows_a_supervisor_that_starts_again(workspace: Workspace) -> None:
    async with LocalTarget.open(workspace) as target:
        with pytest.raises(TargetUnavailableError, match="is not running"):
            await target.endpoints()
        async with Supervisor(workspace, "one").running():
            assert await target.endpoints() == ["one"]
        with pytest.raises(TargetUnavailableError, match="does not answer"):
            await target.endpoints()
        async with Supervisor(workspace, "two").running():
            assert await target.endpoints() == ["two"]


async def test_a_closed_target_is_not_used(workspace: Workspace) -> None:
    async with Supervisor(workspace, "one").running():
        async with LocalTarget.open(workspace) as target:
            pass
        with pytest.raises(RuntimeError, match="closed"):
            await target.endpoints()


async def test_without_a_supervisor_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailableError, match="controlled-rollout local up"):
        async with LocalTarget.open(Workspace.local(tmp_path)) as target:
            await target.endpoints()


async def test_an_error_without_a_text_is_named_by_its_kind(workspace: Workspace) -> None:
    """A supervisor that is killed while it answers closes the connection, which is an error without a text."""
    socket = workspace.root / "silent.sock"
    write_state(workspace, socket)

    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_unix_server(close, socket), LocalTarget.open(workspace) as target:
        with pytest.raises(TargetUnavailableError, match=r"does not answer \(\w+Error\)") as raised:
            await target.endpoints()
    # It may still run: `local up` alone would find the folder in use.
    down, up = (f"`controlled-rollout local {action} --root {workspace.root}`" for action in ("down", "up"))
    assert str(raised.value).endswith(f"end it with {down}, then start it with {up}")


def test_importing_the_client_imports_no_server() -> None:
    code = (
        "import sys, controlled_rollout.target.local.client as c; "
        "print([m for m in ('httpx', 'fastapi', 'uvicorn', 'rich') if m in sys.modules])"
    )
    environment = {"PATH": os.environ["PATH"]}

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)

    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "answer",
    [
        (422, '{"detail": [{"type": "extra_forbidden", "loc": ["body", "change", "reason"]}]}'),
        (404, '{"detail": "Not Found"}'),
        (405, '{"detail": "Method Not Allowed"}'),
        (200, '[{"number": 1, "why": "a field that this release does not know"}]'),
        (200, "no JSON"),
    ],
    ids=["field", "path", "method", "answer", "no-json"],
)
async def test_a_supervisor_of_another_release_is_said_at_once_and_not_waited_for(
    workspace: Workspace, answer: tuple[int, str]
) -> None:
    async with Supervisor(workspace, "old", answer).running(), LocalTarget.open(workspace) as target:
        with pytest.raises(WorkspaceError, match=r"another release than this program.*local down.*local up"):
            await target.history("digits")


async def test_a_supervisor_that_fails_is_tried_again(workspace: Workspace) -> None:
    answer = (500, "Internal Server Error")
    async with Supervisor(workspace, "one", answer).running(), LocalTarget.open(workspace) as target:
        with pytest.raises(TargetUnavailableError, match="answered 500"):
            await target.history("digits")
