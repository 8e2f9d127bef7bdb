"""The data gate on ten million requests with ten columns: the first look, the next one, and what they take."""

import json
import resource
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from controlled_rollout.collection_settings import Collection
from controlled_rollout.evidence import Evidence, EvidenceQuery, EvidenceWindow
from controlled_rollout.evidence.collected.duckdb_engine import DuckDBEngine
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


def measure(rows: int = 10_000_000) -> tuple[list[tuple[str, float, float]], float]:
    """Return for each look what it is, its seconds and its processor seconds; and the megabytes that looks took."""
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
            "digits", "v1", "v2", START, START + BINS * MINUTE, window, (), GATE,
            collected={"v1": Collection(), "v2": Collection()},
        )  # fmt: skip
        reader = CollectedReader(PartFiles(storage_at(name), folder / "cache"), DuckDBEngine())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        looks = []
        for label, bins in (("the first", BINS - 1), ("nothing is new", BINS - 1), ("one minute is new", BINS)):
            if bins == BINS:
                for version in ("v1", "v2"):
                    write_part(folder, version, START + (BINS - 1) * MINUTE, per_part)
            began, processor = time.perf_counter(), time.process_time()
            found = reader.with_collected(query, evidence_of(bins, per_part))
            looks.append((label, time.perf_counter() - began, time.process_time() - processor))
            assert not found.unseen, found.unseen
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        began, processor = time.perf_counter(), time.process_time()
        judge(found.bins, GATE)
        looks.append(("the verdict", time.perf_counter() - began, time.process_time() - processor))
    return looks, grown / 1_024
