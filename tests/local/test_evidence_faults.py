"""Looks at a real store with faults: the gate waits, and nothing passes, fails or counts as zero."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evaluation.conclusion import conclude
from controlled_rollout.evidence import Evidence, EvidenceQuery, EvidenceWindow, RouterCounts, SplitChange
from controlled_rollout.evidence import shared as shared_module
from controlled_rollout.evidence.log_analytics import LogAnalyticsEvidence
from controlled_rollout.gate import Gate, Verdict
from controlled_rollout.record import LookInput, LookSettings
from tests.local.telemetry_lab import Process, source, stores

S = timedelta(seconds=1)
STARTED = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=30)
STARTED -= timedelta(seconds=STARTED.timestamp() % 60)
GATE = Gate(latency_quantiles=(0.5, 0.95))
WINDOW = EvidenceWindow(bin_width=10 * S, allowed_lag=2 * S, baseline_length=timedelta(minutes=2))
ANY_LAG = EvidenceWindow(bin_width=10 * S, allowed_lag=timedelta(days=1))


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults") / "faults.json"


@pytest.fixture(scope="module")
def process(faults: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with stores(tmp_path_factory.mktemp("store")) as start:
        yield start(faults_file=faults)


@pytest.fixture
def just_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count rows that a test has just sent as visible; in production a row may become visible after its arrival."""
    monkeypatch.setattr(shared_module, "ARRIVAL_OVERLAP", timedelta(0))


@pytest.fixture(autouse=True)
def rounds_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_module, "ROUND_INTERVAL_S", 0)


@pytest.fixture
def tell(faults: Path) -> Iterator[Callable[..., None]]:
    """Return a function that sets the store's faults."""

    def write(**fault: Any) -> None:
        draft = faults.with_suffix(".new")
        draft.write_text(json.dumps(fault))
        draft.replace(faults)

    yield write
    faults.unlink(missing_ok=True)


def fill(process: Process, endpoint: str, *, bad: bool = False) -> None:
    """Send two minutes of baseline and two minutes of a rollout at 25 %."""
    spans = [{"at": STARTED + n * S / 2, "ms": 10.0 + n % 7, "endpoint": endpoint} for n in range(-240, 240)]
    spans += [
        {
            "at": STARTED + n * S,
            "ms": 10.0,
            "endpoint": endpoint,
            "version": "treatment",
            "code": "500" if bad else "200",
        }
        for n in range(120)
    ]
    process.send(*spans)


def query(endpoint: str, *, seconds: float = 123, **changes: Any) -> EvidenceQuery:
    return EvidenceQuery(**{
        "endpoint": endpoint, "control": "control", "treatment": "treatment", "started": STARTED,
        "now": STARTED + seconds * S, "window": WINDOW,
        "splits": [SplitChange(STARTED - S, 1 / 3)], "gate": GATE, **changes,
    })  # fmt: skip


class Counting(LogAnalyticsEvidence):
    """A reader that counts its queries."""

    def __init__(self, process: Process) -> None:
        reader_ = source(process)
        super().__init__(
            endpoint=reader_.endpoint,
            workspace_id=reader_.workspace_id,
            credential=reader_._credential,
            enforce_https=False,
        )
        self.queries_sent: list[str] = []

    def _query_blocking(self, kql: str, columns: Any) -> Any:
        self.queries_sent.append(kql)
        return super()._query_blocking(kql, columns)


def read(process: Process, endpoint: str, **changes: Any) -> Evidence:
    return asyncio.run(source(process).read(query(endpoint, **changes)))


def verdict(evidence: Evidence, window: EvidenceWindow, *router: RouterCounts) -> Verdict:
    settings = LookSettings(
        endpoint="any", treatment="treatment", control="control", started=STARTED, window=window, gate=GATE
    )
    return conclude(LookInput(settings, evidence, router))


def in_one_process(steps: Coroutine[Any, Any, None]) -> None:
    asyncio.run(steps)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ({"answer": "partial"}, "only in part"),
        ({"answer": "throttle", "retry_after": "7"}, "answered 429.*less often"),
        ({"answer": "forbid"}, "answered 403.*Log Analytics Reader.*an hour"),
        ({"answer": "time_out"}, "answered 504.*wider bins"),
        ({"answer": "unavailable"}, "answered 503"),
        ({"answer": "garbage"}, "cannot read|JSON"),
    ],
)
def test_incomplete_answer_of_a_store_is_no_evidence_even_of_a_clear_failure(
    process: Process, tell: Callable[..., None], fault: dict[str, Any], problem: str
) -> None:
    fill(process, "clear", bad=True)
    tell(**fault)
    with pytest.raises(EvidenceUnavailableError, match=problem):
        read(process, "clear")

    tell()
    evidence = read(process, "clear")
    result = verdict(evidence, ANY_LAG)
    assert result.outcome == "fail"


def test_retry_after_of_the_store_is_respected_by_every_gate(process: Process, tell: Callable[..., None]) -> None:
    fill(process, "throttled")
    reader = Counting(process)

    async def steps() -> None:
        tell(answer="throttle", retry_after="2")
        with pytest.raises(EvidenceUnavailableError, match="429"):
            await reader.read(query("throttled"))
        began, sent = time.monotonic(), len(reader.queries_sent)
        tell()
        while True:
            try:
                evidence = await reader.read(query("throttled"))
                break
            except EvidenceUnavailableError as error:
                assert "none is sent for another" in str(error)
                assert len(reader.queries_sent) == sent
                await asyncio.sleep(0.1)
        assert time.monotonic() - began > 1.5
        assert evidence.bins

    in_one_process(steps())


@pytest.mark.parametrize("header", ["Wed, 21 Oct 2015 07:28:00 GMT", "soon", ""])
def test_past_or_invalid_retry_after_does_not_delay_the_next_look(
    process: Process, tell: Callable[..., None], header: str
) -> None:
    async def steps() -> None:
        tell(answer="unavailable", retry_after=header)
        with pytest.raises(EvidenceUnavailableError, match="503"):
            await source(process).read(query("whatever"))
        tell()
        await source(process).read(query("whatever"))

    in_one_process(steps())


def test_late_rows_are_reported_as_late_and_counted_in_their_own_bins(
    process: Process, tell: Callable[..., None]
) -> None:
    name = "late"
    now = datetime.now(UTC)
    started = now - timedelta(seconds=100)
    window = WINDOW.model_copy(update={"allowed_lag": 20 * S})
    changes: dict[str, Any] = {"started": started, "window": window, "splits": [SplitChange(started, 0.5)]}
    process.send(*({"at": started + n * S, "endpoint": name} for n in range(60)))
    reader = source(process)

    async def steps() -> None:
        early = await reader.read(query(name, **changes, now=now))
        assert sum(b.treatment.requests for b in early.bins) == 0
        # An exporter that was cut off sends what it has kept: most of it belongs into bins that are closed.
        process.send(*({"at": started + n * S, "endpoint": name, "version": "treatment"} for n in range(60)))
        later = await reader.read(query(name, **changes, now=now + 10 * S))
        assert sum(b.treatment.requests for b in later.bins) == 60
        assert later.lag is not None
        assert timedelta(seconds=50) < later.lag < timedelta(seconds=120)
        result = verdict(later, window)
        assert result.outcome == "cannot_see"
        assert "late" in result.reason
        assert later.bins == (await source(process).read(query(name, **changes, now=now + 10 * S))).bins

    in_one_process(steps())


def test_rows_in_flight_are_not_counted_and_incremental_reads_equal_one_read(
    process: Process, tell: Callable[..., None]
) -> None:
    name = "delayed"
    tell(late_s=3.0)
    fill(process, name)
    reader = source(process)

    async def steps() -> None:
        empty = await reader.read(query(name, seconds=63))
        assert sum(b.treatment.requests for b in empty.bins) == 0
        deadline = time.monotonic() + 30
        seconds = 73.0
        while True:
            result = await reader.read(query(name, seconds=seconds))
            if sum(b.treatment.requests for b in result.bins) >= 70:
                break
            assert time.monotonic() < deadline
            seconds = min(seconds + 10, 113.0) if seconds < 113 else seconds + 10
            await asyncio.sleep(0.3)
        anew = asyncio.to_thread(read, process, name, seconds=seconds)
        assert result.bins == (await anew).bins

    in_one_process(steps())


def test_version_with_lost_rows_does_not_pass(process: Process, tell: Callable[..., None]) -> None:
    tell(lost={"endpoint": "lossy", "version": "treatment"})
    fill(process, "lossy", bad=True)
    evidence = read(process, "lossy")

    result = verdict(evidence, ANY_LAG, RouterCounts(STARTED + 123 * S, {"control": 240, "treatment": 120}))

    assert result.outcome == "cannot_see"
    assert "120 requests to version 'treatment'" in result.reason


def test_many_gates_share_queries_and_get_the_same_counts(process: Process, just_read: None) -> None:
    names = [f"gate-{number:02d}" for number in range(20)]
    for name in names:
        fill(process, name, bad=name.endswith("7"))
    reader = Counting(process)

    async def steps() -> None:
        for seconds in (63, 73, 83, 93):
            looks = [reader.read(query(name, seconds=seconds)) for name in names for _ in range(10)]
            result = await asyncio.gather(*looks)
        # The first round: what arrived, the thresholds, the counts; each later one: what arrived and the counts.
        assert len(reader.queries_sent) == 3 + 3 * 2
        alone = await asyncio.to_thread(read, process, "gate-07", seconds=93)
        assert result[70].bins == alone.bins
        assert result[70].baseline == alone.baseline
        assert result[70].thresholds_ms == alone.thresholds_ms
        assert sum(b.treatment.errors for b in alone.bins) == 90
        assert sum(b.treatment.errors for b in result[80].bins) == 0

    in_one_process(steps())


def test_looks_within_one_bin_query_arrivals_only(process: Process, just_read: None) -> None:
    names = ["phase-a", "phase-b", "phase-c"]
    for name in names:
        fill(process, name)
    reader = Counting(process)

    async def steps() -> None:
        for name in names:
            await reader.read(query(name, seconds=63))
        sent = len(reader.queries_sent)
        for number, name in enumerate(names):
            await reader.read(query(name, seconds=72 + 3 * number))
        # What has arrived, and the counts of the new bin for all of them; then only what has arrived.
        assert len(reader.queries_sent) == sent + 2 + 2

    in_one_process(steps())


def test_query_that_is_too_large_is_split_in_halves(
    process: Process, tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"half-{number}" for number in range(8)]
    for name in names:
        fill(process, name)
    reader = Counting(process)

    async def steps() -> None:
        looks = [reader.read(query(name, seconds=63)) for name in names]
        assert all(evidence.bins for evidence in await asyncio.gather(*looks))
        longest = max(map(len, reader.queries_sent))
        tell(answer="time_out", longer_than=longest * 2 // 3)
        looks = [reader.read(query(name, seconds=73)) for name in names]
        assert all(evidence.bins for evidence in await asyncio.gather(*looks))
        monkeypatch.setattr(shared_module, "MAX_HALVINGS", 0)
        with pytest.raises(EvidenceUnavailableError, match="504"):
            await asyncio.gather(*(reader.read(query(name, seconds=83)) for name in names))

    in_one_process(steps())


def test_cancelled_gate_does_not_cancel_the_shared_query(process: Process) -> None:
    fill(process, "stays")
    fill(process, "goes")
    reader = source(process)

    async def steps() -> None:
        goes = asyncio.create_task(reader.read(query("goes")))
        stays = asyncio.create_task(reader.read(query("stays")))
        await asyncio.sleep(0)
        goes.cancel()
        assert (await stays).bins
        assert goes.cancelled() or goes.cancelling()

    in_one_process(steps())
