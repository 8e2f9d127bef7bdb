"""The SQL that joins collections of a version by the ids of requests. Pure: text in, text out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from controlled_rollout.evidence.bins import since_epoch
from controlled_rollout.evidence.collected.part_columns import ColumnType, PartColumns

__all__ = ["KEYS", "OF_REQUESTS", "Alike", "Asked", "join_sql", "one_type"]

MICROSECOND: Final = timedelta(microseconds=1)
# The collections in which every request has its rows, with the request's own time.
OF_REQUESTS: Final = ("inputs", "predictions")
# What says whose a row is: the name in the result, the column of parts, and its type.
KEYS: Final = (
    ("$request_id", "VARCHAR"),
    ("$correlation_id", "VARCHAR"),
    ("$time", "TIMESTAMPTZ"),
    ("$row", "INTEGER"),
    ("$rows", "INTEGER"),
    ("$status", "INTEGER"),
    ("$addressed", "BOOLEAN"),
)


@dataclass(frozen=True, slots=True)
class Alike:
    """Parts whose columns have the same types.

    Attributes:
        version: Whose they are.
        patterns: Their paths, as DuckDB's patterns.
        columns: The columns.
    """

    version: str
    patterns: Sequence[str]
    columns: PartColumns


@dataclass(frozen=True, slots=True)
class Asked:
    """A column that is asked for.

    Attributes:
        collection: Its collection.
        column: Its name there.
        kind: What its values are in the result: `json` if they are of several types.
        cast: Whether values are turned into that: not if all parts have one type in their files.
    """

    collection: str
    column: str
    kind: ColumnType
    cast: bool

    @property
    def name(self) -> str:
        """The column's name in the result."""
        return f"{self.collection}.{self.column}"


def one_type(collection: str, column: str, parts: Sequence[PartColumns]) -> Asked:
    """Return a column with the type that its values have in the result.

    Args:
        collection: The collection.
        column: The column's name.
        parts: The columns of all parts of the collection.
    """
    types = {found.types[column] for found in parts if column in found.types}
    kinds = {kind for _, kind in types}
    if len(types) <= 1 and kinds <= {"number", "truth value", "text", "bytes"}:
        return Asked(collection, column, next(iter(kinds), "missing"), cast=False)
    if len(kinds) == 1:
        return Asked(collection, column, kinds.pop(), cast=True)
    return Asked(collection, column, "json", cast=True)


def join_sql(
    groups: Mapping[str, Sequence[Alike]],
    asked: Sequence[Asked],
    *,
    since: datetime,
    until: datetime,
) -> str:
    """Return the query for the rows of several collections beside each other.

    Rows of one request are joined by their number where both collections have as many; where one has a single row, it
    is beside each row of the other. What has no counterpart stands alone. Its columns: the version, the keys, and what
    is asked for in its order, named `c0`, `c1`, …

    Args:
        groups: By collection its parts. The requests' own collections have to be the first.
        asked: The columns.
        since: Requests that arrived then or later.
        until: Requests that arrived before.
    """
    names = [name.removeprefix("$") for name, _ in KEYS]
    tables, joined, columns = [], "", []
    for number, (collection, parts) in enumerate(groups.items()):
        places = [place for place, one in enumerate(asked) if one.collection == collection]
        selected = [_rows_sql(one, asked, places, since, until) for one in parts]
        tables.append(f"s{number} AS (\n  {' UNION ALL '.join(selected) or _no_rows(places)}\n)")
        columns += [f"c{place}" for place in places]
        if not joined:
            joined = f"s{number}"
            continue
        key_columns = [
            f"coalesce(a.{name}, b.{name}) AS {name}" for name in ("version", *names) if name not in ("row", "rows")
        ]
        data = [f"c{place}" for place, one in enumerate(asked) if f"c{place}" in columns]
        # A request's own rows have its time: an id that a caller sends again is another request.
        same_time = " AND a.time = b.time" if collection in OF_REQUESTS else ""
        tables.append(
            f"j{number} AS (\n"
            f"  SELECT {', '.join(key_columns)},\n"
            "  CASE WHEN a.rows IS NULL OR b.rows > a.rows THEN b.row ELSE a.row END AS row,\n"
            "  CASE WHEN a.rows IS NULL OR b.rows > a.rows THEN b.rows ELSE a.rows END AS rows"
            f"{''.join(f', {name}' for name in data)}\n"
            f"  FROM {joined} AS a FULL JOIN s{number} AS b\n"
            f"  ON a.version = b.version AND a.request_id = b.request_id AND a.request_id <> ''{same_time}\n"
            "  AND CASE WHEN a.rows = b.rows THEN a.row = b.row ELSE a.rows = 1 OR b.rows = 1 END\n)"
        )
        joined = f"j{number}"
    wanted = ["version", *names, *(f"c{place}" for place in range(len(asked)))]
    return f"WITH {', '.join(tables)}\nSELECT {', '.join(wanted)} FROM {joined}"


def _rows_sql(parts: Alike, asked: Sequence[Asked], places: Sequence[int], since: datetime, until: datetime) -> str:
    """Return the query for the rows of parts whose columns have the same types."""
    columns = parts.columns
    keys = [
        f"{f'CAST({columns.quoted(name)} AS {kind})' if name in columns.types else f'NULL::{kind}'} AS {name[1:]}"
        for name, kind in KEYS
    ]
    data = [f"{_value_sql(columns, asked[place])} AS c{place}" for place in places]
    time = columns.quoted("$time")
    first, last = (since_epoch(moment, MICROSECOND) for moment in (since, until))
    # As texts and not as parameters: DuckDB streams only what has none.
    files = ", ".join(map(_text_sql, parts.patterns))
    return (
        f"SELECT {', '.join([f'{_text_sql(parts.version)} AS version', *keys, *data])}\n"
        f"  FROM read_parquet([{files}], hive_partitioning = false)\n"
        f"  WHERE {time} >= make_timestamptz({first}) AND {time} < make_timestamptz({last})"
    )


def _text_sql(text: str) -> str:
    """Return a text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def _no_rows(places: Sequence[int]) -> str:
    """Return the query for the rows of a collection without parts."""
    keys = [f"NULL::{kind} AS {name[1:]}" for name, kind in KEYS]
    data = [f"NULL::VARCHAR AS c{place}" for place in places]
    return f"SELECT {', '.join(['NULL::VARCHAR AS version', *keys, *data])} WHERE false"


def _value_sql(columns: PartColumns, asked: Asked) -> str:
    """Return the SQL of a column's value, with the type that it has in the result."""
    name, kind = columns.quoted(asked.column), columns.type_of(asked.column)
    if kind == "missing":
        return "NULL"
    if not asked.cast or (kind == "json" and asked.kind == "json"):
        return name
    if asked.kind == "json":
        value = f"base64({name})" if kind == "bytes" else name
        return f"CASE WHEN {name} IS NOT NULL THEN to_json({value})::VARCHAR END"
    return f"CAST({name} AS {'DOUBLE' if kind == 'number' else 'VARCHAR' if kind == 'text' else 'BLOB'})"
