"""Shipping one spool: its records become parts in the storage, each exactly once, and then leave the disk."""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlled_rollout_collector.atomic_files import sync_file
from controlled_rollout_collector.entries import Entry, UnreadableRecordError, read_entries
from controlled_rollout_collector.parts import make_parts, path_element
from controlled_rollout_collector.progress import Batch, Progress, ProgressFile, Slice
from controlled_rollout_collector.settings import SpoolSettings
from controlled_rollout_collector.spool import (
    Counts,
    Segment,
    delete_segment,
    find_segments,
    hidden_leftovers,
    read_counts,
    read_records,
    segment_paths,
)
from controlled_rollout_collector.storage import Storage

__all__ = ["ENDED_FILE", "SpoolShipper", "SpoolState"]

# The target makes it in the spool of a replica that will never start again.
ENDED_FILE: Final = "ended"
# Of records in one batch, and so of what is in memory: short rows take a hundred and fifty times as much there. The
# record that exceeds it is read to its end.
BATCH_BYTES: Final = 2 * 1024 * 1024
# So that the batch fits into the file of the progress.
BATCH_SEGMENTS: Final = 250
# How often the state of a replica that captures nothing is written.
IDLE_STATE_S: Final = 30.0


@dataclass(frozen=True)
class SpoolState:
    """What is known of a replica's spool; also the content of its file in the storage.

    Attributes:
        replica: The replica.
        shipped_until: Everything that was in the spool at that time is in the storage, in seconds since 1970.
        captured: Requests, and calls of scripts' collectors, that were captured.
        dropped: Those that were not, because the spool was full or the disk failed.
        unreadable: Records that were damaged, and data of scripts that could not be read.
        lost_at: When this process last saw one of the two grow, in seconds since 1970; None if it has not.
        watched_since: Since when this process has looked at them.
        shipped: Records in the storage.
        pending_bytes: What is still on the disk.
        final: Whether the replica has ended and everything is in the storage.
        updated: When this was written, in seconds since 1970.
    """

    replica: str
    shipped_until: float
    captured: int
    dropped: int
    unreadable: int
    lost_at: float | None
    watched_since: float
    shipped: int
    pending_bytes: int
    final: bool
    updated: float


class SpoolShipper:
    """Ships the spool of one replica. Nothing that it knows is lost with its process.

    Args:
        spool: The folder of the spool.
        storage: Where parts are written.
        settings: Of the spool; None for those in its own file.
        clock: The time, in seconds since 1970.
        batch_bytes: The most bytes of records in a batch.
        on_batch: Called after each batch: a spool that has grown while the storage was away takes minutes.

    Raises:
        OSError: The progress cannot be stored or read.
        SpoolSettingError: The settings of the spool cannot be used.
    """

    def __init__(
        self,
        spool: Path,
        storage: Storage,
        *,
        settings: SpoolSettings | None = None,
        clock: Callable[[], float] = time.time,
        batch_bytes: int = BATCH_BYTES,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self.spool = spool
        self.settings = settings or SpoolSettings.read(spool)
        self._storage = storage
        self._clock = clock
        self._batch_bytes = batch_bytes
        self._on_batch = on_batch
        self._file = ProgressFile(spool)
        self._written: SpoolState | None = None
        self._shipped_until = 0.0
        self._lost: int | None = None
        self._lost_at: float | None = None
        self._watched_since = clock()

    @property
    def has_ended(self) -> bool:
        """Whether the replica will never start again."""
        return (self.spool / ENDED_FILE).exists()

    def ship(self, *, is_final: bool = False) -> SpoolState:
        """Ship all that is in the spool now, and write the replica's state; return it.

        Args:
            is_final: Whether the replica has ended, although no file says so.

        Raises:
            StorageError: The storage did not take a part; what it did take is shipped again under the same name.
            OSError: The disk with the spool fails.
        """
        began = self._clock()
        is_final = is_final or self.has_ended
        has_more = True
        while has_more:
            batch, has_more = self._next_batch(is_final)
            if batch:
                self._ship_batch(batch)
                self._on_batch()
        self._shipped_until = began
        state = self.state()
        state = dataclasses.replace(state, final=is_final and not state.pending_bytes)
        self._write_state(state)
        return state

    def state(self) -> SpoolState:
        """Return what is known of the spool now, without regard to whether that is final.

        Raises:
            OSError: The disk with the spool fails.
        """
        counts: Counts = read_counts(self.spool)
        progress = self._file.progress
        lost = counts.dropped + counts.unreadable + progress.unreadable
        if self._lost is not None and lost > self._lost:
            self._lost_at = self._clock()
        self._lost = lost
        return SpoolState(
            replica=self.settings.replica.name,
            shipped_until=self._shipped_until,
            # A writer that was killed between a record and its count.
            captured=max(counts.captured, progress.records + progress.unreadable),
            dropped=counts.dropped,
            unreadable=counts.unreadable + progress.unreadable,
            lost_at=self._lost_at,
            watched_since=self._watched_since,
            shipped=progress.records,
            pending_bytes=_pending_bytes(self.spool, progress),
            final=False,
            updated=self._clock(),
        )

    def remove(self) -> None:
        """Delete the spool of a replica that has ended, after everything in it was shipped."""
        shutil.rmtree(self.spool, ignore_errors=True)

    def _next_batch(self, is_final: bool) -> tuple[Batch | None, bool]:
        """Return the batch that a killed process has begun, else the next one, and whether there may be more now.

        The batch is None if there is nothing to ship. A process that a script has left may hold the locks of a replica
        that has ended, `is_final`.
        """
        progress = self._file.progress
        if progress.batch:
            return progress.batch, True
        segments = find_segments(self.spool, all_final=is_final)
        self._forget_deleted_segments(segments, is_final)
        slices: list[Slice] = []
        room = self._batch_bytes
        for segment in segments:
            if room <= 0 or len(slices) == BATCH_SEGMENTS:
                break
            start = self._file.progress.offsets.get(segment.path.name, 0)
            read = read_records(segment, start, max_bytes=room)
            is_rest = segment.is_final and read.is_whole
            if read.end > start:
                slices.append(Slice(segment.path.name, start, read.end, is_rest))
                room -= read.end - start
            elif is_rest:
                # Nothing was ever written behind what is shipped.
                delete_segment(segment.path)
        if not slices:
            return None, False
        for each in slices:
            # A batch whose records the disk loses would be shipped again without them.
            sync_file(self.spool / each.segment)
        batch = Batch(progress.batches, tuple(slices))
        self._file.write(dataclasses.replace(self._file.progress, batch=batch))
        return batch, room <= 0 or len(slices) == BATCH_SEGMENTS

    def _forget_deleted_segments(self, segments: list[Segment], is_final: bool) -> None:
        """Forget how far segments are shipped that are deleted, and delete what killed writers have left."""
        progress = self._file.progress
        present = {segment.path.name for segment in segments}
        if not progress.offsets.keys() <= present:
            offsets = {name: offset for name, offset in progress.offsets.items() if name in present}
            self._file.write(dataclasses.replace(progress, offsets=offsets))
        if is_final:
            for path in hidden_leftovers(self.spool):
                path.unlink(missing_ok=True)

    def _ship_batch(self, batch: Batch) -> None:
        """Write the parts of a batch, remember that, and delete the segments that are shipped with it."""
        counted = [0, 0]
        name = f"{self._file.progress.id}-{batch.number:08d}"
        for part in make_parts(self._entries(batch, counted), self.settings.replica, self.settings.layout, name):
            self._storage.put(part.name, part.content)
        progress = self._file.progress
        offsets = progress.offsets | {each.segment: each.end for each in batch.slices}
        self._file.write(
            Progress(
                id=progress.id,
                offsets=offsets,
                batch=None,
                batches=batch.number + 1,
                records=progress.records + counted[0],
                unreadable=progress.unreadable + counted[1],
            )
        )
        for each in batch.slices:
            if each.is_rest:
                delete_segment(self.spool / each.segment)

    def _entries(self, batch: Batch, counted: list[int]) -> Iterator[Entry]:
        """Yield the entries of a batch; add the numbers of its readable and its damaged records to `counted`."""
        for each in batch.slices:
            segment = Segment(self.spool / each.segment, is_final=True)
            try:
                read = read_records(segment, each.start, max_bytes=each.end - each.start, stop=each.end)
            except FileNotFoundError:
                # Somebody has deleted it.
                counted[1] += 1
                continue
            counted[1] += read.unreadable
            for head, bodies in read.payloads:
                try:
                    entries = read_entries(head, bodies, self.settings.selection)
                except UnreadableRecordError:
                    counted[1] += 1
                else:
                    counted[0] += 1
                    yield from entries

    def _write_state(self, state: SpoolState) -> None:
        """Write the replica's state to the storage, if it says something new."""
        last = self._written
        if last and state.updated - last.updated < IDLE_STATE_S and _without_times(state) == _without_times(last):
            return
        replica = self.settings.replica
        folder = f"collected/{path_element(replica.endpoint)}/{path_element(replica.version)}/_state"
        content = json.dumps(dataclasses.asdict(state), separators=(",", ":")).encode()
        self._storage.put(f"{folder}/{path_element(replica.name)}.json", content)
        self._written = state


def _without_times(state: SpoolState) -> SpoolState:
    """Return a state without its times."""
    return dataclasses.replace(state, shipped_until=0.0, updated=0.0)


def _pending_bytes(spool: Path, progress: Progress) -> int:
    """Return how many bytes of a spool's segments are not shipped."""
    pending = 0
    for path in segment_paths(spool):
        # A segment may be deleted meanwhile.
        with contextlib.suppress(FileNotFoundError):
            pending += max(0, path.stat().st_size - progress.offsets.get(path.name, 0))
    return pending
