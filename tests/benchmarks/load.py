"""A lean closed-loop HTTP/1.1 client: as little of the processor as possible goes to measuring."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What one run of the client saw; latencies in milliseconds."""

    requests_per_second: float
    mean_ms: float
    p50_ms: float
    p99_ms: float
    requests: int
    failures: int

    def __str__(self) -> str:
        return (
            f"{self.requests_per_second:,.0f} requests/s, mean {self.mean_ms:.2f} ms, "
            f"p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms, {self.failures} failed"
        )


@dataclass(frozen=True)
class Address:
    """Where to send: a TCP port of this machine, or a unix socket."""

    port: int | None = None
    socket: str | None = None

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.socket is not None:
            return await asyncio.open_unix_connection(self.socket)
        return await asyncio.open_connection("127.0.0.1", self.port)


def request_bytes(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def closed_loop(
    address: Address, path: str, body: bytes, *, connections: int, seconds: float, headers: Mapping[str, str] = {}
) -> Load:
    """Send requests back to back on some connections for some seconds; a closed connection is opened again."""
    request = request_bytes(path, body, headers)
    latencies: list[float] = []
    failures = 0
    end = time.perf_counter() + seconds

    async def one_connection() -> None:
        nonlocal failures
        reader, writer = await address.connect()
        while (started := time.perf_counter()) < end:
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                lowered = head.lower()
                length = int(lowered.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
                if length:
                    await reader.readexactly(length)
                failures += not head.startswith(b"HTTP/1.1 200")
                closes = b"connection: close" in lowered
            except (asyncio.IncompleteReadError, ConnectionError):
                failures += 1
                closes = True
            latencies.append(time.perf_counter() - started)
            if closes:
                writer.close()
                reader, writer = await address.connect()
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(one_connection() for _ in range(connections)))
    took = time.perf_counter() - began
    latencies.sort()
    count = len(latencies)
    return Load(
        requests_per_second=count / took,
        mean_ms=1000 * sum(latencies) / count,
        p50_ms=1000 * latencies[count // 2],
        p99_ms=1000 * latencies[min(count - 1, int(0.99 * count))],
        requests=count,
        failures=failures,
    )
