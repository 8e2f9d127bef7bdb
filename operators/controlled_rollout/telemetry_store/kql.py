"""Translate KQL to one SELECT over the store's tables, or refuse it with the error that Azure would return."""

import atexit
import json
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import duckdb  # noqa: TID253 - runs only inside the store's own process
import duckdb_kql
from pydantic import TypeAdapter

from controlled_rollout.telemetry_store.schema import TABLES

__all__ = ["QueryRefusedError", "Statement", "parse_timespan", "translate"]

# The parser is written in Python and takes seconds for a query of this length; a quoted text counts as one word.
MAX_QUERY_LENGTH: Final = 32_768
MAX_TEXT_LENGTH: Final = 1_000_000
# Longer queries are not cached: a few hundred of them would fill the memory.
MAX_CACHED_LENGTH: Final = 16_384
QUOTED: Final = re.compile(r"""(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|//[^\n]*)""")
# Azure's function for the time at which a row arrived; here the column `_TimeReceived` holds it.
INGESTION_TIME: Final = re.compile(r"\bingestion_time\s*\(\s*\)")
ISO_8601: Final = TypeAdapter(timedelta)
SCHEMA: Final = {name: table.column_names for name, table in TABLES.items()}

# Table functions that make rows of values in the query itself.
TABLE_FUNCTIONS: Final = frozenset({"unnest", "range", "generate_series"})

# One translation at a time: all instances of the parser share a cache that is not thread-safe.
_translating = threading.Lock()


class QueryRefusedError(Exception):
    """The query cannot be run.

    Attributes:
        kind: The code of Azure's inner error, such as SyntaxError, SemanticError or NotSupportedError.
        inner: Azure's code of the problem (SYN0002, SEM0100, …) with its message and position.
    """

    def __init__(self, kind: str, message: str, **inner: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.inner = {"message": message, **inner}


@dataclass(frozen=True, slots=True)
class Statement:
    """A translated query.

    Attributes:
        sql: One SELECT that names the store's tables; `sql_for_rows` limits their rows.
        parameters: The values of its placeholders.
        tables: The names of the tables that it reads.
    """

    sql: str
    parameters: dict[str, Any] = field(default_factory=dict)
    tables: tuple[str, ...] = ()

    def sql_for_rows(self, workspace_id: str, start: datetime | None, end: datetime | None) -> str:
        """Return the SQL that runs this query on the rows of one workspace with TimeGenerated in [start, end]."""
        if not self.tables:
            return self.sql
        views = ", ".join(
            f'"{name}" AS NOT MATERIALIZED ({TABLES[name].view_sql(workspace_id, start, end)})' for name in self.tables
        )
        return f"WITH {views} SELECT * FROM ({self.sql}\n)"  # noqa: S608 - translated, checked, from our own names


def translate(query: str) -> Statement:
    """Translate a KQL query, and check that the result reads nothing but the store's tables.

    Raises:
        QueryRefusedError: It is no KQL, is not supported, or reads something else.
    """
    return _translate_cached(query) if len(query) <= MAX_CACHED_LENGTH else _translate(query)


@lru_cache(maxsize=256)
def _translate_cached(query: str) -> Statement:
    """Translate a KQL query to SQL, with an LRU cache by query text."""
    return _translate(query)


def _translate(query: str) -> Statement:
    """Check a KQL query's size and syntax, and translate it to SQL that reads only the store's tables."""
    length = len(QUOTED.sub("", query)) if len(query) <= MAX_TEXT_LENGTH else len(query)
    if length > MAX_QUERY_LENGTH:
        raise QueryRefusedError(
            "QueryTooLong",
            f"the query has {length} characters outside quotes: at most {MAX_QUERY_LENGTH} are accepted, and "
            f"{MAX_TEXT_LENGTH} in all",
        )
    query = _with_time_received(query)
    if not query.strip():
        raise QueryRefusedError("SyntaxError", "the query is empty", code="SYN0001")
    if _without_leading_comments(query).startswith("."):
        raise QueryRefusedError("NotSupportedError", "control commands are not allowed in queries", code="SYN0002")
    try:
        with _translating:
            translated = duckdb_kql.to_sql(query, schema=SCHEMA, allow_write=False, clusters={}, functions=[])
    except duckdb_kql.KqlSyntaxError as error:
        raise _syntax_error(query, error) from error
    except duckdb_kql.KqlUnsupportedError as error:
        message = f"{error}: Azure may know it, this store does not (docs/telemetry-store.md lists what it knows)"
        raise QueryRefusedError("NotSupportedError", message, code="NotSupported") from error
    except duckdb_kql.KqlError as error:
        raise QueryRefusedError("SemanticError", str(error), code="SEM0100") from error
    except RecursionError as error:
        raise QueryRefusedError("SyntaxError", "the query is nested too deeply", code="SYN0003") from error
    if translated.unbound:
        names = ", ".join(translated.unbound)
        raise QueryRefusedError("SemanticError", f"query parameters without a value: {names}", code="SEM0100")
    sql = str(translated)
    return Statement(sql, dict(translated.parameters), _table_names_read(sql))


def _with_time_received(query: str) -> str:
    """Replace `ingestion_time()` in a KQL query by the column `_TimeReceived`. Error positions stay right."""
    if "ingestion_time" not in query:
        return query
    parts = QUOTED.split(query)
    for index in range(0, len(parts), 2):
        parts[index] = INGESTION_TIME.sub(lambda call: "_TimeReceived".ljust(len(call[0])), parts[index])
    return "".join(parts)


def _without_leading_comments(query: str) -> str:
    """Return a KQL query without the spaces and comments before its first statement."""
    return re.sub(r"\A(?:\s+|//[^\n]*(?:\n|\Z))*", "", query)


def _syntax_error(query: str, error: duckdb_kql.KqlSyntaxError) -> QueryRefusedError:
    """Convert a parser error to a `QueryRefusedError` that names the token, the line and the column, as Azure does."""
    if not error.diagnostics:
        return QueryRefusedError("SyntaxError", str(error), code="SYN0002")
    span = error.diagnostics[0].span
    lines = query.splitlines() or [""]
    line = lines[min(span.line, len(lines)) - 1]
    match = re.match(r"\w+|\S|\Z", line[span.column :])
    token = match[0] if match else ""
    where = f"'{token}'" if token else "the end"
    return QueryRefusedError(
        "SyntaxError",
        f"Query could not be parsed at {where} on line [{span.line},{span.column + 1}]",
        code="SYN0002",
        line=span.line,
        pos=span.column + 1,
        token=token,
    )


def _table_names_read(sql: str) -> tuple[str, ...]:
    """Return the names of the store's tables that translated SQL reads; raise if it reads anything else.

    The translator already refuses other tables. This is a second, independent check on the SQL as DuckDB parses it: one
    statement, a SELECT, over our tables by their exact names, without a function that reads from anywhere else.

    Raises:
        QueryRefusedError: It reads anything else.
    """
    parser, built_in = _parser_connection()
    try:
        with parser.cursor() as cursor:
            # DuckDB serializes nothing but SELECT statements.
            [(serialized,)] = cursor.execute("SELECT json_serialize_sql($1)", [sql]).fetchall()
        document = json.loads(serialized)
    except (duckdb.Error, RecursionError) as error:
        raise QueryRefusedError("SemanticError", f"the query cannot be translated: {error}") from error
    if document.get("error") or len(document["statements"]) != 1:
        raise QueryRefusedError("NotSupportedError", "only one statement that reads is allowed", code="NotSupported")
    names, defined = _read_and_defined_tables(document)
    for name in sorted(names - TABLES.keys()):
        # A table that the query itself defines may be read, unless it has the name of one of DuckDB's own.
        if name not in defined or name.lower() in built_in:
            raise QueryRefusedError(
                "SemanticError",
                f"Failed to resolve table or column expression named '{name}'. Kept are: {', '.join(TABLES)}",
                code="SEM0100",
            )
    return tuple(sorted(names & TABLES.keys()))


@lru_cache(maxsize=1)
def _parser_connection() -> tuple[duckdb.DuckDBPyConnection, frozenset[str]]:
    """Return an empty DuckDB connection for parsing SQL, and the names of DuckDB's built-in views."""
    parser = duckdb.connect(":memory:", config={"enable_external_access": False, "threads": 1})
    # DuckDB warns on stderr about connections that are open when the interpreter ends.
    atexit.register(_parser_connection.cache_clear)
    views = parser.execute("SELECT view_name FROM duckdb_views()").fetchall()
    return parser, frozenset(name.lower() for (name,) in views)


def _read_and_defined_tables(document: object) -> tuple[set[str], set[str]]:
    """Return the table names that a parsed SQL statement (JSON) reads, and those that it defines itself (CTEs)."""
    names: set[str] = set()
    defined: set[str] = set()
    nodes = [document]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes.extend(node)
        if not isinstance(node, dict):
            continue
        nodes.extend(node.values())
        if isinstance(node.get("cte_map"), dict):
            defined.update(entry["key"] for entry in node["cte_map"]["map"])
        if node.get("type") == "BASE_TABLE":
            names.add(".".join(part for part in node["qualified_name"]["path"] if part))
        elif node.get("type") == "TABLE_FUNCTION":
            called = str(node["function"]["function_name"]).lower()
            if called not in TABLE_FUNCTIONS:
                raise QueryRefusedError("NotSupportedError", f"function {called!r} is not allowed", code="NotSupported")
    return names, defined


def parse_timespan(text: str | None, now: datetime) -> tuple[datetime | None, datetime | None]:
    """Parse an ISO 8601 duration that ends now, or an interval; return its start and its end.

    Args:
        text: Such as `PT1H`, `2026-03-01T12:00:00Z/PT1H` or `2026-03-01/2026-03-02`; None is no bound.
        now: The present moment.

    Raises:
        QueryRefusedError: It is neither.
    """
    if not text:
        return None, None
    first, slash, second = text.partition("/")
    try:
        if not slash:
            return now - _parse_duration(first), now
        if first.startswith("P"):
            end = _parse_time(second)
            return end - _parse_duration(first), end
        start = _parse_time(first)
        end = start + _parse_duration(second) if second.startswith("P") else _parse_time(second)
    except (ValueError, OverflowError) as error:
        message = f"timespan {text[:80]!r} is no ISO 8601 duration or interval"
        raise QueryRefusedError("InvalidTimespan", message) from error
    return start, end


def _parse_duration(text: str) -> timedelta:
    """Parse an ISO 8601 duration. Raise for years and months, because their duration is not fixed."""
    if not text.startswith("P") or set(text.partition("T")[0]) & {"Y", "M"}:
        raise ValueError(text)
    return ISO_8601.validate_python(text)


def _parse_time(text: str) -> datetime:
    """Parse an ISO 8601 date and time; without an offset it is in UTC."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
