"""How far one gets on the way to a server: its name, its port, its certificate, its answer, each told apart."""

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from controlled_rollout.addresses import is_this_machine
from controlled_rollout.errors import TargetUnavailableError, WorkspaceError

if TYPE_CHECKING:
    import httpx

__all__ = ["ask", "reach"]

# Less than a check may take in all, so that it can say which part of the way it was.
PART_TIMEOUT_S: Final = 3.0
ANSWER_TIMEOUT_S: Final = 6.0
PORTS: Final = {"http": 80, "https": 443}


async def reach(url: str, *, tls: bool = True) -> str:
    """Connect to a URL's server and leave again; return what its name leads to.

    Args:
        url: Where the server is.
        tls: Whether to look at the certificate of an https server too, as this machine's authorities see it.

    Raises:
        TargetUnavailableError: The name is not known, the port does not accept, or the certificate is not trusted.
        WorkspaceError: The URL names no server.
    """
    scheme, host, port = _server(url)
    try:
        async with asyncio.timeout(PART_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TargetUnavailableError(f"DNS: the name {host} is not known here{_because(error)}") from None
    addresses = ", ".join(dict.fromkeys(str(one[4][0]) for one in found))
    place = f"{host}:{port}" if host == addresses else f"{host}:{port} ({addresses})"
    try:
        await _connect(host, port)
    except OSError as error:
        raise TargetUnavailableError(f"TCP: {place} does not accept connections{_because(error)}") from None
    if tls and scheme == "https":
        try:
            await _connect(host, port, ssl=ssl.create_default_context(), server_hostname=host)
        except OSError as error:
            raise TargetUnavailableError(f"TLS: {place} is not trusted{_because(error)}") from None
    return place


async def ask(url: str) -> "httpx.Response":
    """Ask a server for a page, whatever it says.

    Raises:
        TargetUnavailableError: It does not answer, or says that it cannot; the message has which part of the way it is.
    """
    import httpx

    try:
        async with httpx.AsyncClient(timeout=ANSWER_TIMEOUT_S, trust_env=not is_this_machine(url)) as client:
            answer = await client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if not isinstance(error, httpx.ProxyError):
            await reach(url)
        raise TargetUnavailableError(f"{url} does not answer{_because(error)}") from None
    if answer.status_code >= 500:
        raise TargetUnavailableError(f"{url} answers {answer.status_code}")
    return answer


def _server(url: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS[parts.scheme]
        if not parts.hostname:
            raise ValueError("no host")
    except (ValueError, KeyError):
        raise WorkspaceError(f"{url!r} is no server's address: write https://host or http://host:port") from None
    if not parts.hostname:
        raise WorkspaceError(f"{url!r} names no host: write https://host or http://host:port")
    return parts.scheme, parts.hostname, port


async def _connect(host: str, port: int, **tls: Any) -> None:
    async with asyncio.timeout(PART_TIMEOUT_S):
        _, writer = await asyncio.open_connection(host, port, **tls)
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(PART_TIMEOUT_S):
            await writer.wait_closed()


def _because(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f" ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return f" (no answer within {PART_TIMEOUT_S:g} s)"
    said = error.strerror if isinstance(error, OSError) else str(error)
    return f" ({said or str(error) or type(error).__name__})"
