"""The supervisor process itself: takes the folder, starts everything, serves the interface, ends everything."""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import uvicorn  # noqa: TID253 - runs only inside the supervisor's process

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.polling import until
from controlled_rollout.target.local import files, keys, ports, reaper
from controlled_rollout.target.local.api import create_app
from controlled_rollout.target.local.envoy_process import Router
from controlled_rollout.target.local.load import LoadMeter
from controlled_rollout.target.local.operations import Operations, launch_from_cache
from controlled_rollout.target.local.processes import MARK, LogFile
from controlled_rollout.target.local.reconciler import Reconciler
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.local.state import FolderLock, State
from controlled_rollout.target.local.telemetry import TelemetryStore
from controlled_rollout.workspace import Workspace

__all__ = ["serve"]

log = logging.getLogger(__name__)

Tell = Callable[[dict[str, Any]], None]

RUNTIME_PREFIX: Final = "cr-"
# How long a restarted router waits for the versions with traffic before it lets callers in all the same.
RESTORE_S: Final = 30.0
ROUTER_START_S: Final = 15.0
TELEMETRY_START_S: Final = 10.0
DRAIN_S: Final = 15.0
# The router sends its spans every half a second: the last ones should still find the store.
LAST_SPANS_S: Final = 0.6


def serve(workspace: Workspace, *, port: int, host: str, tell: Tell) -> int:
    """Own the workspace's folder and serve it until told to end.

    Args:
        workspace: Which folder.
        port: The router's port; 0 for any free one.
        host: The router's address.
        tell: Called once with `code` (0 running, 1 failed, 2 refused) and `message`.

    Returns:
        The exit code.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    files.private_folder(workspace.root).chmod(0o700)
    lock = FolderLock(workspace)
    if not lock.take():
        state = State.read(workspace)
        who = (
            f"process {state.pid} serves it at {state.router_url}" if state else "another supervisor is starting there"
        )
        tell(
            {"code": 2, "message": f"the workspace {workspace.root} is taken: {who}; use it, or choose another folder"}
        )
        return 2
    try:
        with ports.reserve(host, port) as held, ports.reserve("127.0.0.1", 0) as held_for_telemetry:
            _clear_up_after_the_last(workspace)
            with _runtime_folder() as runtime:
                household = _Household(workspace, runtime, host, held, held_for_telemetry)
                return asyncio.run(household.live(tell))
    except WorkspaceError as error:
        tell({"code": 2, "message": str(error)})
        return 2
    finally:
        lock.release()


def _clear_up_after_the_last(workspace: Workspace) -> None:
    """End what a killed supervisor left, should its reaper have been killed as well."""
    if state := State.read(workspace):
        reaper.kill_marked(f"{MARK}={state.runtime}")
        shutil.rmtree(state.runtime, ignore_errors=True)
        workspace.state_file.unlink(missing_ok=True)


@contextlib.contextmanager
def _runtime_folder() -> Iterator[Path]:
    """Give a private folder with a short path (a socket's path has at most 107 bytes), and a reaper over it."""
    runtime = Path(tempfile.mkdtemp(prefix=RUNTIME_PREFIX))
    # systemd-tmpfiles leaves a locked folder alone, however old it gets.
    lock = os.open(runtime, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    watch = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-I", "-S", reaper.__file__, f"{MARK}={runtime}", str(runtime)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield runtime
    finally:
        if watch.stdin:
            watch.stdin.close()
        watch.wait()
        os.close(lock)


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


class _Household:
    """Everything that one supervisor runs."""

    def __init__(
        self, workspace: Workspace, runtime: Path, host: str, held: socket.socket, held_for_telemetry: socket.socket
    ) -> None:
        self._workspace = workspace
        self._runtime = runtime
        self._host = host
        self._port: int = held.getsockname()[1]
        self._telemetry_port: int = held_for_telemetry.getsockname()[1]
        self._end = asyncio.Event()

    async def live(self, tell: Tell) -> int:
        """Start, serve until told to end, stop."""
        self._create()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end.set)
        interface = asyncio.create_task(self._server.serve(sockets=[self._bind()]), name="interface")
        learning: asyncio.Task[None] | None = None
        failure: str | None = "the supervisor was told to end while it started"
        try:
            starting = asyncio.create_task(self._start())
            ending = asyncio.create_task(self._end.wait())
            await asyncio.wait([starting, ending], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                failure = await starting
            tell({"code": 1, "message": failure} if failure else {"code": 0, "message": self._greeting()})
            if failure is None:
                self._tell_clients()
                learning = asyncio.create_task(self._learn_telemetry())
                await ending
        finally:
            for task in (starting, ending, learning):
                if task:
                    task.cancel()
            await self._stop(interface)
        return 1 if failure else 0

    def _create(self) -> None:
        workspace = self._workspace
        self._store = RevisionStore(files.private_folder(workspace.endpoints_folder))
        self._store.sweep()
        token_file = workspace.root / "telemetry.token"
        if not token_file.exists():
            files.replace(token_file, secrets.token_urlsafe().encode())
        self._telemetry = TelemetryStore(
            port=self._telemetry_port,
            data=workspace.telemetry_folder,
            token_file=token_file,
            runtime=self._runtime,
            log=LogFile(workspace.logs_folder / "telemetry.log"),
        )
        self._router = Router(
            self._runtime / "envoy",
            LogFile(workspace.logs_folder / "router.log"),
            host=self._host,
            port=self._port,
            telemetry_port=self._telemetry_port,
            changed=lambda: self._reconciler.changed(),
        )
        self._reconciler = Reconciler(
            self._router,
            runtime=self._runtime,
            logs_folder=workspace.logs_folder,
            launch=lambda version: launch_from_cache(version, workspace.cache_folder),
            keys=lambda name: keys.read(self._store.endpoint_folder(name)),
        )
        self._meter = LoadMeter(self._router.counters)
        self._operations = Operations(
            self._store,
            self._reconciler,
            self._router,
            self._telemetry,
            self._meter,
            cache_folder=workspace.cache_folder,
            logs_folder=workspace.logs_folder,
        )
        app = create_app(self._operations, shut_down=self._end.set)
        self._server = _Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))

    def _bind(self) -> socket.socket:
        path = self._runtime / "supervisor.sock"
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound.bind(str(path))
        path.chmod(0o600)
        return bound

    def _greeting(self) -> str:
        return f"running: {self._operations.router_url} (workspace {self._workspace.root})"

    def _tell_clients(self) -> None:
        State(
            pid=os.getpid(),
            runtime=self._runtime,
            socket=self._runtime / "supervisor.sock",
            router_url=self._operations.router_url,
            telemetry_url=self._telemetry.url,
            telemetry_workspace_id=self._telemetry.workspace_id,
            telemetry_token_file=self._telemetry.token_file,
            envoy_admin=self._router.layout.admin_socket,
        ).write(self._workspace)

    async def _start(self) -> str | None:
        """Start everything; return what went wrong, if anything did."""
        self._router.start()
        self._meter.start()
        await self._telemetry.set_running(True)
        for name in self._store.endpoints():
            if newest := self._store.newest(name):
                self._reconciler.want(newest.endpoint)
        self._reconciler.start()
        # From here on clients can look, and a killed supervisor's children can be found again.
        self._tell_clients()
        await until(lambda: self._reconciler.prepared, RESTORE_S)
        await self._router.listen()
        if not await until(self._router.listens, ROUTER_START_S):
            tail = "\n".join(LogFile(self._workspace.logs_folder / "router.log").tail(15))
            return f"the router does not answer on {self._host}:{self._port}; the last lines of its log:\n{tail}"
        if not await self._telemetry.wait_until_healthy(TELEMETRY_START_S):
            log.warning("the telemetry store does not answer yet; the router serves without it")
        return None

    async def _learn_telemetry(self) -> None:
        """Tell clients the telemetry store's workspace as soon as a store that was late has said it."""
        while self._telemetry.workspace_id is None:
            if await self._telemetry.wait_until_healthy(TELEMETRY_START_S):
                self._tell_clients()

    async def _stop(self, interface: "asyncio.Task[None]") -> None:
        """End everything, callers' requests first."""
        self._workspace.state_file.unlink(missing_ok=True)
        self._server.should_exit = True
        await interface
        await self._meter.stop()
        await self._router.stop(DRAIN_S, LAST_SPANS_S)
        await self._reconciler.stop()
        await self._telemetry.set_running(False)
