"""What scripts collect, as rows: lists, numpy arrays, frames of pandas and of Spark, of which none is imported here."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from typing import Any, NamedTuple


class Table(NamedTuple):
    """Rows of values, and the names of their columns if they have some."""

    rows: list[list[Any]]
    columns: list[str] | None = None


def is_array(data: object) -> bool:
    """Return whether something is a numpy array."""
    return isinstance(data, getattr(sys.modules.get("numpy"), "ndarray", ()))


def is_frame(data: object) -> bool:
    """Return whether something is a frame of pandas."""
    return isinstance(data, getattr(sys.modules.get("pandas"), "DataFrame", ()))


def without_spark(data: Any) -> Any:
    """Return the frame of pandas that a frame of Spark has; anything else as it is."""
    is_spark = isinstance(data, getattr(sys.modules.get("pyspark.sql"), "DataFrame", ()))
    return data.toPandas() if is_spark else data


def table_of(data: Any) -> Table:
    """Return what a script collects as rows; a list, or an array of one dimension, is one row."""
    if isinstance(data, list):
        return Table([list(data)])
    if is_array(data):
        rows = data.tolist()
        return Table(rows if data.ndim > 1 else [rows if data.ndim else [rows]])
    columns = [data.iloc[:, number].tolist() for number in range(data.shape[1])]
    return Table([list(row) for row in zip(*columns)], [str(name) for name in data.columns])  # noqa: B905 - all alike


def json_of(rows: list[list[Any]]) -> bytes:
    """Return rows as JSON, whatever types their values have.

    Raises:
        TypeError: A value has keys that are no texts.
        ValueError: A value contains itself.
        RecursionError: Values are nested too deeply.
    """
    return json.dumps(rows, default=_json_value).encode()


def _json_value(value: Any) -> Any:
    """Return a value of another library as one that JSON has: as number, time or text."""
    if isinstance(value, datetime.date | datetime.time):
        # pandas' own missing time is one, and equals nothing.
        return value.isoformat() if value == value else None
    with contextlib.suppress(Exception):
        return value.tolist()
    return None if str(value) == "<NA>" else str(value)
