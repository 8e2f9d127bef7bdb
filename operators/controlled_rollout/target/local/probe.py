"""Health checks: one HTTP GET over a unix socket or a port, in bounded time."""

import asyncio
import contextlib
import ssl
from pathlib import Path

__all__ = ["http_status_on_port", "http_status_on_socket"]

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def http_status_on_socket(socket: Path, target: str, timeout_s: float) -> int | None:
    """Return the HTTP status of `GET target` on a unix socket; None if no answer comes within `timeout_s` seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange_get(await asyncio.open_unix_connection(str(socket)), target)
    except (OSError, TimeoutError):
        return None


async def http_status_on_port(host: str, port: int, target: str, timeout_s: float, *, tls: bool = False) -> int | None:
    """Return the HTTP status of `GET target` on a TCP port; None if no answer comes within `timeout_s` seconds.

    With `tls` any certificate will do: the port is this supervisor's own, and no key is sent.
    """
    context: ssl.SSLContext | None = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange_get(await asyncio.open_connection(host, port, ssl=context), target)
    except (OSError, TimeoutError):
        return None


async def _exchange_get(streams: Streams, target: str) -> int | None:
    """Send `GET target` on an open connection and close it; return the HTTP status, or None if the answer has none."""
    reader, writer = streams
    try:
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        words = (await reader.readline()).split()
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
