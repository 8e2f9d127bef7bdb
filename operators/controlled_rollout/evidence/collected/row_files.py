"""Rows that were read, as a file for other programs: CSV, JSON Lines or Parquet, batch by batch."""

import json
import math
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from controlled_rollout.evidence.collected.part_columns import JSON_COLUMNS
from controlled_rollout.storage.file_writing import written_whole

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["write_rows"]


def write_rows(rows: "pa.RecordBatchReader", path: Path) -> int:
    """Write rows into a file that only its owner reads, and return how many there are.

    A file that is there is replaced at the end, so an error leaves it as it was. In CSV and JSON Lines, bytes are
    base64; in JSON Lines, columns with values of several types are such values, and what is no finite number is null.

    Args:
        rows: As `read_collected` gives them.
        path: The file; its name ends with `.csv`, `.jsonl` or `.parquet`.
    """
    writers = {".csv": _csv_writer, ".jsonl": _json_lines_writer, ".parquet": _parquet_writer}
    count = 0
    with written_whole(path.absolute()) as file, writers[path.suffix](file, rows.schema) as write:
        for batch in rows:
            write(batch)
            count += batch.num_rows
    return count


@contextmanager
def _parquet_writer(file: IO[bytes], schema: "pa.Schema") -> "Iterator[Callable[[pa.RecordBatch], None]]":
    """Context manager: give a function that adds a batch to a Parquet file."""
    from pyarrow import parquet

    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        yield writer.write_batch


@contextmanager
def _csv_writer(file: IO[bytes], schema: "pa.Schema") -> "Iterator[Callable[[pa.RecordBatch], None]]":
    """Context manager: give a function that adds a batch to a CSV file."""
    import pyarrow as pa
    from pyarrow import csv

    texts = pa.schema([pa.field(one.name, pa.string() if pa.types.is_binary(one.type) else one.type) for one in schema])
    with csv.CSVWriter(file, texts) as writer:

        def write(batch: "pa.RecordBatch") -> None:
            """Add a batch, with its bytes as base64."""
            arrays = [
                pa.array([None if value is None else b64encode(value).decode() for value in column.to_pylist()], kind)
                if pa.types.is_binary(column.type)
                else column
                for column, kind in zip(batch.columns, texts.types, strict=True)
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=texts))

        yield write


@contextmanager
def _json_lines_writer(file: IO[bytes], schema: "pa.Schema") -> "Iterator[Callable[[pa.RecordBatch], None]]":
    """Context manager: give a function that adds a batch to a file with one JSON object in each line."""
    json_columns = set(json.loads((schema.metadata or {}).get(JSON_COLUMNS, b"[]")))

    def write(batch: "pa.RecordBatch") -> None:
        """Add a batch."""
        for row in batch.to_pylist():
            values = {name: _json_value(value, is_json=name in json_columns) for name, value in row.items()}
            file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")

    yield write


def _json_value(value: Any, *, is_json: bool) -> Any:
    """Return a value as JSON has it."""
    if is_json and value is not None:
        try:
            return json.loads(value, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return value.isoformat() if isinstance(value, datetime) else value
