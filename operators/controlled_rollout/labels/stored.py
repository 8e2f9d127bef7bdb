"""Labels in files of the workspace's storage: CSV, JSON Lines or Parquet, read by DuckDB."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from controlled_rollout.errors import EvidenceUnavailableError, StorageError
from controlled_rollout.labels.source import LabelRow, LabelSource, arrival_of, label_of

if TYPE_CHECKING:
    from controlled_rollout.evidence.collected.part_files import PartFiles
    from controlled_rollout.storage import StoredFile
    from controlled_rollout.workspace import Workspace

__all__ = ["StoredLabels"]

# By the end of a file's name the SQL that reads it. Of CSV everything is text, or "007" would become a number.
# A folder called `label=1` makes no column.
CSV: Final = "read_csv(?, header = true, all_varchar = true, compression = '{}', hive_partitioning = false)"
JSON_LINES: Final = "read_json(?, format = 'newline_delimited', compression = '{}', hive_partitioning = false{{}})"
READERS: Final = {
    ".parquet": "read_parquet(?, hive_partitioning = false)",
    ".csv": CSV.format("none"),
    ".csv.gz": CSV.format("gzip"),
    ".jsonl": JSON_LINES.format("none"),
    ".jsonl.gz": JSON_LINES.format("gzip"),
    ".ndjson": JSON_LINES.format("none"),
}
MOST_FILES: Final = 10_000
ROWS_AT_ONCE: Final = 10_000
TIMEOUT: Final = timedelta(minutes=10)


class StoredLabels(BaseModel):
    """Labels in files of the workspace's storage.

    Files are only ever added. Where `arrived` is not given, the labels of a file arrive when the file is written, so a
    file must not be written again.

    Attributes:
        prefix: What the files' names in the storage begin with, such as `labels/digits/`; those that end with `.csv`,
            `.csv.gz`, `.jsonl`, `.jsonl.gz`, `.ndjson` or `.parquet` are read.
        correlation_id: The column with the request's correlation id.
        label: The column with the label: a value, or a list with one for each row of the request.
        arrived: The column with the time at which the label became known; None: when its file was written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefix: Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")]
    correlation_id: Annotated[str, Field(min_length=1, max_length=200)] = "correlation_id"
    label: Annotated[str, Field(min_length=1, max_length=200)] = "label"
    arrived: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    def source(self, workspace: "Workspace") -> LabelSource:
        """Return the source of these labels in a workspace's storage; nothing is read yet."""
        from controlled_rollout.evidence.collected.part_files import PartFiles

        return _StoredSource(self, PartFiles.of(workspace))


@dataclass(frozen=True)
class _StoredSource:
    """Reads labels from files; see `LabelSource`.

    Attributes:
        settings: Which files, and which of their columns.
        files: The storage, and how its files become files of this machine.
    """

    settings: StoredLabels
    files: "PartFiles"

    @property
    def description(self) -> str:
        """The storage, the prefix and the columns."""
        arrived = self.settings.arrived or "the file's time"
        return (
            f"files {self.settings.prefix}* in {self.files.storage.address}: {self.settings.correlation_id}, "
            f"{self.settings.label}, {arrived}"
        )

    def read(self, *, since: datetime, until: datetime, limit: int) -> Iterator[LabelRow]:
        """Yield the labels that arrived in a time, file by file; see `LabelSource.read`."""
        try:
            found = [file for file in self.files.storage.list(self.settings.prefix) if _reader_sql(file.name)]
        except StorageError as error:
            raise EvidenceUnavailableError(f"labels cannot be read: {error}") from error
        # A file has only labels that were known when it was written: what was written before has none of this time.
        files = [file for file in found if file.modified >= since and file.size]
        if self.settings.arrived is None:
            files = [file for file in files if file.modified < until]
        if len(files) > MOST_FILES:
            raise EvidenceUnavailableError(
                f"there are {len(files):,} files {self.settings.prefix}* with labels, and {MOST_FILES:,} are read: put "
                "more labels into one file"
            )
        number = 0
        for file in files:
            for row in self._rows_of(file):
                if since <= row.arrived < until:
                    number += 1
                    if number > limit:
                        raise EvidenceUnavailableError(
                            f"{self.settings.prefix}* has more than {limit:,} labels: give a larger max_labels, or "
                            "judge a shorter time"
                        )
                    yield row

    def _rows_of(self, file: "StoredFile") -> Iterator[LabelRow]:
        """Yield the labels of one file."""
        from controlled_rollout.evidence.collected.duckdb_engine import DuckDBEngine, as_patterns

        try:
            (path,) = self.files.paths([file])
        except StorageError as error:
            raise EvidenceUnavailableError(f"labels cannot be read: {error}") from error
        names = [self.settings.correlation_id, self.settings.label]
        names += [self.settings.arrived] if self.settings.arrived is not None else []
        reader, patterns = _reader_sql(file.name), [as_patterns([path])]
        with DuckDBEngine(timeout=TIMEOUT).connection() as connection:
            described = connection.execute(f"DESCRIBE SELECT * FROM {reader.format('')}", patterns).fetchall()
            types = {name: kind for name, kind, *_ in described}
            if missing := [name for name in names if name not in types]:
                raise EvidenceUnavailableError(
                    f"{file.name} has no column {missing[0]!r}; its columns: {', '.join(sorted(types))[:300]}"
                )
            # What looks like a time or a UUID in JSON stays a text.
            as_text = ", ".join(f"{_text_sql(name)}: 'JSON'" for name in names)
            columns = ", ".join(_column_sql(name, types[name]) for name in names)
            query = f"SELECT {columns} FROM {reader.format(f', columns = {{{as_text}}}')}"
            result = connection.execute(query, patterns)
            while found := result.fetchmany(ROWS_AT_ONCE):
                for values in found:
                    correlation, label, *arrived = map(_from_json, values) if "read_json" in reader else values
                    if correlation is not None and label is not None:
                        yield LabelRow(
                            str(correlation), label_of(label), arrival_of(arrived[0]) if arrived else file.modified
                        )


def _reader_sql(name: str) -> str:
    """Return the SQL that reads a file, by its name; empty for files of other kinds."""
    return next((reader for end, reader in READERS.items() if name.endswith(end)), "")


def _column_sql(name: str, kind: str) -> str:
    """Return the SQL of a column: a time with a time zone as seconds since 1970."""
    quoted = '"' + name.replace('"', '""') + '"'
    return f"epoch_us({quoted}) / 1e6" if kind == "TIMESTAMP WITH TIME ZONE" else quoted


def _from_json(text: str | None) -> Any:
    """Return a value from its JSON; None for a key that a line has not."""
    return None if text is None else json.loads(text)


def _text_sql(name: str) -> str:
    """Return a text as SQL."""
    return "'" + name.replace("'", "''") + "'"
