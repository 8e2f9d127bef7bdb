"""What the shared reader gives is what a new reader would read, whatever arrived when."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence import EvidenceWindow, shared
from controlled_rollout.evidence.bins import closed_until
from controlled_rollout.evidence.metric_store import QueryKey, StoreRequest, ThrottledError, TooMuchError
from controlled_rollout.evidence.rows import CountRow
from controlled_rollout.evidence.shared import ReadBins, SharedReader
from controlled_rollout.gate import Counts
from tests.examples import examples
from tests.unit.evidence.memory_store import T0, MemoryStore, Row, S

WIDTH, LAG = 10 * S, 5 * S
WINDOW = EvidenceWindow(bin_width=WIDTH, allowed_lag=LAG, baseline_length=60 * S)


def key(treatment: str = "treatment", *, metric: bool = False) -> QueryKey:
    means = (("revenue", "AppEvents"),) if metric else ()
    return QueryKey("digits", "control", treatment, T0 + 60 * S, WINDOW, (0.5,), 0.0, means)


def reader_of(store: MemoryStore) -> SharedReader:
    return SharedReader(store, clock=lambda: store.now)


async def look(
    reader: SharedReader, store: MemoryStore, at: int, *, treatment: str = "treatment", metric: bool = False
) -> ReadBins:
    store.now = T0 + at * S
    until = closed_until(store.now, allowed_lag=LAG, width=WIDTH)
    return await reader.read(key(treatment, metric=metric), until)


@pytest.fixture(autouse=True, scope="module")
def at_once() -> object:
    """Rounds follow each other without a pause."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "GATHER_S", 0)
        patch.setattr(shared, "ROUND_INTERVAL_S", 0)
        yield


def closed_rows(read: ReadBins, at: int) -> dict[object, CountRow]:
    until = closed_until(T0 + at * S, allowed_lag=LAG, width=WIDTH)
    return {(row.start, row.version, row.before): row for row in read.rows if row.start + WIDTH <= until}


ROWS = st.lists(
    st.tuples(
        st.integers(0, 200), st.integers(0, 120), st.sampled_from(["control", "treatment"]), st.integers(1, 50),
        st.sampled_from([None, 1.0, 2.0]),
    ),
    max_size=40,
)  # fmt: skip


@examples(200)
@given(ROWS, st.sets(st.integers(5, 330), min_size=1, max_size=12))
def test_every_look_gets_what_a_new_reader_would_read(
    rows: list[tuple[int, int, str, int, float | None]], moments: set[int]
) -> None:
    store = MemoryStore([Row(began, began + late, version, ms=ms, value=v) for began, late, version, ms, v in rows])

    async def steps() -> None:
        reader = reader_of(store)
        for at in sorted(moments):
            remembered = await look(reader, store, at, metric=True)
            anew = await look(reader_of(store), store, at, metric=True)
            assert closed_rows(remembered, at) == closed_rows(anew, at)
            assert remembered.thresholds_ms == anew.thresholds_ms
            assert remembered.lag == anew.lag

    asyncio.run(steps())


def test_rows_that_arrive_between_two_looks_at_the_same_bins_are_read() -> None:
    store = MemoryStore([Row(61, 61, "treatment"), Row(62, 77, "treatment")])

    async def steps() -> None:
        reader = reader_of(store)
        assert closed_rows(await look(reader, store, 74), 74) == {}
        [(_, first)] = closed_rows(await look(reader, store, 76), 76).items()
        [(_, second)] = closed_rows(await look(reader, store, 78), 78).items()
        assert (first.counts.requests, second.counts.requests) == (1, 2)

    asyncio.run(steps())


def test_values_of_an_authors_metric_that_arrive_after_their_bin_was_closed_are_read() -> None:
    values = [Row(61 + n % 9, 62 if n < 30 else 90, "treatment", value=float(n)) for n in range(400)]
    store = MemoryStore([Row(61, 61, "treatment"), *values])

    async def steps() -> None:
        reader = reader_of(store)
        counts = []
        for at in (80, 100):
            rows = (await look(reader, store, at, metric=True)).rows
            counts.append(sum(row.counts.means["revenue"].count for row in rows if "revenue" in row.counts.means))
        assert counts == [30, 400]

    asyncio.run(steps())


def test_a_closed_bin_is_read_once_and_later_looks_only_ask_what_has_arrived() -> None:
    store = MemoryStore([Row(n, n, "control") for n in range(100)])

    async def steps() -> None:
        reader = reader_of(store)
        await look(reader, store, 205)
        assert store.queries_sent == ["arrivals", "thresholds", "counts"]
        await look(reader, store, 206)
        await look(reader, store, 216)
        assert store.queries_sent[3:] == ["arrivals", "arrivals", "counts"]

    asyncio.run(steps())


@pytest.mark.parametrize("nonsense", [Counts(1, 2, (0,)), Counts(-1, -1, (0,)), Counts(1, 0, (2,))])
def test_counts_that_cannot_be_are_forgotten_once_the_store_answers_sense(nonsense: Counts) -> None:
    class Confused(MemoryStore):
        confused = True

        async def counts(self, requests: Sequence[StoreRequest], **how: Any) -> list[list[CountRow]]:
            answers = await super().counts(requests, **how)
            return [[replace(row, counts=nonsense) for row in rows] for rows in answers] if self.confused else answers

    store = Confused([Row(n, n, "treatment") for n in range(60, 160)])

    async def steps() -> None:
        reader = reader_of(store)
        for at in (100, 110, 120):
            with pytest.raises(EvidenceUnavailableError, match="that cannot be"):
                await look(reader, store, at)
        store.confused = False
        assert closed_rows(await look(reader, store, 130), 130) == closed_rows(
            await look(reader_of(store), store, 130), 130
        )

    asyncio.run(steps())


def test_the_lag_is_of_what_arrived_lately() -> None:
    store = MemoryStore([Row(0, 0, "control"), Row(61, 200, "control")])

    async def steps() -> None:
        reader = reader_of(store)
        assert (await look(reader, store, 205)).lag == 130 * S
        assert (await look(reader, store, 280)).lag == 130 * S
        assert (await look(reader, store, 300)).lag is None

    asyncio.run(steps())


def test_a_throttled_store_is_not_queried_before_the_time_that_it_gave() -> None:
    store = MemoryStore([Row(0, 0, "control")], refuses={"arrivals": [ThrottledError("429", 30 * S)]})

    async def steps() -> None:
        reader = reader_of(store)
        with pytest.raises(EvidenceUnavailableError, match="429"):
            await look(reader, store, 100)
        with pytest.raises(EvidenceUnavailableError, match="none is sent for another 20 s"):
            await look(reader, store, 110, treatment="other")
        assert store.queries_sent == ["arrivals"]
        await look(reader, store, 131)
        assert len(store.queries_sent) > 1

    asyncio.run(steps())


def test_a_query_that_is_too_much_is_cut_in_half() -> None:
    store = MemoryStore([Row(0, 0, "control")])

    async def steps() -> None:
        reader = reader_of(store)
        store.refuses = {"counts": [TooMuchError("504"), TooMuchError("504")]}  # both together, then the first alone
        results = await asyncio.gather(
            look(reader, store, 110), look(reader, store, 110, treatment="other"), return_exceptions=True
        )
        assert [type(result) for result in results] == [TooMuchError, ReadBins]
        assert (await look(reader, store, 111)).rows

    asyncio.run(steps())


def test_looks_at_the_same_time_share_their_queries() -> None:
    store = MemoryStore([Row(0, 0, "control")])

    async def steps() -> None:
        reader = reader_of(store)
        names = [f"treatment-{number}" for number in range(50)]
        results = await asyncio.gather(*(look(reader, store, 100, treatment=name) for name in names))
        assert len(results) == 50
        assert store.queries_sent == ["arrivals", "thresholds", "counts"]

    asyncio.run(steps())


def test_a_look_during_a_round_is_answered_by_the_next_round() -> None:
    store = MemoryStore([Row(0, 0, "control")])

    async def steps() -> None:
        reader = reader_of(store)
        first = asyncio.create_task(look(reader, store, 100))
        while "arrivals" not in store.queries_sent:
            await asyncio.sleep(0)
        await look(reader, store, 100)
        await first
        assert store.queries_sent.count("arrivals") == 2

    asyncio.run(steps())
