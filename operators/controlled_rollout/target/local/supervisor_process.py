"""The supervisor process: locks the workspace's folder, starts the router, replicas and telemetry, and ends them."""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, Self, TypedDict

import uvicorn  # noqa: TID253 - runs only inside the supervisor's process
from fastapi import FastAPI  # noqa: TID253 - as above

from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.polling import until
from controlled_rollout.target.local import atomic_files, ports
from controlled_rollout.target.local.api import create_app
from controlled_rollout.target.local.autoscaler import Autoscaler
from controlled_rollout.target.local.collector_process import CollectorProcess
from controlled_rollout.target.local.envoy_process import EnvoyProcess
from controlled_rollout.target.local.issuer_keys import IssuerKeys
from controlled_rollout.target.local.load_meter import LoadMeter
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.operations import Operations
from controlled_rollout.target.local.process_identity import ProcessIdentity
from controlled_rollout.target.local.reconciler import Reconciler
from controlled_rollout.target.local.remains import end_remains
from controlled_rollout.target.local.replica_numbers import ReplicaNumbers
from controlled_rollout.target.local.reserve import Reserve, is_out_of_space
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.local.router_certificate import RouterCertificate
from controlled_rollout.target.local.runtime_folder import runtime_folder
from controlled_rollout.target.local.silence_watch import SilenceWatch
from controlled_rollout.target.local.spools import end_spools
from controlled_rollout.target.local.stored_endpoints import StoredEndpoints
from controlled_rollout.target.local.supervisor_state import FolderLock, SupervisorState
from controlled_rollout.target.local.telemetry_process import TelemetryStoreProcess
from controlled_rollout.workspace import Workspace

__all__ = ["StartReport", "run_supervisor"]

log = logging.getLogger(__name__)

# How long a restarted router waits for the versions with traffic before it accepts callers.
RESTORE_TIMEOUT_S: Final = 30.0
ENVOY_START_TIMEOUT_S: Final = 60.0
# How often the file of the state is looked at.
STATE_INTERVAL_S: Final = 1.0
TELEMETRY_START_TIMEOUT_S: Final = 60.0
DRAIN_TIMEOUT_S: Final = 15.0
# The router sends its spans every half a second, and the last ones before it ends.
LAST_SPANS_S: Final = 0.6
LOG_LINES: Final = 15


class StartReport(TypedDict):
    """How the start went.

    Attributes:
        code: The exit code: 0 everything runs, 1 failed, 2 refused.
        message: For whoever started the supervisor: sentences, one a line.
        goes_on: Whether the supervisor goes on running: the router serves, something else has not started.
    """

    code: int
    message: str
    goes_on: bool


def run_supervisor(
    workspace: Workspace,
    *,
    port: int,
    host: str,
    report: Callable[[StartReport], None],
    credentials: Mapping[str, str],
) -> int:
    """Lock the workspace's folder and run everything in it until a signal or a client ends it; return the exit code.

    Args:
        workspace: A workspace whose target is `local`.
        credentials: The variables with which the collector signs in to the storage.
        port: The router's port; 0 for any free one.
        host: The router's address.
        report: Called once, when everything runs or when the start has failed.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    atomic_files.create_private_folder(workspace.root).chmod(0o700)
    lock = FolderLock(workspace)
    if not lock.take():
        report({"code": 2, "message": _folder_in_use_message(workspace, lock), "goes_on": False})
        return 2
    try:
        # What an earlier supervisor has left may hold the port.
        if ended := end_remains(workspace, lock):
            log.warning("ended %d processes of a supervisor that was killed", ended)
        # Its replicas, too, never start again: new ones have spools of their own.
        end_spools(workspace.spools_folder)
        with ports.reserve_port(host, port) as router_port, ports.reserve_port("127.0.0.1", 0) as telemetry_port:
            with runtime_folder() as runtime:
                lock.name_owner(runtime)
                process = _SupervisorProcess(
                    workspace, lock, runtime, host, _port_number(router_port), _port_number(telemetry_port), credentials
                )
                return asyncio.run(process.run(report))
    except WorkspaceError as error:
        report({"code": 2, "message": str(error), "goes_on": False})
        return 2
    except OSError as error:
        if not is_out_of_space(error):
            raise
        report({"code": 1, "message": _no_space_message(workspace, error), "goes_on": False})
        return 1
    finally:
        lock.release()


def _folder_in_use_message(workspace: Workspace, lock: FolderLock) -> str:
    """Return the message for a workspace folder that another supervisor has locked."""
    owner, state = lock.owner(), SupervisorState.read(workspace)
    process = f"process {owner.process.pid}" if owner and owner.process.is_running() else "another supervisor"
    serves = f"serves it at {state.router_url}" if state else "is starting there"
    return (
        f"the workspace {workspace.root} is in use: {process} {serves}; use that one, choose another folder, or end it "
        f"with `{workspace.local_command('down')}`"
    )


def _no_space_message(workspace: Workspace, error: OSError) -> str:
    """Return the message for a start that a full disk has ended."""
    # A file that could be opened, and has no space for its content, is not named by the system.
    where = error.filename or f"{workspace.root} or {tempfile.gettempdir()}"
    return (
        f"the workspace {workspace.root} did not start: {error.strerror} in {where}: free disk space there, and start "
        "it again"
    )


def _port_number(reserved: socket.socket) -> int:
    """Return the port number that a socket is bound to."""
    port: int = reserved.getsockname()[1]
    return port


class _ApiServer(uvicorn.Server):
    """A uvicorn server that does not handle the process's signals."""

    @classmethod
    def of(cls, app: FastAPI) -> Self:
        """Return the server of an application."""
        return cls(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Context manager that handles no signal: the supervisor handles them itself."""
        yield


class _SupervisorProcess:
    """The parts that one supervisor runs: router, replicas, telemetry store, collector, load meter and API.

    Args:
        workspace: The workspace.
        lock: The lock on its folder, which is held.
        runtime: The private folder of sockets.
        host: The router's address.
        router_port: The router's port.
        telemetry_port: The telemetry store's port on 127.0.0.1.
        credentials: The variables with which the collector signs in to the storage.
    """

    # Long because each part gets the others that it works with.
    def __init__(
        self,
        workspace: Workspace,
        lock: FolderLock,
        runtime: Path,
        host: str,
        router_port: int,
        telemetry_port: int,
        credentials: Mapping[str, str],
    ) -> None:
        self._workspace = workspace
        self._lock = lock
        self._runtime = runtime
        self._end = asyncio.Event()
        self._reserve = Reserve(workspace.root / "reserve")
        self._reserve.fill()
        self._revisions = RevisionStore(atomic_files.create_private_folder(workspace.endpoints_folder), self._reserve)
        self._stored = StoredEndpoints(self._revisions)
        self._telemetry_log = LogFile(workspace.logs_folder / "telemetry.log")
        # Anew at each start: only the router and the store know it.
        upload_token = secrets.token_urlsafe()
        self._telemetry = _telemetry_store(workspace, telemetry_port, runtime, upload_token, self._telemetry_log)
        self._router_log = LogFile(workspace.logs_folder / "router.log")
        self._envoy = EnvoyProcess(
            runtime / "envoy",
            self._router_log,
            host=host,
            port=router_port,
            telemetry_port=telemetry_port,
            telemetry_token=upload_token,
            on_change=lambda: self._reconciler.wake(),
        )
        self._certificate = RouterCertificate.of(workspace, host, self._envoy.serve_certificate)
        self._issuer_keys = IssuerKeys(workspace.root / "issuers", on_change=lambda: self._reconciler.wake())
        replica_numbers = ReplicaNumbers(self._revisions.endpoint_folder)
        self._reconciler = Reconciler(
            workspace,
            self._envoy,
            stored=self._stored,
            runtime=runtime,
            issuer_keys=self._issuer_keys,
            replica_numbers=replica_numbers,
        )
        autoscaler = Autoscaler(self._reconciler.running, replica_numbers)
        self._collector = _collector(workspace, runtime, credentials)
        self._process = ProcessIdentity.of(os.getpid())
        self._silence = SilenceWatch(workspace, self._revisions, runtime=runtime, credentials=credentials)
        self._load_meter = LoadMeter(self._envoy.counters, on_counters=autoscaler.follow)
        self._api_server = _ApiServer.of(create_app(self._api_operations(autoscaler), shut_down=self._end.set))

    def _api_operations(self, autoscaler: Autoscaler) -> Operations:
        """Return what the API offers."""
        return Operations(
            self._workspace,
            self._revisions,
            self._stored,
            self._reconciler,
            self._envoy,
            self._telemetry,
            self._load_meter,
            autoscaler,
            collector=self._collector,
            certificate=self._certificate,
            silence=self._silence,
            issuer_keys=self._issuer_keys,
        )

    async def run(self, report: Callable[[StartReport], None]) -> int:
        """Start everything, serve until a signal or a client ends it, stop; return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end.set)
        serving_api = asyncio.create_task(self._api_server.serve(sockets=[self._bind_api_socket()]), name="API")
        starting = asyncio.create_task(self._start_parts())
        ending = asyncio.create_task(self._end.wait())
        keeping_state: asyncio.Task[None] | None = None
        failure: str | None = "the supervisor was stopped while it started"
        try:
            await asyncio.wait([starting, ending], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                failure = await starting
            if failure:
                report({"code": 1, "message": failure, "goes_on": False})
            else:
                problems = self._start_problems()
                message = "\n".join([self._running_message(), *problems])
                report({"code": 1 if problems else 0, "message": message, "goes_on": True})
                self._write_state()
                keeping_state = asyncio.create_task(self._keep_state())
                self._silence.start()
                await ending
        finally:
            for task in (starting, ending, keeping_state):
                if task:
                    task.cancel()
            await self._stop_parts(serving_api)
        return 1 if failure else 0

    def _bind_api_socket(self) -> socket.socket:
        """Return a bound unix socket for the API, which only the owner may use."""
        path = self._runtime / "supervisor.sock"
        api_socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        api_socket.bind(str(path))
        path.chmod(0o600)
        return api_socket

    def _running_message(self) -> str:
        """Return the message that the workspace runs, with the router's address and the endpoints that are closed."""
        damages = [entry.damage for entry in self._stored.read_all().values() if entry.damage]
        return "\n".join([f"running: {self._envoy.url} (workspace {self._workspace.root})", *damages])

    def _write_state(self) -> None:
        """Write the file in which clients find this supervisor, and a later supervisor finds its remains.

        If it cannot be written now, `_keep_state` may in a second: what runs goes on serving.
        """
        with contextlib.suppress(OSError):
            self._state_for_clients().write(self._workspace, self._reserve)

    def _state_for_clients(self) -> SupervisorState:
        """Return what clients have to know of this supervisor."""
        return SupervisorState(
            pid=os.getpid(),
            runtime=self._runtime,
            socket=self._runtime / "supervisor.sock",
            router_url=self._envoy.url,
            router_ca=self._certificate.authority if self._certificate else None,
            telemetry_url=self._telemetry.url,
            telemetry_workspace_id=self._telemetry.workspace_id,
            telemetry_token_file=self._telemetry.token_file,
            envoy_admin=self._envoy.files.admin_socket,
            process=self._process,
        )

    async def _start_parts(self) -> str | None:
        """Start all parts; return None if the router answers, else the message why it does not."""
        self._revisions.remove_leftovers()
        if self._certificate:
            await self._certificate.start()
        self._envoy.start()
        self._load_meter.start()
        await self._telemetry.start()
        self._issuer_keys.start()
        self._reconciler.start()
        self._collector.start()
        self._write_state()
        await until(lambda: self._reconciler.is_prepared, RESTORE_TIMEOUT_S)
        await self._envoy.listen()
        if not await until(self._envoy.answers_callers, ENVOY_START_TIMEOUT_S):
            tail = "\n".join(self._router_log.tail(LOG_LINES))
            return f"the router does not answer at {self._envoy.url}; the last lines of its log:\n{tail}"
        await self._telemetry.wait_until_healthy(TELEMETRY_START_TIMEOUT_S)
        return None

    def _start_problems(self) -> list[str]:
        """Return what has not started although the router serves: the telemetry store, versions with traffic."""
        problems = []
        if self._telemetry.workspace_id is None:
            tail = "\n".join(self._telemetry_log.tail(LOG_LINES))
            problems.append(
                "the telemetry store does not answer, so no gate can pass; it is started again and again; the last "
                f"lines of {self._telemetry_log.path}:\n{tail}"
            )
        return problems + self._reconciler.failed_versions()

    async def _keep_state(self) -> None:
        """Write the state again whenever its file does not say it; look at the lock, and at the certificate's files.

        A telemetry store that started late has answered with its workspace id, or somebody has deleted or damaged the
        file: without it nobody could roll back what is served here.
        """
        while not self._end.is_set():
            if problem := self._lock.keep(self._runtime):
                log.error("the supervisor of the workspace %s ends: %s", self._workspace.root, problem)
                self._end.set()
                return
            if not self._workspace.root.exists():  # a new certificate would make it again, with nothing in it
                await asyncio.sleep(STATE_INTERVAL_S)
                continue
            if self._telemetry.workspace_id is None:
                await self._telemetry.wait_until_healthy(STATE_INTERVAL_S)
            if self._certificate:
                await self._certificate.renew_or_reload()
            found: SupervisorState | None = None
            with contextlib.suppress(TargetUnavailableError):
                found = SupervisorState.read(self._workspace)
            if found != self._state_for_clients():
                self._write_state()
            await asyncio.sleep(STATE_INTERVAL_S)

    async def _stop_parts(self, serving_api: "asyncio.Task[None]") -> None:
        """Stop the API, the router once open requests are answered, the replicas, the store, and the collector."""
        await self._silence.stop()
        self._workspace.state_file.unlink(missing_ok=True)
        self._api_server.should_exit = True
        await serving_api
        await self._load_meter.stop()
        await self._envoy.stop(DRAIN_TIMEOUT_S, LAST_SPANS_S)
        await self._issuer_keys.stop()
        await self._reconciler.stop()
        await self._telemetry.stop()
        # Last: the replicas have appended what they had.
        await self._collector.stop()


def _telemetry_store(
    workspace: Workspace, port: int, runtime: Path, upload_token: str, log_file: LogFile
) -> TelemetryStoreProcess:
    """Return the telemetry store of a workspace; write the file with the token that the router's spans bring."""
    upload_token_file = runtime / "telemetry-upload.token"
    atomic_files.write_atomically(upload_token_file, upload_token.encode(), durable=False)
    return TelemetryStoreProcess(
        port=port,
        data=workspace.telemetry_folder,
        token_file=_ensure_token_file(workspace),
        upload_token_file=upload_token_file,
        runtime=runtime,
        log=log_file,
    )


def _collector(workspace: Workspace, runtime: Path, credentials: Mapping[str, str]) -> CollectorProcess:
    """Return the collector of a workspace, with the variables with which it signs in to the storage."""
    return CollectorProcess(
        spools=workspace.spools_folder,
        storage=workspace.storage_place,
        credentials=credentials,
        runtime=runtime,
        log=LogFile(workspace.logs_folder / "collector.log"),
    )


def _ensure_token_file(workspace: Workspace) -> Path:
    """Return the path of the telemetry store's token; create the file with a new token if there is none."""
    path = workspace.root / "telemetry.token"
    if not path.exists():
        atomic_files.write_atomically(path, secrets.token_urlsafe().encode())
    return path
