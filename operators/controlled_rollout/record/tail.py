"""What the open part of a record holds: per series of looks its bins, and what the router had counted lately.

A process remembers it, to read only what was appended since. It follows from the record alone: a process that has just
begun reads the same from the whole part.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Lock
from typing import Final

from pydantic import ValidationError

from controlled_rollout.evidence import CLOCKS_DIFFER, CountedPeriod, RouterCounts, SplitChange
from controlled_rollout.gate import Aggregates
from controlled_rollout.record.bin_delta import BinFingerprints, canonical_json
from controlled_rollout.record.decision import Decision, LookEvidence
from controlled_rollout.record.look_input import LookSettings
from controlled_rollout.record.step_lines import StepMark
from controlled_rollout.record.storage import Appender

__all__ = ["LookSeries", "TailState", "read_step_marks", "read_tail", "series_name"]

# In every line of a look, as it is written.
LOOK: Final = b'"step":"look"'

# As many endpoints may have a gate in one process without reading a record's part again.
MAX_RECORDS: Final = 4_096
# How many bins before the end of the evidence the router's counts are compared over.
COMPARED_BINS: Final = 5
# Each restart of a router begins a period; older ones than these are no longer compared with the evidence.
MAX_PERIODS: Final = 8


def series_name(settings: LookSettings) -> str:
    """Return the name of the series of looks with these settings: a hash of them."""
    return hashlib.blake2b(canonical_json(settings.model_dump(mode="json")), digest_size=8).hexdigest()


@dataclass(slots=True)
class LookSeries:
    """What the looks of one series have recorded so far.

    Attributes:
        bin_width: The length of a bin.
        bins: The rollout's bins.
        baseline: Control's bins before it.
        router: What the router had counted at these looks, oldest first; those too old to be compared are dropped.
        periods: What the router had counted over the rollout, up to the first look after the newest evidence's end.
        waiting: What the router had counted at looks since then: not yet in `periods`.
        served: By revision: the first look at which the router served its whole split.
        aggregates: What the expectations about all rows together found at the share of the newest look.
    """

    bin_width: timedelta
    bins: BinFingerprints = field(default_factory=BinFingerprints)
    baseline: BinFingerprints = field(default_factory=BinFingerprints)
    router: list[RouterCounts] = field(default_factory=list)
    periods: tuple[CountedPeriod, ...] = ()
    waiting: tuple[RouterCounts, ...] = ()
    served: dict[int, datetime] = field(default_factory=dict)
    aggregates: Aggregates | None = None

    def aggregates_at(self, splits: Sequence[SplitChange], found: Aggregates | None) -> Aggregates | None:
        """Return the results at the present share: those that were recorded first, else what this look has found."""
        present = splits[-1].at if splits else None
        return next((one for one in (self.aggregates, found) if one is not None and one.shifted == present), None)

    def earlier_counts(self, until: datetime) -> tuple[RouterCounts, ...]:
        """Return the router's counts at earlier looks that evidence up to `until` covers; empty with fewer than two.

        The first and the last within five bins before `until`.
        """
        oldest = until - COMPARED_BINS * self.bin_width
        covered = [counts for counts in self.router if oldest <= counts.at <= until]
        return (covered[0], covered[-1]) if len(covered) > 1 else ()

    def served_at(self, router: Sequence[RouterCounts]) -> dict[int, datetime]:
        """Return the first look at which each revision's split was served, with what the router says at this one."""
        present = router[-1] if router else None
        if present is None or not present.served or present.served in self.served:
            return self.served
        return {**self.served, present.served: present.at}

    def periods_until(self, until: datetime) -> tuple[CountedPeriod, ...]:
        """Return what the router had counted over the rollout, up to the first look after the end of the evidence."""
        return self._split_at(until)[0]

    def _split_at(self, until: datetime) -> tuple[tuple[CountedPeriod, ...], tuple[RouterCounts, ...]]:
        """Return the periods up to the first look after `until`, and the router's counts at the looks after that."""
        periods, waiting = self.periods, self.waiting
        while waiting and not (periods and periods[-1].last.at >= until + CLOCKS_DIFFER):
            if waiting[0].routers:
                periods = _with_reading(periods, waiting[0])
            waiting = waiting[1:]
        return periods, waiting

    def add(self, look: LookEvidence) -> None:
        """Add a look that was read from the record: its bins and its router counts."""
        self.bins.apply(look.bins)
        self.baseline.apply(look.baseline)
        self.aggregates = look.aggregates_after(self.aggregates)
        self.periods, self.served = look.periods, dict(look.served)
        counted_until = look.periods[-1].last.at if look.periods else None
        self.waiting = tuple(one for one in self.waiting if counted_until is None or one.at > counted_until)
        self.add_counts(look.router, look.until)

    def add_counts(self, router: tuple[RouterCounts, ...], until: datetime) -> None:
        """Add the router's counts at a look, and drop counts that are no longer needed."""
        oldest = until - COMPARED_BINS * self.bin_width
        self.router = [counts for counts in self.router if counts.at >= oldest] + list(router[-1:])
        self.served = self.served_at(router)
        self.periods, waiting = self._split_at(until)
        self.waiting = (*waiting, *router[-1:])


def _with_reading(periods: tuple[CountedPeriod, ...], counts: RouterCounts) -> tuple[CountedPeriod, ...]:
    """Return the periods with one more reading: the last one goes on, or a new one begins because counts were lost."""
    if periods and periods[-1].goes_on_with(counts):
        return (*periods[:-1], periods[-1].until(counts))
    return (*periods, CountedPeriod(counts, counts))[-MAX_PERIODS:]


NOTHING: Final = hashlib.blake2b(b"", digest_size=8).digest()


@dataclass(slots=True)
class TailState:
    """How far the open part has been read, and what is in it.

    Attributes:
        identity: The part's own identity; empty if it has to be read again.
        offset: How many of its bytes have been read.
        series: The series of looks in it, by name.
        steps: The steps in it, oldest first.
        last_line: Length and hash of the last line that was read: a file that another was copied onto has another.
    """

    identity: str = ""
    offset: int = 0
    series: dict[str, LookSeries] = field(default_factory=dict)
    steps: list[StepMark] = field(default_factory=list)
    last_line: tuple[int, bytes] = (0, NOTHING)

    def has_appended(self, content: bytes, offset: int) -> None:
        """Take note that this process has appended lines, which are known already, and how long the part is now."""
        self.last_line, self.offset = _last_line_mark(content + b"\n"), offset

    def unread(self, appender: Appender) -> bytes | None:
        """Return what was appended to the part since it was read; None if all of it has to be read."""
        length, digest = self.last_line
        if self.identity != appender.identity or self.offset > appender.size:
            return None
        content = appender.read_from(self.offset - length)
        return content[length:] if _short_hash(content[:length]) == digest else None


_tails: OrderedDict[str, TailState] = OrderedDict()
_tails_lock = Lock()


def read_tail(appender: Appender) -> TailState:
    """Return the state of a record's open part; reads only what was appended since the last call in this process."""
    with _tails_lock:
        tail = _tails.get(appender.name)
    added = tail.unread(appender) if tail is not None else None
    if tail is None or added is None:
        tail, added = TailState(appender.identity), appender.read_from(0)
    with _tails_lock:
        _tails[appender.name] = tail
        _tails.move_to_end(appender.name)
        while len(_tails) > MAX_RECORDS:
            _tails.popitem(last=False)
    for line in added.splitlines():
        _add_line(tail, line)
    if added:
        tail.last_line = _last_line_mark(added)
    tail.offset = appender.size
    return tail


def read_step_marks(lines: Iterable[bytes]) -> list[StepMark]:
    """Return the steps in lines of a record, oldest first; other lines and damaged lines are skipped."""
    return [mark for line in lines if (mark := _read_step_mark(line)) is not None]


def _read_step_mark(line: bytes) -> StepMark | None:
    """Return which step a line is about; None if it is not about one that stores a revision, or damaged."""
    # Most lines are looks, and long.
    if LOOK in line or not line.strip():
        return None
    try:
        return StepMark.of(Decision.model_validate_json(line))
    except ValidationError:  # a crash cut the line short
        return None


def _last_line_mark(content: bytes) -> tuple[int, bytes]:
    """Return length and hash of the last line of some content, its line break included."""
    last = content[content.rstrip(b"\n").rfind(b"\n") + 1 :]
    return len(last), _short_hash(last)


def _short_hash(content: bytes) -> bytes:
    """Return a short hash of some bytes."""
    return hashlib.blake2b(content, digest_size=8).digest()


def _add_line(tail: TailState, line: bytes) -> None:
    """Add a line's look to its series, or its step to the steps; other lines and damaged lines are skipped."""
    if b'"series"' not in line:
        tail.steps.extend(read_step_marks([line]))
        return
    try:
        look = Decision.model_validate_json(line).look_evidence()
    except ValidationError:  # a crash cut the line short
        return
    if look is None:
        return
    if look.settings is not None:
        tail.series.setdefault(look.series, LookSeries(look.settings.window.bin_width))
    if look.series in tail.series:
        tail.series[look.series].add(look)
