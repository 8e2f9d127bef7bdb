"""What the columns of a part are: which engine reads them does not matter. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from controlled_rollout.evidence.collected.dialects import DUCKDB, Dialect

__all__ = ["JSON_COLUMNS", "ColumnType", "PartColumns", "column_type"]

ColumnType: TypeAlias = Literal["number", "truth value", "text", "json", "bytes", "missing"]

# The key of a part's metadata that names the columns whose values are JSON, because they are of several types.
JSON_COLUMNS: Final = b"controlled_rollout.json_columns"


@dataclass(frozen=True, slots=True)
class PartColumns:
    """The columns of a part.

    Attributes:
        types: By name the type in the file and what the values are.
        renamed: What DuckDB calls columns whose names it does not tell apart from others, such as `age` beside `Age`.
        dialect: The SQL of the engine that reads the part.
    """

    types: Mapping[str, tuple[str, ColumnType]]
    renamed: Mapping[str, str] = field(default_factory=dict)
    dialect: Dialect = DUCKDB

    def quoted(self, column: str) -> str:
        """Return what a column is called in SQL."""
        return self.dialect.quoted(self.renamed.get(column, column))

    def type_of(self, column: str) -> ColumnType:
        """Return what the values of a column are."""
        return self.types[column][1] if column in self.types else "missing"

    @property
    def data(self) -> list[str]:
        """The columns that are data; those of the collector begin with one `$`."""
        return [name for name in self.types if not name.startswith("$") or name.startswith("$$")]


def column_type(physical: str, converted: str | None) -> ColumnType:
    """Return what the values of a Parquet column are.

    Args:
        physical: The type in the file, such as `BYTE_ARRAY`.
        converted: What it stands for, such as `UTF8`.
    """
    if physical == "BOOLEAN":
        return "truth value"
    if physical in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
        return "text" if converted in ("UTF8", "ENUM", "JSON") else "bytes"
    return "number"
