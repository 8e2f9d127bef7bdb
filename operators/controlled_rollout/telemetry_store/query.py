"""Run a KQL query and encode its rows as the Log Analytics query API does."""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import duckdb  # noqa: TID253 - runs only inside the store's own process
from duckdb_kql.types import kusto_type

from controlled_rollout.telemetry_store.database import Database
from controlled_rollout.telemetry_store.kql import QueryRefusedError, parse_timespan, translate
from controlled_rollout.telemetry_store.query_limits import QueryLimits
from controlled_rollout.telemetry_store.responses import ApiResponse, error_response, low_memory_response

__all__ = ["run_query"]

log = logging.getLogger(__name__)

FETCHED_ROWS: Final = 2_000


def _refused_query_response(error: QueryRefusedError) -> ApiResponse:
    """Return the error response for a KQL query that cannot be run, with Azure's nested error codes."""
    message = {
        "SyntaxError": "A recognition error occurred in the query.",
        "SemanticError": "A semantic error occurred.",
    }.get(error.kind, str(error))
    inner: dict[str, Any] = {"code": error.kind, "message": message}
    if error.kind in ("SyntaxError", "SemanticError"):
        inner["innererror"] = error.inner
    return error_response(400, "BadArgumentError", "The request had some invalid properties", inner)


def run_query(
    database: Database,
    query: object,
    *,
    timespan: object,
    workspace_id: str,
    limits: QueryLimits,
    with_statistics: bool = False,
) -> ApiResponse:
    """Translate a KQL query, run it and encode its rows as JSON. Every failure becomes an error response.

    It takes as long, and as much memory, as the query wants: `query_process` bounds both.

    Args:
        database: The rows.
        query: The KQL, if it is text.
        timespan: An ISO 8601 duration or interval laid over TimeGenerated; None for all rows.
        workspace_id: The value of the column TenantId.
        limits: Rows and bytes beyond which the result is partial.
        with_statistics: Whether the response tells how long the query took.
    """
    if not isinstance(query, str) or not isinstance(timespan, str | None):
        return error_response(400, "BadArgumentError", "query must be text, timespan text or nothing")
    started = time.monotonic()
    try:
        statement = translate(query)
        start, end = parse_timespan(timespan, datetime.now(UTC))
    except QueryRefusedError as error:
        return _refused_query_response(error)
    with database.cursor() as cursor:
        try:
            # A translated query cannot write; the transaction is a second safeguard.
            cursor.execute("BEGIN TRANSACTION READ ONLY")
            cursor.execute(statement.sql_for_rows(workspace_id, start, end), statement.parameters or None)
            return _encode_result(cursor, limits, started, with_statistics=with_statistics)
        except duckdb.Error as error:
            return _failed_query_response(error)


def _failed_query_response(error: duckdb.Error) -> ApiResponse:
    """Convert a DuckDB error to Azure's error response: too little memory, or semantic error."""
    message = str(error).partition("\n")[0]
    if isinstance(error, duckdb.OutOfMemoryException):
        return low_memory_response(message)
    resolved = not isinstance(error, duckdb.BinderException | duckdb.CatalogException)
    if resolved:
        log.info("query failed: %s", message)
    return _refused_query_response(
        QueryRefusedError("SemanticError", message, code="SEM0000" if resolved else "SEM0100")
    )


def _encode_result(
    cursor: duckdb.DuckDBPyConnection, limits: QueryLimits, started: float, *, with_statistics: bool
) -> ApiResponse:
    """Fetch the rows of a query and return the response; cut at the limits and marked as a partial error if too big."""
    description = cursor.description or []
    types = [kusto_type(column[1]) for column in description]
    columns = [{"name": column[0], "type": name} for column, name in zip(description, types, strict=True)]
    encoders = [_ENCODERS.get(name, _as_text) for name in types]
    parts: list[bytes] = []
    count = size = 0
    exceeded = ""
    while rows := cursor.fetchmany(min(FETCHED_ROWS, limits.max_rows + 1 - count)):
        if count + len(rows) > limits.max_rows:
            rows = rows[: limits.max_rows - count]
            exceeded = f"The results of this query exceed the set limit of {limits.max_rows} records."
        encoded = _encode_rows(rows, encoders)
        if size + len(encoded) > limits.max_bytes:
            exceeded = f"The results of this query exceed the set limit of {limits.max_bytes} bytes."
            break
        count += len(rows)
        size += len(encoded)
        if encoded:
            parts.append(encoded)
        if exceeded:
            break
    tail: dict[str, Any] = {}
    if with_statistics:
        tail["statistics"] = {"query": {"executionTime": round(time.monotonic() - started, 6)}}
    if exceeded:
        tail["error"] = _partial_error(exceeded)
    head = json.dumps({"name": "PrimaryResult", "columns": columns})[:-1]
    end = json.dumps(tail)[1:]
    body = b'{"tables":[' + head.encode() + b',"rows":[' + b",".join(parts) + b"]}]"
    return ApiResponse(200, body + (b"," + end.encode() if tail else b"}"))


def _partial_error(message: str) -> dict[str, Any]:
    """Return the `error` object that Azure adds to a result that was cut at a limit."""
    return {
        "code": "PartialError",
        "message": "There were some errors when processing your query.",
        "details": [
            {
                "code": "EngineError",
                "message": "Something went wrong processing your query on the server.",
                "innererror": {"code": "-2133196797", "message": message, "severity": 2, "severityName": "Error"},
            }
        ],
    }


def _encode_rows(rows: Sequence[Sequence[Any]], encoders: Sequence[Callable[[Any], Any]]) -> bytes:
    """Encode rows as the JSON text of a list without its brackets. Each column has its own encoder."""
    encoded = [
        [_encode_null(encode) if value is None else encode(value) for encode, value in zip(encoders, row, strict=True)]
        for row in rows
    ]
    return json.dumps(encoded, separators=(",", ":"))[1:-1].encode()


def _encode_null(encode: Callable[[Any], Any]) -> str | None:
    """Return the JSON value of NULL for a column: an empty string for KQL strings, which are never null, else None."""
    return "" if encode is _as_text else None


def _as_text(value: Any) -> str:
    """Encode a value of the KQL type string, or of a type without an own encoder."""
    return str(value)


def _as_guid(value: Any) -> str:
    """Encode a value of the KQL type guid as text."""
    return str(value)


def _as_datetime(value: Any) -> str:
    """Encode a datetime or date as Azure does: ISO 8601 in UTC with a `Z`, without trailing zeros."""
    if isinstance(value, datetime):
        moment = value.astimezone(UTC) if value.tzinfo else value
        # Azure writes no fraction where it is zero, and no zeros at its end.
        fraction = f".{moment.microsecond:06d}".rstrip("0").rstrip(".")
        return moment.replace(tzinfo=None).isoformat(timespec="seconds") + fraction + "Z"
    return f"{value.isoformat()}T00:00:00Z" if isinstance(value, date) else str(value)


def _as_timespan(value: Any) -> str:
    """Encode a timedelta in KQL's format `[-][D.]HH:MM:SS[.fffffff]`."""
    if not isinstance(value, timedelta):
        return str(value)
    sign, value = ("-", -value) if value < timedelta(0) else ("", value)
    clock = f"{value.seconds // 3600:02d}:{value.seconds // 60 % 60:02d}:{value.seconds % 60:02d}"
    fraction = f".{value.microseconds:06d}0" if value.microseconds else ""
    return f"{sign}{f'{value.days}.' if value.days else ''}{clock}{fraction}"


def _as_real(value: Any) -> float | str:
    """Encode a float; NaN and infinities, which JSON does not have, become text."""
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _as_dynamic(value: Any) -> str:
    """Encode a value of the KQL type dynamic as JSON text, as Azure does."""
    return value if isinstance(value, str) else json.dumps(value, default=str, separators=(",", ":"))


def _as_decimal(value: Any) -> str:
    """Encode a value of the KQL type decimal as text without an exponent."""
    return format(value, "f") if isinstance(value, Decimal) else str(value)


_ENCODERS: Final[dict[str, Callable[[Any], Any]]] = {
    "string": _as_text,
    "guid": _as_guid,
    "datetime": _as_datetime,
    "timespan": _as_timespan,
    "real": _as_real,
    "decimal": _as_decimal,
    "long": int,
    "int": int,
    "bool": bool,
    "dynamic": _as_dynamic,
}
