"""The columns of Parquet parts by their footers: a few kilobytes of each, also of parts that a cluster reads."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.collected.dialects import SPARK
from controlled_rollout.evidence.collected.part_columns import JSON_COLUMNS, PartColumns, column_type

__all__ = ["columns_of_parts", "end_of_file"]

READS_AT_ONCE: Final = 8
# Most footers are shorter.
FIRST_READ: Final = 64 * 1024
MAX_FOOTER: Final = 64 * 2**20
# A Parquet file ends with the footer's length and these letters.
ENDING: Final = b"PAR1"
ENDING_BYTES: Final = 8


def end_of_file(path: str, length: int) -> bytes:
    """Return the last bytes of a file of this machine, at most so many."""
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - length))
        return file.read(length)


def columns_of_parts(parts: Sequence[str], read_end: Callable[[str, int], bytes]) -> dict[str, PartColumns]:
    """Return the columns of each part, for Spark.

    Args:
        parts: Names of parts.
        read_end: Returns the last bytes of a part, at most so many.

    Raises:
        EvidenceUnavailableError: A part is no Parquet file.
    """
    with ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="footers") as pool:
        return dict(zip(parts, pool.map(lambda part: _columns_of(part, read_end), parts), strict=True))


def _columns_of(part: str, read_end: Callable[[str, int], bytes]) -> PartColumns:
    """Return the columns of one part."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(pa.BufferReader(_footer(part, read_end)))
        json_columns = set(json.loads((metadata.metadata or {}).get(JSON_COLUMNS, b"[]")))
    except (OSError, ValueError) as error:
        raise EvidenceUnavailableError(
            f"collected data cannot be read: {part}: {error}; the gate waits until it can"
        ) from error
    types = {}
    for number in range(metadata.num_columns):
        column = metadata.schema.column(number)
        converted = None if column.converted_type == "NONE" else column.converted_type
        kind = "json" if column.name in json_columns else column_type(column.physical_type, converted)
        types[column.name] = (f"{column.physical_type} {converted}", kind)
    return PartColumns(types, dialect=SPARK)


def _footer(part: str, read_end: Callable[[str, int], bytes]) -> bytes:
    """Return the end of a part, with the whole footer in it.

    Raises:
        ValueError: It is no Parquet file.
    """
    end = read_end(part, FIRST_READ)
    if len(end) < ENDING_BYTES or not end.endswith(ENDING):
        raise ValueError("it is no Parquet file, or not all of one")
    length = int.from_bytes(end[-ENDING_BYTES:-4], "little") + ENDING_BYTES
    if length > MAX_FOOTER:
        raise ValueError(f"its footer has {length:,} bytes, {MAX_FOOTER:,} are read")
    if length > len(end):
        end = read_end(part, length)
    if length > len(end):
        raise ValueError("it is shorter than its footer")
    return end
