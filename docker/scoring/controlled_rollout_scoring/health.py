"""The HTTP server for liveness and readiness probes, in the parent process: it never waits for a model."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
TIMEOUT_S = 5.0

# Whether the check passes, and a line of text that says why.
Check = Callable[[], "tuple[bool, str]"]


async def serve(listener: socket.socket, checks: dict[str, Check]) -> asyncio.AbstractServer:
    """Answer `GET <path>` by the check of that path: 200 or 503 and its line of text; one request a connection."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
            method, target, *_ = [*head.decode("latin-1").split(" ", 2), ""]
            status, text = _evaluate(method, target.partition("?")[0], checks)
            body = f"{text}\n".encode()
            writer.write(
                f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            )
            if method != "HEAD":
                writer.write(body)
            await asyncio.wait_for(writer.drain(), TIMEOUT_S)
        except asyncio.TimeoutError:  # noqa: UP041 - another class before Python 3.11
            pass  # a probe that has stalled
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # not an HTTP request, or a probe that has closed its connection
        finally:
            writer.close()

    return await asyncio.start_server(respond, sock=listener, limit=8192)


def _evaluate(method: str, path: str, checks: dict[str, Check]) -> tuple[int, str]:
    check = checks.get(path)
    if check is None:
        return 404, f"not found: use one of {', '.join(checks)}"
    if method not in ("GET", "HEAD"):
        return 405, "use GET"
    passed, text = check()
    return (200 if passed else 503), text
