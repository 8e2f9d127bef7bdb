"""The buffer between uploads and the disk: many small uploads, few transactions, and queries that see them all."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import duckdb  # noqa: TID253 - runs only inside the store's own process

from controlled_rollout.telemetry_store.database import Database
from controlled_rollout.telemetry_store.schema import Row

__all__ = ["BufferFullError", "NotWrittenError", "Writer"]

log = logging.getLogger(__name__)

RETRY_DELAYS_S: Final = (0.1, 0.5, 1.0, 5.0)
# The errors of a machine (disk full, out of memory), after which the same rows may yet be written.
MACHINE_ERRORS: Final = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException, OSError)


@dataclass(slots=True)
class _Batch:
    """Accepted rows on their way to the disk."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    count: int = 0
    size: int = 0
    uploads: int = 0  # how many uploads had been accepted when the last of these rows was


class BufferFullError(Exception):
    """The disk does not keep up: nothing was taken, the sender may try again later."""


class NotWrittenError(Exception):
    """What was accepted could not be written yet."""


class Writer:
    """A thread that writes what was accepted, at most `delay_s` later, and deletes what is too old.

    Args:
        database: Where the rows go.
        retention: Rows whose TimeGenerated is older are deleted.
        max_bytes: Above this much data the oldest rows are deleted.
        delay_s: How long an accepted row may stay in memory only.
        max_rows, max_pending_bytes: What may wait in memory; beyond it uploads are refused.
        retention_interval_s: How often old rows are looked for.
    """

    def __init__(
        self,
        database: Database,
        *,
        retention: timedelta,
        max_bytes: int,
        delay_s: float = 0.25,
        max_rows: int = 200_000,
        max_pending_bytes: int = 256 * 2**20,
        retention_interval_s: float = 60.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._retention = retention
        self._max_bytes = max_bytes
        self._delay_s = delay_s
        self._max_rows = max_rows
        self._max_pending_bytes = max_pending_bytes
        self._retention_interval_s = retention_interval_s
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting = _Batch()
        self._writing = _Batch()  # counts as waiting until it is on disk: memory stays bounded while the disk fails
        self._written = 0  # of those, on disk
        self._asked = 0  # write at once up to this upload
        self._first_waiting = 0.0
        self._failure: Exception | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, rows: Mapping[str, Sequence[Row]], size: int) -> None:
        """Accept rows; they are on disk within about `delay_s` and seen by every query that calls `flush` first.

        Args:
            rows: Rows by table.
            size: What the upload weighs in memory, in bytes.

        Raises:
            BufferFullError: Too much is waiting; nothing was accepted.
        """
        count = sum(map(len, rows.values()))
        if not count:
            return
        with self._changed:
            if self._stopping:
                raise BufferFullError("the store is shutting down: send again later")
            held = self._waiting.count + self._writing.count
            held_bytes = self._waiting.size + self._writing.size
            if held and (held + count > self._max_rows or held_bytes + size > self._max_pending_bytes):
                why = f" ({self._failure})" if self._failure else ""
                raise BufferFullError(f"{held} rows wait to be written{why}: send again later, or free the disk")
            if not self._waiting.count:
                self._first_waiting = time.monotonic()
            for table, batch in rows.items():
                self._waiting.rows.setdefault(table, []).extend(batch)
            self._waiting.count += count
            self._waiting.size += size
            self._waiting.uploads += 1
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> None:
        """Return when everything accepted before this call is on disk.

        Raises:
            NotWrittenError: It is not after `timeout_s`.
        """
        with self._changed:
            mark = self._waiting.uploads
            self._asked = max(self._asked, mark)
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._written >= mark, timeout_s):
                raise NotWrittenError(f"accepted rows are not on disk after {timeout_s:g} s: {self._failure or 'busy'}")

    def stop(self, timeout_s: float = 30.0) -> bool:
        """Write what was accepted and end the thread; False when something could not be written."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._written == self._waiting.uploads

    def _run(self) -> None:
        next_retention = time.monotonic()
        while self._write_waiting(next_retention) or not self._stopping:
            if not self._stopping and time.monotonic() >= next_retention:
                self._delete_old_rows()
                next_retention = time.monotonic() + self._retention_interval_s

    def _write_waiting(self, wake_at: float) -> bool:
        """Write what waits once it is due; False when nothing was due before `wake_at`."""
        with self._changed:
            while not self._due(wake_at):
                self._changed.wait(self._time_left(wake_at))
            batch = self._waiting
            if not batch.count:
                return False
            self._writing, self._waiting = batch, _Batch(uploads=batch.uploads)
        done = self._write_until_done(batch)
        with self._changed:
            self._writing = _Batch()
            self._first_waiting = time.monotonic()
            if done:
                self._written = batch.uploads
            self._changed.notify_all()
        return True

    def _due(self, wake_at: float) -> bool:
        return self._stopping or self._time_left(wake_at) <= 0

    def _time_left(self, wake_at: float) -> float:
        """Return the seconds until something has to be done."""
        if self._waiting.count:
            if self._asked > self._written:
                return 0.0
            wake_at = min(wake_at, self._first_waiting + self._delay_s)
        return max(0.0, wake_at - time.monotonic())

    def _write_until_done(self, batch: _Batch) -> bool:
        """Write; wait and try again while the machine refuses. False when the store stops before it can be done."""
        attempt = 0
        while True:
            try:
                self._database.insert(batch.rows)
                break
            except MACHINE_ERRORS as error:
                if self._failure is None:
                    log.error("rows cannot be written, will try again: %s", error)
                self._failure = error
                if self._stopping and attempt >= len(RETRY_DELAYS_S):
                    log.error("%d accepted rows are lost: %s", batch.count, error)
                    return False
                time.sleep(RETRY_DELAYS_S[min(attempt, len(RETRY_DELAYS_S) - 1)])
                attempt += 1
            except duckdb.Error as error:
                self._write_halves(batch.rows, error)
                break
        if self._failure is not None:
            log.error("rows are written again")
        self._failure = None
        return True

    def _write_halves(self, batch: dict[str, list[Row]], error: Exception) -> None:
        """Find the row that the database refuses: it must not take the others with it."""
        rows = [(table, row) for table, rows in batch.items() for row in rows]
        if len(rows) == 1:
            log.error("one row of %s is left out: %s", rows[0][0], error)
            return
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            part: dict[str, list[Row]] = {}
            for table, row in half:
                part.setdefault(table, []).append(row)
            try:
                self._database.insert(part)
            except duckdb.Error as inner:
                self._write_halves(part, inner)

    def _delete_old_rows(self) -> None:
        """Delete by age, then by size, a chunk at a time: between two chunks what was uploaded is written."""
        try:
            limits = [self._clock().astimezone(UTC) - self._retention]
            by_size = self._database.age_limit_for(self._max_bytes)
            if by_size is not None:
                limits.append(by_size.replace(tzinfo=UTC))
            deleted = 0
            while not self._stopping and (chunk := self._database.delete_before(max(limits))):
                deleted += chunk
                self._write_waiting(time.monotonic())
            if deleted:
                self._database.checkpoint()
                log.info("%d old rows deleted", deleted)
        except duckdb.Error as error:
            log.error("old rows cannot be deleted: %s", error)
