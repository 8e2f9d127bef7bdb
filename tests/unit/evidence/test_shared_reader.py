"""What the shared reader holds is what reading everything anew would give, whatever came when."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence import EvidenceWindow, shared
from controlled_rollout.evidence.bins import closed_until, floor_to_bin
from controlled_rollout.evidence.model import Arrival, Ask, Subject, ThrottledError
from controlled_rollout.evidence.rows import CountRow, MetricRow
from controlled_rollout.evidence.shared import Series, SharedReader
from controlled_rollout.gate import Counts

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
S = timedelta(seconds=1)
WIDTH, LAG = 10 * S, 5 * S
WINDOW = EvidenceWindow(bin_width=WIDTH, allowed_lag=LAG, baseline_length=60 * S)


@dataclass
class MemoryStore:
    """A store whose rows are (began, arrived, version) in seconds after T0."""

    rows: list[tuple[int, int, str]]
    now: datetime = T0
    sent: int = 0
    refuses: list[EvidenceUnavailableError] = field(default_factory=list)

    def visible(self) -> list[tuple[datetime, datetime, str]]:
        found = [(T0 + began * S, T0 + arrived * S, version) for began, arrived, version in self.rows]
        return [row for row in found if row[1] <= self.now]

    async def thresholds(self, asks: Sequence[Ask]) -> list[tuple[float, ...]]:
        before = sum(version == "control" and began < ask.subject.started
                     for ask in asks[:1] for began, _, version in self.visible())  # fmt: skip
        return [(float(before),)] * len(asks)

    async def counts(self, asks: Sequence[Ask], *, until: datetime, bin_width: timedelta) -> list[list[CountRow]]:
        self.sent += 1
        if self.refuses:
            raise self.refuses.pop()
        return [self._of(ask, until) for ask in asks]

    def _of(self, ask: Ask, until: datetime) -> list[CountRow]:
        counted: dict[tuple[datetime, str, bool], int] = {}
        for began, _, version in self.visible():
            if ask.since <= began < until:
                key = (floor_to_bin(began, WIDTH), version, began < ask.subject.started)
                counted[key] = counted.get(key, 0) + 1
        slow = int(ask.thresholds_ms[0])
        return [CountRow(*key, Counts(number, 0, (slow,))) for key, number in counted.items()]

    async def arrivals(
        self, *, first: datetime, until: datetime, since: datetime, bin_width: timedelta
    ) -> Mapping[str, Arrival]:
        fresh = [row for row in self.visible() if row[1] >= since and first <= row[0] < until]
        if not fresh:
            return {}
        lag = max(arrived - floor_to_bin(began, WIDTH) - WIDTH for began, arrived, _ in fresh)
        return {"digits": Arrival(min(row[0] for row in fresh), max(lag, timedelta(0)))}

    async def metrics(self, ask: Ask, *, until: datetime) -> list[MetricRow]:
        return []

    def queries(self, ask: Ask) -> tuple[str, ...]:
        return ()


def subject(treatment: str = "treatment") -> Subject:
    return Subject("digits", "control", treatment, T0 + 60 * S, WINDOW, (0.5,), 0.0)


async def look(reader: SharedReader, store: MemoryStore, at: int, *, treatment: str = "treatment") -> Series:
    store.now = T0 + at * S
    return await reader.read(subject(treatment), closed_until(store.now, allowed_lag=LAG, width=WIDTH))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "GATHER_S", 0)


ROWS = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 120), st.sampled_from(["control", "treatment"])), max_size=40
)


@settings(max_examples=200)
@given(ROWS, st.sets(st.integers(0, 32), min_size=1, max_size=12))
def test_when_a_bin_closes_it_holds_what_a_new_reader_would_read(
    rows: list[tuple[int, int, str]], closings: set[int]
) -> None:
    store = MemoryStore([(began, began + delay, version) for began, delay, version in rows])
    shared.GATHER_S = 0  # type: ignore[misc] # hypothesis runs outside of the fixture

    async def steps() -> None:
        reader = SharedReader(store, clock=lambda: store.now)
        for closing in sorted(closings):
            at = 10 * closing + 5 + closing % 7
            held = await look(reader, store, at)
            anew = await look(SharedReader(store, clock=lambda: store.now), store, at)
            until = closed_until(store.now, allowed_lag=LAG, width=WIDTH)
            assert closed(held, until) == closed(anew, until)
            assert held.thresholds_ms == anew.thresholds_ms

    asyncio.run(steps())


def closed(series: Series, until: datetime) -> dict[object, CountRow]:
    return {key: row for key, row in series.counts.items() if key[0] + WIDTH <= until}


def test_where_nothing_came_nothing_came_late() -> None:
    store = MemoryStore([(0, 0, "control"), (61, 200, "control")])

    async def steps() -> None:
        reader = SharedReader(store, clock=lambda: store.now)
        late = await look(reader, store, 205)
        assert late.lag == 130 * S
        # A row may become visible a moment after its arrival: what has come since shortly before the last look counts.
        assert (await look(reader, store, 300)).lag == 130 * S
        assert (await look(reader, store, 400)).lag is None

    asyncio.run(steps())


def test_a_throttled_store_is_asked_again_only_when_it_said() -> None:
    store = MemoryStore([(0, 0, "control")], refuses=[ThrottledError("429", 30 * S)])

    async def steps() -> None:
        reader = SharedReader(store, clock=lambda: store.now)
        with pytest.raises(EvidenceUnavailableError, match="429"):
            await look(reader, store, 100)
        with pytest.raises(EvidenceUnavailableError, match="left alone for another 20 s"):
            await look(reader, store, 110, treatment="other")
        assert store.sent == 1
        await look(reader, store, 131)
        assert store.sent == 2

    asyncio.run(steps())


def test_who_asks_while_a_round_is_under_way_is_answered_by_the_next() -> None:
    store = MemoryStore([(0, 0, "control")])

    async def steps() -> None:
        reader = SharedReader(store, clock=lambda: store.now)
        names = [f"treatment-{number}" for number in range(50)]
        found = await asyncio.gather(*(look(reader, store, 100, treatment=name) for name in names))
        assert len(found) == 50
        assert store.sent <= 2

    asyncio.run(steps())
