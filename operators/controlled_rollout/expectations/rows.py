"""Rows of Parquet parts as a pandas table, some parts at a time; runs in the process that validates."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import md5
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Rows", "read_rows", "row_count"]

# As many rows are validated at once: enough to be quick, few enough for little memory.
CHUNK_ROWS: Final = 250_000
JSON_COLUMNS: Final = b"controlled_rollout.json_columns"
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
# The collector's own columns that say which rows are read.
OWN: Final = frozenset(("$request_id", "$row", "$rows", "$time", "$addressed", "$status"))
# Refused before the version saw them: no evidence in the metric store either.
REFUSED: Final = (401, 403)
FIRST_ERROR: Final = 400


@dataclass(frozen=True)
class Rows:
    """Rows of a collection.

    Attributes:
        data: The columns as the author knows them; numbered from 0.
        ids: The request's id of each row.
        times: When each row's request arrived, in microseconds since 1970.
    """

    data: "pd.DataFrame"
    ids: "pd.Series[Any]"
    times: "pd.Series[Any]"


def row_count(parts: Sequence[str]) -> int:
    """Return how many rows parts have together; reads no rows."""
    from pyarrow import parquet

    return sum(int(parquet.read_metadata(part).num_rows) for part in parts)


def read_rows(
    parts: Sequence[str],
    collection: str,
    *,
    since: datetime,
    until: datetime | None,
    drawn: bool,
    part_of_requests: float = 1.0,
    columns: frozenset[str] | None = None,
    at_once: int = CHUNK_ROWS,
) -> Iterator[Rows]:
    """Yield the rows of requests that were split by weight, some parts at a time.

    Args:
        parts: Parquet files.
        collection: Whose they are: answers that are errors are no predictions.
        since: Requests that arrived from then on.
        until: Requests that arrived before; None for no end.
        drawn: Only one row of each request, the one that its id draws: rows of one request are not independent.
        part_of_requests: Only requests whose ids have the lowest hashes, this part of them.
        columns: Only these columns, as the author knows them, those that a part has; None for all of them.
        at_once: About how many rows are yielded together.
    """
    import pandas as pd

    tables: list[pd.DataFrame] = []
    held = 0
    for part in parts:
        table = _select_rows(_decode_part(part, columns), collection, since, until)
        if drawn:
            table = table[_is_drawn(table)]
        if part_of_requests < 1:
            limit = int(part_of_requests * 2**32)
            table = table[[_hash(identity, 8) < limit for identity in table["$request_id"]]]
        if len(table):
            tables.append(table)
            held += len(table)
        if held >= at_once:
            yield _concatenate(tables)
            tables, held = [], 0
    if tables:
        yield _concatenate(tables)


def _decode_part(part: str, columns: frozenset[str] | None) -> "pd.DataFrame":
    """Return a part as a table; columns that hold JSON because their values differ in type are decoded."""
    import pandas as pd
    from pyarrow import ArrowInvalid, parquet

    try:
        with parquet.ParquetFile(part) as file:
            names = file.schema_arrow.names
            if columns is not None:
                # Callers may send others by the thousand.
                names = [name for name in names if name in OWN or _authors_name(name) in columns]
            table = file.read(columns=names)
    except (OSError, ArrowInvalid) as error:
        raise ValueError(f"{part}: {error}") from error
    encoded = json.loads((table.schema.metadata or {}).get(JSON_COLUMNS, b"[]"))
    result: pd.DataFrame = table.to_pandas()
    for column in encoded:
        if column in result:
            # What is missing is None or NaN, as the version of pandas has it.
            decoded = [json.loads(value) if isinstance(value, str) else None for value in result[column]]
            result[column] = pd.Series(decoded, index=result.index, dtype=object)
    return result


def _select_rows(table: "pd.DataFrame", collection: str, since: datetime, until: datetime | None) -> "pd.DataFrame":
    """Return the rows of a time, of requests that the router split by weight and that the version answered."""
    time = table["$time"]
    chosen = time >= since
    if until is not None:
        chosen &= time < until
    if "$addressed" in table:
        chosen &= ~table["$addressed"].fillna(False).astype(bool)
    if "$status" in table:
        status = table["$status"].fillna(0)
        chosen &= ~status.isin(REFUSED)
        if collection == "predictions":
            chosen &= status < FIRST_ERROR
    return table[chosen]


def _is_drawn(table: "pd.DataFrame") -> "pd.Series[bool]":
    """Return for each row whether it is the one that its request's id draws, as every engine of summaries draws it."""
    import numpy as np

    drawn = table["$rows"] <= 1
    if not drawn.all():
        columns = zip(table["$request_id"], table["$row"], table["$rows"], strict=True)
        of_several = [rows > 1 and row == _hash(identity, 0) % rows for identity, row, rows in columns]
        drawn |= np.array(of_several, dtype=bool)
    return drawn


def _hash(identity: str, start: int) -> int:
    """Return 32 bits of the MD5 of a request's id, from a hexadecimal digit on."""
    return int(md5(identity.encode(), usedforsecurity=False).hexdigest()[start : start + 8], 16)


def _concatenate(tables: "list[pd.DataFrame]") -> Rows:
    """Return tables as one, with the collector's columns apart."""
    import pandas as pd

    table = pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0].reset_index(drop=True)
    data = table[[name for name in table.columns if not name.startswith("$") or name.startswith("$$")]]
    data = data.rename(columns={name: _authors_name(name) for name in data.columns})
    microseconds = (table["$time"] - pd.Timestamp(EPOCH)) // pd.Timedelta(microseconds=1)
    return Rows(data, table["$request_id"], microseconds)


def _authors_name(column: str) -> str:
    """Return what the author calls a column: the collector writes one more $ before one that begins with it."""
    return column[1:] if column.startswith("$$") else column
