"""How fast a collector ships what a version has captured: into Azurite, really started, and into a folder."""

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from azure.storage.blob import BlobServiceClient

# The collector is no package of this environment.
sys.path.insert(0, str(Path(__file__).parents[2] / "docker" / "collector"))

from tests.azurite import install_azurite, serving_blobs
from tests.local.test_collector import CONNECTION_STRING, CollectorProcess
from tests.unit.collector.spools import NOON, SpoolWriter, exchange_head, make_spool

# So many requests with so many rows each, of ten columns.
KINDS = {"one row": (50_000, 1), "100 rows": (2_000, 100)}
# A new segment as often as the scoring runtime begins one.
SEGMENT_BYTES = 8_000_000
DEADLINE_S = 600.0
COLUMNS = [f"column_{number}" for number in range(10)]


@dataclass(frozen=True)
class Shipped:
    """What was shipped of a spool.

    Attributes:
        requests: Captured requests.
        rows: Rows in the storage, of inputs and of predictions.
        spool_mb, stored_mb: What the requests were in the spool, and their rows are in the storage.
        seconds, processor_s: From the collector's start until nothing waited, by the clock and of its processor time.
    """

    requests: int
    rows: int
    spool_mb: float
    stored_mb: float
    seconds: float
    processor_s: float


def measure() -> dict[tuple[str, str], Shipped]:
    """Return by kind of request and storage what a collector has shipped, from its start until nothing waited."""
    install_azurite()
    shipped: dict[tuple[str, str], Shipped] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        connection_string = stack.enter_context(serving_blobs(folder / "blobs"))
        service = stack.enter_context(BlobServiceClient.from_connection_string(connection_string))
        for number, (kind, (requests, rows)) in enumerate(KINDS.items()):
            container = service.create_container(f"kind-{number}")
            storages = {
                "Azurite": f"{container.url.partition('?')[0]}/team",
                "a folder": str(folder / f"store-{number}"),
            }
            for storage, address in storages.items():
                spools = folder / f"{storage.split()[-1]}-{number}"
                size = fill(spools, requests, rows)
                environment = {CONNECTION_STRING: connection_string}
                seconds, processor_s = ship(spools, address, environment, requests)
                if storage == "Azurite":
                    stored = [container.download_blob(name).readall() for name in container.list_blob_names()]
                    parts = [pa.BufferReader(content) for content in stored if content[:4] == b"PAR1"]
                    stored_bytes = sum(map(len, stored))
                else:
                    paths = list(Path(address).rglob("*.parquet"))
                    parts, stored_bytes = paths, sum(path.stat().st_size for path in paths)
                in_storage = sum(pq.read_metadata(part).num_rows for part in parts)
                assert in_storage == 2 * requests * rows, f"{in_storage:,} rows are in the storage"
                shipped[kind, storage] = Shipped(
                    requests, in_storage, size / 1e6, stored_bytes / 1e6, seconds, processor_s
                )
    return shipped


def fill(spools: Path, requests: int, rows: int) -> int:
    """Write requests into a spool as a worker that has ended; return how many bytes they have."""
    writer = SpoolWriter(make_spool(spools))
    size = written = 0
    for number in range(requests):
        head, asked, answered = exchange(number, rows)
        writer.append(head, asked, answered)
        written += len(asked) + len(answered)
        if written - size > SEGMENT_BYTES:
            size = written
            writer.begin_segment()
    writer.end()
    return sum(path.stat().st_size for path in writer.spool.glob("*.spool"))


def exchange(number: int, rows: int) -> tuple[dict[str, Any], bytes, bytes]:
    """Return the head, the request's body and the answer's body of a request with rows of ten columns."""
    rng = random.Random(number)
    asked = json.dumps({"data": [{column: round(rng.random(), 3) for column in COLUMNS} for _ in range(rows)]}).encode()
    answered = json.dumps([{"label": rng.randrange(3), "score": round(rng.random(), 3)} for _ in range(rows)]).encode()
    id_, correlation = (f"6f3f6f0e-5a3e-4b0a-{group}-{number:012d}" for group in ("9d3c", "8d3c"))
    head = exchange_head(id_, correlation, asked, answered, time=NOON + number / 1000)
    return head, asked, answered


def ship(spools: Path, address: str, environment: dict[str, str], requests: int) -> tuple[float, float]:
    """Run a collector until it has shipped everything; return its seconds and its seconds of processor."""
    with collecting(spools, address, environment) as collector:
        begin = time.monotonic()
        process = psutil.Process(collector.process.pid)
        while not collector.has_shipped(requests):
            assert collector.process.poll() is None, collector.log.read_text()
            assert time.monotonic() - begin < DEADLINE_S, collector.log.read_text()
            time.sleep(0.02)
        seconds = time.monotonic() - begin
        times = process.cpu_times()
        return seconds, times.user + times.system


@contextmanager
def collecting(spools: Path, address: str, environment: dict[str, str]) -> Iterator[CollectorProcess]:
    """Run a collector in the block."""
    collector = CollectorProcess(spools, address, spools.parent / f"{spools.name}.log", environment)
    try:
        yield collector
    finally:
        collector.kill()
