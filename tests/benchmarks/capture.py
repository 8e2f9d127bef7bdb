"""The scoring runtime with capture off and on: the same script, one worker, taking turns in one run."""

import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.benchmarks import load
from tests.benchmarks.scoring_runtime import CONNECTIONS, SCRIPT
from tests.local.scoring_environment import environment_python, start_replica
from tests.unit.scoring.spool_reader import counts, segments

# As the router sends it.
HEADERS = {"x-request-id": "6f3f6f0e-5a3e-4b0a-9d3c-0c8d4f5a7b61"}
BODIES = {
    "a row of ten columns": json.dumps({"data": [[round(0.1 * number, 1) for number in range(10)]]}),
    "100 kB": json.dumps({"data": "x" * 99_988}),
}
DELETE_INTERVAL_S = 0.2


def measure(*, rounds: int = 3, seconds: float = 3.0) -> dict[tuple[str, int], dict[str, load.Figures]]:
    """Return by body and number of connections the figures of a replica that captures, and of one that does not.

    Args:
        rounds: How often the two replicas take turns.
        seconds: How long each is called in a round.
    """
    python = environment_python()
    with ExitStack() as stack:
        folders = {name: Path(stack.enter_context(tempfile.TemporaryDirectory())) for name in ("off", "on")}
        spool = folders["on"] / "spool"
        capture = {"off": {}, "on": {"CAPTURE_SPOOL": str(spool), "CAPTURE_SPOOL_BYTES": "2000000000"}}
        ports = {
            name: stack.enter_context(start_replica(python, folder, SCRIPT, environment=capture[name])).port
            for name, folder in folders.items()
        }
        stack.enter_context(shipped(spool))
        figures = {}
        for body, text in BODIES.items():
            calls = {name: load.Call("/score", text, port=port, headers=HEADERS) for name, port in ports.items()}
            for connections in CONNECTIONS:
                figures[body, connections] = load.side_by_side(
                    calls, connections=connections, seconds=seconds, rounds=rounds
                )
        captured, dropped, _ = counts(spool)
        assert captured > 0
        assert dropped == 0, f"{dropped} of {captured} requests were dropped: that costs less than to capture them"
        return figures


@contextmanager
def shipped(spool: Path) -> Iterator[None]:
    """Delete the closed segments within the block, as a collector that has shipped them."""
    ended = threading.Event()

    def delete() -> None:
        while not ended.wait(DELETE_INTERVAL_S):
            for segment in segments(spool)[:-1]:
                segment.unlink()

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
