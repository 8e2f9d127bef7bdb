"""Reads spools for the tests, as a collector does: whole records only, and which files are locked."""

import fcntl
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Counts", "Record", "counts", "is_locked", "records", "records_of", "segments"]


class Record(NamedTuple):
    head: dict[str, Any]
    bodies: bytes

    @property
    def request(self) -> bytes:
        """Return what is kept of the request's body."""
        kept: int = self.head["request"]["kept"]
        return self.bodies[:kept]

    @property
    def response(self) -> bytes:
        """Return what is kept of the answer's body."""
        return self.bodies[self.head["request"]["kept"] :]


class Counts(NamedTuple):
    captured: int
    dropped: int
    unreadable: int


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.spool"))


def records(folder: Path) -> list[Record]:
    """Return all whole records of a spool, those of one worker in their order."""
    return [record for segment in segments(folder) for record in records_of(segment.read_bytes())]


def records_of(content: bytes) -> Iterator[Record]:
    """Read the records of a segment up to the first one that is not whole."""
    while len(content) >= 16:
        magic, length, checksum, head = struct.unpack_from("<4sIII", content)
        payload, content = content[16 : 16 + length], content[16 + length :]
        summed = zlib.crc32(payload[-64:], zlib.crc32(payload[:head]))
        if magic != b"CRS1" or len(payload) < length or summed != checksum:
            return
        yield Record(json.loads(payload[:head]), payload[head:])


def counts(folder: Path) -> Counts:
    """Return the sums of all workers' counts."""
    sums = [0, 0, 0]
    for file in folder.glob("[!.]*.counts"):
        magic, *numbers = struct.unpack("<8sQQQ", file.read_bytes())
        assert magic == b"CRSCNT01"
        sums = [total + number for total, number in zip(sums, numbers, strict=True)]
    return Counts(*sums)


def is_locked(file: Path) -> bool:
    """Return whether a worker still writes to a file."""
    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
