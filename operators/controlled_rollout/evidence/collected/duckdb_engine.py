"""Summaries of Parquet parts by DuckDB: one scan for all categories and one for all means, in bounded memory."""

import json
import os
import re
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.collected.engine import BaselineQuantiles, Observation, PartSummary
from controlled_rollout.evidence.collected.parts_sql import (
    NOT_A_BUCKET,
    NULL_BUCKET,
    ColumnType,
    PartColumns,
    categories_sql,
    means_sql,
    observed_sql,
    quantiles_sql,
)
from controlled_rollout.evidence.collected.values import NOT_A_NUMBER, NULL, bucket_name, category_of
from controlled_rollout.gate import Moments

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["DuckDBEngine"]

# So many parts are read by one query: each has the types of its columns looked up first.
PARTS_PER_QUERY: Final = 1_000
ROWS_AT_ONCE: Final = 20_000
INTERRUPT_EVERY_S: Final = 0.05
# The key of a part's metadata that names the columns whose values are JSON, because they are of several types.
JSON_COLUMNS: Final = b"controlled_rollout.json_columns"
# Quantiles are known well enough from so many requests; of more, those whose ids have the lowest hashes are taken.
MOST_FOR_QUANTILES: Final = 1_000_000
# A metric with more different values is none of categories; the gate judges fewer.
MOST_CATEGORIES: Final = 10_000
# Sums of many numbers depend on their order in the digits after these.
DIGITS: Final = 12

# Parts in which each observed column has one type, those types, and by part all columns that are data.
Alike = tuple[list[str], PartColumns, dict[str, frozenset[str]]]


@dataclass(frozen=True)
class DuckDBEngine:
    """Summaries by DuckDB in this process; see `SummaryEngine`.

    Attributes:
        memory_mb: The most memory that a query takes; what needs more goes to the disk.
        threads: How many processors it uses.
        timeout: The most time that a call takes.
    """

    memory_mb: int = 1_000
    threads: int = min(4, os.cpu_count() or 1)
    timeout: timedelta = timedelta(minutes=2)

    def summaries(
        self, parts: Sequence[str], observations: Sequence[Observation], *, since: datetime, bin_width: timedelta
    ) -> list[PartSummary]:
        """Return the summary of each part; see `SummaryEngine.summaries`."""
        results: dict[str, PartSummary] = {}
        with self._connection() as connection:
            for start in range(0, len(parts), PARTS_PER_QUERY):
                for alike in _alike(connection, parts[start : start + PARTS_PER_QUERY], observations):
                    results.update(_summaries(connection, alike, observations, since, bin_width))
        return [results[part] for part in parts]

    def quantiles(
        self,
        parts: Sequence[str],
        wanted: Sequence[tuple[Observation, Sequence[float]]],
        *,
        since: datetime,
        until: datetime,
    ) -> list[BaselineQuantiles]:
        """Return each observation's quantiles over all parts; see `SummaryEngine.quantiles`."""
        if not parts or not wanted:
            return [BaselineQuantiles(0, ()) for _ in wanted]
        with self._connection() as connection:
            groups = _alike(connection, parts, [observation for observation, _ in wanted])
            return [
                _quantiles(connection, groups, observation, quantiles, since, until)
                for observation, quantiles in wanted
            ]

    @contextmanager
    def _connection(self) -> "Iterator[DuckDBPyConnection]":
        """Context manager: a DuckDB of its own in memory; its errors become EvidenceUnavailableError."""
        try:
            import duckdb
        except ImportError as error:
            raise EvidenceUnavailableError(
                "reading collected data needs the package duckdb: install airflow-provider-controlled-rollout with the "
                "extra data"
            ) from error
        with tempfile.TemporaryDirectory(prefix="controlled-rollout-summaries-") as folder:
            settings: dict[str, Any] = {
                "threads": str(self.threads),
                "memory_limit": f"{self.memory_mb}MB",
                "temp_directory": folder,
                "preserve_insertion_order": "false",
                # Everything that is needed is built in: nothing is loaded from elsewhere.
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            }
            connection = duckdb.connect(":memory:", config=settings)
            done = threading.Event()
            watch = threading.Thread(target=self._stop_late, args=(connection, done), name="summaries", daemon=True)
            watch.start()
            try:
                yield connection
            except duckdb.InterruptException as error:
                raise EvidenceUnavailableError(
                    f"collected data could not be summarised within {self.timeout.total_seconds():g} s: judge fewer "
                    "columns, or collect a smaller share of the requests"
                ) from error
            except duckdb.Error as error:
                text = " ".join(str(error).split())[:400]
                raise EvidenceUnavailableError(
                    f"collected data cannot be read: {text}; the gate waits until it can"
                ) from error
            finally:
                done.set()
                watch.join()
                connection.close()

    def _stop_late(self, connection: "DuckDBPyConnection", done: threading.Event) -> None:
        """Interrupt the queries of a connection when its time is over, again and again: one may just be between two."""
        wait_s = self.timeout.total_seconds()
        while not done.wait(wait_s):
            connection.interrupt()
            wait_s = INTERRUPT_EVERY_S


def _alike(connection: "DuckDBPyConnection", parts: Sequence[str], observations: Sequence[Observation]) -> list[Alike]:
    """Return the parts in groups in which each observed column has one type, with those types and each part's columns.

    A column may be a number in one part and text in the next; read together, DuckDB would make all of them text. And
    it takes `Age` for `age`: where a part has both, it renames one of them.
    """
    patterns = _as_patterns(parts)
    json_columns: dict[str, list[str]] = defaultdict(list)
    metadata = "SELECT file_name, value FROM parquet_kv_metadata(?) WHERE key = ?"
    for file, value in connection.execute(metadata, [patterns, JSON_COLUMNS]).fetchall():
        json_columns[file] = json.loads(value)
    types: dict[str, dict[str, tuple[str, ColumnType]]] = {part: {} for part in parts}
    schema = "SELECT file_name, name, type, converted_type FROM parquet_schema(?) WHERE type IS NOT NULL"
    for file, name, physical, converted in connection.execute(schema, [patterns]).fetchall():
        kind = "json" if name in json_columns[file] else _column_type(physical, converted)
        types[file][name] = (f"{physical} {converted}", kind)
    groups: dict[object, list[str]] = {}
    wanted = sorted({observation.column for observation in observations} | {"$addressed", "$status"})
    renamed = {part: _renamed(connection, part, list(types[part]), wanted) for part in parts}
    for part in parts:
        key = tuple((types[part].get(column), renamed[part].get(column)) for column in wanted)
        groups.setdefault(key, []).append(part)
    return [
        (
            alike,
            PartColumns(types[alike[0]], renamed[alike[0]]),
            {part: PartColumns(types[part]).data for part in alike},
        )
        for alike in groups.values()
    ]


def _renamed(
    connection: "DuckDBPyConnection", part: str, columns: Sequence[str], wanted: Sequence[str]
) -> dict[str, str]:
    """Return what DuckDB calls the wanted columns of a part that has others whose names differ only in upper case."""
    same = Counter(map(str.lower, columns))
    ambiguous = {column for column in wanted if same[column.lower()] > 1}
    if not ambiguous:
        return {}
    described = connection.execute(
        "DESCRIBE SELECT * FROM read_parquet(?, hive_partitioning = false)", [_as_patterns([part])]
    ).fetchall()
    return {column: row[0] for column, row in zip(columns, described, strict=True) if column in ambiguous}


def _as_patterns(parts: Sequence[str]) -> list[str]:
    """Return paths as DuckDB's patterns that match themselves."""
    return [re.sub(r"([*?\[])", r"[\1]", part) for part in parts]


def _column_type(physical: str, converted: str | None) -> ColumnType:
    """Return what the values of a Parquet column are."""
    if physical == "BOOLEAN":
        return "truth value"
    if physical in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
        return "text" if converted in ("UTF8", "ENUM", "JSON") else "bytes"
    return "number"


def _summaries(
    connection: "DuckDBPyConnection",
    group: Alike,
    observations: Sequence[Observation],
    since: datetime,
    bin_width: timedelta,
) -> dict[str, PartSummary]:
    """Return the summaries of parts whose columns have the same types."""
    parts, columns, data = group
    means = [one for one in observations if one.kind == "mean"]
    categories = [one for one in observations if one.kind == "category"]
    requests: dict[str, dict[int, int]] = {part: {} for part in parts}
    counted: dict[str, dict[str, dict[int, dict[str, int]]]] = {
        part: {one.metric: {} for one in categories} for part in parts
    }
    names: list[dict[Any, str]] = [{} for _ in categories]
    query = categories_sql(columns, categories, since=since, bin_width=bin_width)
    every = 2 ** len(categories) - 1
    for part, number, bits, *values, count in _fetched(connection, query, [_as_patterns(parts)]):
        if not categories or bits == every:
            requests[part][number] = count
            continue
        index = len(categories) - (every ^ bits).bit_length()
        one = categories[index]
        value = values[index]
        if value not in names[index]:
            names[index][value] = _category_name(value, one, columns.type_of(one.column))
            if len(names[index]) > MOST_CATEGORIES:
                raise EvidenceUnavailableError(
                    f"the metric {one.metric!r}: column {one.column!r} has more than {MOST_CATEGORIES:,} different "
                    "values: a number can be cut into buckets=10, and what differs in each request is no category"
                )
        tally = counted[part][one.metric].setdefault(number, {})
        name = names[index][value]
        tally[name] = tally.get(name, 0) + count
    moments: dict[str, dict[str, dict[int, Moments]]] = {part: {one.metric: {} for one in means} for part in parts}
    odd: dict[str, dict[str, int]] = {part: {} for part in parts}
    if means:
        query = means_sql(columns, means, since=since, bin_width=bin_width)
        for part, number, *values in _fetched(connection, query, [_as_patterns(parts)] * 2):
            for index, one in enumerate(means):
                count, mean, variance, no_numbers = values[4 * index : 4 * index + 4]
                odd[part][one.metric] = odd[part].get(one.metric, 0) + no_numbers
                if count:
                    moments[part][one.metric][number] = Moments(count, _rounded(mean), _rounded(variance or 0.0))
    return {part: PartSummary(requests[part], moments[part], counted[part], odd[part], data[part]) for part in parts}


def _category_name(value: Any, observation: Observation, kind: ColumnType) -> str:
    """Return what a value of `categories_sql` is called."""
    if observation.edges is not None:
        return {NULL_BUCKET: NULL, NOT_A_BUCKET: NOT_A_NUMBER}.get(value) or bucket_name(value, observation.edges)
    if kind == "json" and value is not None:
        try:
            return category_of(json.loads(value))
        except ValueError:  # longer than what is read of it
            return category_of(value)
    return category_of(value)


def _rounded(number: float) -> float:
    """Return a number with as many digits as do not depend on the order in which others were added up."""
    return float(f"{number:.{DIGITS}g}")


def _fetched(connection: "DuckDBPyConnection", query: str, parameters: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield a query's rows, some thousands at a time."""
    result = connection.execute(query, parameters)
    while rows := result.fetchmany(ROWS_AT_ONCE):
        yield from rows


def _quantiles(
    connection: "DuckDBPyConnection",
    groups: Sequence[Alike],
    observation: Observation,
    quantiles: Sequence[float],
    since: datetime,
    until: datetime,
) -> BaselineQuantiles:
    """Return the quantiles of one observation over all parts, of a million requests at most."""
    queries: list[str] = []
    parameters: list[list[str]] = []
    for parts, columns, _ in groups:
        query, times = observed_sql(columns, observation, since=since, until=until)
        queries.append(query)
        parameters += [_as_patterns(parts)] * times
    counting, _ = quantiles_sql(queries, quantiles, part=1.0)
    (row,) = connection.execute(counting, parameters).fetchall()
    count = int(row[0])
    if not count:
        return BaselineQuantiles(0, ())
    _, query = quantiles_sql(queries, quantiles, part=MOST_FOR_QUANTILES / count)
    (row,) = connection.execute(query, parameters).fetchall()
    return BaselineQuantiles(count, tuple(map(float, row[0])))
