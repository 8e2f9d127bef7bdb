"""Deleting what versions have collected of one request or one caller, in every layout."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Final

from controlled_rollout.errors import StorageError
from controlled_rollout.storage.protocol import Storage, StoredFile

__all__ = ["ErasedRows", "erase_rows", "find_rows"]

# Where the parts are: of Parquet, of the old service's first collector, and of its second one.
FOLDERS: Final = ("collected/", "modelDataCollector/", "modeldata/")
MAX_PART_BYTES: Final = 512 * 2**20
# A collector may still write a part again, with the same rows and more, for so long.
STILL_WRITTEN: Final = timedelta(minutes=2)
# Where the ids are: in the Parquet parts, in the files of the old service's first collector, and in its second one's.
PARQUET_IDS: Final = ("$correlation_id", "$request_id")
CSV_IDS: Final = ("$aml_dc_correlation_id", "$aml_request_id")
JSON_IDS: Final = ("correlationid", "xrequestid")


@dataclass(frozen=True, slots=True)
class ErasedRows:
    """A part with rows that have the id.

    Attributes:
        name: The part's name in the storage.
        rows: How many of its rows have the id.
        content: The part without them; None if nothing is left of it.
        is_new: Whether a collector may still write it again: it is left as it is.
    """

    name: str
    rows: int
    content: bytes | None
    is_new: bool


def find_rows(storage: Storage, identity: str, now: datetime) -> Iterator[ErasedRows]:
    """Yield the parts that have rows of a correlation id or request id, without changing them.

    Args:
        storage: The workspace's.
        identity: The correlation id or request id, as it is in the rows.
        now: The time.

    Raises:
        StorageError: The storage cannot be read, or a part cannot.
    """
    if not identity:
        raise StorageError("an empty id names nobody: give a correlation id or a request id")
    readers = {".parquet": _without_in_parquet, ".csv": _without_in_csv, ".jsonl": _without_in_json_lines}
    for part in chain.from_iterable(map(storage.list, FOLDERS)):
        suffix = f".{part.name.rsplit('.', 1)[-1]}"
        if suffix not in readers:
            continue
        try:
            rows, content = readers[suffix](storage.get(part.name, limit=MAX_PART_BYTES), identity)
        except (ValueError, KeyError, UnicodeError, csv.Error) as error:
            raise StorageError(
                f"{storage.address_of(part.name)} cannot be read ({error}): see what it is, nothing in it was deleted"
            ) from error
        if rows:
            yield ErasedRows(part.name, rows, content, _is_new(part, now))


def erase_rows(storage: Storage, found: ErasedRows) -> None:
    """Write a part again without the rows that were found, or delete it if none is left.

    Raises:
        StorageError: The storage cannot be written.
    """
    if found.content is None:
        storage.delete(found.name)
    else:
        storage.put(found.name, found.content)


def _is_new(part: StoredFile, now: datetime) -> bool:
    """Return whether a collector may still write a part again."""
    return now - part.modified < STILL_WRITTEN


def _without_in_parquet(content: bytes, identity: str) -> tuple[int, bytes | None]:
    """Return how many rows of a Parquet part have the id, and the part without them; None if none is left."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(content))
    has_id = pa.array([False] * len(table))
    for name in PARQUET_IDS:
        has_id = pc.or_(has_id, pc.fill_null(pc.equal(table[name], identity), False))
    rows = pc.sum(has_id).as_py() or 0
    if not rows or rows == len(table):
        return rows, None
    written = pa.BufferOutputStream()
    pq.write_table(table.filter(pc.invert(has_id)), written, compression="zstd")
    return rows, written.getvalue().to_pybytes()


def _without_in_csv(content: bytes, identity: str) -> tuple[int, bytes | None]:
    """Return how many rows of a CSV file have the id, and the file without them; None if none is left."""
    lines = list(csv.reader(io.StringIO(content.decode(), newline="")))
    ids = [lines[0].index(name) for name in CSV_IDS]
    kept = [lines[0], *(line for line in lines[1:] if identity not in [line[column] for column in ids])]
    if len(kept) == 1:
        return len(lines) - 1, None
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerows(kept)
    return len(lines) - len(kept), written.getvalue().encode()


def _without_in_json_lines(content: bytes, identity: str) -> tuple[int, bytes | None]:
    """Return how many lines of a file of CloudEvents have the id, and the file without them; None if none is left."""
    lines = content.splitlines(keepends=True)
    kept = [line for line in lines if identity not in [json.loads(line).get(name) for name in JSON_IDS]]
    return len(lines) - len(kept), b"".join(kept) or None
