"""The scoring runtime against the stock `azmlinfsrv` command: the same script, one worker, side by side in one run."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.benchmarks import load
from tests.local.scoring_environment import (
    environment_python,
    refuses_connections,
    runtime_environment,
    start_replica,
)
from tests.polling import wait_until
from tests.ports import free_port

SCRIPT = "def init():\n    pass\n\ndef run(data):\n    return {'length': len(data)}\n"
BODY = '{"data": [[5.1, 3.5, 1.4, 0.2]]}'
CONNECTIONS = (1, 8)


def measure(*, rounds: int = 3, seconds: float = 3.0) -> dict[int, dict[str, load.Figures]]:
    """Return by number of connections the figures of the stock command and of the runtime.

    Args:
        rounds: How often the two servers take turns.
        seconds: How long each is called in a round.
    """
    python = environment_python()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = {
            "stock": stack.enter_context(stock_server(python, folder)),
            "runtime": stack.enter_context(start_replica(python, folder, SCRIPT)).port,
        }
        calls = {server: load.Call("/score", BODY, port=port) for server, port in ports.items()}
        return {
            connections: load.side_by_side(calls, connections=connections, seconds=seconds, rounds=rounds)
            for connections in CONNECTIONS
        }


@contextmanager
def stock_server(python: Path, folder: Path) -> Iterator[int]:
    """Serve the script by the stock command, with its own defaults."""
    app = folder / "stock"
    app.mkdir()
    (app / "score.py").write_text(SCRIPT)
    port = free_port()
    command = [str(python.parent / "azmlinfsrv"), "--entry_script", "score.py", "--port", str(port)]
    environment = runtime_environment(app, {})
    with (folder / "stock.log").open("w") as log:
        process = subprocess.Popen(command, cwd=app, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: not refuses_connections(port) or process.poll() is not None, "the stock server responds")
        assert process.poll() is None, (folder / "stock.log").read_text()
        yield port
    finally:
        process.terminate()
        process.wait()
