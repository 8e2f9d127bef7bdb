"""The data gate on ten million requests with ten columns: the first look, the next one, and what they take."""

import json
import resource
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil

from controlled_rollout.collection_settings import Collection
from controlled_rollout.evidence import Evidence, EvidenceQuery, EvidenceWindow
from controlled_rollout.evidence.collected.duckdb_engine import DuckDBEngine
from controlled_rollout.evidence.collected.engine import SummaryEngine
from controlled_rollout.evidence.collected.part_files import PartFiles
from controlled_rollout.evidence.collected.reader import CollectedReader
from controlled_rollout.gate import Bin, Category, Counts, Gate, Mean, judge
from controlled_rollout.storage import storage_at

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
BINS = 120
GATE = Gate(
    latency_quantiles=(),
    means={f"mean {number}": Mean(worse="lower", column=f"predictions.n{number}") for number in range(4)}
    | {"clipped": Mean(worse="lower", column="predictions.n4", clip=0.01)},
    categories={f"label {number}": Category(column=f"predictions.s{number}", tolerance=0.1) for number in range(3)}
    | {f"buckets {number}": Category(column=f"predictions.n{number}", buckets=10) for number in (5, 6)},
)
CLASSES = [f"c{number}" for number in range(8)]
EXPECTED: list[tuple[str, dict[str, Any]]] = [
    *(("values_to_be_between", {"column": f"predictions.n{number}", "max_value": 1.9}) for number in range(6)),
    *(("values_to_be_in_set", {"column": f"predictions.s{n}", "value_set": CLASSES}) for n in (0, 1)),
    ("values_to_match_regex", {"column": "predictions.s2", "regex": "^c[0-9]+$"}),
    ("values_to_not_be_null", {"column": "predictions.n6"}),
]
EXPECTATIONS = Gate.model_validate(
    {
        "latency_quantiles": (),
        "expectations": {
            "expectations": [
                {"type": f"expect_column_{kind}", "kwargs": {"mostly": 0.5, **of}} for kind, of in EXPECTED
            ]
        },
    }
)
NUMBERS = [f"random() + random() AS n{number}" for number in range(7)]
LABELS = [f"'c' || (random() * {9 + number})::INT AS s{number}" for number in range(3)]
DATA = ", ".join(NUMBERS + LABELS)


def write_part(folder: Path, version: str, begin: datetime, rows: int) -> None:
    """Write a part with a minute's requests."""
    import duckdb

    first, step = round(begin.timestamp() * 1e6), 60_000_000 // rows
    path = folder / f"collected/digits/{version}/predictions/{begin:%Y/%m/%d}/{first // 1_000}-{version}-0.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect() as connection:
        connection.execute(
            f"""COPY (SELECT gen_random_uuid()::VARCHAR AS "$request_id", 0::INT AS "$row", 1::INT AS "$rows",
            make_timestamptz({first} + i * {step}) AS "$time", false AS "$addressed", 200::INT AS "$status", {DATA}
            FROM range({rows}) AS r(i)) TO '{path}' (FORMAT parquet, COMPRESSION zstd)"""
        )


def write_state(folder: Path, version: str) -> None:
    """Write that everything was shipped."""
    path = folder / f"collected/digits/{version}/_state/{version}-0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    now = (START + (BINS + 1) * MINUTE).timestamp()
    state = {
        "replica": version, "shipped_until": now, "dropped": 0, "unreadable": 0, "lost_at": None, "watched_since": 0,
        "pending_bytes": 0, "final": False, "updated": now,
    }  # fmt: skip
    path.write_text(json.dumps(state))


def evidence_of(bins: int, rows: int) -> Evidence:
    """Return what the metric store has of so many bins."""
    counts = Counts(rows, 0)
    found = tuple(Bin(START + number * MINUTE, counts, counts, share=0.5) for number in range(bins))
    return Evidence(found, (), (), START + bins * MINUTE, ())


class Children(Thread):
    """Watches the processes that this one has started, and theirs.

    Attributes:
        together, largest: The most bytes that they took together, what they share counted once, and one alone.
        processor: The seconds of processor that they have used, as far as was seen, by process.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.together = self.largest = 0
        self.processor: dict[int, float] = {}
        self._ended = Event()

    def run(self) -> None:
        while not self._ended.wait(0.1):
            sizes = [0]
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    used = child.cpu_times()
                    self.processor[child.pid] = used.user + used.system
                    sizes.append(child.memory_full_info().pss)
                    self.largest = max(self.largest, child.memory_info().rss)
            self.together = max(self.together, sum(sizes))

    def seconds(self) -> float:
        """Return how much processor all of them have used."""
        return sum(self.processor.copy().values())

    def end(self) -> None:
        self._ended.set()
        self.join()


@dataclass(frozen=True)
class Measured:
    """What looks take.

    Attributes:
        looks: For each look what it is, its seconds, and its seconds of processor, those of other processes included.
        grown_mb: By how much this process's memory grew.
        together_mb, largest_mb: The most that other processes, of expectations or of Spark, took together, and one
            alone.
    """

    looks: list[tuple[str, float, float]]
    grown_mb: float
    together_mb: float
    largest_mb: float


def measure(rows: int = 10_000_000, gate: Gate = GATE, engine: SummaryEngine | None = None) -> Measured:
    """Measure looks at so many requests of two versions, a part a minute, by DuckDB or another engine."""
    per_part = rows // (2 * BINS)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for version in ("v1", "v2"):
            write_state(folder, version)
            for number in range(BINS - 1):
                write_part(folder, version, START + number * MINUTE, per_part)
        for number in range(10):
            write_part(folder, "v1", START - (number + 1) * MINUTE, per_part)
        window = EvidenceWindow(bin_width=MINUTE, allowed_lag=timedelta(0))
        query = EvidenceQuery(
            "digits", "v1", "v2", START, START + BINS * MINUTE, window, (), gate,
            collected={"v1": Collection(), "v2": Collection()},
        )  # fmt: skip
        reader = CollectedReader(PartFiles(storage_at(name), folder / "cache"), engine or DuckDBEngine())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        children = Children()
        children.start()
        looks = []
        for label, bins in (("the first", BINS - 1), ("nothing is new", BINS - 1), ("one minute is new", BINS)):
            if bins == BINS:
                for version in ("v1", "v2"):
                    write_part(folder, version, START + (BINS - 1) * MINUTE, per_part)
            began, processor = time.perf_counter(), time.process_time() + children.seconds()
            found = reader.with_collected(query, evidence_of(bins, per_part))
            took = time.perf_counter() - began
            looks.append((label, took, time.process_time() + children.seconds() - processor))
            assert not found.unseen, found.unseen
        children.end()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        began, processor = time.perf_counter(), time.process_time()
        judge(found.bins, gate)
        looks.append(("the verdict", time.perf_counter() - began, time.process_time() - processor))
        return Measured(looks, grown / 1_024, children.together / 2**20, children.largest / 2**20)
