"""The lines that were appended to a record since they were last asked for, so that nothing is read twice."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from controlled_rollout.record import storage
from controlled_rollout.record.log import storage_errors
from controlled_rollout.record.storage import RecordStorage

__all__ = ["FollowedLine", "FollowedRecord"]

# A level of compression.
FAST: Final = 1


@dataclass(frozen=True, slots=True)
class FollowedLine:
    """A line of a record.

    Attributes:
        content: The line with its line break; the beginning of a long one.
        is_in_full_part: Whether it is in a part that is no longer appended to.
        rest: What follows the beginning of a long line, compressed: a tenth of the megabytes that its bins take.
    """

    content: bytes
    is_in_full_part: bool
    rest: tuple[bytes, ...] = ()

    def pieces(self) -> Iterator[bytes]:
        """Yield the line in pieces."""
        yield self.content
        yield from map(zlib.decompress, self.rest)


@dataclass
class FollowedRecord:
    """Reads what was appended to a record since the last call.

    Attributes:
        storage: Where the record is.
        first_bytes: How much of the newest part is read at the first call; None for the whole record.
        offsets: How much of each part has been read, by the part's identity.
    """

    storage: RecordStorage
    first_bytes: int | None = None
    offsets: dict[str, int] = field(default_factory=dict)

    def new_lines(self) -> Iterator[FollowedLine]:
        """Yield the complete lines that were appended since the last call, oldest first; of a part without end none.

        Raises:
            RecordUnavailableError: The record cannot be read.
        """
        with storage_errors(self.storage):
            yield from self._new_lines()

    def _new_lines(self) -> Iterator[FollowedLine]:
        """Yield what `new_lines` does; raise OSError if the record cannot be read."""
        parts = [(part, part.identity) for part in self.storage.parts()]
        is_first = not self.offsets
        self.offsets = {identity: self.offsets[identity] for _, identity in parts if identity in self.offsets}
        for number, (part, identity) in enumerate(parts):
            is_newest = number == len(parts) - 1
            size, begin = part.size, self.offsets.get(identity, 0)
            if is_first and self.first_bytes is not None:
                begin = max(0, size - self.first_bytes) if is_newest else size
            self.offsets[identity] = begin
            if begin >= size:
                continue
            is_cut = is_first and begin > 0
            for length, content, rest in _lines(part.pieces_from(begin)):
                self.offsets[identity] += length
                if not is_cut:
                    yield FollowedLine(content, not is_newest, rest)
                is_cut = False


def _lines(pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes, tuple[bytes, ...]]]:
    """Yield each complete line: its length, the line or its beginning, and its compressed rest."""
    length, content, rest = 0, b"", list[bytes]()
    for piece in pieces:
        length += len(piece)
        room = storage.LONGEST_PIECE - len(content)
        content += piece[:room]
        if further := piece[room:]:
            rest.append(zlib.compress(further, FAST))
        if piece.endswith(b"\n"):
            yield length, content, tuple(rest)
            length, content, rest = 0, b"", []
