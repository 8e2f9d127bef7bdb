"""The telemetry store as a process: one folder, one port, a clean start and end."""

import asyncio
import fcntl
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from controlled_rollout.addresses import is_loopback
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.telemetry_store.user_hash import UserHash

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from controlled_rollout.telemetry_store.database_client import DatabaseClient
    from controlled_rollout.telemetry_store.store import TelemetryStore
    from controlled_rollout.telemetry_store.writer import Writer

__all__ = ["DEFAULT_MAX_BYTES", "DEFAULT_RETENTION", "Identity", "serve"]

log = logging.getLogger(__name__)

DEFAULT_RETENTION: Final = timedelta(days=30)
DEFAULT_MAX_BYTES: Final = 2 * 2**30
EXIT_REFUSED: Final = 2
ACCEPTED_AT_ONCE: Final = 128
# Accepted rows are lost only if the disk fails for so long at the end.
WRITE_TIMEOUT_S: Final = 30.0


class StartError(ControlledRolloutError):
    """The store cannot start."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The ids that a data folder has for as long as it exists.

    Attributes:
        workspace_id: The id of its Log Analytics workspace.
        instrumentation_key: The key of its App Insights resource.
    """

    workspace_id: str
    instrumentation_key: str

    @classmethod
    def of(cls, data: Path) -> "Identity":
        """Read the store's instrumentation key and workspace id from its data folder; create them in a new folder."""
        file = data / "identity.json"
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            return cls(str(uuid.UUID(document["workspace_id"])), str(uuid.UUID(document["instrumentation_key"])))
        except FileNotFoundError:
            identity = cls(str(uuid.uuid4()), str(uuid.uuid4()))
            temporary = file.with_suffix(".new")
            with temporary.open("w", encoding="utf-8") as new:
                new.write(json.dumps(asdict(identity)) + "\n")
                new.flush()
                os.fsync(new.fileno())
            temporary.replace(file)
            # Without this a power cut could leave rows of a workspace that nobody knows any more.
            folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            return identity
        except (ValueError, KeyError, TypeError) as error:
            raise StartError(f"{file} is damaged ({error}): restore it, or delete it to get a new identity") from error


@dataclass(frozen=True, slots=True)
class Tokens:
    """The bearer tokens of a store; None where everybody may.

    Attributes:
        query: Of those who query it.
        upload: Of the router, which sends what callers saw.
    """

    query: str | None = field(repr=False)
    upload: str | None = field(repr=False)


def serve(
    *,
    port: int,
    data: Path,
    host: str = "127.0.0.1",
    retention: timedelta = DEFAULT_RETENTION,
    max_bytes: int = DEFAULT_MAX_BYTES,
    token_file: Path | None = None,
    upload_token_file: Path | None = None,
    make_store: "Callable[[DatabaseClient, Writer, str], TelemetryStore] | None" = None,
) -> int:
    """Run the telemetry store until SIGTERM or SIGINT; return the process's exit code.

    Once it listens it prints a line with the connection string and the workspace id. All accepted rows are on disk when
    it returns. A problem at the start is one line on stderr and exit code 2.

    Args:
        port: The TCP port; 0 for any free one.
        data: The folder of the database; it is created unless it exists.
        host: The address to listen on; one that is not loopback needs a token.
        retention: Rows with an older TimeGenerated are deleted.
        max_bytes: Above this much data the oldest rows are deleted.
        token_file: Holds the bearer token that queries must bring; None accepts any bearer token.
        upload_token_file: Holds the bearer token that spans and requests must bring; None accepts them from everybody.
        make_store: Makes the store of its database, writer and workspace id; None for `TelemetryStore` itself.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        _check_settings(host, retention, max_bytes, has_token=token_file is not None)
        tokens = Tokens(*(None if file is None else _read_token(file) for file in (token_file, upload_token_file)))
        with _lock_data_folder(data), _listening_socket(host, port) as listener:
            return _run_until_signal(listener, data, retention, max_bytes, tokens, make_store)
    except StartError as error:
        sys.stderr.write(f"telemetry store: {error}\n")
        return EXIT_REFUSED


def _check_settings(host: str, retention: timedelta, max_bytes: int, *, has_token: bool) -> None:
    """Raise `StartError` if the host needs a token, or the retention or size limit is not above zero."""
    if not is_loopback(host) and not has_token:
        raise StartError(f"listening on {host} without a token would serve everybody: give a token file, or 127.0.0.1")
    if retention <= timedelta(0) or max_bytes <= 0:
        raise StartError(f"retention {retention} and size limit {max_bytes} bytes must be above zero")


def _read_token(file: Path) -> str:
    """Read a bearer token from a file; raise `StartError` if it is not 8 or more ASCII characters."""
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise StartError(f"the token file {file} cannot be read: {error}") from error
    if not re.fullmatch(r"[!-~]{8,}", token):
        raise StartError(f"the token in {file} must be 8 or more visible ASCII characters on one line")
    return token


@contextmanager
def _lock_data_folder(data: Path) -> Iterator[None]:
    """Context manager: hold an exclusive file lock on the data folder. The kernel releases it if the process dies."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(
            f"the data folder {data} cannot be written: {error.strerror or error}: choose another"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StartError(
                f"the data folder {data} is in use by another store: stop it, or use another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _listening_socket(host: str, port: int) -> Iterator[socket.socket]:
    """Context manager: open a TCP socket that listens on an address, and close it on exit."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise StartError(f"{host}:{port} is no address to listen on: {error}: choose one of this machine") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(1024)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StartError(f"port {port} on {host} cannot be used: {reason}. Choose another port") from error
        yield listener


def _run_until_signal(
    listener: socket.socket,
    data: Path,
    retention: timedelta,
    max_bytes: int,
    tokens: Tokens,
    make_store: "Callable[[DatabaseClient, Writer, str], TelemetryStore] | None",
) -> int:
    """Start the writer thread and the HTTP server, serve, and stop them so that no accepted row is lost."""
    from controlled_rollout.telemetry_store.database_client import DatabaseClient
    from controlled_rollout.telemetry_store.database_errors import DatabaseError
    from controlled_rollout.telemetry_store.store import TelemetryStore
    from controlled_rollout.telemetry_store.writer import Writer

    try:
        identity = Identity.of(data)
        users = UserHash.of(data)
    except OSError as error:
        raise StartError(str(error)) from error
    database = DatabaseClient(data)
    # While the database is opened.
    from controlled_rollout.telemetry_store.app import create_app

    try:
        database.wait_until_open()
    except DatabaseError as error:
        database.close()
        raise StartError(str(error)) from error
    writer = Writer(database, retention=retention, max_bytes=max_bytes)
    store = (make_store or TelemetryStore)(database, writer, identity.workspace_id)
    app = create_app(
        store,
        token=tokens.query,
        upload_token=tokens.upload,
        instrumentation_key=identity.instrumentation_key,
        users=users,
    )
    server = _http_server(app)
    _end_on_signals_and_with_database(server, database)
    writer.start()
    try:
        sys.stdout.write(_ready_line(listener, identity))
        sys.stdout.flush()
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        store.end_queries()
        complete = writer.stop(WRITE_TIMEOUT_S)
        code = database.close()
    if not complete:
        log.error("accepted rows could not be written before the end")
    return 0 if complete and code == 0 else 1


def _http_server(app: "ASGIApp") -> "uvicorn.Server":
    """Return the server of an application, with bounds on its connections."""
    import uvicorn

    from controlled_rollout.telemetry_store.connections import Connections

    connections = Connections(app)
    config = uvicorn.Config(
        connections,
        # uvicorn calls it, and asks for nothing else of a class.
        http=cast("type[asyncio.Protocol]", connections.protocol),
        interface="asgi3",
        # Fewer than the descriptors that are left beside the connections: as many are accepted at once.
        backlog=ACCEPTED_AT_ONCE,
        log_level="warning",
        access_log=False,
        lifespan="off",
        # Longer than senders keep an idle connection, so that only they close it.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)


def _end_on_signals_and_with_database(server: "uvicorn.Server", database: "DatabaseClient") -> None:
    """End the server on SIGTERM and SIGINT, and when the database's process has ended.

    Whoever started the store starts it again.
    """
    # uvicorn would raise the signal again when it has ended, and end the process before all rows are on disk.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: setattr(server, "should_exit", True))

    def end_with_database() -> None:
        """Wait for the end of the database's process in a thread."""
        code = database.wait()
        if not server.should_exit:
            log.error("the database's process ended with code %d", code)
            server.should_exit = True

    threading.Thread(target=end_with_database, name="database's end", daemon=True).start()


def _ready_line(listener: socket.socket, identity: Identity) -> str:
    """Return the line that tells the user the connection string and the workspace id."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    return (
        f"telemetry store ready: InstrumentationKey={identity.instrumentation_key};IngestionEndpoint={address} "
        f"workspace={identity.workspace_id}\n"
    )
