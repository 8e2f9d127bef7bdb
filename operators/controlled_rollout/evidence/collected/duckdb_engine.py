"""Summaries of Parquet parts by DuckDB: one scan for all categories and one for all means, in bounded memory."""

import json
import os
import re
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.collected.dialects import DUCKDB
from controlled_rollout.evidence.collected.engine import BaselineQuantiles, Observation, PartSummary
from controlled_rollout.evidence.collected.part_columns import JSON_COLUMNS, ColumnType, PartColumns, column_type
from controlled_rollout.evidence.collected.part_sums import (
    MOST_FOR_QUANTILES,
    MOST_NAMED,
    Alike,
    PartSums,
    alike_parts,
    quantiles_of,
)
from controlled_rollout.evidence.collected.parts_sql import categories_sql, means_sql, observed_sql, values_sql

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["PARTS_PER_QUERY", "DuckDBEngine", "alike_in_duckdb", "as_patterns", "columns_in_duckdb"]

# So many parts are read by one query: each has the types of its columns looked up first.
PARTS_PER_QUERY: Final = 1_000
# Of each part's columns the first ones are the collector's own, which are fewer.
MOST_OWN_COLUMNS: Final = 20
ROWS_AT_ONCE: Final = 20_000
INTERRUPT_EVERY_S: Final = 0.05


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
        with self.connection() as connection:
            for start in range(0, len(parts), PARTS_PER_QUERY):
                for alike in alike_in_duckdb(connection, parts[start : start + PARTS_PER_QUERY], observations):
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
        with self.connection() as connection:
            groups = alike_in_duckdb(connection, parts, [observation for observation, _ in wanted])
            return [
                _quantiles(connection, groups, observation, quantiles, since, until)
                for observation, quantiles in wanted
            ]

    @contextmanager
    def connection(self) -> "Iterator[DuckDBPyConnection]":
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


def alike_in_duckdb(
    connection: "DuckDBPyConnection", parts: Sequence[str], observations: Sequence[Observation]
) -> list[Alike]:
    """Return the parts in groups in which each observed column has one type; see `alike_parts`."""
    observed = [one.column for one in observations]
    return alike_parts(columns_in_duckdb(connection, parts, [*observed, "$addressed", "$status"]), observed)


def columns_in_duckdb(
    connection: "DuckDBPyConnection", parts: Sequence[str], wanted: Sequence[str] | None = None
) -> dict[str, PartColumns]:
    """Return the columns of each part.

    DuckDB takes `Age` for `age`: where a part has both, it renames one of them.

    Args:
        connection: A connection.
        parts: The parts.
        wanted: Of other columns only the first ones: callers may send any number of them. None for all.
    """
    patterns = as_patterns(parts)
    json_columns: dict[str, list[str]] = defaultdict(list)
    metadata = "SELECT file_name, value FROM parquet_kv_metadata(?) WHERE key = ?"
    for file, value in connection.execute(metadata, [patterns, JSON_COLUMNS]).fetchall():
        try:
            json_columns[file] = json.loads(value)
        except ValueError as error:
            raise EvidenceUnavailableError(
                f"collected data cannot be read: {file} is no part of a collector's; the gate waits until it is gone"
            ) from error
    types: dict[str, dict[str, tuple[str, ColumnType]]] = {part: {} for part in parts}
    places: dict[str, dict[str, int]] = {part: {} for part in parts}
    schema = "SELECT file_name, name, type, converted_type, column_id FROM parquet_schema(?) WHERE type IS NOT NULL"
    parameters: list[Any] = [patterns]
    if wanted is not None:
        schema += " AND (column_id <= ? OR list_contains(?, lower(name)))"
        parameters += [MOST_OWN_COLUMNS + MOST_NAMED, [column.lower() for column in wanted]]
    for file, name, physical, converted, place in connection.execute(schema, parameters).fetchall():
        kind = "json" if name in json_columns[file] else column_type(physical, converted)
        types[file][name] = (f"{physical} {converted}", kind)
        places[file][name] = place - 1
    return {part: PartColumns(types[part], _duckdb_names(connection, part, places[part], wanted)) for part in parts}


def _duckdb_names(
    connection: "DuckDBPyConnection", part: str, places: Mapping[str, int], wanted: Sequence[str] | None
) -> dict[str, str]:
    """Return what DuckDB calls the wanted columns of a part that has others whose names differ only in upper case.

    Args:
        connection: A connection.
        part: The part.
        places: By name the places of columns among all columns of the part, from 0.
        wanted: The columns that are read; None for all.
    """
    same = Counter(map(str.lower, places))
    ambiguous = [name for name in places if same[name.lower()] > 1 and (wanted is None or name in wanted)]
    if not ambiguous:
        return {}
    described = connection.execute(
        "DESCRIBE SELECT * FROM read_parquet(?, hive_partitioning = false)", [as_patterns([part])]
    ).fetchall()
    return {name: described[places[name]][0] for name in ambiguous}


def as_patterns(parts: Sequence[str]) -> list[str]:
    """Return paths as DuckDB's patterns that match themselves."""
    return [re.sub(r"([*?\[])", r"[\1]", part) for part in parts]


def _summaries(
    connection: "DuckDBPyConnection",
    group: Alike,
    observations: Sequence[Observation],
    since: datetime,
    bin_width: timedelta,
) -> dict[str, PartSummary]:
    """Return the summaries of parts whose columns have the same types."""
    parts, columns, data = group
    sums = PartSums(data, columns, observations)
    patterns = as_patterns(parts)
    query = categories_sql(columns, sums.categories, since=since, bin_width=bin_width)
    sums.add_categories(_fetch_rows(connection, query, [patterns]))
    if sums.means:
        query = means_sql(columns, sums.means, since=since, bin_width=bin_width)
        sums.add_means(_fetch_rows(connection, query, [patterns] * 2))
    return sums.summaries()


def _fetch_rows(connection: "DuckDBPyConnection", query: str, parameters: list[Any]) -> Iterator[tuple[Any, ...]]:
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
        parameters += [as_patterns(parts)] * times
    counting, _ = values_sql(DUCKDB, queries, part=1.0)
    (row,) = connection.execute(counting, parameters).fetchall()
    count = int(row[0])
    if not count:
        return BaselineQuantiles(0, ())
    _, query = values_sql(DUCKDB, queries, part=MOST_FOR_QUANTILES / count)
    values = connection.execute(query, parameters).fetchnumpy()["value"]
    return BaselineQuantiles(count, quantiles_of(values, quantiles))
