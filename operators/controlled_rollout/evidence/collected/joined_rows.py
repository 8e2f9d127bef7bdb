"""Rows that versions have collected, inputs beside predictions: for people and their programs, in batches."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from controlled_rollout.errors import ArgumentError, EvidenceUnavailableError
from controlled_rollout.evidence.collected.duckdb_engine import DuckDBEngine, as_patterns, columns_in_duckdb
from controlled_rollout.evidence.collected.joined_sql import KEYS, OF_REQUESTS, Alike, Asked, join_sql, one_type
from controlled_rollout.evidence.collected.part_columns import JSON_COLUMNS, PartColumns
from controlled_rollout.evidence.collected.part_files import PartFiles
from controlled_rollout.evidence.collected.part_sums import alike_parts
from controlled_rollout.evidence.collected.parts import baseline_parts
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

__all__ = ["read_collected"]

# A part's name has the time of its first record, and slower requests that arrived earlier may be behind it.
LONGEST_REQUEST: Final = timedelta(hours=1)
SHOWN_COLUMNS: Final = 10
# Whoever reads decides how long.
NO_TIMEOUT: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Parts of one collection.

    Attributes:
        collection: The collection.
        by_version: By version the columns of each part.
    """

    collection: str
    by_version: dict[str, dict[str, PartColumns]]

    @property
    def columns(self) -> list[PartColumns]:
        """The columns of all parts."""
        return [columns for parts in self.by_version.values() for columns in parts.values()]


@contextmanager
def read_collected(
    workspace: Workspace,
    endpoint: str,
    versions: str | Sequence[str],
    *,
    since: datetime,
    until: datetime | None = None,
    collections: Sequence[str] = OF_REQUESTS,
    columns: Sequence[str] | None = None,
    batch_rows: int = 50_000,
    memory_mb: int = 1_000,
) -> "Iterator[pa.RecordBatchReader]":
    """Context manager: read what versions have collected, with the collections of a request beside each other.

    Only parts of these versions, collections and days are read, and in them only these columns. What does not fit into
    the memory goes to the disk.

    Args:
        workspace: Where the data is.
        endpoint: The endpoint's name.
        versions: A version's name, or several.
        since: Requests that arrived then or later.
        until: Requests that arrived before; None: until now.
        collections: Which collections: `inputs`, `predictions`, or names that the script chose.
        columns: Which columns, such as `predictions.label`; None: all that are data.
        batch_rows: The most rows of a batch.
        memory_mb: The most memory that the query takes, in megabytes.

    Yields:
        Batches of Arrow. A row has `$version`, `$request_id`, `$correlation_id`, `$time`, `$row`, `$rows`, `$status`
        and `$addressed`, and the columns as `<collection>.<column>`. Columns with values of several types are JSON; the
        schema's metadata `controlled_rollout.json_columns` names them.

    Raises:
        ArgumentError: A column is not in the collected data, or an argument is wrong.
        EvidenceUnavailableError: A part cannot be read.
        StorageError: The storage cannot be read.
    """
    names = [versions] if isinstance(versions, str) else list(dict.fromkeys(versions))
    until = datetime.now(UTC) if until is None else until
    _check(names, collections, columns, since, until)
    # Those that every request is in come first: others are joined to them.
    ordered = sorted(dict.fromkeys(collections), key=lambda name: name not in OF_REQUESTS)
    files = PartFiles.of(workspace)
    with DuckDBEngine(memory_mb=memory_mb, timeout=NO_TIMEOUT).connection() as connection:
        found = [_parts_of(connection, files, endpoint, names, one, since, until) for one in ordered]
        asked = _requested_columns(found, collections, columns)
        yield _batches(connection, found, asked, since, until, batch_rows)


def _check(
    versions: Sequence[str],
    collections: Sequence[str],
    columns: Sequence[str] | None,
    since: datetime,
    until: datetime,
) -> None:
    """Raise ArgumentError if arguments are wrong."""
    if not versions or not collections:
        raise ArgumentError("read_collected() needs one version and one collection at least")
    if since.tzinfo is None or until.tzinfo is None:
        raise ArgumentError("since and until of read_collected() need a time zone: datetime(…, tzinfo=UTC)")
    if since >= until:
        raise ArgumentError(f"since ({since}) is not before until ({until})")
    for column in columns or ():
        collection, point, name = column.partition(".")
        if not point or not name or collection not in collections:
            raise ArgumentError(
                f"{column!r} names no column: give <collection>.<column> with one of {', '.join(collections)}"
            )


def _parts_of(
    connection: "DuckDBPyConnection",
    files: PartFiles,
    endpoint: str,
    versions: Sequence[str],
    collection: str,
    since: datetime,
    until: datetime,
) -> _Parts:
    """Return the parts of a collection that may hold requests of a time."""
    by_version = {}
    for version in versions:
        listed = files.listed(endpoint, version, collection, since=since, until=until)
        paths = files.paths(baseline_parts(listed, since=since, started=until + LONGEST_REQUEST))
        by_version[version] = columns_in_duckdb(connection, paths) if paths else {}
    return _Parts(collection, by_version)


def _requested_columns(
    found: Sequence[_Parts], collections: Sequence[str], columns: Sequence[str] | None
) -> list[Asked]:
    """Return the columns that are asked for, with the types that they have in the result.

    Raises:
        ArgumentError: A column is in none of the parts.
    """
    parts = {one.collection: one.columns for one in found}
    known = {
        name: list(dict.fromkeys(column for one in parts[name] for column in one.types if column in one.data))
        for name in collections
    }
    if columns is None:
        return [one_type(name, column, parts[name]) for name in known for column in known[name]]
    asked = []
    for full in dict.fromkeys(columns):
        name, _, column = full.partition(".")
        if parts[name] and not any(column in one.types for one in parts[name]):
            more = f" and {len(known[name]) - SHOWN_COLUMNS} more" if len(known[name]) > SHOWN_COLUMNS else ""
            raise ArgumentError(
                f"column {full} is not in the data that was collected in this time; the columns of {name}: "
                f"{', '.join(known[name][:SHOWN_COLUMNS]) or 'none'}{more}"
            )
        asked.append(one_type(name, column, parts[name]))
    return asked


def _batches(
    connection: "DuckDBPyConnection",
    found: Sequence[_Parts],
    asked: Sequence[Asked],
    since: datetime,
    until: datetime,
    batch_rows: int,
) -> "pa.RecordBatchReader":
    """Return the rows of the query, batch by batch."""
    import pyarrow as pa

    groups: dict[str, list[Alike]] = {one.collection: [] for one in found}
    for one in found:
        wanted = [column.column for column in asked if column.collection == one.collection]
        for version, parts in one.by_version.items():
            for alike, columns, _ in alike_parts(parts, [*wanted, *(name for name, _ in KEYS)]):
                groups[one.collection].append(Alike(version, as_patterns(alike), columns))
    query = join_sql(groups, asked, since=since, until=until)
    source = connection.sql(query).to_arrow_reader(batch_rows)
    names = ["$version", *(name for name, _ in KEYS), *(one.name for one in asked)]
    utc = pa.timestamp("us", tz="UTC")
    types = [utc if pa.types.is_timestamp(one.type) else one.type for one in source.schema]
    metadata = {JSON_COLUMNS: json.dumps([one.name for one in asked if one.kind == "json"])}
    schema = pa.schema(list(zip(names, types, strict=True)), metadata=metadata)

    def batches() -> "Iterator[pa.RecordBatch]":
        """Yield the batches with the columns' names."""
        try:
            for batch in source:
                arrays = [column.cast(kind) for column, kind in zip(batch.columns, types, strict=True)]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        except (pa.ArrowException, OSError) as error:
            text = " ".join(str(error).split())[:400]
            raise EvidenceUnavailableError(f"collected data cannot be read: {text}") from error

    return pa.RecordBatchReader.from_batches(schema, batches())
