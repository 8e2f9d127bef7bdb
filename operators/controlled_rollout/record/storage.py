"""What a record is stored in: numbered or dated parts that are only ever appended to, the newest of them open."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

__all__ = ["KEPT_PARTS", "MAX_PART_BYTES", "AppendConflict", "Appender", "RecordPart", "RecordStorage"]

# An endpoint's record is at most KEPT_PARTS full parts and an open one, of this size each: 144 MiB.
MAX_PART_BYTES: Final = 16 * 2**20
KEPT_PARTS: Final = 8


class AppendConflict(Exception):
    """Another writer appended first, or opened a new part: nothing was appended, read the part again and retry."""


class RecordPart(Protocol):
    """One part of a record."""

    def lines(self) -> Iterator[bytes]:
        """Yield its lines, the oldest first; none if the part was deleted meanwhile."""
        ...


class Appender(Protocol):
    """The open part of a record, for one append."""

    @property
    def name(self) -> str:
        """The record's unique name: its path or address."""
        ...

    @property
    def identity(self) -> str:
        """Identifies this part; differs from that of a later part with the same name."""
        ...

    @property
    def size(self) -> int:
        """Its length in bytes."""
        ...

    def read_from(self, offset: int) -> bytes:
        """Return the bytes from `offset` to the end."""
        ...

    def write(self, line: bytes) -> int:
        """Append one line and return the part's length then; the line is durable when this returns.

        Raises:
            AppendConflict: Nothing was appended, because the part has changed since it was opened.
            OSError: The line cannot be stored.
        """
        ...

    def retire(self) -> None:
        """Close the part, so that the next append opens a new one, and delete the oldest beyond `KEPT_PARTS`."""
        ...


class RecordStorage(Protocol):
    """Where the record of one endpoint is stored."""

    @property
    def name(self) -> str:
        """Its unique name: a path or an address."""
        ...

    def parts(self) -> Sequence[RecordPart]:
        """Return its parts, the oldest first."""
        ...

    def appending(self) -> AbstractContextManager[Appender]:
        """Open the newest part for one append.

        Raises:
            AppendConflict: Another writer opened a new part at the same time.
            OSError: The storage cannot be reached.
        """
        ...
