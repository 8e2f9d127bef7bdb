"""How far a spool is shipped: a file of fixed size, so that a full disk does not stop shipping.

It has two slots that are written in turn: one is whole, whenever the process is killed. What is about to be shipped,
the batch, is written before the first upload: a collector that is killed in the middle uploads the same rows again,
under the same names.
"""

import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from controlled_rollout_collector.atomic_files import write_atomically

__all__ = ["Batch", "Progress", "ProgressFile", "Slice"]

NAME: Final = "shipped.state"
SLOT_BYTES: Final = 64 * 1024
# The magic bytes, the number of the write, and the length and CRC-32 of the JSON that follows.
SLOT: Final = struct.Struct("<8sQII")
MAGIC: Final = b"CRSHIP01"


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a segment.

    Attributes:
        segment: The name of the file.
        start: Its first byte.
        end: The byte behind it.
        is_rest: Whether it is all that the segment will ever have from `start` on: the segment is then deleted.
    """

    segment: str
    start: int
    end: int
    is_rest: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """What is shipped together.

    Attributes:
        number: Its number, by which its parts are called.
        slices: Where its records are.
    """

    number: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Progress:
    """How far a spool is shipped.

    Attributes:
        id: Names this progress, and the parts with it: should the file get lost, no part is called as an older one.
        offsets: The shipped bytes by the name of the segment, of segments that are shipped in part.
        batch: What is being shipped; None between batches.
        batches: The batches that are shipped.
        records: The records in them.
        unreadable: The damaged records in them.
    """

    id: str
    offsets: dict[str, int] = field(default_factory=dict)
    batch: Batch | None = None
    batches: int = 0
    records: int = 0
    unreadable: int = 0

    def to_json(self) -> bytes:
        """Return the progress as it is stored."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Return the progress that `to_json` has returned."""
        fields = json.loads(text)
        if batch := fields["batch"]:
            slices = tuple(Slice(**each) for each in batch["slices"])
            fields["batch"] = Batch(batch["number"], slices)
        return cls(**fields)


class ProgressFile:
    """The file with a spool's progress; made, in its full size, if it is not there.

    Args:
        spool: The folder of the spool.

    Raises:
        OSError: The file cannot be made, because the disk is full, or cannot be read.
    """

    def __init__(self, spool: Path) -> None:
        self._path = spool / NAME
        self._writes = 0
        progress = self._read()
        if progress is None:
            progress = Progress(id=os.urandom(4).hex())
            self._create(progress)
        self.progress = progress

    def write(self, progress: Progress) -> None:
        """Store the progress; on disk when this returns.

        Raises:
            OSError: The disk fails.
        """
        number = self._writes + 1
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, _slot_content(number, progress), number % 2 * SLOT_BYTES)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        self._writes, self.progress = number, progress

    def _create(self, progress: Progress) -> None:
        """Create the file with space for both slots."""
        slots = [_slot_content(0, progress).ljust(SLOT_BYTES, b"\0"), bytes(SLOT_BYTES)]
        write_atomically(self._path, b"".join(slots))

    def _read(self) -> Progress | None:
        """Return the progress that was written last; None if there is none."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        newest: bytes | None = None
        for place in (0, SLOT_BYTES):
            if len(content) < place + SLOT.size:
                continue
            magic, number, length, checksum = SLOT.unpack_from(content, place)
            text = content[place + SLOT.size : place + SLOT.size + length]
            if magic == MAGIC and zlib.crc32(text) == checksum and (newest is None or number > self._writes):
                newest, self._writes = text, number
        return None if newest is None else Progress.from_json(newest)


def _slot_content(number: int, progress: Progress) -> bytes:
    """Return what a slot has in it."""
    text = progress.to_json()
    if SLOT.size + len(text) > SLOT_BYTES:
        raise OSError(f"the progress of a spool takes {len(text):,} bytes, more than its file has place for")
    return SLOT.pack(MAGIC, number, len(text), zlib.crc32(text)) + text
