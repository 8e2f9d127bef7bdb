"""The rows on disk: one DuckDB file, which queries read and only this module writes."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import duckdb  # noqa: TID253 - runs only inside the store's own process

from controlled_rollout.telemetry_store.database_errors import DatabaseError, MachineError, RowsRefusedError
from controlled_rollout.telemetry_store.schema import TABLES, Row

__all__ = ["Database"]

log = logging.getLogger(__name__)

FILE_NAME: Final = "telemetry.duckdb"
SPILL_FOLDER: Final = "spill"
# Rows deleted in one transaction; uploads wait until it ends.
DELETE_CHUNK: Final = 50_000
# Errors of the machine (disk full, out of memory): the same rows can be written once they are over.
MACHINE_ERRORS: Final = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException, OSError)
# The part of the size limit that is left after a deletion, so that not every pass has to delete.
SIZE_AFTER_TRIM: Final = 0.8


class Database:
    """The store's tables.

    Nothing in the process runs beside it: DuckDB starts no thread, so that the process can be forked between two calls.
    A child sees the rows of that moment, as long as no `checkpoint` moves them in the file.

    Args:
        folder: The folder of the file.
        memory_limit: The most memory that DuckDB uses, such as `512MB`.
    """

    def __init__(self, folder: Path, *, memory_limit: str = "512MB") -> None:
        self.file = folder / FILE_NAME
        config: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "memory_limit": memory_limit,
            "temp_directory": str(folder / SPILL_FOLDER),
            "max_temp_directory_size": "400MB",
            "threads": 1,
            "async_threads": 0,
            # Only `checkpoint` writes the log into the file.
            "checkpoint_threshold": "1TB",
            "auto_checkpoint_skip_wal_threshold": 2**50,
        }
        try:
            self._connection = duckdb.connect(str(self.file), config=config)
            for table in TABLES.values():
                self._connection.execute(table.create_sql())
            # KQL knows no time zone but UTC. GLOBAL: for every cursor that is opened later.
            self._connection.execute("SET GLOBAL TimeZone = 'UTC'")
        except duckdb.Error as error:
            raise DatabaseError(
                f"{self.file} cannot be opened as the store's database: {error}: use another data folder"
            ) from error
        self._check_columns()
        self._inserts = {name: table.insert_sql() for name, table in TABLES.items()}

    def _check_columns(self) -> None:
        """Raise `DatabaseError` if a table of an existing file has other columns than the schema."""
        for table in TABLES.values():
            columns = self._connection.execute(f'SELECT * FROM main."{table.name}" LIMIT 0').description or []  # noqa: S608
            if [column[0] for column in columns] != [column.name for column in table.stored]:
                self._connection.close()
                raise DatabaseError(
                    f"{self.file} was written by another version of the store (table {table.name} has other columns): "
                    "use an empty data folder"
                )

    def restrict_to_queries(self, spill: Path, *, threads: int, memory_limit: str) -> None:
        """Keep what runs from now on away from files, the network, other databases, extensions and these settings.

        Args:
            spill: The folder that queries larger than the memory limit write to.
            threads: On how many threads a query runs.
            memory_limit: The most memory that DuckDB uses, such as `512MB`.
        """
        spill.mkdir(parents=True, exist_ok=True)
        settings: dict[str, str | int] = {
            "temp_directory": str(spill),
            "threads": threads,
            "memory_limit": memory_limit,
            "enable_external_access": "false",
            "lock_configuration": "true",
        }
        for name, value in settings.items():
            self._connection.execute(f"SET GLOBAL {name} = {value!r}")

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Context manager: open a DuckDB cursor for one query, and close it on exit."""
        with self._connection.cursor() as cursor:
            yield cursor

    def insert(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Append rows to their tables in one transaction; they are on disk when this returns.

        Args:
            rows: Rows by table.

        Raises:
            MachineError: The machine is short of something; nothing was written.
            RowsRefusedError: The database refuses a row; nothing was written.
        """
        try:
            self._connection.execute("BEGIN TRANSACTION")
            for name, batch in rows.items():
                self._connection.execute(self._inserts[name], [list(values) for values in zip(*batch, strict=True)])
            self._connection.execute("COMMIT")
        except (*MACHINE_ERRORS, duckdb.Error) as error:
            self._roll_back()
            kind = MachineError if isinstance(error, MACHINE_ERRORS) else RowsRefusedError
            raise kind(str(error)) from error

    def _roll_back(self) -> None:
        """Roll back the current transaction after a failed insert; log if there is none."""
        try:
            self._connection.execute("ROLLBACK")
        except duckdb.Error as error:  # a failed COMMIT has already ended the transaction
            log.debug("nothing to roll back: %s", error)

    def used_bytes(self) -> int:
        """Return the size of the data in bytes; the file is larger, because DuckDB reuses freed space."""
        row = self._connection.execute("SELECT block_size * used_blocks FROM pragma_database_size()").fetchone()
        return int(row[0] if row else 0) + self.log_bytes()

    def log_bytes(self) -> int:
        """Return the size of DuckDB's log, which holds the rows since the last checkpoint, in bytes."""
        log_file = self.file.with_name(self.file.name + ".wal")
        return log_file.stat().st_size if log_file.exists() else 0

    def delete_before(self, moment: datetime) -> int:
        """Delete one chunk of rows older than `moment`; return the number of deleted rows, 0 if none is left."""
        naive = moment.replace(tzinfo=None)
        for name in TABLES:
            deleted = self._connection.execute(
                f'DELETE FROM main."{name}" WHERE rowid IN '  # noqa: S608 - our own names
                f'(SELECT rowid FROM main."{name}" WHERE "TimeGenerated" < ? LIMIT {DELETE_CHUNK})',
                [naive],
            ).fetchone()
            if deleted and deleted[0]:
                return int(deleted[0])
        return 0

    def age_limit_for(self, max_bytes: int) -> datetime | None:
        """Return the time before which rows must be deleted so that the data fits in `max_bytes`; None if it fits."""
        used = self.used_bytes()
        if used <= max_bytes:
            return None
        union = " UNION ALL ".join(f'SELECT "TimeGenerated" AS t FROM main."{name}"' for name in TABLES)  # noqa: S608
        part = min(1.0, max(0.0, 1 - SIZE_AFTER_TRIM * max_bytes / used))
        row = self._connection.execute(f"SELECT quantile_disc(t, {part}) FROM ({union})").fetchone()  # noqa: S608
        limit: datetime | None = row[0] if row else None
        # One step later than the quantile, so that at least its row is deleted.
        return None if limit is None else limit + timedelta(microseconds=1)

    def checkpoint(self) -> None:
        """Write DuckDB's log into the file and free the space of deleted rows. No forked child may be reading it.

        Raises:
            duckdb.Error: The log stays as it is.
        """
        self._connection.execute("CHECKPOINT")

    def close(self) -> None:
        """Write DuckDB's log into the file and close the database."""
        self._connection.close()
