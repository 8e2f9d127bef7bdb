"""Where a record lies: in parts that are only ever appended to, the newest open, the oldest deleted in the end."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

from controlled_rollout.endpoint import check_name
from controlled_rollout.workspace import Workspace

__all__ = ["KEPT_PARTS", "MAX_PART_BYTES", "Appender", "OvertakenError", "Part", "Place", "place_of"]

# An endpoint's record is at most KEPT_PARTS full parts and an open one, of this size each: 144 MiB.
MAX_PART_BYTES: Final = 16 * 2**20
KEPT_PARTS: Final = 8


class OvertakenError(Exception):
    """Somebody else has appended first, or has opened a new part: read what they wrote, and append then."""


class Part(Protocol):
    """One part of a record."""

    def lines(self) -> Iterator[bytes]:
        """Yield its lines, the oldest first; none if it was deleted in between."""
        ...


class Appender(Protocol):
    """The open part of a record, for one append."""

    @property
    def name(self) -> str:
        """What tells the record from every other."""
        ...

    @property
    def identity(self) -> str:
        """Tells this part from every other, also from one that took its name later."""
        ...

    @property
    def size(self) -> int:
        """Its length in bytes."""
        ...

    def read_from(self, offset: int) -> bytes:
        """Return what stands behind `offset`."""
        ...

    def write(self, line: bytes) -> int:
        """Append one line; it is kept for good when this returns. Returns the part's length then.

        Raises:
            OvertakenError: Nothing was appended, because the part is not as it was.
            OSError: It cannot be kept.
        """
        ...

    def retire(self) -> None:
        """Close the part, so that a new one is opened, and delete the oldest beyond those that are kept."""
        ...


class Place(Protocol):
    """Where the record of one endpoint lies."""

    @property
    def name(self) -> str:
        """What tells it from every other place."""
        ...

    def parts(self) -> Sequence[Part]:
        """Return its parts, the oldest first."""
        ...

    def appending(self) -> AbstractContextManager[Appender]:
        """Open it for one append."""
        ...


def place_of(workspace: Workspace, endpoint: str) -> Place:
    """Return where a workspace keeps the record of an endpoint."""
    check_name(endpoint)
    if workspace.records:
        from controlled_rollout.record.blob import BlobPlace

        return BlobPlace(workspace.records, endpoint)
    from controlled_rollout.record.file import FilePlace

    return FilePlace(workspace.records_folder / f"{endpoint}.jsonl")
