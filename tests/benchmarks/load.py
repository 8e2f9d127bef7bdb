"""A lean closed-loop HTTP/1.1 client in a process of its own: little of the processor goes to measuring.

Each connection sends its next request when the last is answered. A latency contains the time to connect where the
server has closed the connection, because a caller waits for that too.
"""

import json
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Call:
    """One request, and where to send it: to a TCP port of this machine, or to a unix socket."""

    path: str
    body: str
    port: int | None = None
    unix_socket: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def connect(self) -> socket.socket:
        if self.unix_socket is not None:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(self.unix_socket)
            return connection
        connection = socket.create_connection(("127.0.0.1", self.port or 0))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def request(self) -> bytes:
        headers = {"Host": "localhost", "Content-Type": "application/json", **self.headers}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        body = self.body.encode()
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@dataclass(frozen=True)
class Run:
    """What one run of the client measured: every latency in milliseconds, and how long it took in seconds."""

    latencies_ms: Sequence[float]
    seconds: float


@dataclass(frozen=True)
class Figures:
    """Several runs in one line."""

    requests_per_second: float
    mean_ms: float
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Figures":
        latencies = sorted(latency for run in runs for latency in run.latencies_ms)
        return cls(
            requests_per_second=statistics.median(len(run.latencies_ms) / run.seconds for run in runs),
            mean_ms=statistics.fmean(latencies),
            p50_ms=latencies[len(latencies) // 2],
            p99_ms=latencies[int(0.99 * len(latencies))],
        )


class _Connection:
    """One caller: its socket, when its request began, and the bytes of the response so far."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.request = call.request()
        self.began = 0.0
        self.socket: socket.socket | None = None
        self.received = b""

    def send(self) -> socket.socket:
        self.began = time.perf_counter()
        if self.socket is None:
            self.socket = self.call.connect()
        self.socket.sendall(self.request)
        return self.socket

    def receive(self) -> bool:
        """Read on; whether the answer is complete. Anything but a 200 ends the measurement."""
        assert self.socket is not None
        chunk = self.socket.recv(65536)
        assert chunk, f"the server closed after {self.received!r}"
        self.received += chunk
        head, separator, body = self.received.partition(b"\r\n\r\n")
        lowered = head.lower()
        if not separator or len(body) < int(lowered.partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return False
        assert head.startswith(b"HTTP/1.1 200"), head
        self.received = b""
        if b"connection: close" in lowered:
            self.close()
        return True

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def run(call: Call, *, connections: int, seconds: float) -> Run:
    """Call for some seconds in a process of its own."""
    task = {"call": asdict(call), "connections": connections, "seconds": seconds}
    done = subprocess.run([sys.executable, __file__], check=True, input=json.dumps(task).encode(), capture_output=True)
    return Run(**json.loads(done.stdout))


def side_by_side(
    calls: Mapping[str, Call], *, connections: int, seconds: float, rounds: int, warm_up_s: float = 0.5
) -> dict[str, Figures]:
    """Let several servers take turns with the same client, so that a noisy moment hits all of them."""
    for call in calls.values():
        run(call, connections=connections, seconds=warm_up_s)
    runs: dict[str, list[Run]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            runs[name].append(run(call, connections=connections, seconds=seconds))
    return {name: Figures.of(of) for name, of in runs.items()}


def _call_here(call: Call, connections: int, seconds: float) -> dict[str, Any]:
    latencies: list[float] = []
    with selectors.DefaultSelector() as selector:
        callers = [_Connection(call) for _ in range(connections)]
        started = time.perf_counter()
        for caller in callers:
            selector.register(caller.send(), selectors.EVENT_READ, caller)
        while selector.get_map():
            for key, _ in selector.select():
                caller, before = key.data, key.fileobj
                if not caller.receive():
                    continue
                now = time.perf_counter()
                latencies.append(1000 * (now - caller.began))
                if now - started < seconds and caller.socket is not None:
                    caller.send()
                    continue
                selector.unregister(before)
                if now - started < seconds:
                    selector.register(caller.send(), selectors.EVENT_READ, caller)
        took = time.perf_counter() - started
    for caller in callers:
        caller.close()
    return {"latencies_ms": latencies, "seconds": took}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    json.dump(_call_here(Call(**asked["call"]), asked["connections"], asked["seconds"]), sys.stdout)
