"""The spool: a bounded folder on the replica's disk, to which each worker appends what capture keeps.

A worker appends to segments of its own, `<worker>-<number>.spool`, and begins a new one after some megabytes or
seconds. It holds the lock of its open segment (`flock`); a segment without a lock gets no more records.
`<worker>.counts` has the numbers of captured, dropped and unreadable records, and is locked for as long as the worker
lives. Another process, the collector, reads the segments and deletes what it has shipped.

A record is a header, a JSON head and up to two bodies, written by one call. Nothing is kept in memory: a record that is
appended outlives the process, also one that is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable

from controlled_rollout_scoring.log import log

# The magic bytes, the payload's length, a CRC-32, and the length of the JSON head that the payload begins with. The CRC
# is that of the head and of the payload's last bytes: that of all would cost more than it takes to write them.
HEADER = struct.Struct("<4sIII")
MAGIC = b"CRS1"
# The magic bytes, and the numbers of captured, dropped and unreadable records.
COUNTS = struct.Struct("<8sQQQ")
COUNTS_MAGIC = b"CRSCNT01"
# How many of the last bytes of a payload are in its sum, at most.
SUMMED_END_BYTES = 64
SEGMENT = ".spool"
COUNTS_FILE = ".counts"

# A new segment begins with the next record after so many bytes or seconds: the collector deletes whole segments.
SEGMENT_BYTES = 8_000_000
SEGMENT_S = 5.0
# What a file takes of the disk is a multiple of this.
BLOCK_BYTES = 4096
# How long to wait, after there was no room, before the folder is looked at again.
RETRY_S = 1.0
LOG_INTERVAL_S = 60.0
# How old the number of captured records may be, which the records themselves tell, too. What is dropped is counted at
# once.
COUNTS_INTERVAL_S = 0.1
# How long a record may wait for another thread's; one takes microseconds. A signal's handler could wait for itself.
LOCK_TIMEOUT_S = 1.0


class NoRoomError(Exception):
    """The spool has as many bytes as it may have."""


class Spool:
    """Appends records to a folder. No function raises whatever the disk does: what cannot be kept is counted.

    Args:
        folder: The folder of the replica; it is made if it is not there.
        max_bytes: What all segments in the folder may have together.
        workers: The workers that share it, in equal parts.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self, folder: str, *, max_bytes: int, workers: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._workers = workers
        self._clock = clock
        self._logged_at = -LOG_INTERVAL_S
        self._begin()
        os.register_at_fork(after_in_child=self._begin_in_child)
        with self._lock:
            self._write_counts()

    def append(self, head: bytes, *bodies: bytes) -> bool:
        """Append a record; return whether it is kept, which is counted."""
        # A timed wait costs more than all the rest, also where there is nothing to wait for.
        if not self._lock.acquire(blocking=False) and not self._lock.acquire(timeout=LOCK_TIMEOUT_S):
            self._count_dropped("another record was being written")
            return False
        try:
            now = self._clock()
            self._write_record(head, bodies, now)
            self._captured += 1
            if now - self._counted_at >= COUNTS_INTERVAL_S:
                self._write_counts()
            return True
        except Exception as error:
            self._count_dropped(str(error) or type(error).__name__)
            if isinstance(error, TimeoutError) and error.errno is None:
                # A signal's handler has raised it, not the disk: the time of the script that collects is over.
                raise
            return False
        finally:
            self._lock.release()

    def count_dropped(self, reason: str) -> None:
        """Count a record that could not be made."""
        with self._lock:
            self._count_dropped(reason)

    def write_counts(self) -> None:
        """Write the numbers as they are, before the worker ends."""
        with self._lock:
            self._write_counts()

    def count_unreadable(self, reason: str) -> None:
        """Count data of a script that no record can be made of."""
        with self._lock:
            self._unreadable += 1
            self._write_counts()
            self._log(f"what the script has collected cannot be kept: {reason}")

    def close(self) -> None:
        """End as a worker: its files get no more records, and lose their locks."""
        with self._lock:
            self._close_files()

    def _begin(self) -> None:
        """Begin as a worker that has written nothing yet, under a name that no other one has had."""
        self._worker = f"{int(time.time() * 1000)}-{os.getpid()}-{os.urandom(4).hex()}"
        self._lock = threading.Lock()
        self._number = 0
        self._captured = self._dropped = self._unreadable = 0
        self._counted_at = -math.inf
        self._counts = self._segment = -1
        self._segment_bytes = self._segment_limit = 0
        self._segment_began = 0.0
        # Why no segment could be made, and until when that is not tried again.
        self._refusal = ""
        self._refused_until = -math.inf

    def _begin_in_child(self) -> None:
        """Leave the parent's files alone in a process that the script has forked; it has its own if it needs some."""
        self._close_files()
        self._begin()

    def _close_files(self) -> None:
        """Close the descriptors of this process."""
        for descriptor in (self._counts, self._segment):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._counts = self._segment = -1

    # Records

    def _write_record(self, head: bytes, bodies: tuple[bytes, ...], now: float) -> None:
        """Append a record to the open segment or to a new one.

        Raises:
            NoRoomError: The spool is full.
            OSError: The disk is, or fails.
        """
        length = len(head)
        for body in bodies:
            length += len(body)
        size = HEADER.size + length
        checksum = zlib.crc32(last_bytes(head, *bodies), zlib.crc32(head))
        if (
            self._segment < 0
            or self._segment_bytes >= SEGMENT_BYTES
            or self._segment_bytes + size > self._segment_limit
            or now - self._segment_began >= SEGMENT_S
        ):
            self._begin_segment(size, now)
        try:
            written = os.writev(self._segment, [HEADER.pack(MAGIC, length, checksum, len(head)), head, *bodies])
            if written < size:
                raise OSError(f"the disk took {written:,} of {size:,} bytes")
            self._segment_bytes += size
        except BaseException:
            self._cut_off()
            raise

    def _cut_off(self) -> None:
        """Take half a record off the open segment; where that fails, the segment ends with it."""
        try:
            os.ftruncate(self._segment, self._segment_bytes)
        except OSError:
            self._close_segment()

    # Segments

    def _begin_segment(self, size: int, now: float) -> None:
        """Close the open segment, and begin one with room for a record.

        Raises:
            NoRoomError: There is none, or there was none a moment ago.
            OSError: The segment cannot be made.
        """
        if now < self._refused_until:
            raise NoRoomError(self._refusal)
        # Whatever comes of it: the collector deletes closed segments only.
        self._close_segment()
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            if self._counts < 0:
                self._write_counts()
            room = max(0, self._free_bytes())
            if room < size:
                raise NoRoomError(f"a record needs {size:,} bytes, and of {self._max_bytes:,} in all {room:,} are left")
            self._number += 1
            self._segment = self._create(f"{self._worker}-{self._number:010d}{SEGMENT}")
        except (NoRoomError, OSError) as error:
            self._refusal, self._refused_until = str(error), now + RETRY_S
            raise
        self._segment_bytes, self._segment_began = 0, now
        self._segment_limit = min(room, max(size, SEGMENT_BYTES))

    def _close_segment(self) -> None:
        """Give up the open segment, and with it its lock."""
        if self._segment >= 0:
            segment, self._segment = self._segment, -1
            os.close(segment)

    def _create(self, name: str) -> int:
        """Create a file of the folder and return its descriptor; nobody sees it before it is locked."""
        hidden = os.path.join(self._folder, f".{name}.new")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(hidden, flags if name.endswith(SEGMENT) else flags & ~os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not name.endswith(SEGMENT):
                # Its blocks have to be there before the disk is full.
                os.write(descriptor, self._packed_counts())
            os.rename(hidden, os.path.join(self._folder, name))
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(hidden)
            raise
        return descriptor

    def _free_bytes(self) -> int:
        """Return how many bytes this worker may append: its part of the bound, less what ended workers have left."""
        sizes: dict[str, int] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(SEGMENT) and not entry.name.startswith("."):
                    # The collector may delete it meanwhile.
                    with contextlib.suppress(FileNotFoundError):
                        worker = entry.name.rpartition("-")[0]
                        sizes[worker] = sizes.get(worker, 0) + -(-entry.stat().st_size // BLOCK_BYTES) * BLOCK_BYTES
        own = sizes.pop(self._worker, 0)
        left_behind = sum(size for worker, size in sizes.items() if not self._worker_runs(worker))
        part = (self._max_bytes - left_behind) // self._workers - own
        return min(part, self._max_bytes - own - sum(sizes.values()))

    def _worker_runs(self, worker: str) -> bool:
        """Return whether another worker of this folder still runs: it holds the lock of its counts."""
        try:
            descriptor = os.open(os.path.join(self._folder, worker + COUNTS_FILE), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    # Counts

    def _count_dropped(self, reason: str) -> None:
        """Count a record that is not kept, and say so in the log."""
        self._dropped += 1
        self._write_counts()
        self._log(f"requests are answered but not captured ({self._dropped:,} so far): {reason}")

    def _write_counts(self) -> None:
        """Write the numbers into their file, which is made if it could not be made before."""
        self._counted_at = self._clock()
        # A full disk takes no new file, and may take one later: the numbers themselves are not lost.
        with contextlib.suppress(OSError):
            if self._counts < 0:
                os.makedirs(self._folder, mode=0o700, exist_ok=True)
                self._counts = self._create(self._worker + COUNTS_FILE)
            else:
                # Not through a memory map: some file systems need space for that, and would end the process.
                os.pwrite(self._counts, self._packed_counts(), 0)

    def _packed_counts(self) -> bytes:
        """Return the content of the counts' file."""
        return COUNTS.pack(COUNTS_MAGIC, self._captured, self._dropped, self._unreadable)

    def _log(self, message: str) -> None:
        """Write a line to the log, at most one a minute."""
        now = self._clock()
        if now - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            with contextlib.suppress(Exception):
                log(f"capture: {message}")


def last_bytes(*parts: bytes) -> bytes:
    """Return the last bytes of parts that are written one behind the other, as many as are summed."""
    end = b""
    for part in reversed(parts):
        end = part[-SUMMED_END_BYTES + len(end) :] + end
        if len(end) == SUMMED_END_BYTES:
            break
    return end
