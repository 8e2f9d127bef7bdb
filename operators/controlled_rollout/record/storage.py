"""What a record is stored in: numbered or dated parts that are only ever appended to, the newest of them open."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

__all__ = ["KEPT_PARTS", "LONGEST_PIECE", "MAX_PART_BYTES", "AppendConflict", "Appender", "RecordPart", "RecordStorage"]

# An endpoint's record is at most KEPT_PARTS full parts and an open one, of this size each: 144 MiB.
MAX_PART_BYTES: Final = 16 * 2**20
KEPT_PARTS: Final = 8
# A line that is longer has the bins of a whole rollout: it is read in pieces, else it would take a lot of memory.
LONGEST_PIECE: Final = 256 * 1024


class AppendConflict(Exception):
    """Another writer appended first, or opened a new part: nothing was appended, read the part again and retry."""


class RecordPart(Protocol):
    """One part of a record."""

    @property
    def identity(self) -> str:
        """An id of this part that it keeps when it becomes full; empty if the part was deleted meanwhile."""
        ...

    @property
    def size(self) -> int:
        """The part's length in bytes; 0 if the part was deleted meanwhile."""
        ...

    def lines(self) -> Iterator[bytes]:
        """Yield the part's lines, oldest first; none if the part was deleted meanwhile."""
        ...

    def pieces_from(self, offset: int) -> Iterator[bytes]:
        """Yield the part's bytes from one of them on: a line in one piece, or in several if it is long."""
        ...


class Appender(Protocol):
    """The open part of a record, for one append."""

    @property
    def name(self) -> str:
        """The record's unique name: its path or address."""
        ...

    @property
    def identity(self) -> str:
        """An id of this part that differs from that of a later part with the same name."""
        ...

    @property
    def size(self) -> int:
        """The part's length in bytes."""
        ...

    def read_from(self, offset: int) -> bytes:
        """Return the part's bytes from `offset` to its end."""
        ...

    def write(self, line: bytes) -> int:
        """Append one line and return the part's new length; the line is durable on return.

        Raises:
            AppendConflict: Nothing was appended, because the part has changed since it was opened.
            OSError: The line cannot be stored.
        """
        ...

    def retire(self) -> None:
        """Close the part so that the next append opens a new one; delete the oldest parts beyond `KEPT_PARTS`."""
        ...


class RecordStorage(Protocol):
    """Where the record of one endpoint is stored."""

    @property
    def name(self) -> str:
        """The record's unique name: its path or address."""
        ...

    def parts(self) -> Sequence[RecordPart]:
        """Return the record's parts, oldest first."""
        ...

    def appending(self) -> AbstractContextManager[Appender]:
        """Context manager: open the newest part for one append.

        Raises:
            AppendConflict: Another writer opened a new part at the same time.
            OSError: The storage cannot be reached.
        """
        ...
