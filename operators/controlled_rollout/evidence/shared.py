"""Reads closed bins for all gates of a process at once: a thousand gates cost the store about what one does.

What a process remembers may save a query, never change a verdict. It remembers the counts of closed bins; every look
asks the store what has arrived since, and reads the bins that this concerns again. The author's metrics are read anew
at every look, because their rows do not say when they arrived.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from weakref import WeakKeyDictionary

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.bins import SPLIT_GUARD, bins_of, closed_until, floor_to_bin
from controlled_rollout.evidence.metric_store import (
    Answer,
    Arrivals,
    MetricStore,
    QueryKey,
    StoreRequest,
    ThrottledError,
    TooMuchError,
    UnreadableError,
)
from controlled_rollout.evidence.query import Evidence, EvidenceQuery
from controlled_rollout.evidence.rows import CountRow, MetricRow, UserRow, inconsistency, with_metrics, with_users
from controlled_rollout.version import check_name

__all__ = ["ReadBins", "SharedReader", "read_shared", "shared_reader"]

log = logging.getLogger(__name__)

# Gates that look within so short a time share their queries.
GATHER_S: Final = 0.05
# Rounds of queries begin at least so far apart: Azure allows 200 queries in 30 s.
ROUND_INTERVAL_S: Final = 1.0
# Azure answers with at most 500,000 rows: an hour's baseline of so many gates stays well below.
MAX_REQUESTS: Final = 500
# A query that is too much for the store is cut in half, and no more often than this.
MAX_HALVINGS: Final = 4
# Gates that have not looked for so many bins (and not for so long) are forgotten.
FORGET_AFTER_BINS: Final = 10
FORGET_AFTER: Final = timedelta(minutes=15)
# The telemetry's lag is that of what arrived within so long (and two bins).
LAG_TIME: Final = timedelta(minutes=1)
# A row may become visible a little after the time that the store notes as its arrival.
ARRIVAL_OVERLAP: Final = timedelta(seconds=30)

RowKey = tuple[datetime, str, bool]


@dataclass(slots=True)
class CachedBins:
    """The counts of closed bins that have been read for one key.

    Attributes:
        thresholds_ms: Control's frozen quantiles.
        until: How far the counts reach.
        checked: Late arrivals are known up to this moment.
        wanted: When a gate last asked for them.
        counts: By bin, version and side of the rollout's start.
    """

    thresholds_ms: tuple[float, ...]
    until: datetime
    checked: datetime
    wanted: datetime
    counts: dict[RowKey, CountRow] = field(default_factory=dict)

    def replace_since(self, since: datetime, rows: Sequence[CountRow], until: datetime) -> None:
        """Replace the cached counts from `since` on with newly read rows, which reach to `until`."""
        if since < self.until:
            self.counts = {key: row for key, row in self.counts.items() if key[0] < since}
        self.counts.update({(row.start, row.version, row.before): row for row in rows})
        self.until = max(self.until, until)


@dataclass(frozen=True, slots=True)
class ReadBins:
    """What one look gets from the reader.

    Attributes:
        thresholds_ms: Control's frozen quantiles.
        rows: Counts and the author's metrics, by bin and version.
        lag: How late the newest rows came; None if none came lately, or the store does not tell.
    """

    thresholds_ms: tuple[float, ...]
    rows: Sequence[CountRow]
    lag: timedelta | None = None


@dataclass(slots=True)
class Round:
    """One round of queries, for all looks that asked before it began.

    Attributes:
        wanted: By key how far it has to be read.
        results: What was read for each.
        failures: Why a key could not be read.
    """

    wanted: dict[QueryKey, datetime] = field(default_factory=dict)
    results: dict[QueryKey, ReadBins] = field(default_factory=dict)
    failures: dict[QueryKey, EvidenceUnavailableError] = field(default_factory=dict)


class SharedReader:
    """Reads for every gate of an event loop, with as few queries as that takes.

    Args:
        store: The metric store.
        clock: Tells the time.
    """

    def __init__(self, store: MetricStore, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Start with an empty cache; the first `read` starts the first round of queries."""
        self._store = store
        self._clock = clock
        self._cached: dict[QueryKey, CachedBins] = {}
        self._gathering: Round | None = None
        self._running: asyncio.Task[None] | None = None
        self._last_began: float | None = None
        self._not_before: datetime | None = None

    async def read(self, key: QueryKey, until: datetime) -> ReadBins:
        """Return the counts of one gate, read from the store at least as far as `until`.

        Raises:
            EvidenceUnavailableError: The store did not answer completely.
        """
        if self._gathering is None:
            self._gathering = Round()
            self._running = asyncio.create_task(self._run_round(self._gathering, self._running), name="evidence")
        round_, task = self._gathering, self._running
        assert task is not None  # noqa: S101 - set together with the round
        round_.wanted[key] = max(until, round_.wanted.get(key, until))
        # Shielded: a gate that is stopped must not take the others' query with it.
        await asyncio.shield(task)
        if key in round_.failures:
            raise round_.failures[key]
        return round_.results[key]

    async def _run_round(self, round_: Round, before: asyncio.Task[None] | None) -> None:
        """Run one round: wait for further looks, then read for all of them. Later looks go into the next round."""
        if before is not None:
            await asyncio.wait([before])
        loop = asyncio.get_running_loop()
        wait_s = 0.0 if self._last_began is None else self._last_began + ROUND_INTERVAL_S - loop.time()
        await asyncio.sleep(max(GATHER_S, wait_s))
        self._gathering, self._last_began = None, loop.time()
        self._forget_unused(self._clock())
        groups: dict[tuple[timedelta, timedelta, datetime], list[QueryKey]] = {}
        for key, until in round_.wanted.items():
            groups.setdefault((key.window.bin_width, key.window.allowed_lag, until), []).append(key)
        for (_, _, until), keys in groups.items():
            await self._read_group(round_, keys, until)

    async def _read_group(self, round_: Round, keys: list[QueryKey], until: datetime) -> None:
        """Read for all keys with the same bin width and lag; store results and failures in the round."""
        window = keys[0].window
        alike = [
            key
            for key, cached in self._cached.items()
            if (key.window.bin_width, key.window.allowed_lag) == (window.bin_width, window.allowed_lag)
            and key.started <= cached.until < until
            and key not in keys
        ]
        now = self._clock()
        try:
            self._check_throttling(now)
            arrivals = self._readable_arrivals(round_, keys, await self._recent_arrivals(keys, until, now))
            keys = [key for key in keys if key not in round_.failures]
            requests = [self._request_for_key(key, arrivals.get(key.endpoint)) for key in keys]
            due = [request for request in requests if request.since < until or request.since == request.key.first]
            if due:
                # They ask for themselves what has arrived late, when they look.
                due += [StoreRequest(key, self._cached[key].until, self._cached[key].thresholds_ms) for key in alike]
            for index in range(0, len(due), MAX_REQUESTS):
                await self._read_counts(round_, due[index : index + MAX_REQUESTS], until, now, MAX_HALVINGS)
            for key in keys:
                if key not in round_.failures:
                    await self._store_result(round_, key, until, now, arrivals.get(key.endpoint))
        except EvidenceUnavailableError as error:
            if isinstance(error, ThrottledError):
                self._not_before = self._clock() + error.retry_after
            round_.failures.update({key: error for key in keys if key not in round_.results})
        except Exception as error:
            # Whatever nobody thought of: these gates cannot see, and those of the round's other queries can.
            log.exception("the answer of the metric store cannot be read")
            unreadable = EvidenceUnavailableError(f"the answer of the metric store cannot be read: {error!r}")
            unreadable.__cause__ = error
            round_.failures.update({key: unreadable for key in keys if key not in round_.results})

    @staticmethod
    def _readable_arrivals(
        round_: Round, keys: Iterable[QueryKey], arrivals: Mapping[str, Answer[Arrivals]]
    ) -> dict[str, Arrivals]:
        """Return the arrivals that are readable; the gates of the other endpoints fail in this round."""
        readable = {name: one for name, one in arrivals.items() if isinstance(one, Arrivals)}
        for key in keys:
            answer = arrivals.get(key.endpoint)
            if isinstance(answer, EvidenceUnavailableError):
                round_.failures[key] = answer
        return readable

    def _check_throttling(self, now: datetime) -> None:
        """Raise EvidenceUnavailableError while the store's `Retry-After` has not passed."""
        if self._not_before is not None and now < self._not_before:
            seconds = (self._not_before - now).total_seconds()
            raise EvidenceUnavailableError(
                f"the metric store throttles queries: none is sent for another {seconds:.0f} s, as it asked"
            )

    async def _recent_arrivals(
        self, keys: Sequence[QueryKey], until: datetime, now: datetime
    ) -> Mapping[str, Answer[Arrivals]]:
        """Return what the store ingested since these keys were last checked, and how late the newest rows are."""
        bin_width = keys[0].window.bin_width
        lag_since = now - max(LAG_TIME, 2 * bin_width) - ARRIVAL_OVERLAP
        checked = [self._cached[key].checked for key in keys if key in self._cached]
        return await self._store.arrivals(
            first=min(key.first for key in keys),
            until=until,
            since=min(checked, default=now) - ARRIVAL_OVERLAP,
            lag_since=lag_since,
            bin_width=bin_width,
        )

    def _request_for_key(self, key: QueryKey, arrivals: Arrivals | None) -> StoreRequest:
        """Return what to read for a key: from the first bin that may have changed since the last read."""
        cached = self._cached.get(key)
        if cached is None or cached.until < key.started:
            return StoreRequest(key, key.first)
        oldest = arrivals.oldest if arrivals is not None else None
        if oldest is None or oldest >= cached.until:
            return StoreRequest(key, cached.until, cached.thresholds_ms)
        if oldest < key.started:
            # Control's quantiles before the rollout may have changed.
            return StoreRequest(key, key.first)
        return StoreRequest(key, floor_to_bin(oldest, key.window.bin_width), cached.thresholds_ms)

    async def _read_counts(
        self, round_: Round, requests: Sequence[StoreRequest], until: datetime, now: datetime, halvings: int
    ) -> None:
        """Read the counts of several rollouts with one query into the cache.

        If the answer is too large or unreadable, the rollouts are split into two queries, at most `halvings` times: one
        rollout does not make the others fail.
        """
        try:
            complete = await self._with_thresholds(round_, requests)
            if not complete:
                return
            counts = await self._store.counts(complete, until=until, bin_width=requests[0].key.window.bin_width)
        except (TooMuchError, UnreadableError) as error:
            if len(requests) == 1 or not halvings:
                round_.failures.update({request.key: error for request in requests})
                return
            half = len(requests) // 2
            for part in (requests[:half], requests[half:]):
                await self._read_counts(round_, part, until, now, halvings - 1)
            return
        for request, rows in zip(complete, counts, strict=True):
            key = request.key
            if isinstance(rows, EvidenceUnavailableError):
                round_.failures[key] = rows
                continue
            if problem := inconsistency(rows):
                # Not kept: a store that answers sense again is believed again, by this process as by a new one.
                round_.failures[key] = UnreadableError(problem)
                continue
            if key not in self._cached or request.since == key.first:
                self._cached[key] = CachedBins(request.thresholds_ms, request.since, checked=now, wanted=now)
            self._cached[key].replace_since(request.since, rows, until)

    async def _with_thresholds(self, round_: Round, requests: Sequence[StoreRequest]) -> list[StoreRequest]:
        """Return the requests; those that start with the baseline get control's latency quantiles.

        Those whose quantiles are unreadable are left out, and fail in this round.
        """
        new = [request for request in requests if request.since == request.key.first and request.key.quantiles]
        if not new:
            return list(requests)
        thresholds: dict[QueryKey, tuple[float, ...]] = {}
        for request, answer in zip(new, await self._store.thresholds(new), strict=True):
            if isinstance(answer, EvidenceUnavailableError):
                round_.failures[request.key] = answer
            else:
                thresholds[request.key] = request.key.with_limit(answer)
        return [
            StoreRequest(request.key, request.since, thresholds.get(request.key, request.thresholds_ms))
            for request in requests
            if request.key not in round_.failures
        ]

    async def _store_result(
        self, round_: Round, key: QueryKey, until: datetime, now: datetime, arrivals: Arrivals | None
    ) -> None:
        """Store a key's result in the round: cached counts with the author's metrics, which are read in full."""
        cached = self._cached[key]
        cached.checked = cached.wanted = now
        metrics: list[MetricRow] = []
        users: list[UserRow] = []
        if key.metrics or key.steps is not None:
            try:
                if key.metrics:
                    metrics = await self._store.metrics(StoreRequest(key, key.first), until=until)
                if key.steps is not None:
                    users = await self._store.users(StoreRequest(key, key.first, cached.thresholds_ms), until=until)
            except ThrottledError:
                raise
            except EvidenceUnavailableError as error:
                # An author's query that fails blinds only this gate.
                round_.failures[key] = error
                return
        n_thresholds = len(cached.thresholds_ms)
        rows = with_users(with_metrics(cached.counts.values(), metrics, n_thresholds=n_thresholds), users)
        round_.results[key] = ReadBins(cached.thresholds_ms, rows, arrivals.lag if arrivals is not None else None)

    def _forget_unused(self, now: datetime) -> None:
        """Delete cached bins of keys that no look has wanted for a while."""
        for key, cached in list(self._cached.items()):
            if now - cached.wanted > max(FORGET_AFTER, FORGET_AFTER_BINS * key.window.bin_width):
                del self._cached[key]


async def read_shared(
    reader: SharedReader, store: MetricStore, query: EvidenceQuery, *, split_guard: timedelta = SPLIT_GUARD
) -> Evidence:
    """Read one gate's evidence through the shared reader; return it as bins.

    Args:
        reader: Reads for all gates.
        store: The store that the reader queries.
        query: What the gate asks.
        split_guard: See `bins.share_in`.

    Raises:
        EndpointError: A name is not valid; it is not sent.
        EvidenceUnavailableError: The store did not answer completely.
    """
    # Before the query is shared: one gate's invalid name must not fail the others.
    for name in (query.endpoint, query.control, query.treatment):
        check_name(name)
    window = query.window
    until = closed_until(query.now, allowed_lag=window.allowed_lag, width=window.bin_width)
    key = QueryKey.of(query)
    read = await reader.read(key, until)
    bins, baseline = bins_of(
        read.rows,
        control=query.control,
        treatment=query.treatment,
        width=window.bin_width,
        started=query.started,
        until=until,
        splits=query.splits,
        n_thresholds=len(read.thresholds_ms),
        split_guard=split_guard,
    )
    queries = store.queries(StoreRequest(key, key.first, read.thresholds_ms))
    return Evidence(bins, baseline, read.thresholds_ms, until, queries, read.lag)


_readers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, SharedReader]] = WeakKeyDictionary()


def shared_reader(key: Hashable, store: MetricStore) -> SharedReader:
    """Return the shared reader of the running event loop for one store; create it at first use.

    Args:
        key: Identifies the store and the credential that it is queried with.
        store: The store.
    """
    return _readers.setdefault(asyncio.get_running_loop(), {}).setdefault(key, SharedReader(store))
