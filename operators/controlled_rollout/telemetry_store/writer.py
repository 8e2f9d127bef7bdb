"""The buffer between uploads and the database: many small uploads are written in few transactions."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from controlled_rollout.telemetry_store.database_errors import DatabaseError, MachineError
from controlled_rollout.telemetry_store.schema import Row

__all__ = ["BufferFullError", "NotWrittenError", "Writer"]

log = logging.getLogger(__name__)

# The part of the buffer that uploads may fill which are not from the router.
OTHERS_PART: Final = 0.5
RETRY_DELAYS_S: Final = (0.1, 0.5, 1.0, 5.0)


class Rows(Protocol):
    """What the writer needs of the database."""

    def insert(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Append rows to their tables; on disk when this returns. Raises `DatabaseError`: nothing was written."""

    def delete_before(self, moment: datetime) -> int:
        """Delete one chunk of rows older than `moment`; return the number of deleted rows."""

    def age_limit_for(self, max_bytes: int) -> datetime | None:
        """Return the time before which rows must be deleted so that the data fits; None if it fits."""

    def checkpoint(self) -> None:
        """Free the space of deleted rows."""


@dataclass(slots=True)
class _Batch:
    """Accepted rows that are not on disk yet.

    Attributes:
        rows: Rows by table.
        count: How many rows.
        size: Their size in memory, in bytes.
        last_upload: The number of the newest upload among them.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    count: int = 0
    size: int = 0
    last_upload: int = 0


class BufferFullError(Exception):
    """Too many rows wait to be written: the upload was not accepted, the sender may try again later."""


class NotWrittenError(Exception):
    """Accepted rows could not be written in time."""


class Writer:
    """A thread that writes accepted rows, at most `delay_s` later, and deletes old ones.

    Args:
        database: The database.
        retention: Rows whose TimeGenerated is older are deleted.
        max_bytes: Above this much data the oldest rows are deleted.
        delay_s: The longest time that an accepted row stays in memory only, in seconds.
        max_rows: With more rows in memory uploads are refused.
        max_pending_bytes: With more bytes in memory uploads are refused.
        retention_interval_s: The pause between two deletions of old rows, in seconds.
        clock: Returns the present time.
    """

    def __init__(
        self,
        database: Rows,
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
        # Rows that are being written count as waiting, so that memory stays bounded while the disk fails.
        self._writing = _Batch()
        # Numbers of uploads: on disk up to this one; to be written at once up to this one.
        self._written = 0
        self._requested = 0
        self._first_waiting = 0.0
        self._failure: Exception | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run_thread, name="writer", daemon=True)

    def start(self) -> None:
        """Start the writer thread."""
        self._thread.start()

    def add(self, rows: Mapping[str, Sequence[Row]], size: int, *, may_fill: bool = True) -> None:
        """Put the rows of one upload into the buffer; on disk after about `delay_s`, or after the next `flush`.

        Args:
            rows: Rows by table.
            size: The upload's size in memory, in bytes.
            may_fill: Whether it may take the half of the buffer that is kept for the router.

        Raises:
            BufferFullError: Too many rows wait to be written; none was accepted.
        """
        count = sum(map(len, rows.values()))
        if not count:
            return
        with self._changed:
            if self._stopping:
                raise BufferFullError("the store is shutting down: send again later")
            pending = self._waiting.count + self._writing.count
            pending_bytes = self._waiting.size + self._writing.size
            part = 1.0 if may_fill else OTHERS_PART
            if pending and (
                pending + count > self._max_rows * part or pending_bytes + size > self._max_pending_bytes * part
            ):
                cause = f" ({self._failure})" if self._failure else ""
                raise BufferFullError(f"{pending} rows wait to be written{cause}: send again later, or free disk space")
            if not self._waiting.count:
                self._first_waiting = time.monotonic()
            for table, batch in rows.items():
                self._waiting.rows.setdefault(table, []).extend(batch)
            self._waiting.count += count
            self._waiting.size += size
            self._waiting.last_upload += 1
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> None:
        """Write the buffer at once, and wait until all rows accepted before this call are on disk.

        Raises:
            NotWrittenError: They are not after `timeout_s` seconds.
        """
        with self._changed:
            upload = self._waiting.last_upload
            self._requested = max(self._requested, upload)
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._written >= upload, timeout_s):
                raise NotWrittenError(f"accepted rows are not on disk after {timeout_s:g} s: {self._failure or 'busy'}")

    def stop(self, timeout_s: float = 30.0) -> bool:
        """Write all accepted rows and end the thread; return False if some rows could not be written."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._written == self._waiting.last_upload

    def _run_thread(self) -> None:
        """Run in the writer thread: write the buffer and delete old rows until `stop` is called and all is written."""
        next_retention = time.monotonic()
        while self._write_waiting(next_retention) or not self._stopping:
            if not self._stopping and time.monotonic() >= next_retention:
                self._delete_old_rows()
                next_retention = time.monotonic() + self._retention_interval_s

    def _write_waiting(self, wake_at: float) -> bool:
        """Wait until buffered rows are due and write them; return False if none was due before `wake_at`."""
        with self._changed:
            while not self._should_wake(wake_at):
                self._changed.wait(self._seconds_until_due(wake_at))
            batch = self._waiting
            if not batch.count:
                return False
            self._writing, self._waiting = batch, _Batch(last_upload=batch.last_upload)
        is_written = self._write_with_retries(batch)
        with self._changed:
            self._writing = _Batch()
            self._first_waiting = time.monotonic()
            if is_written:
                self._written = batch.last_upload
            self._changed.notify_all()
        return True

    def _should_wake(self, wake_at: float) -> bool:
        """Whether the thread should wake now: the writer stops, rows are due, or `wake_at` has passed."""
        return self._stopping or self._seconds_until_due(wake_at) <= 0

    def _seconds_until_due(self, wake_at: float) -> float:
        """Return the seconds until buffered rows are due or `wake_at` (monotonic time) is reached."""
        if self._waiting.count:
            if self._requested > self._written:
                return 0.0
            wake_at = min(wake_at, self._first_waiting + self._delay_s)
        return max(0.0, wake_at - time.monotonic())

    def _write_with_retries(self, batch: _Batch) -> bool:
        """Write a batch, and retry while disk or memory fail. Return False if the writer stops before it succeeds."""
        attempt = 0
        while True:
            try:
                self._database.insert(batch.rows)
                break
            except MachineError as error:
                if self._failure is None:
                    log.error("rows cannot be written, will try again: %s", error)
                self._failure = error
                if self._stopping and attempt >= len(RETRY_DELAYS_S):
                    log.error("%d accepted rows are lost: %s", batch.count, error)
                    return False
                time.sleep(RETRY_DELAYS_S[min(attempt, len(RETRY_DELAYS_S) - 1)])
                attempt += 1
            except DatabaseError as error:
                self._write_halves(batch.rows, error)
                break
        if self._failure is not None:
            log.error("rows are written again")
        self._failure = None
        return True

    def _write_halves(self, batch: dict[str, list[Row]], error: Exception) -> None:
        """Write a failed batch in halves, recursively, so that only the row which the database rejects is lost."""
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
            except DatabaseError as inner:
                self._write_halves(part, inner)

    def _delete_old_rows(self) -> None:
        """Delete rows above the age or size limit, in chunks. Between two chunks, write buffered rows."""
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
        except DatabaseError as error:
            log.error("old rows cannot be deleted: %s", error)
