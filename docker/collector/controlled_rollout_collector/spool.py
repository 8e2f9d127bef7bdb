"""Spools as the scoring runtime writes them: segments of records, and counts; see its own spool.py for the format.

A segment gets no more records once its writer has given up its lock, or has begun a later one. What the writer was
killed in the middle of, at a segment's end, is no record: nobody has been answered for it.
"""

import contextlib
import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

__all__ = [
    "Counts",
    "ReadRecords",
    "Segment",
    "delete_segment",
    "find_segments",
    "hidden_leftovers",
    "read_counts",
    "read_records",
    "segment_paths",
]

# The magic bytes, the payload's length, the CRC-32 of its head and last bytes, and the length of the JSON head that it
# begins with.
HEADER: Final = struct.Struct("<4sIII")
MAGIC: Final = b"CRS1"
# The magic bytes, and the numbers of captured, dropped and unreadable records.
COUNTS: Final = struct.Struct("<8sQQQ")
COUNTS_MAGIC: Final = b"CRSCNT01"
SUMMED_END_BYTES: Final = 64
SEGMENT: Final = ".spool"
COUNTS_FILE: Final = ".counts"
SEARCH_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of records.

    Attributes:
        path: The file.
        is_final: Whether it gets no more records.
    """

    path: Path
    is_final: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """What the writers of a spool have counted.

    Attributes:
        captured: Records that they have appended.
        dropped: Records that they could not append.
        unreadable: Data of scripts that no record could be made of.
    """

    captured: int = 0
    dropped: int = 0
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class ReadRecords:
    """What was read of a segment.

    Attributes:
        payloads: Of each record the JSON head and the bodies behind it.
        end: Where reading has stopped: at the end of a record.
        unreadable: Damaged places that were skipped.
        is_whole: Whether the segment has nothing more that could be read behind `end`.
    """

    payloads: list[tuple[bytes, memoryview]]
    end: int
    unreadable: int
    is_whole: bool


def find_segments(spool: Path, *, all_final: bool = False) -> list[Segment]:
    """Return the segments of a spool, in the order of their names.

    Args:
        spool: The folder of the spool.
        all_final: Whether no segment gets more records, whoever holds a lock.

    Raises:
        OSError: The folder cannot be read.
    """
    paths = segment_paths(spool)
    workers = [path.name.rpartition("-")[0] for path in paths]
    return [
        Segment(path, all_final or worker == later or not _is_locked(path))
        for path, worker, later in zip(paths, workers, [*workers[1:], ""], strict=False)
    ]


def segment_paths(spool: Path) -> list[Path]:
    """Return the files of a spool's segments, in the order of their names.

    Raises:
        OSError: The folder cannot be read.
    """
    return sorted(path for path in spool.iterdir() if path.suffix == SEGMENT and path.name[0] != ".")


def hidden_leftovers(spool: Path) -> list[Path]:
    """Return the files of killed writers that nobody has seen: they have no lock, and never had a record."""
    return [path for path in spool.glob(".*.new") if not _is_locked(path)]


def read_counts(spool: Path) -> Counts:
    """Return the sum of the counts of all writers of a spool, those that have ended included.

    Raises:
        OSError: A file cannot be read.
    """
    captured = dropped = unreadable = 0
    for path in spool.glob(f"*{COUNTS_FILE}"):
        content = path.read_bytes()
        if len(content) >= COUNTS.size:
            magic, *numbers = COUNTS.unpack_from(content)
            if magic == COUNTS_MAGIC:
                captured, dropped, unreadable = captured + numbers[0], dropped + numbers[1], unreadable + numbers[2]
    return Counts(captured, dropped, unreadable)


def _is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_records(segment: Segment, start: int, *, max_bytes: int, stop: int | None = None) -> ReadRecords:
    """Return the records of a segment from a place on.

    Of a segment that may get more records, reading stops at the first that is not whole. Of a final one, a damaged
    place is skipped and counted if a whole record follows it or if it is as long as its header says.

    Args:
        segment: The segment.
        start: Where to begin: at the begin of a record.
        max_bytes: Reading stops once so many bytes are read; the record that exceeds them is read to its end.
        stop: Where to stop, at the end of a record; None for the segment's end.

    Raises:
        OSError: The file cannot be read.
    """
    payloads: list[tuple[bytes, memoryview]] = []
    position, unreadable = start, 0
    with segment.path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size if stop is None else stop
        while position < size and position - start < max_bytes:
            record = _record_at(file, position, size)
            if record is not None:
                head, bodies, position = record
                payloads.append((head, bodies))
                continue
            if not segment.is_final and stop is None:
                return ReadRecords(payloads, position, unreadable, is_whole=False)
            following = _next_record(file, position + 1, size)
            if following is None:
                unreadable += _is_as_long_as_it_says(file, position, size)
                position = size
            else:
                unreadable += 1
                position = following
    return ReadRecords(payloads, position, unreadable, is_whole=position >= size)


def _record_at(file: BinaryIO, position: int, size: int) -> tuple[bytes, memoryview, int] | None:
    """Return the head, the bodies and the end of the record at a position; None if there is no whole one."""
    file.seek(position)
    header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    magic, length, checksum, head_length = HEADER.unpack(header)
    end = position + HEADER.size + length
    if magic != MAGIC or end > size or head_length > length:
        return None
    payload = file.read(length)
    if len(payload) < length or zlib.crc32(payload[-SUMMED_END_BYTES:], zlib.crc32(payload[:head_length])) != checksum:
        return None
    # The bodies may be large: they are not copied.
    return payload[:head_length], memoryview(payload)[head_length:], end


def _next_record(file: BinaryIO, position: int, size: int) -> int | None:
    """Return where the next whole record begins, from a position on; None if there is none."""
    for candidate in _places_of_magic(file, position, size):
        if _record_at(file, candidate, size) is not None:
            return candidate
    return None


def _places_of_magic(file: BinaryIO, position: int, size: int) -> Iterator[int]:
    """Yield the places of the magic bytes between a position and the end."""
    while position < size:
        file.seek(position)
        piece = file.read(min(SEARCH_BYTES, size - position))
        if len(piece) < len(MAGIC):
            return
        found = piece.find(MAGIC)
        while found >= 0:
            yield position + found
            found = piece.find(MAGIC, found + 1)
        position += len(piece) - len(MAGIC) + 1


def _is_as_long_as_it_says(file: BinaryIO, position: int, size: int) -> bool:
    """Return whether what is at a position is not just cut off: it is damaged, or of no known format."""
    file.seek(position)
    header = file.read(HEADER.size)
    if not MAGIC.startswith(header[: len(MAGIC)]):
        return True
    if len(header) < HEADER.size:
        return False
    _, length, _, _ = HEADER.unpack(header)
    return position + HEADER.size + int(length) <= size


def delete_segment(path: Path) -> None:
    """Delete a segment; one that is gone already is deleted."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
