"""Spools for the tests of the collector, written as the scoring runtime writes them."""

import fcntl
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from controlled_rollout_collector.entries import Entry
from controlled_rollout_collector.rows import Row

__all__ = ["NOON", "SpoolWriter", "entry", "exchange", "exchange_head", "make_spool"]

HEADER = struct.Struct("<4sIII")
# 2026-11-28 12:00:00 UTC.
NOON = 1_795_867_200.0


def exchange_head(id_: str, correlation: str, asked: bytes, answered: bytes, *, time: float) -> dict[str, Any]:
    """Return the head of a request that was answered at a time, in seconds since 1970, with both bodies kept."""
    return {
        "kind": "exchange",
        "id": id_,
        "correlation": correlation,
        "time": time,
        "duration_ms": 1.5,
        "status": 200,
        "method": "POST",
        "path": "/score",
        "request": {"type": "application/json", "size": len(asked), "kept": len(asked)},
        "response": {"type": "application/json", "size": len(answered), "kept": len(answered)},
    }


def exchange(number: int, *, rows: int = 1, time: float = NOON) -> tuple[dict[str, Any], bytes, bytes]:
    """Return the head, the request's body and the answer's body of a request with rows of two columns."""
    asked = json.dumps({"data": [{"age": number, "name": f"n{number}"}] * rows}).encode()
    answered = json.dumps([number % 3] * rows).encode()
    head = exchange_head(f"id-{number}", f"correlation-{number}", asked, answered, time=time + number / 1000)
    return head, asked, answered


def packed(head: dict[str, Any], *bodies: bytes) -> bytes:
    """Return a record."""
    text = json.dumps(head).encode()
    payload = text + b"".join(bodies)
    return HEADER.pack(b"CRS1", len(payload), zlib.crc32(payload[-64:], zlib.crc32(text)), len(text)) + payload


def make_spool(folder: Path, *, replica: str = "replica-1", **settings: Any) -> Path:
    """Make the spool of a replica, as a target does, and return it."""
    spool = folder / "digits" / "v1" / replica
    spool.mkdir(parents=True)
    own = {"endpoint": "digits", "version": "v1", "replica": replica, "layout": "parquet"}
    (spool / "spool.json").write_text(json.dumps(own | settings))
    return spool


class SpoolWriter:
    """A worker that appends records to a spool; when it ends, the kernel releases its locks."""

    def __init__(self, spool: Path, worker: str = "1-1-aaaaaaaa") -> None:
        self.spool = spool
        self._worker = worker
        self._number = 0
        self._descriptor = -1
        self.captured = 0
        self._counts = os.open(spool / f"{worker}.counts", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._counts, fcntl.LOCK_EX)
        self.count()

    @property
    def segment(self) -> Path:
        """The open segment."""
        return self.spool / f"{self._worker}-{self._number:010d}.spool"

    def count(self, *, dropped: int = 0, unreadable: int = 0) -> None:
        """Write the counts."""
        os.pwrite(self._counts, struct.pack("<8sQQQ", b"CRSCNT01", self.captured, dropped, unreadable), 0)

    def append(self, head: dict[str, Any], *bodies: bytes) -> None:
        """Append a record."""
        self.append_bytes(packed(head, *bodies))
        self.captured += 1
        self.count()

    def append_bytes(self, content: bytes) -> None:
        """Append bytes that need not be a record."""
        if self._descriptor < 0:
            self.begin_segment()
        os.write(self._descriptor, content)

    def append_exchanges(self, count: int, *, first: int = 0, rows: int = 1, time: float = NOON) -> None:
        """Append so many requests."""
        for number in range(first, first + count):
            self.append(*exchange(number, rows=rows, time=time))

    def begin_segment(self) -> None:
        """Close the open segment, and begin the next one."""
        self.close_segment()
        self._number += 1
        hidden = self.spool / f".{self.segment.name}.new"
        self._descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        hidden.rename(self.segment)

    def close_segment(self) -> None:
        """Close the open segment."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def end(self) -> None:
        """Release all locks."""
        self.close_segment()
        if self._counts >= 0:
            os.close(self._counts)
            self._counts = -1


def entry(collection: str = "inputs", /, *, rows: tuple[Row, ...] = ({"age": 30},), **fields: Any) -> Entry:
    """Return what a request has in a collection; with fields, what a script has collected."""
    return Entry(
        collection=collection,
        request_id="6f9d8bb8-8e54-4d53-8f9e-5f4d8a2f0001",
        correlation_id="mine",
        time_us=int(NOON * 1e6) + 250_000,
        duration_ms=None,
        status=200,
        content_type="application/json",
        size=17,
        sha256="",
        truncated=False,
        body=None,
        rows=rows,
        fields=fields,
        is_script=bool(fields),
    )
