"""Tells apart why a server cannot be reached: its name, its port, its certificate, or its answer."""

import asyncio
import ssl
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from controlled_rollout.addresses import transport_for
from controlled_rollout.checks.advice import failure_text, place_text
from controlled_rollout.checks.destinations import destination_of
from controlled_rollout.checks.probe import Probe, probe
from controlled_rollout.errors import TargetUnavailableError

if TYPE_CHECKING:
    import httpx

__all__ = ["certificate_end", "check_reachable", "http_get"]

# Less than a connectivity check may take, so that its result names the part that failed.
ANSWER_TIMEOUT_S: Final = 6.0


async def check_reachable(url: str, *, tls: bool = True, authority: Path | None = None) -> str:
    """Open and close a connection to a URL's server; return its host, port and addresses.

    Args:
        url: Where the server is.
        tls: Whether to check the certificate of an https server too.
        authority: The file with the authority that it is checked against; None for this machine's authorities.

    Raises:
        TargetUnavailableError: The name is unknown, the port refuses, or the certificate is not trusted; the message
            begins with `DNS:`, `TCP:`, `TLS:` or `proxy:`.
        WorkspaceError: The URL is not the address of a server.
    """
    return place_text(await _probe(url, tls=tls, authority=authority))


async def certificate_end(url: str, authority: Path | None) -> datetime:
    """Return when the certificate ends that an https server shows now.

    Raises:
        TargetUnavailableError: It cannot be reached, or its certificate is not trusted; as `check_reachable` says it.
        WorkspaceError: The URL is not the address of a server, or the authority cannot be read.
    """
    found = await _probe(url, tls=True, authority=authority)
    return datetime.fromtimestamp(found.certificate_ends, UTC)


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


async def _probe(url: str, *, tls: bool, authority: Path | None) -> Probe:
    """Ask a URL's server, stage by stage; raise as `check_reachable` says. An answer that is an error is one."""
    if authority is not None:
        _tls_context(authority)
    destination = replace(destination_of("server", url), authorities_file=str(authority or ""))
    found = await asyncio.to_thread(probe, destination if tls else replace(destination, scheme="tcp"))
    if found.failed and found.failed != "HTTP":
        raise TargetUnavailableError(failure_text(found))
    return found


def _tls_context(authority: Path | None) -> ssl.SSLContext:
    """Return the settings of TLS that check a server against an authority; None for this machine's authorities."""
    from controlled_rollout.target.authority import tls_context

    return tls_context(authority)


def _cause_in_brackets(error: BaseException) -> str:
    """Return an error's cause in brackets, to be appended to a message."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f" ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return f" (no answer within {ANSWER_TIMEOUT_S:g} s)"
    message = error.strerror if isinstance(error, OSError) else str(error)
    return f" ({message or str(error) or type(error).__name__})"
