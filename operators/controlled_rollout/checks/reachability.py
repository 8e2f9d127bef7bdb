"""Tells apart why a server cannot be reached: its name, its port, its certificate, or its answer."""

import asyncio
import contextlib
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from controlled_rollout.addresses import transport_for
from controlled_rollout.errors import TargetUnavailableError, WorkspaceError

if TYPE_CHECKING:
    import httpx

__all__ = ["certificate_end", "check_reachable", "http_get"]

# Together less than a connectivity check may take, so that its result names the part that failed.
PART_TIMEOUT_S: Final = 3.0
ANSWER_TIMEOUT_S: Final = 6.0
PORTS: Final = {"http": 80, "https": 443}


async def check_reachable(url: str, *, tls: bool = True, authority: Path | None = None) -> str:
    """Open and close a connection to a URL's server; return its host, port and addresses.

    Args:
        url: Where the server is.
        tls: Whether to check the certificate of an https server too.
        authority: The file with the authority that it is checked against; None for this machine's authorities.

    Raises:
        TargetUnavailableError: The name is unknown, the port refuses, or the certificate is not trusted; the message
            begins with `DNS:`, `TCP:` or `TLS:`.
        WorkspaceError: The URL is not the address of a server.
    """
    scheme, host, port = _scheme_host_port(url)
    try:
        async with asyncio.timeout(PART_TIMEOUT_S):
            resolved = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TargetUnavailableError(f"DNS: the name {host} is not known here{_cause_in_brackets(error)}") from error
    addresses = ", ".join(dict.fromkeys(str(address[4][0]) for address in resolved))
    place = f"{host}:{port}" if host == addresses else f"{host}:{port} ({addresses})"
    try:
        await _try_connection(host, port)
    except OSError as error:
        raise TargetUnavailableError(f"TCP: {place} does not accept connections{_cause_in_brackets(error)}") from error
    if tls and scheme == "https":
        try:
            await _try_connection(host, port, ssl=_tls_context(authority), server_hostname=host)
        except OSError as error:
            raise TargetUnavailableError(f"TLS: {place} is not trusted{_cause_in_brackets(error)}") from error
    return place


async def certificate_end(url: str, authority: Path | None) -> datetime:
    """Return when the certificate ends that an https server shows now.

    Raises:
        TargetUnavailableError: It cannot be reached, or its certificate is not trusted; as `check_reachable` says it.
        WorkspaceError: The URL is not the address of a server, or the authority cannot be read.
    """
    _, host, port = _scheme_host_port(url)
    try:
        async with asyncio.timeout(PART_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=_tls_context(authority), server_hostname=host)
    except OSError as error:
        await check_reachable(url, authority=authority)
        raise TargetUnavailableError(f"TLS: {host}:{port} does not answer{_cause_in_brackets(error)}") from error
    certificate = writer.get_extra_info("peercert")
    await _close(writer)
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)


async def http_get(url: str, *, authority: Path | None = None) -> "httpx.Response":
    """Send an HTTP GET request and return the response; raise for an HTTP status of 500 or more, or no answer.

    Args:
        url: Where the server is, with the path that is asked for.
        authority: The file with the authority of an https server; None for this machine's authorities.

    Raises:
        TargetUnavailableError: The server does not answer, or answers with 500 or more; the message says whether name,
            port, certificate or answer is to blame.
    """
    import httpx

    tls = None if authority is None else _tls_context(authority)
    try:
        async with httpx.AsyncClient(
            timeout=ANSWER_TIMEOUT_S, transport=transport_for(url, tls), verify=tls or True
        ) as client:
            response = await client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        if not isinstance(error, httpx.ProxyError):
            await check_reachable(url, authority=authority)
        raise TargetUnavailableError(f"{url} does not answer{_cause_in_brackets(error)}") from error
    if response.status_code >= 500:
        raise TargetUnavailableError(f"{url} answers {response.status_code}")
    return response


def _tls_context(authority: Path | None) -> ssl.SSLContext:
    """Return the settings of TLS that check a server against an authority; None for this machine's authorities."""
    from controlled_rollout.target.authority import tls_context

    return tls_context(authority)


def _scheme_host_port(url: str) -> tuple[str, str, int]:
    """Return the scheme, host and port of a URL; raise WorkspaceError if it is not the URL of a server."""
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS[parts.scheme]
        if not parts.hostname:
            raise ValueError("no host")
    except (ValueError, KeyError):
        raise WorkspaceError(f"{url!r} is not the address of a server: give https://host or http://host:port") from None
    return parts.scheme, parts.hostname, port


async def _try_connection(host: str, port: int, **tls: Any) -> None:
    """Open a TCP or TLS connection and close it; raise if that takes too long or fails."""
    async with asyncio.timeout(PART_TIMEOUT_S):
        _, writer = await asyncio.open_connection(host, port, **tls)
    await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and do not wait long for the server to agree."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(PART_TIMEOUT_S):
            await writer.wait_closed()


def _cause_in_brackets(error: BaseException) -> str:
    """Return an error's cause in brackets, to be appended to a message."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f" ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return f" (no answer within {PART_TIMEOUT_S:g} s)"
    message = error.strerror if isinstance(error, OSError) else str(error)
    return f" ({message or str(error) or type(error).__name__})"
