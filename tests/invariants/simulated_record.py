"""The storage of a record in memory: outages, a full disk, lost answers, lines that a crash cut short."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from controlled_rollout.record import storage
from controlled_rollout.record.storage import AppendConflict
from tests.invariants.simulated_clock import SimulatedClock

__all__ = ["SimulatedPart", "SimulatedRecord"]


@dataclass
class SimulatedPart:
    """One part of a record."""

    content: bytes = b""

    @property
    def identity(self) -> str:
        return str(id(self))

    @property
    def size(self) -> int:
        return len(self.content)

    def lines(self) -> Iterator[bytes]:
        yield from self.pieces_from(0)

    def pieces_from(self, offset: int) -> Iterator[bytes]:
        yield from self.content[offset:].splitlines(keepends=True)


@dataclass
class SimulatedRecord:
    """The record of one endpoint.

    Attributes:
        name: Its unique name.
        unavailable_until: In seconds of the clock: until then it cannot be reached.
        full_until: Until then it can be read and not written.
        hangs_until: Until then work on it blocks.
        conflicts: How many of the next appends find that another writer was faster.
        lost_answers: How many of the next appends are stored although the writer is told that they were not.
        before, after: Called before and after each append: where a task may be killed.
        appended: Called with the lines of each append.
        parts_kept: The parts, oldest first.
    """

    name: str
    clock: SimulatedClock
    unavailable_until: float = 0.0
    full_until: float = 0.0
    hangs_until: float = 0.0
    conflicts: int = 0
    lost_answers: int = 0
    before: Callable[[str], None] = lambda call: None
    after: Callable[[str], None] = lambda call: None
    appended: Callable[[bytes], object] = lambda lines: None
    parts_kept: list[SimulatedPart] = field(default_factory=lambda: [SimulatedPart()])
    _number: int = 0

    def parts(self) -> list[SimulatedPart]:
        self.check()
        return [SimulatedPart(part.content) for part in self.parts_kept]

    @contextmanager
    def appending(self) -> "Iterator[_Appender]":
        self.check()
        yield _Appender(self, self.parts_kept[-1], self._number)

    def check(self) -> None:
        """Raise OSError during an outage."""
        if self.clock.seconds < self.unavailable_until:
            raise OSError(errno.EHOSTUNREACH, "the simulated storage cannot be reached")

    def open_part(self) -> None:
        """Open a new part, and delete the oldest beyond those that are kept."""
        self._number += 1
        self.parts_kept.append(SimulatedPart())
        del self.parts_kept[: -storage.KEPT_PARTS - 1]

    def leave_half_a_line(self) -> None:
        """Leave the first half of a line at the end, as a crash in the middle of a write does."""
        part = self.parts_kept[-1]
        if part.content.endswith(b"\n"):
            last = part.content.splitlines()[-1]
            part.content += last[: len(last) // 2]


@dataclass(frozen=True)
class _Appender:
    """The open part, for one append."""

    record: SimulatedRecord
    part: SimulatedPart
    number: int

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def identity(self) -> str:
        return str(self.number)

    @property
    def size(self) -> int:
        return len(self.part.content)

    def read_from(self, offset: int) -> bytes:
        return self.part.content[offset:]

    def write(self, line: bytes) -> int:
        record = self.record
        record.before("append")
        record.check()
        if record.clock.seconds < record.full_until:
            raise OSError(errno.ENOSPC, "No space left on device")
        if record.conflicts:
            record.conflicts -= 1
            raise AppendConflict
        torn = self.part.content and not self.part.content.endswith(b"\n")
        self.part.content += (b"\n" if torn else b"") + line + b"\n"
        record.appended(line)
        if record.lost_answers:
            record.lost_answers -= 1
            raise AppendConflict
        record.after("append")
        return len(self.part.content)

    def retire(self) -> None:
        self.record.open_part()
