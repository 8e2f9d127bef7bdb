"""Labels from a database: an Airflow connection and a query, through the DB-API hook of the connection's type."""

import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from airflow.sdk import BaseHook
from pydantic import BaseModel, ConfigDict, Field

from controlled_rollout.errors import ArgumentError, EvidenceUnavailableError

if TYPE_CHECKING:
    from controlled_rollout.labels import LabelRow

__all__ = ["SqlLabelSource", "SqlLabels"]

COLUMNS: Final = ("correlation_id", "label", "arrived")
PARAMETERS: Final = ("endpoint", "since", "until")
# What a driver that streams keeps in memory at a time.
ROWS_AT_ONCE: Final = 5_000
MAX_QUERY_CHARACTERS: Final = 100_000
QUERY_FILE: Final = ".sql"
# Of these the whole answer of a query is in memory unless its cursor is one of the server.
WITH_NAMED_CURSORS: Final = ("psycopg", "psycopg2")


class SqlLabels(BaseModel):
    r"""Labels in a database, found by a query.

    The query returns the columns `correlation_id`, `label` and `arrived`, which is when the label became known. A label
    may be a list as JSON, with one for each row of the request. The parameters `:endpoint`, `:since` and `:until` are
    bound by the driver, in whichever style that has; what is a colon before a word and no parameter is written `\:`.

    Attributes:
        conn_id: The connection; of any type whose hook is a `DbApiHook`.
        query: The query, or the name of a file that ends with `.sql`, in the folder of the DAG file.
        timeout: How long the query may take, in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    conn_id: Annotated[str, Field(min_length=1)]
    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARACTERS)]
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 600.0

    def read_query(self, folder: Path) -> Self:
        """Return these settings with the text of the query, where it is in a file.

        Args:
            folder: The folder of the DAG file.

        Raises:
            ArgumentError: The file is not in the folder, cannot be read, or is too large.
        """
        name = self.query.strip()
        if not name.endswith(QUERY_FILE) or "\n" in name:
            return self
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ArgumentError(f"the query {name!r} is not in the folder of the DAG file, {folder}: move it there")
        try:
            text = path.read_text(encoding="utf-8") if path.stat().st_size <= 4 * MAX_QUERY_CHARACTERS else ""
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"the query in {path} cannot be read: {error}") from error
        if not 0 < len(text.strip()) <= MAX_QUERY_CHARACTERS:
            raise ArgumentError(f"the query in {path} is empty, or longer than {MAX_QUERY_CHARACTERS:,} characters")
        return self.model_copy(update={"query": text})

    def source(self, endpoint: str) -> "SqlLabelSource":
        """Return the source of an endpoint's labels; connects to nothing.

        Raises:
            ArgumentError: The query has a parameter that is not known.
        """
        return SqlLabelSource(self, endpoint)


class SqlLabelSource:
    """Reads labels by a query.

    Args:
        settings: The connection and the query's text.
        endpoint: The endpoint's name, for `:endpoint`.
    """

    def __init__(self, settings: SqlLabels, endpoint: str) -> None:
        """Store the settings; raise ArgumentError if the query has a parameter that is not known."""
        from sqlalchemy import text

        self._settings = settings
        self._endpoint = endpoint
        # Parts of several statements would be another query than the one that somebody has reviewed.
        self._text = text(settings.query.strip().removesuffix(";"))
        if unknown := sorted(set(self._text.compile().params) - set(PARAMETERS)):
            raise ArgumentError(
                f"the query of the labels has the parameters {', '.join(f':{name}' for name in unknown)}: known are "
                f"{', '.join(f':{name}' for name in PARAMETERS)}; write \\: for a colon that begins no parameter"
            )

    @property
    def description(self) -> str:
        """Where the labels are from, for messages and the record."""
        return f"the query on connection {self._settings.conn_id!r}"

    def read(self, *, since: datetime, until: datetime, limit: int) -> "Iterator[LabelRow]":
        """Yield the labels that arrived from `since` (inclusive) to `until` (exclusive), in any order.

        The query may find others as well, where it does without the parameters.

        Args:
            since: The first moment of arrival.
            until: The first moment after.
            limit: How many rows the query may find.

        Raises:
            EvidenceUnavailableError: The connection, the query or its rows cannot be read, or it finds too many.
        """
        known = {"endpoint": self._endpoint, "since": since.astimezone(UTC), "until": until.astimezone(UTC)}
        deadline = time.monotonic() + self._settings.timeout
        with (
            self._as_evidence_errors(),
            self._open_connection() as (connection, placeholder),
            self._ended_in_time(connection),
        ):
            cursor = _cursor_of(connection)
            with _closing(cursor):
                cursor.execute(*self._execute_arguments(_paramstyle(connection, placeholder), connection, known))
                found = 0
                while rows := cursor.fetchmany(ROWS_AT_ONCE):
                    positions = self._column_positions(cursor.description)
                    found += len(rows)
                    if found > limit:
                        raise EvidenceUnavailableError(
                            f"{self.description} finds more than {limit:,} labels: use :since and :until in it, or "
                            "judge a shorter time"
                        )
                    if time.monotonic() > deadline:
                        raise EvidenceUnavailableError(self._timeout_sentence())
                    for row in rows:
                        label = self._label(row, positions)
                        if since <= label.arrived < until:
                            yield label

    def _execute_arguments(self, paramstyle: str, connection: Any, known: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the arguments of `cursor.execute`: the query in the driver's own style, and the values to bind."""
        from sqlalchemy.engine.default import DefaultDialect

        compiled: Any = self._text.compile(dialect=DefaultDialect(paramstyle=paramstyle))  # type: ignore[arg-type] # read from the driver
        values = {name: _bindable(known[name], connection) for name in compiled.params}
        if not values:
            # Without values drivers take a per cent sign as it is.
            return (self._text.compile(dialect=DefaultDialect(paramstyle="named")).string,)
        if compiled.positional:
            return compiled.string, [values[name] for name in compiled.positiontup]
        return compiled.string, values

    def _column_positions(self, description: Sequence[Sequence[Any]] | None) -> dict[str, Any]:
        """Return the position and the name of each needed column of the answer.

        Raises:
            EvidenceUnavailableError: One is missing, or is there twice.
        """
        names = [str(column[0]) for column in description or ()]
        lower = [name.lower() for name in names]
        wrong = [name for name in COLUMNS if lower.count(name) != 1]
        if wrong:
            raise EvidenceUnavailableError(
                f"{self.description} has to return the columns {', '.join(COLUMNS)}, each once, and returns "
                f"{', '.join(names) or 'none'}: name them in it with AS"
            )
        return {name: (lower.index(name), names[lower.index(name)]) for name in COLUMNS}

    def _label(self, row: Any, positions: Mapping[str, Any]) -> "LabelRow":
        """Return a row of the answer as a label; raise EvidenceUnavailableError, without its values, if it is none."""
        from controlled_rollout.labels import LabelRow, label_of

        correlation_id, label, arrived = (
            row[name] if isinstance(row, Mapping) else row[index] for index, name in positions.values()
        )
        if correlation_id is None or correlation_id == "":
            raise EvidenceUnavailableError(f"{self.description} finds a row without a correlation_id: leave such out")
        return LabelRow(
            correlation_id=str(correlation_id),
            label=label_of(label),
            arrived=self._arrival_time(arrived),
        )

    def _arrival_time(self, arrived: Any) -> datetime:
        """Return when a label arrived; a time without a zone is UTC. Raise EvidenceUnavailableError if it is none."""
        from controlled_rollout.labels import arrival_of

        try:
            return arrival_of(arrived)
        except EvidenceUnavailableError:  # its message has the value, which may be of another column
            raise EvidenceUnavailableError(
                f"{self.description} returns a {type(arrived).__name__} as arrived that is no time: return a "
                "timestamp, or a text such as 2026-01-05T12:00:00+00:00"
            ) from None

    @contextmanager
    def _open_connection(self) -> Iterator[tuple[Any, str]]:
        """Context manager: an open DB-API connection that changes nothing, and the hook's placeholder.

        Raises:
            EvidenceUnavailableError: The connection is of another kind.
        """
        hook: Any = BaseHook.get_connection(self._settings.conn_id).get_hook()  # type: ignore[no-untyped-call] # Airflow's
        if not callable(getattr(hook, "get_conn", None)) or not hasattr(hook, "placeholder"):
            raise EvidenceUnavailableError(
                f"connection {self._settings.conn_id!r} has the hook {type(hook).__name__}, which is none of a "
                "database: name a connection whose hook is a DbApiHook"
            )
        connection = hook.get_conn()
        try:
            _make_read_only(connection)
            yield connection, str(hook.placeholder)
        finally:
            with suppress(Exception):
                connection.rollback()
            with suppress(Exception):
                connection.close()

    @contextmanager
    def _ended_in_time(self, connection: Any) -> Iterator[None]:
        """Context manager: end the query when its time is over, if the driver can.

        Raises:
            EvidenceUnavailableError: The time was over.
        """
        is_over = threading.Event()

        def end() -> None:
            """Ask the driver to end what the connection does."""
            is_over.set()
            for name in ("interrupt", "cancel"):  # SQLite; PostgreSQL and others
                if callable(method := getattr(connection, name, None)):
                    with suppress(Exception):
                        method()

        timer = threading.Timer(self._settings.timeout, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception as error:
            if is_over.is_set():
                raise EvidenceUnavailableError(self._timeout_sentence()) from error
            raise
        finally:
            timer.cancel()

    def _timeout_sentence(self) -> str:
        """Return the sentence that the query took too long."""
        return (
            f"{self.description} has not ended within {self._settings.timeout:g} s: use :since and :until in it, add "
            "an index, or raise the timeout of SqlLabels"
        )

    @contextmanager
    def _as_evidence_errors(self) -> Iterator[None]:
        """Context manager: raise whatever Airflow, the hook or the driver raises as EvidenceUnavailableError."""
        try:
            yield
        except EvidenceUnavailableError:
            raise
        except Exception as error:
            raise EvidenceUnavailableError(f"{self.description} cannot be read: {_without_values(error)}") from None


def _cursor_of(connection: Any) -> Any:
    """Return a cursor that does not read the whole answer into memory, where the driver has such."""
    if _root_module(connection) in WITH_NAMED_CURSORS:
        return connection.cursor(name="labels")
    return connection.cursor()


@contextmanager
def _closing(cursor: Any) -> Iterator[None]:
    """Context manager: close a cursor, whatever it says to that."""
    try:
        yield
    finally:
        with suppress(Exception):
            cursor.close()


def _make_read_only(connection: Any) -> None:
    """Let a connection change nothing, where the driver can: the query comes from an argument."""
    root = _root_module(connection)
    if root == "psycopg2":
        connection.set_session(readonly=True)
    elif root == "psycopg":
        connection.read_only = True
    elif root == "sqlite3":
        connection.execute("PRAGMA query_only = ON")


def _root_module(connection: Any) -> str:
    """Return the name of the driver's package."""
    return type(connection).__module__.partition(".")[0]


def _paramstyle(connection: Any, placeholder: str) -> str:
    """Return the style of the driver's parameters, as its module says; without one, that of the hook's placeholder."""
    name = type(connection).__module__
    while name:
        style = getattr(sys.modules.get(name), "paramstyle", None)
        if isinstance(style, str):
            return style
        name = name.rpartition(".")[0]
    return "qmark" if placeholder == "?" else "format"


def _bindable(value: Any, connection: Any) -> Any:
    """Return a value as the driver binds it: SQLite has no type of its own for times."""
    if isinstance(value, datetime) and _root_module(connection) == "sqlite3":
        return value.isoformat(sep=" ", timespec="microseconds")
    return value


def _without_values(error: Exception) -> str:
    """Return what a driver says, without the values of rows that errors of data have in their text."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or ""
    if kinds & {"DataError", "IntegrityError"}:
        return f"{type(error).__name__}, a value that the query cannot work with" + (
            f" (SQLSTATE {state})" * bool(state)
        )
    first_line = str(error).strip().partition("\n")[0]
    return re.sub(r"\s+", " ", first_line)[:500] or type(error).__name__
