"""The store as a process: one folder, one port, started and stopped cleanly."""

import asyncio
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from controlled_rollout.addresses import is_loopback
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.polling import block_until
from controlled_rollout.telemetry_store.faults import Faults

if TYPE_CHECKING:
    from controlled_rollout.telemetry_store.app import Store

__all__ = ["DEFAULT_MAX_BYTES", "DEFAULT_RETENTION", "Identity", "serve"]

log = logging.getLogger(__name__)

DEFAULT_RETENTION: Final = timedelta(days=30)
DEFAULT_MAX_BYTES: Final = 2 * 2**30
EXIT_REFUSED: Final = 2
# What was accepted may be lost only when the disk fails for so long during the shutdown.
STOP_TIMEOUT_S: Final = 30.0
QUERY_END_S: Final = 5.0


class StartError(ControlledRolloutError):
    """The store cannot start; the message is for the person who started it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which workspace and which App Insights resource this folder plays; kept in it."""

    workspace_id: str
    instrumentation_key: str

    @classmethod
    def of(cls, data: Path) -> "Identity":
        """Read the folder's identity, or give it one."""
        file = data / "identity.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return cls(str(uuid.UUID(found["workspace_id"])), str(uuid.UUID(found["instrumentation_key"])))
        except FileNotFoundError:
            identity = cls(str(uuid.uuid4()), str(uuid.uuid4()))
            written = {"workspace_id": identity.workspace_id, "instrumentation_key": identity.instrumentation_key}
            draft = file.with_suffix(".new")
            draft.write_text(json.dumps(written) + "\n", encoding="utf-8")
            draft.replace(file)
            return identity
        except (ValueError, KeyError, TypeError) as error:
            raise StartError(f"{file} is damaged ({error}): restore it, or delete it to get a new identity") from None


def serve(
    *,
    port: int,
    data: Path,
    host: str = "127.0.0.1",
    retention: timedelta = DEFAULT_RETENTION,
    max_bytes: int = DEFAULT_MAX_BYTES,
    token_file: Path | None = None,
    faults_file: Path | None = None,
) -> int:
    """Run the store until SIGTERM or SIGINT; return the process's exit code.

    Prints one line once it listens, with the connection string and the workspace id. What was accepted is on disk
    when this returns. Problems at the start are one line on stderr and exit code 2.

    Args:
        port: TCP port; 0 takes a free one.
        data: The folder of the database; made when it does not exist.
        host: Address to listen on; other than loopback only with a token.
        retention: Rows with an older TimeGenerated are deleted.
        max_bytes: Above this much data the oldest rows are deleted.
        token_file: Holds the bearer token that queries must bring; None takes any bearer token.
        faults_file: Tells, now or later, what goes wrong with queries: for tests of those who ask.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        _check_settings(host, retention, max_bytes, has_token=token_file is not None)
        token = None if token_file is None else _read_token(token_file)
        with _locked_folder(data), _listening(host, port) as listener:
            return _run(listener, data, retention, max_bytes, token, Faults(faults_file))
    except StartError as error:
        sys.stderr.write(f"telemetry store: {error}\n")
        return EXIT_REFUSED


def _check_settings(host: str, retention: timedelta, max_bytes: int, *, has_token: bool) -> None:
    if not is_loopback(host) and not has_token:
        raise StartError(f"listening on {host} without a token would serve everybody: give a token file, or 127.0.0.1")
    if retention <= timedelta(0) or max_bytes <= 0:
        raise StartError(f"retention {retention} and size limit {max_bytes} bytes must be above zero")


def _read_token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise StartError(f"the token file {file} cannot be read: {error}") from None
    if not re.fullmatch(r"[!-~]{8,}", token):
        raise StartError(f"the token in {file} must be 8 or more visible ASCII characters on one line")
    return token


@contextmanager
def _locked_folder(data: Path) -> Iterator[None]:
    """Hold the data folder; the lock goes with the process, however that ends."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"the data folder {data} cannot be written: {error.strerror or error}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(
                f"the data folder {data} is in use by another store: stop it, or use another folder"
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise StartError(f"{host}:{port} is no address to listen on: {error}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(1024)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise StartError(f"port {port} on {host} cannot be used: {why}. Choose another port") from None
        yield listener


def _run(
    listener: socket.socket, data: Path, retention: timedelta, max_bytes: int, token: str | None, faults: Faults
) -> int:
    """Put the parts together, serve, and take them apart in the order that loses nothing."""
    import uvicorn

    from controlled_rollout.telemetry_store.app import Store, create_app
    from controlled_rollout.telemetry_store.database import Database, DatabaseError
    from controlled_rollout.telemetry_store.writer import Writer

    try:
        identity = Identity.of(data)
        database = Database(data)
    except (OSError, DatabaseError) as error:
        raise StartError(str(error)) from None
    writer = Writer(database, retention=retention, max_bytes=max_bytes)
    store = Store(database, writer, identity.workspace_id, token, faults=faults)
    config = uvicorn.Config(
        create_app(store),
        log_level="warning",
        access_log=False,
        lifespan="off",
        # Longer than a sender keeps an idle connection: the side that sends is the one to close it.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
    )
    server = uvicorn.Server(config)
    # uvicorn raises the signal that ended it once more when it is done; it must not end us before the rows are safe.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: setattr(server, "should_exit", True))
    writer.start()
    try:
        sys.stdout.write(_ready_line(listener, identity))
        sys.stdout.flush()
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        store.queries.shutdown(wait=False, cancel_futures=True)
        _end_queries(store)
        complete = writer.stop(STOP_TIMEOUT_S)
        database.close()
        shutil.rmtree(data / "spill", ignore_errors=True)
    if not complete:
        log.error("accepted rows could not be written before the end")
    return 0 if complete else 1


def _end_queries(store: "Store") -> None:
    """Interrupt what still runs, until it has ended: an interrupt between two statements is forgotten."""

    def have_ended() -> bool:
        store.database.interrupt_queries()
        return not store.database.busy

    block_until(have_ended, QUERY_END_S)


def _ready_line(listener: socket.socket, identity: Identity) -> str:
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    return (
        f"telemetry store ready: InstrumentationKey={identity.instrumentation_key};IngestionEndpoint={address} "
        f"workspace={identity.workspace_id}\n"
    )
