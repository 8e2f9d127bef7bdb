"""Asks servers for their name, their port, their certificate and an answer, each apart, all at once.

The same program runs in this process and, passed to `python -c`, in a pod of the cluster. So it needs the standard
library of Python 3.10 only, and imports nothing of this package. It sends no credential to any server; the user of a
proxy, which is part of the proxy's URL, goes to that proxy.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

__all__ = ["PART_TIMEOUT_S", "SECONDS", "Destination", "Probe", "main", "probe", "probe_all"]

# All destinations together. A name that hangs costs no more: its thread is left alone then.
SECONDS = 7.0
# One stage, so that the result names the one that hangs.
PART_TIMEOUT_S = 3.0
MAX_HEAD_BYTES = 16_384
DAYS_LEFT_TO_SAY = 14

# What OpenSSL finds wrong with a certificate, by its number.
CERTIFICATE_FAULTS = {
    7: "unknown authority",
    9: "not yet valid",
    10: "expired",
    18: "unknown authority",
    19: "unknown authority",
    20: "unknown authority",
    21: "unknown authority",
    62: "wrong name",
    64: "wrong name",
}
# What OpenSSL says of bytes that are no TLS at all.
NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
OLD_TLS = ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE")


@dataclass(frozen=True)
class Destination:
    """A server to be asked.

    Attributes:
        name: What it is, such as `registry`.
        host, port: Where it is.
        scheme: `https`, `http`, or `tcp` for a port to which nothing is sent.
        path: What is asked for, without credentials and without a query.
        authorities: Certificates in PEM that are trusted instead of this machine's; empty for this machine's.
        authorities_file: The same in a file; one that is not there counts as none.
        proxy: The URL of the proxy; empty for none, None for that of the environment.
        verify: Whether its certificate is checked.
    """

    name: str
    host: str
    port: int
    scheme: str = "https"
    path: str = "/"
    authorities: str = ""
    authorities_file: str = ""
    proxy: str | None = None
    verify: bool = True


@dataclass(frozen=True)
class Probe:
    """What a server has answered, stage by stage.

    Attributes:
        name, host, port, scheme: The destination's.
        passed: The stages that worked, of `DNS`, `TCP`, `TLS` and `HTTP`.
        failed: The stage that did not, or `proxy`; empty if all worked.
        cause: What kind of failure it is, such as `refused`, `no answer`, `expired`, `wrong name`, `plain http`.
        detail: The same in the words of the system or of the server.
        addresses: The addresses that the name has here.
        proxy: The proxy that the connection went through, without its user; empty for none.
        status: The HTTP status of the answer; 0 for none.
        certificate_ends: When its certificate ends, in seconds since 1970; 0 if it was not checked.
        note: What is worth knowing though it works, such as a certificate that ends soon.
        milliseconds: How long all took.
    """

    name: str
    host: str
    port: int
    scheme: str = "https"
    passed: tuple[str, ...] = ()
    failed: str = ""
    cause: str = ""
    detail: str = ""
    addresses: tuple[str, ...] = ()
    proxy: str = ""
    status: int = 0
    certificate_ends: float = 0.0
    note: str = ""
    milliseconds: int = 0

    @property
    def is_private(self) -> bool:
        """Whether all its addresses are private ones, such as those of a private endpoint."""
        return bool(self.addresses) and all(ipaddress.ip_address(one).is_private for one in self.addresses)


class _FailedError(Exception):
    """A stage failed; its arguments are the stage, the cause and the detail."""


@dataclass
class _Asking:
    """A destination while it is being asked; another thread may read how far that has come."""

    destination: Destination
    until: float
    began: float = field(default_factory=time.monotonic)
    stage: str = "DNS"
    state: Probe = field(init=False)
    is_over: bool = False

    def __post_init__(self) -> None:
        """Begin with nothing known."""
        where = self.destination
        self.state = Probe(where.name, where.host, where.port, where.scheme)

    def note(self, **known: object) -> None:
        """Note what is known, for the result and for whoever reads it before the end."""
        self.state = replace(self.state, **known)  # type: ignore[arg-type]

    def passed(self, stage: str) -> None:
        """Note that a stage worked."""
        self.note(passed=(*self.state.passed, stage))

    def time_left(self) -> float:
        """Return how long a stage may take, in seconds."""
        return max(0.05, min(PART_TIMEOUT_S, self.until - time.monotonic()))

    def result(self) -> Probe:
        """Return the result; where a stage is still being waited for, that it did not answer."""
        taken = time.monotonic() - self.began
        state = self.state
        if not self.is_over:
            state = replace(state, failed=self.stage, cause="no answer", detail=f"no answer within {taken:.0f} s")
        return replace(state, milliseconds=round(1000 * taken))


def probe_all(destinations: Sequence[Destination], seconds: float = SECONDS) -> list[Probe]:
    """Ask all destinations at once, and return what is known after `seconds` at the latest.

    Args:
        destinations: The servers.
        seconds: The most time for all together.

    Returns:
        A result for each destination, in their order.
    """
    until = time.monotonic() + seconds
    askings = [_Asking(destination, until) for destination in destinations]
    # Threads of our own: a resolver that hangs cannot be cancelled, and nothing at the process's end waits for these.
    threads = [threading.Thread(target=_run, args=(asking,), daemon=True) for asking in askings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [asking.result() for asking in askings]


def probe(destination: Destination, seconds: float = SECONDS) -> Probe:
    """Ask one destination; see `probe_all`."""
    [result] = probe_all([destination], seconds)
    return result


def _run(asking: _Asking) -> None:
    """Ask a destination, stage by stage, until one fails."""
    try:
        _run_stages(asking)
    except _FailedError as error:
        stage, cause, detail = error.args
        asking.note(failed=stage, cause=cause, detail=detail)
    except Exception as error:
        asking.note(failed=asking.stage, cause="fault", detail=f"{type(error).__name__}: {error}"[:200])
    asking.is_over = True


def _run_stages(asking: _Asking) -> None:
    """Ask a destination, stage by stage; raise `_FailedError` for the first that fails."""
    destination = asking.destination
    proxy = _proxy_of(destination)
    if proxy:
        host, port = _proxy_place(proxy)
        asking.note(proxy=f"{host}:{port}")
        connection = _connect_through(asking, host, port, _proxy_user(proxy))
    else:
        connection = _connect(asking, destination.host, destination.port)
        asking.passed("TCP")
    with connection:
        if destination.scheme == "tcp":
            return
        if destination.scheme == "https":
            asking.stage = "TLS"
            connection = _start_tls(asking, connection)
            asking.passed("TLS")
        asking.stage = "HTTP"
        with connection:
            _ask_for_answer(asking, connection, through_proxy=bool(proxy) and destination.scheme == "http")
    asking.passed("HTTP")


# Name and port


def _connect(asking: _Asking, host: str, port: int) -> socket.socket:
    """Look a name up and connect to the first of its addresses that accepts."""
    asking.stage = "DNS"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        temporary = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        cause = "no name server answers" if temporary else "unknown name"
        raise _FailedError("DNS", cause, _words_of(error)) from error
    asking.note(addresses=tuple(dict.fromkeys(str(each[4][0]) for each in found)))
    asking.passed("DNS")
    asking.stage = "TCP"
    until = time.monotonic() + asking.time_left()
    last: OSError | None = None
    for number, (family, kind, protocol, _, address) in enumerate(found):
        # An address that does not answer leaves time for the others.
        share = (until - time.monotonic()) / (len(found) - number)
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(max(0.05, share))
            connection.connect(address)
        except OSError as error:
            connection.close()
            last = error
        else:
            connection.settimeout(asking.time_left())
            return connection
    raise _FailedError("TCP", _cause_of(last), _words_of(last)) from last


def _cause_of(error: BaseException | None) -> str:
    """Return what kind of failure of a connection an error is."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, ConnectionError):
        return "closed"
    return "unreachable"


def _words_of(error: BaseException | None) -> str:
    """Return an error's own words."""
    if isinstance(error, TimeoutError):
        return f"no answer within {PART_TIMEOUT_S:g} s"
    message = error.strerror if isinstance(error, OSError) else str(error)
    return str(message or error or type(error).__name__)


# Proxy


def _proxy_of(destination: Destination) -> str:
    """Return the URL of the proxy that a client of this destination would use here; empty for none."""
    if destination.scheme == "tcp":
        return ""
    if destination.proxy is not None:
        return destination.proxy
    if destination.host == "localhost" or _is_loopback(destination.host):
        return ""
    if proxy_bypass_environment(f"{destination.host}:{destination.port}"):
        return ""
    proxies = getproxies_environment()
    return proxies.get(destination.scheme) or proxies.get("all") or ""


def _proxy_place(proxy: str) -> tuple[str, int]:
    """Return the host and the port of a proxy's URL."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        # Not the error's own words: of a password with / or # in it they show a part.
        raise _FailedError(
            "proxy", "unusable", "the proxy's URL cannot be read: write /, #, @ and : of its user as %2F, %23, %40, %3A"
        ) from None
    if parts.scheme != "http" or not host:
        raise _FailedError("proxy", "unusable", f"the proxy {parts.scheme}://{host} cannot be checked")
    return host, port


def _is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _proxy_user(proxy: str) -> str:
    """Return the header with the user that a proxy's URL names; empty without one."""
    parts = urlsplit(proxy)
    if parts.username is None:
        return ""
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Proxy-Authorization: Basic {base64.b64encode(user.encode()).decode()}\r\n"


def _connect_through(asking: _Asking, host: str, port: int, user: str) -> socket.socket:
    """Connect to a destination through a proxy, which looks its name up; plain http is not tunnelled."""
    try:
        connection = _connect(asking, host, port)
    except _FailedError as error:
        stage, cause, detail = error.args
        raise _FailedError("proxy", cause, f"the proxy {host}:{port}: {stage}: {detail}") from error
    destination = asking.destination
    # The addresses are the proxy's, and say nothing of the destination.
    asking.note(addresses=(), passed=())
    if destination.scheme == "http":
        return connection
    asking.stage = "proxy"
    place = f"{destination.host}:{destination.port}"
    try:
        connection.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{user}\r\n".encode())
        status, head = _read_head(connection, asking.time_left())
    except OSError as error:
        connection.close()
        raise _FailedError("proxy", _cause_of(error), f"the proxy {host}:{port}: {_words_of(error)}") from error
    if status != 200:
        connection.close()
        cause = {407: "asks for a user", 403: "refuses the host"}.get(status, "cannot reach the host")
        raise _FailedError("proxy", cause, f"the proxy {host}:{port} answers {status or head[:40]!r} for {place}")
    asking.passed("TCP")
    return connection


# Certificate


def _start_tls(asking: _Asking, connection: socket.socket) -> ssl.SSLSocket:
    """Start TLS and check the certificate; tell apart what can be wrong with it."""
    destination = asking.destination
    try:
        context = _context_of(destination)
    except (OSError, ValueError) as error:
        raise _FailedError("TLS", "unusable authorities", _words_of(error)) from error
    connection.settimeout(asking.time_left())
    try:
        secured = context.wrap_socket(connection, server_hostname=destination.host)
    except ssl.SSLCertVerificationError as error:
        cause = CERTIFICATE_FAULTS.get(error.verify_code, "not trusted")
        raise _FailedError("TLS", cause, str(error.verify_message)) from error
    except ssl.SSLError as error:
        reason = str(error.reason or "")
        if any(each in reason for each in NO_TLS):
            raise _FailedError("TLS", *_what_speaks_there(asking)) from error
        if reason in OLD_TLS:
            raise _FailedError("TLS", "old TLS", f"it speaks no TLS 1.2 or newer ({reason})") from error
        cause = "closed" if isinstance(error, ssl.SSLEOFError) else "handshake failed"
        raise _FailedError("TLS", cause, reason or str(error)) from error
    except OSError as error:
        raise _FailedError("TLS", _cause_of(error), _words_of(error)) from error
    if destination.verify:
        ends = ssl.cert_time_to_seconds(str((secured.getpeercert() or {}).get("notAfter")))
        asking.note(certificate_ends=float(ends))
        if (days := (ends - time.time()) / 86_400) < DAYS_LEFT_TO_SAY:
            asking.note(note=f"its certificate ends in {days:.0f} days")
    return secured


def _context_of(destination: Destination) -> ssl.SSLContext:
    """Return what to trust: the destination's own authorities, else this machine's and those of the environment."""
    file, text = destination.authorities_file, destination.authorities
    own = file if os.path.isfile(file) else None
    context = ssl.create_default_context(cafile=own, cadata=text or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    bundle = os.environ.get("REQUESTS_CA_BUNDLE", "")
    if not own and not text and os.path.isfile(bundle):
        context.load_verify_locations(bundle)
    if not destination.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _what_speaks_there(asking: _Asking) -> tuple[str, str]:
    """Return cause and detail of a port that speaks no TLS: plain http, or something else."""
    destination = asking.destination
    if asking.state.proxy:
        return "no TLS", "what answers through the proxy speaks no TLS"
    try:
        with socket.create_connection((destination.host, destination.port), asking.time_left()) as connection:
            connection.sendall(f"GET / HTTP/1.0\r\nHost: {destination.host}\r\n\r\n".encode())
            status, _ = _read_head(connection, asking.time_left())
    except OSError:
        status = 0
    if status:
        return "plain http", f"the port speaks plain http (it answers {status})"
    return "no TLS", "the port speaks something else than TLS"


# Answer


def _ask_for_answer(asking: _Asking, connection: socket.socket, *, through_proxy: bool) -> None:
    """Ask for the destination's path, without credentials; any answer but a server's error will do."""
    destination = asking.destination
    host = f"[{destination.host}]" if ":" in destination.host else destination.host
    place = f"{host}:{destination.port}"
    target = f"http://{place}{destination.path}" if through_proxy else destination.path
    user = _proxy_user(_proxy_of(destination)) if through_proxy else ""
    connection.settimeout(asking.time_left())
    try:
        connection.sendall(
            f"GET {target} HTTP/1.1\r\nHost: {place}\r\nUser-Agent: controlled-rollout-check\r\nAccept: */*\r\n"
            f"{user}Connection: close\r\n\r\n".encode()
        )
        status, head = _read_head(connection, asking.time_left())
    except OSError as error:
        raise _FailedError("HTTP", _cause_of(error), _words_of(error)) from error
    if not status:
        speaks = "TLS" if head[:2] == b"\x15\x03" else "something else than HTTP" if head else "nothing"
        raise _FailedError("HTTP", "no http", f"the port answers {speaks}")
    asking.note(status=status)
    if status == 407:
        raise _FailedError("proxy", "asks for a user", "the proxy answers 407")
    if status >= 500:
        raise _FailedError("HTTP", "server error", f"it answers {status}")


def _read_head(connection: socket.socket, seconds: float) -> tuple[int, bytes]:
    """Read the head of an HTTP answer; return its status, 0 if it is none, and the bytes.

    Args:
        connection: Where it is read from.
        seconds: How long the whole head may take, also if it comes byte by byte.

    Raises:
        OSError: It did not come in time, or the connection broke.
    """
    head, until = b"", time.monotonic() + seconds
    while b"\r\n\r\n" not in head and len(head) < MAX_HEAD_BYTES:
        if (left := until - time.monotonic()) <= 0:
            raise TimeoutError
        connection.settimeout(left)
        chunk = connection.recv(4096)
        if not chunk:
            break
        head += chunk
        if not head.startswith(b"HTTP/"[: len(head)]):
            break
    words = head.split(b"\r\n", 1)[0].split()
    is_answer = head.startswith(b"HTTP/") and len(words) > 1 and words[1].isdigit()
    return (int(words[1]) if is_answer else 0), head


def main(arguments: Sequence[str]) -> None:
    """Ask the destinations of a JSON document, and write the results as one line of JSON.

    Args:
        arguments: The document: `destinations`, a list of `Destination`, and `seconds`.
    """
    asked = json.loads(arguments[0])
    results = probe_all([Destination(**each) for each in asked["destinations"]], asked["seconds"])
    sys.stdout.write(json.dumps([asdict(result) for result in results]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
