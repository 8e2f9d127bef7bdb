"""The scoring runtime against the stock `azmlinfsrv` command: the same script, one worker, side by side in one run.

Both are called in turns by one client in a process of its own, over as many connections as asked for, each sending its
next request when the last is answered. A latency contains the time to connect where the server has closed the
connection, because a caller waits for that too.

`python tests/benchmarks/scoring_runtime.py` prints the figures; `measure()` returns them.
"""

import json
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from local.scoring_environment import environment_python, free_port, refuses, replica, runtime_environment, wait_for

SCRIPT = "def init():\n    pass\n\ndef run(data):\n    return {'length': len(data)}\n"
BODY = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}'
REQUEST = (
    b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)
CONNECTIONS = (1, 8)


class Connection:
    """One caller: a socket, when its request was begun, and what has been received of the answer."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.began = time.perf_counter()
        self.socket: socket.socket | None = None
        self.received = b""

    def send(self) -> socket.socket:
        self.began = time.perf_counter()
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(REQUEST)
        return self.socket

    def receive(self) -> bool:
        """Read on; whether the answer is complete."""
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


def call(port: int, connections: int, seconds: float) -> dict[str, object]:
    """Call for some seconds; the latencies in seconds, and how long it took."""
    latencies: list[float] = []
    with selectors.DefaultSelector() as selector:
        callers = [Connection(port) for _ in range(connections)]
        started = time.perf_counter()
        for caller in callers:
            selector.register(caller.send(), selectors.EVENT_READ, caller)
        while selector.get_map():
            for key, _ in selector.select():
                caller, before = key.data, key.fileobj
                if not caller.receive():
                    continue
                now = time.perf_counter()
                latencies.append(now - caller.began)
                if now - started < seconds and caller.socket is not None:
                    caller.send()
                    continue
                selector.unregister(before)
                if now - started < seconds:
                    selector.register(caller.send(), selectors.EVENT_READ, caller)
        took = time.perf_counter() - started
    for caller in callers:
        caller.close()
    return {"latencies": latencies, "seconds": took}


def measure(*, rounds: int = 3, seconds: float = 3.0) -> dict[str, dict[str, dict[str, float]]]:
    """Return requests per second and latencies in milliseconds, by number of connections and by server.

    Args:
        rounds: How often the two servers take turns.
        seconds: How long each is called in a round.

    Returns:
        `{"1": {"stock": {...}, "runtime": {...}, "ratio": {...}}, "8": …}`; a ratio is the runtime's over the stock's.
    """
    python = environment_python()
    results: dict[str, dict[str, dict[str, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = {
            "stock": stack.enter_context(stock_server(python, folder)),
            "runtime": stack.enter_context(replica(python, folder, SCRIPT)).port,
        }
        for port in ports.values():
            call_in_a_process(port, 8, 0.5)
        for connections in CONNECTIONS:
            runs: dict[str, list[dict]] = {server: [] for server in ports}
            for _ in range(rounds):
                for server, port in ports.items():
                    runs[server].append(call_in_a_process(port, connections, seconds))
            figures = {server: summary(of) for server, of in runs.items()}
            stock, runtime = figures["stock"], figures["runtime"]
            results[str(connections)] = {**figures, "ratio": {name: runtime[name] / stock[name] for name in stock}}
    return results


@contextmanager
def stock_server(python: Path, folder: Path) -> Iterator[int]:
    """Serve the script by the stock command, with its own defaults."""
    app = folder / "stock"
    app.mkdir()
    (app / "score.py").write_text(SCRIPT)
    port = free_port()
    command = [python.parent / "azmlinfsrv", "--entry_script", "score.py", "--port", str(port)]
    environment = runtime_environment(app, {})
    with (folder / "stock.log").open("w") as log:
        process = subprocess.Popen(command, cwd=app, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: not refuses(port) or process.poll() is not None, "the stock server answers")
        assert process.poll() is None, (folder / "stock.log").read_text()
        yield port
    finally:
        process.terminate()
        process.wait()


def call_in_a_process(port: int, connections: int, seconds: float) -> dict:
    command = [sys.executable, __file__, "call", str(port), str(connections), str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def summary(runs: list[dict]) -> dict[str, float]:
    latencies = sorted(1000 * latency for run in runs for latency in run["latencies"])
    return {
        "requests_per_second": statistics.median(len(run["latencies"]) / run["seconds"] for run in runs),
        "mean_ms": statistics.fmean(latencies),
        "p50_ms": latencies[len(latencies) // 2],
        "p99_ms": latencies[int(0.99 * len(latencies))],
    }


def main() -> None:
    for connections, servers in measure().items():
        for server, figures in servers.items():
            line = ", ".join(f"{name.replace('_', ' ')} {value:,.2f}" for name, value in figures.items())
            print(f"{connections} connection(s), {server}: {line}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["call"]:
        print(json.dumps(call(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))
    else:
        main()
