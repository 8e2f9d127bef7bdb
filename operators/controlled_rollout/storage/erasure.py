"""Deleting what versions have collected of one request or one caller, in every layout."""

import csv
import html
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Final

from controlled_rollout.errors import StorageError, StoredFileNotFoundError
from controlled_rollout.storage.models import REPORTS
from controlled_rollout.storage.protocol import Storage, StoredFile

__all__ = ["ErasedRows", "UnreadableFile", "erase_rows", "find_reports", "find_rows"]

# Where the parts are: of Parquet, of the old service's first collector, and of its second one.
FOLDERS: Final = ("collected/", "modelDataCollector/", "modeldata/")
MAX_PART_BYTES: Final = 512 * 2**20
# A collector may still write a part again, with the same rows and more, for so long.
STILL_WRITTEN: Final = timedelta(minutes=2)
# Where the ids are: in the Parquet parts, in the files of the old service's first collector, and in its second one's.
PARQUET_IDS: Final = ("$correlation_id", "$request_id")
CSV_IDS: Final = ("$aml_dc_correlation_id", "$aml_request_id")
JSON_IDS: Final = ("correlationid", "xrequestid")
# Capture cuts longer ids off.
LONGEST_ID: Final = 200

# How many rows of a part have one of some ids, the request ids of those, and the part without them; None if nothing is
# left of it.
Found = tuple[int, frozenset[str], bytes | None]


@dataclass(frozen=True, slots=True)
class ErasedRows:
    """A part with rows that have the id.

    Attributes:
        name: The part's name in the storage.
        rows: How many of its rows have the id.
        requests: The request ids of those rows.
        content: The part without them; None if nothing is left of it.
        is_new: Whether a collector may still write it again: it is left as it is.
    """

    name: str
    rows: int
    requests: frozenset[str]
    content: bytes | None
    is_new: bool


@dataclass(frozen=True, slots=True)
class UnreadableFile:
    """A file among the parts that cannot be read: damaged, or somebody else's.

    Attributes:
        name: Its name in the storage.
        problem: What is wrong with it.
    """

    name: str
    problem: str


def find_rows(storage: Storage, identity: str, now: datetime) -> Iterator[ErasedRows | UnreadableFile]:
    """Yield the parts that have rows of a correlation id or request id, and files that cannot be read; changes nothing.

    Args:
        storage: The workspace's.
        identity: The correlation id or request id, as the caller has sent it or as it is in the rows.
        now: The time.

    Raises:
        StorageError: The storage cannot be read.
    """
    if not identity:
        raise StorageError("an empty id names nobody: give a correlation id or a request id")
    ids = {identity, identity[:LONGEST_ID]}
    readers = {".parquet": _split_parquet, ".csv": _split_csv, ".jsonl": _split_json_lines}
    for part in chain.from_iterable(map(storage.list, FOLDERS)):
        suffix = f".{part.name.rsplit('.', 1)[-1]}"
        if suffix not in readers:
            continue
        try:
            content = storage.get(part.name, limit=MAX_PART_BYTES)
        except StoredFileNotFoundError:
            # Deleted meanwhile.
            continue
        try:
            rows, requests, left = readers[suffix](content, ids)
        except ImportError:
            raise
        except Exception as error:
            # Whatever it is: the rows in all other parts are to be deleted.
            yield UnreadableFile(part.name, str(error) or type(error).__name__)
            continue
        if rows:
            yield ErasedRows(part.name, rows, requests, left, _is_new(part, now))


def find_reports(storage: Storage, ids: set[str]) -> Iterator[str]:
    """Yield the names of the reports on collected data that show a value of one of some requests.

    Args:
        storage: The workspace's.
        ids: The ids of the requests.

    Raises:
        StorageError: The storage cannot be read.
    """
    # As reports write them: before the value.
    shown = re.compile("|".join(rf"(?<![\w-]){re.escape(html.escape(identity))}: " for identity in sorted(ids)))
    for report in storage.list(REPORTS) if ids else ():
        with suppress(StoredFileNotFoundError):
            if shown.search(storage.get(report.name).decode(errors="replace")):
                yield report.name


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


def _split_parquet(content: bytes, ids: set[str]) -> Found:
    """Return the number of rows with one of the ids in a Parquet part, their request ids, and the file without them."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(content))
    has_id = pa.array([False] * len(table))
    for name in PARQUET_IDS:
        has_id = pc.or_(has_id, pc.is_in(table[name], value_set=pa.array(sorted(ids))))
    found = table.filter(has_id)
    requests = frozenset(filter(None, found["$request_id"].to_pylist()))
    if len(found) in (0, len(table)):
        return len(found), requests, None
    written = pa.BufferOutputStream()
    pq.write_table(table.filter(pc.invert(has_id)), written, compression="zstd")
    return len(found), requests, written.getvalue().to_pybytes()


def _split_csv(content: bytes, ids: set[str]) -> Found:
    """Return the number of rows with one of the ids in a CSV file, their request ids, and the file without them."""
    header, *lines = csv.reader(io.StringIO(content.decode(), newline=""))
    # From the right: a caller's own column may have the same name.
    places = [len(header) - 1 - header[::-1].index(name) for name in CSV_IDS]
    kept = [line for line in lines if not ids.intersection(line[place] for place in places)]
    requests = frozenset(line[places[1]] for line in lines if ids.intersection(line[place] for place in places))
    if not kept:
        return len(lines), requests, None
    return len(lines) - len(kept), requests, "".join(map(_csv_line, [header, *kept])).encode()


def _csv_line(fields: list[str]) -> str:
    """Return a line of CSV as the collector writes it: a carriage return in a field is quoted as well."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(fields)
    return line.getvalue()[:-2] + "\n"


def _split_json_lines(content: bytes, ids: set[str]) -> Found:
    """Return the number of events with one of the ids, their request ids, and the file of CloudEvents without them."""
    kept, requests, lines = [], set(), content.splitlines(keepends=True)
    for line in lines:
        event = json.loads(line)
        if ids.intersection(event[name] for name in JSON_IDS):
            requests.add(event[JSON_IDS[1]])
        else:
            kept.append(line)
    return len(lines) - len(kept), frozenset(requests), b"".join(kept) or None
