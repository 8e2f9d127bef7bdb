"""The scoring runtime with capture off and on: the same script, one worker, taking turns in one run."""

import json
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.benchmarks import load
from tests.benchmarks.scoring_runtime import CONNECTIONS, SCRIPT
from tests.local.scoring_environment import RUNTIME, Replica, environment_python, start_replica
from tests.unit.scoring.spool_reader import counts, segments

# As the router sends it.
HEADERS = {"x-request-id": "6f3f6f0e-5a3e-4b0a-9d3c-0c8d4f5a7b61"}
BODIES = {
    "a row of ten columns": json.dumps({"data": [[round(0.1 * number, 1) for number in range(10)]]}),
    "100 kB": json.dumps({"data": "x" * 99_988}),
}
DELETE_INTERVAL_S = 0.2


@dataclass(frozen=True)
class Measured:
    """A replica's figures, and the processor time that a request took its worker, in microseconds."""

    figures: load.Figures
    processor_us: float


def measure(*, rounds: int = 9, seconds: float = 1.0) -> dict[tuple[str, int], dict[str, Measured]]:
    """Return by body and number of connections what was measured of a replica that captures, and of one that does not.

    Args:
        rounds: How often the two replicas take turns.
        seconds: How long each is called in a round.
    """
    python = environment_python()
    with ExitStack() as stack:
        folders = {name: Path(stack.enter_context(tempfile.TemporaryDirectory())) for name in ("off", "on")}
        spool = folders["on"] / "spool"
        capture = {"off": {}, "on": {"CAPTURE_SPOOL": str(spool), "CAPTURE_SPOOL_BYTES": "2000000000"}}
        replicas = {
            name: stack.enter_context(start_replica(python, folder, SCRIPT, environment=capture[name]))
            for name, folder in folders.items()
        }
        stack.enter_context(shipped(spool))
        measured = {
            (body, connections): side_by_side(replicas, text, connections, seconds, rounds)
            for body, text in BODIES.items()
            for connections in CONNECTIONS
        }
        captured, dropped, _ = counts(spool)
        assert captured > 0
        assert dropped == 0, f"{dropped} of {captured} requests were dropped: that costs less than to capture them"
        return measured


@dataclass(frozen=True)
class Alone:
    """The processor time of capturing one request in a thread that does nothing else, in microseconds."""

    all_us: float
    kernel_us: float
    without_spool_us: float


def measure_alone() -> dict[str, Alone]:
    """Return by body what capturing takes a thread."""
    measured = {}
    for name, body in BODIES.items():
        with tempfile.TemporaryDirectory() as folder, shipped(Path(folder)):
            done = subprocess.run(
                [environment_python(), Path(__file__).with_name("capture_alone.py"), folder],
                env={"PYTHONPATH": str(RUNTIME)},
                input=body.encode(),
                stdout=subprocess.PIPE,
                check=True,
            )
        measured[name] = Alone(**json.loads(done.stdout))
    return measured


def side_by_side(
    replicas: dict[str, Replica], body: str, connections: int, seconds: float, rounds: int
) -> dict[str, Measured]:
    """Let the replicas take turns with the same client, so that a noisy moment hits all of them."""
    runs: dict[str, list[load.Run]] = {name: [] for name in replicas}
    processor_us: dict[str, list[float]] = {name: [] for name in replicas}
    for name, replica in list(replicas.items()) * rounds:
        call = load.Call("/score", body, port=replica.port, headers=HEADERS)
        [worker] = map(psutil.Process, replica.workers())
        before = sum(worker.cpu_times()[:2])
        run = load.run(call, connections=connections, seconds=seconds)
        runs[name].append(run)
        processor_us[name].append((sum(worker.cpu_times()[:2]) - before) / len(run.latencies_ms) * 1e6)
    return {name: Measured(load.Figures.of(runs[name]), statistics.median(processor_us[name])) for name in replicas}


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
