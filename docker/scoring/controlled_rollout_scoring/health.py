"""Liveness and readiness as the parent process sees them: no model can keep these answers waiting."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
TIMEOUT_S = 5.0

Check = Callable[[], "tuple[bool, str]"]


async def serve(listener: socket.socket, checks: dict[str, Check]) -> asyncio.AbstractServer:
    """Answer `GET <path>` with 200 or 503 and a line of text, by the check of that path; one request a connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
            method, target, *_ = [*head.decode("latin-1").split(" ", 2), ""]
            status, text = _judge(method, target.partition("?")[0], checks)
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
            pass  # not a probe, or one that has gone away
        finally:
            writer.close()

    return await asyncio.start_server(answer, sock=listener, limit=8192)


def _judge(method: str, path: str, checks: dict[str, Check]) -> tuple[int, str]:
    check = checks.get(path)
    if check is None:
        return 404, f"not found: there are {', '.join(checks)}"
    if method not in ("GET", "HEAD"):
        return 405, "use GET"
    good, text = check()
    return (200 if good else 503), text
