"""The lines that were appended to a record since they were last asked for, so that nothing is read twice."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from controlled_rollout.record.log import storage_errors
from controlled_rollout.record.storage import RecordStorage

__all__ = ["FollowedLine", "FollowedRecord"]


@dataclass(frozen=True, slots=True)
class FollowedLine:
    """A line of a record.

    Attributes:
        content: The line with its line break: one with all bins of a rollout is long, and is not copied.
        is_in_full_part: Whether it is in a part that is no longer appended to.
    """

    content: bytes
    is_in_full_part: bool


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
            for line in part.lines_from(begin):
                if not line.endswith(b"\n"):  # somebody is writing it
                    break
                self.offsets[identity] += len(line)
                if not is_cut:
                    yield FollowedLine(line, not is_newest)
                is_cut = False
