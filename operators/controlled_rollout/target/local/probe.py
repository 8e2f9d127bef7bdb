"""Health checks: one HTTP GET over a unix socket or a port, in bounded time."""

import asyncio
import contextlib
from pathlib import Path

__all__ = ["status_of", "status_of_port"]

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def status_of(socket: Path, target: str, timeout_s: float) -> int | None:
    """Return the status of `GET target` on a unix socket; None if nothing answers within `timeout_s` seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _get_status(await asyncio.open_unix_connection(str(socket)), target)
    except (OSError, TimeoutError):
        return None


async def status_of_port(host: str, port: int, target: str, timeout_s: float) -> int | None:
    """Return the status of `GET target` on a port; None if nothing answers within `timeout_s` seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _get_status(await asyncio.open_connection(host, port), target)
    except (OSError, TimeoutError):
        return None


async def _get_status(streams: Streams, target: str) -> int | None:
    reader, writer = streams
    try:
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        words = (await reader.readline()).split()
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
