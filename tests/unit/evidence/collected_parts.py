"""Parts of collected data as the collector writes them, and what of them is counted, computed row by row."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import md5
from pathlib import Path
from statistics import mean
from typing import Any, Final

T0: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
S: Final = timedelta(seconds=1)
MINUTE: Final = timedelta(minutes=1)
OWN: Final = {
    "$request_id": "VARCHAR",
    "$row": "INTEGER",
    "$rows": "INTEGER",
    "$time": "TIMESTAMPTZ",
    "$addressed": "BOOLEAN",
}


@dataclass(frozen=True)
class Exchange:
    """A request: its rows, each with the values of its columns.

    Attributes:
        id: The request's id.
        at: When it arrived, in seconds after T0.
        rows: Its rows.
        addressed: Whether the caller named the version.
    """

    id: str
    at: float
    rows: Sequence[Mapping[str, Any]] = field(default_factory=lambda: [{}])
    addressed: bool = False

    @property
    def drawn(self) -> Mapping[str, Any]:
        """The row that the request's id draws."""
        return self.rows[int(md5(self.id.encode(), usedforsecurity=False).hexdigest()[:8], 16) % len(self.rows)]

    def mean(self, column: str) -> float | None:
        """Return the mean of a column that has numbers and nulls."""
        values = [float(row[column]) for row in self.rows if row[column] is not None]
        return mean(values) if values else None


def write_part(
    path: Path, exchanges: Sequence[Exchange], columns: Mapping[str, str], *, json_columns: Sequence[str] = ()
) -> str:
    """Write exchanges into one Parquet file; return its path.

    Args:
        path: The file.
        exchanges: The requests.
        columns: The data's columns with their types in SQL.
        json_columns: Those of several types, whose values are written as JSON.
    """
    import duckdb

    path.parent.mkdir(parents=True, exist_ok=True)
    everything = {**OWN, **columns}
    names = ", ".join(f'"{name}" {kind}' for name, kind in everything.items())
    rows: list[tuple[Any, ...]] = []
    for one in exchanges:
        for number, row in enumerate(one.rows):
            data = [json.dumps(row[name]) if name in json_columns else row[name] for name in columns]
            rows.append((one.id, number, len(one.rows), T0 + one.at * S, one.addressed, *data))
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE part ({names})")
        if rows:
            lists = [list(values) for values in zip(*rows, strict=True)]
            connection.execute(f"INSERT INTO part SELECT {', '.join(['unnest(?)'] * len(lists))}", lists)
        metadata = json.dumps(list(json_columns)).replace("'", "''")
        options = f"FORMAT parquet, KV_METADATA {{'controlled_rollout.json_columns': '{metadata}'}}"
        connection.execute(f"COPY part TO '{str(path).replace(chr(39), 2 * chr(39))}' ({options})")
    return str(path)


def counted(exchanges: Sequence[Exchange], since: datetime = T0) -> list[Exchange]:
    """Return the exchanges that count: not sent to one version by name, and not before a moment."""
    return [one for one in exchanges if not one.addressed and T0 + one.at * S >= since]


def bin_of(exchange: Exchange) -> int:
    """Return the number of the minute in which a request arrived."""
    return int((T0 + exchange.at * S).timestamp() // 60)


def tally(exchanges: Sequence[Exchange]) -> dict[int, int]:
    """Return how many requests each minute has."""
    return dict(Counter(map(bin_of, exchanges)))
