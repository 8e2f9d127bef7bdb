"""The runtime's settings: environment variables, and the addresses of its command line."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass

UNIX_PREFIX = "unix:"
BACKLOG = 1024
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# Far above everything that makes sense.
MAX_DIGITS = 12


class SettingError(Exception):
    """A setting is invalid, or an address is not available; the message says which and what to do."""


@dataclass(frozen=True)
class CaptureSettings:
    """What is kept of requests and their answers.

    Attributes:
        spool: The folder of this replica that it is appended to.
        share: The share of requests that is kept.
        max_body_bytes: The longest body that is kept itself.
        spool_bytes: The most that the folder may have.
        workers: The scoring processes that share it.
        endpoint: The name of the endpoint.
        version: The name of the version.
        replica: The name of the replica.
    """

    spool: str
    share: float = 1.0
    max_body_bytes: int = 1_000_000
    spool_bytes: int = 256_000_000
    workers: int = 1
    endpoint: str = ""
    version: str = ""
    replica: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> CaptureSettings | None:
        """Read the settings from environment variables; None if nothing is to be kept.

        Raises:
            SettingError: A variable is not valid.
        """
        spool = environment.get("CAPTURE_SPOOL", "")
        if not spool:
            return None
        if not os.path.isabs(spool):
            raise SettingError(f"CAPTURE_SPOOL={spool!r} is not the whole path of a folder: it has to begin with /")
        return cls(
            spool=spool,
            share=_parse_share(environment.get("CAPTURE_SHARE", "")),
            max_body_bytes=int(_positive_number(environment, "CAPTURE_MAX_BODY_BYTES", cls.max_body_bytes)),
            spool_bytes=int(_positive_number(environment, "CAPTURE_SPOOL_BYTES", cls.spool_bytes)),
            workers=int(_positive_number(environment, "WORKER_COUNT", cls.workers)),
            endpoint=environment.get("CAPTURE_ENDPOINT", ""),
            version=environment.get("CAPTURE_VERSION", ""),
            replica=environment.get("CAPTURE_REPLICA", ""),
        )


@dataclass(frozen=True)
class Settings:
    """How a version is served.

    Attributes:
        entry_script: The user's script, relative to `app_root`.
        app_root: The project folder.
        workers: Scoring processes.
        slots: Requests that one worker scores at the same time.
        queue_length: Requests that may wait in one worker for a slot.
        max_wait_s: How long a request may wait for a slot before it is answered 503.
        scoring_timeout_s: How long `run()` may take before the request is answered 504.
        drain_timeout_s: How long requests in flight may take to end once the runtime is asked to stop.
        max_body_bytes: The largest request body.
        capture: What is kept of requests and their answers; None for nothing.
    """

    entry_script: str
    app_root: str
    workers: int = 1
    slots: int = 1
    queue_length: int = 100
    max_wait_s: float = 0.5
    scoring_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0
    max_body_bytes: int = 100_000_000
    capture: CaptureSettings | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings from environment variables.

        Raises:
            SettingError: A variable is missing or not valid.
        """
        app_root = environment.get("AML_APP_ROOT", "")
        entry_script = environment.get("AZUREML_ENTRY_SCRIPT", "")
        if not app_root or not os.path.isdir(app_root):
            raise SettingError(f"AML_APP_ROOT={app_root!r} is not a folder: set it to the project folder")
        script = os.path.join(app_root, entry_script)
        if not entry_script or not os.path.isfile(script):
            raise SettingError(
                f"AZUREML_ENTRY_SCRIPT={entry_script!r}: there is no such file in {app_root!r}: "
                "set it to the entry script's path in the project folder"
            )
        level = environment.get("AZUREML_LOG_LEVEL", "")
        if level and level.upper() not in LOG_LEVELS:
            raise SettingError(f"AZUREML_LOG_LEVEL={level!r} is not known: choose one of {', '.join(LOG_LEVELS)}")
        return cls(
            entry_script=entry_script,
            app_root=os.path.abspath(app_root),
            workers=int(_positive_number(environment, "WORKER_COUNT", cls.workers)),
            slots=int(_positive_number(environment, "REPLICA_MAX_CONCURRENT_REQUESTS", cls.slots)),
            queue_length=int(_positive_number(environment, "MAX_QUEUED_REQUESTS", cls.queue_length)),
            max_wait_s=_positive_number(environment, "MAX_REQUEST_WAIT_TIME_MS", cls.max_wait_s * 1000) / 1000,
            scoring_timeout_s=_positive_number(environment, "SCORING_TIMEOUT_MS", cls.scoring_timeout_s * 1000) / 1000,
            drain_timeout_s=_positive_number(environment, "DRAIN_TIMEOUT_S", cls.drain_timeout_s),
            max_body_bytes=int(_positive_number(environment, "MAX_BODY_BYTES", cls.max_body_bytes)),
            capture=CaptureSettings.from_environment(environment),
        )


def _positive_number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS or int(text) == 0:
        shown = text if len(text) <= 2 * MAX_DIGITS else f"{text[:MAX_DIGITS]}..."
        raise SettingError(f"{name}={shown!r} is not a whole number above 0 of at most {MAX_DIGITS} digits")
    return int(text)


def _parse_share(text: str) -> float:
    """Return a share; all if there is no text."""
    if not text:
        return 1.0
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise SettingError(f"CAPTURE_SHARE={text[: 2 * MAX_DIGITS]!r} is not a share: give a number above 0, at most 1")
    return share


@dataclass(frozen=True)
class Address:
    """Where to listen: a unix socket, or a host and a port (0 for any free one)."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse an address: `unix:/path` or `HOST:PORT` (`[::1]:PORT` for IPv6).

        Raises:
            SettingError: It is neither.
        """
        if text.startswith(UNIX_PREFIX):
            path = text[len(UNIX_PREFIX) :]
            if not path.startswith("/"):
                raise SettingError(f"address {text!r}: the path of a unix socket must begin with /")
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise SettingError(f"address {text!r} is neither unix:/path nor HOST:PORT")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        return cls(host=host, port=int(port))

    def bind(self) -> socket.socket:
        """Return a socket that is bound to the address and does not listen yet: until it does, callers are refused.

        Raises:
            SettingError: The address is in use or not available.
        """
        try:
            return _bind_unix(self.path) if self.path else _bind_tcp(self.host, self.port)
        except OSError as error:
            raise SettingError(f"cannot listen on {self}: {error.strerror or error}: choose another address") from error

    def __str__(self) -> str:
        if self.path:
            return UNIX_PREFIX + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def bound_address(listener: socket.socket) -> Address:
    """Return the address of a bound socket, with the port that the kernel chose for port 0."""
    name = listener.getsockname()
    return Address(path=name) if listener.family == socket.AF_UNIX else Address(host=name[0], port=name[1])


def _bind_tcp(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, name = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # Accepted connections inherit it. No SO_REUSEPORT: a second server is refused, not given half of the callers.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(name)
    except OSError:
        listener.close()
        raise
    return listener


def _bind_unix(path: str) -> socket.socket:
    _remove_stale_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # By umask, not by chmod: the socket must not be open to others for an instant.
    umask = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener


def _remove_stale_socket(path: str) -> None:
    """Remove a socket that a killed process left behind; one that a server listens on stays, and binding then fails."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(path)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
