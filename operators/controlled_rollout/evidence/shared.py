"""Reads closed bins for all gates of a workspace at once: a thousand gates cost the store about what one does.

A bin that is closed does not change unless something arrives late, and a store that can tell is asked for that. So a
process reads each bin once: what it holds is what reading everything anew would give, and a process that has just
begun does read everything. All gates with the same bin width and lag close their bins at the same moment; whoever of
them looks first makes one query for all that have looked lately.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from weakref import WeakKeyDictionary

from controlled_rollout.endpoint import check_name
from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.bins import SPLIT_GUARD, bins_of, closed_until, floor_to_bin
from controlled_rollout.evidence.model import (
    Arrival,
    Ask,
    Evidence,
    Question,
    Store,
    Subject,
    ThrottledError,
    TooMuchError,
)
from controlled_rollout.evidence.rows import CountRow, with_metrics

__all__ = ["Series", "SharedReader", "read_shared", "shared_reader"]

# Gates that look within so short a time share their first query too.
GATHER_S: Final = 0.05
# Azure answers with at most 500,000 rows: an hour's baseline of so many gates stays well below.
MOST_ASKS: Final = 500
# A query that is too much for the store is cut in half, and no more often than this.
MOST_HALVINGS: Final = 4
# Gates that have not looked for so many bins (and not for so long) are over.
FORGET_AFTER_BINS: Final = 10
FORGET_AFTER: Final = timedelta(minutes=15)
# At its first look a process judges the telemetry's lag by what came within so long (and two bins).
LATELY: Final = timedelta(minutes=1)
# A row may become visible a little after the time that the store notes as its arrival.
ARRIVAL_OVERLAP: Final = timedelta(seconds=30)

Key = tuple[datetime, str, bool]


@dataclass(slots=True)
class Series:
    """What has been read for one subject.

    Attributes:
        thresholds_ms: Control's frozen quantiles.
        until: How far the counts reach.
        counts: By bin, version and side of the rollout's start.
        read: When the store was last asked for them.
        asked: When a gate last asked for it.
        lag: How late the newest rows came.
    """

    thresholds_ms: tuple[float, ...]
    until: datetime
    read: datetime
    asked: datetime
    counts: dict[Key, CountRow] = field(default_factory=dict)
    lag: timedelta | None = None

    def take(self, since: datetime, rows: Sequence[CountRow], until: datetime) -> None:
        """Put what was read from `since` on in the place of what was known from there on."""
        if since < self.until:
            self.counts = {key: row for key, row in self.counts.items() if key[0] < since}
        self.counts.update({(row.start, row.version, row.before): row for row in rows})
        self.until = max(self.until, until)


class SharedReader:
    """Gives every gate its series, with as few queries as that takes.

    Args:
        store: Where the counts are.
        clock: Tells the time.
    """

    def __init__(self, store: Store, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._clock = clock
        self._series: dict[Subject, Series] = {}
        self._wanted: dict[Subject, datetime] = {}
        self._failures: dict[Subject, EvidenceUnavailableError] = {}
        self._round: asyncio.Task[None] | None = None
        self._not_before: datetime | None = None

    async def read(self, subject: Subject, until: datetime) -> Series:
        """Return a subject's series, read at least as far as `until`.

        Raises:
            EvidenceUnavailableError: The store did not answer completely.
        """
        while (found := self._read_so_far(subject, until)) is None:
            self._wanted[subject] = max(until, self._wanted.get(subject, until))
            if self._round is None or self._round.done():
                self._round = asyncio.create_task(self._read_round(), name="evidence")
            # Shielded: a gate that is stopped must not take the others' query with it.
            await asyncio.shield(self._round)
            failure = self._failures.get(subject)
            if failure is not None and self._read_so_far(subject, until) is None:
                raise failure
        found.asked = self._clock()
        return found

    def _read_so_far(self, subject: Subject, until: datetime) -> Series | None:
        found = self._series.get(subject)
        return found if found is not None and found.until >= until else None

    async def _read_round(self) -> None:
        """Read for everybody who has asked by now; who comes later starts the next round."""
        await asyncio.sleep(GATHER_S)
        wanted, self._wanted = self._wanted, {}
        self._failures.clear()
        now = self._clock()
        self._forget(now)
        if self._not_before is not None and now < self._not_before:
            seconds = (self._not_before - now).total_seconds()
            throttled = EvidenceUnavailableError(
                f"the metric store has asked to be left alone for another {seconds:.0f} s: nothing is sent until then"
            )
            self._failures.update(dict.fromkeys(wanted, throttled))
            return
        groups: dict[tuple[timedelta, timedelta, datetime], list[Subject]] = {}
        for subject, until in wanted.items():
            groups.setdefault((subject.window.bin_width, subject.window.allowed_lag, until), []).append(subject)
        for (bin_width, lag, until), subjects in groups.items():
            alike = [
                known
                for known, series in self._series.items()
                if (known.window.bin_width, known.window.allowed_lag) == (bin_width, lag) and series.until < until
            ]
            await self._read_group(list(dict.fromkeys([*subjects, *alike])), until, bin_width)

    async def _read_group(self, subjects: list[Subject], until: datetime, bin_width: timedelta) -> None:
        try:
            arrivals = await self._arrivals(subjects, until)
            for place in range(0, len(subjects), MOST_ASKS):
                await self._read_part(subjects[place : place + MOST_ASKS], arrivals, until, bin_width, MOST_HALVINGS)
        except EvidenceUnavailableError as error:
            if isinstance(error, ThrottledError):
                self._not_before = self._clock() + error.retry_after
            self._failures.update(dict.fromkeys(subjects, error))

    async def _arrivals(self, subjects: Sequence[Subject], until: datetime) -> Mapping[str, Arrival]:
        """Ask what has arrived since the store was asked for these subjects; at first, how late things come lately."""
        lately = self._clock() - max(LATELY, 2 * max(subject.window.bin_width for subject in subjects))
        reads = [self._series[subject].read for subject in subjects if subject in self._series]
        since = min(reads, default=lately) - ARRIVAL_OVERLAP
        first = min(subject.first for subject in subjects)
        return await self._store.arrivals(first=first, until=until, since=since, bin_width=subjects[0].window.bin_width)

    async def _read_part(
        self,
        subjects: Sequence[Subject],
        arrivals: Mapping[str, Arrival],
        until: datetime,
        bin_width: timedelta,
        halvings: int,
    ) -> None:
        """Read for some subjects; what is too much at once is read in halves, so that one gate does not blind all."""
        began = self._clock()
        try:
            asks = [self._ask(subject, arrivals.get(subject.endpoint)) for subject in subjects]
            asks = await self._with_thresholds(asks)
            counted = await self._store.counts(asks, until=until, bin_width=bin_width)
        except TooMuchError as error:
            if len(subjects) == 1 or not halvings:
                self._failures.update(dict.fromkeys(subjects, error))
                return
            half = len(subjects) // 2
            for part in (subjects[:half], subjects[half:]):
                await self._read_part(part, arrivals, until, bin_width, halvings - 1)
            return
        for ask, rows in zip(asks, counted, strict=True):
            try:
                metrics = await self._store.metrics(ask, until=until) if ask.subject.metrics else []
            except ThrottledError:
                raise
            except EvidenceUnavailableError as error:
                # An author's query that fails is this gate's alone.
                self._failures[ask.subject] = error
                continue
            complete = with_metrics(rows, metrics, kinds=len(ask.thresholds_ms)) if metrics else rows
            self._take(ask, complete, arrivals.get(ask.subject.endpoint), until, began)

    def _ask(self, subject: Subject, arrival: Arrival | None) -> Ask:
        """Say from where on a subject is read: from the beginning, where what it rests on was not complete yet."""
        known = self._series.get(subject)
        if known is None or known.until < subject.started:
            return Ask(subject, subject.first)
        if arrival is None or arrival.oldest >= known.until:
            return Ask(subject, known.until, known.thresholds_ms)
        if arrival.oldest < subject.started:
            return Ask(subject, subject.first)
        return Ask(subject, floor_to_bin(arrival.oldest, subject.window.bin_width), known.thresholds_ms)

    async def _with_thresholds(self, asks: list[Ask]) -> list[Ask]:
        """Freeze control's quantiles for those that are read from the beginning."""
        new = [ask for ask in asks if ask.since == ask.subject.first and ask.subject.quantiles]
        if not new:
            return asks
        found = dict(zip((ask.subject for ask in new), await self._store.thresholds(new), strict=True))
        return [Ask(ask.subject, ask.since, found.get(ask.subject, ask.thresholds_ms)) for ask in asks]

    def _take(
        self, ask: Ask, rows: Sequence[CountRow], arrival: Arrival | None, until: datetime, began: datetime
    ) -> None:
        series = self._series.get(ask.subject)
        if series is None or ask.since == ask.subject.first:
            series = self._series[ask.subject] = Series(ask.thresholds_ms, ask.since, began, began)
        series.take(ask.since, rows, until)
        series.read = began
        # Where nothing came, nothing came late.
        series.lag = arrival.lag if arrival is not None else None

    def _forget(self, now: datetime) -> None:
        for subject, series in list(self._series.items()):
            if now - series.asked > max(FORGET_AFTER, FORGET_AFTER_BINS * subject.window.bin_width):
                del self._series[subject]


async def read_shared(
    reader: SharedReader, store: Store, question: Question, *, split_guard: timedelta = SPLIT_GUARD
) -> Evidence:
    """Answer one gate's question from what is read for all; `split_guard` as in `bins.share_in`."""
    # Before anybody shares a query with it: what is wrong with one question is not the others' problem.
    for name in (question.endpoint, question.control, question.treatment):
        check_name(name)
    window = question.window
    until = closed_until(question.now, allowed_lag=window.allowed_lag, width=window.bin_width)
    subject = Subject.of(question)
    series = await reader.read(subject, until)
    bins, baseline = bins_of(
        series.counts.values(),
        control=question.control,
        treatment=question.treatment,
        width=window.bin_width,
        started=question.started,
        until=until,
        splits=question.splits,
        kinds=len(series.thresholds_ms),
        split_guard=split_guard,
    )
    queries = store.queries(Ask(subject, subject.first, series.thresholds_ms))
    return Evidence(bins, baseline, series.thresholds_ms, until, queries, series.lag)


_readers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, SharedReader]] = WeakKeyDictionary()


def shared_reader(key: Any, store: Store) -> SharedReader:
    """Return the reader that all gates of this event loop use for one store.

    Args:
        key: What tells this store from others.
        store: The store; of several with the same key the first is asked.
    """
    return _readers.setdefault(asyncio.get_running_loop(), {}).setdefault(key, SharedReader(store))
