"""The agent's answer to its liveness probe: that its event loop runs."""

import asyncio
from typing import Final

__all__ = ["serve_health"]

ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n"
READ_TIMEOUT_S: Final = 5.0
MAX_REQUEST: Final = 4096


async def serve_health(port: int) -> asyncio.Server:
    """Answer every request at a port with 200, until the server is closed."""
    return await asyncio.start_server(_answer, port=port, limit=MAX_REQUEST)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request, whatever it asks for."""
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
            await writer.drain()
    except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()
