"""Make rows of App Insights' upload protocol: JSON envelopes, each accepted or refused by itself.

The exporters of Azure Monitor send it to `/v2.1/track`, as a JSON array or as one JSON object a line.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from controlled_rollout.telemetry_store.item_bounds import MAX_ENVELOPES, TooManyItemsError, check_json_items
from controlled_rollout.telemetry_store.schema import Row
from controlled_rollout.telemetry_store.values import (
    MAX_ITEM_COUNT,
    MalformedError,
    bounded_text,
    epoch_microseconds,
    finite_number,
    is_success_code,
    json_text,
    properties_json,
)

__all__ = ["MEDIA_TYPES", "TrackRows", "duration_ms", "read_envelopes", "rows_of_envelopes", "rows_of_upload"]

# What the exporters of Azure Monitor send. A page of a browser could not, without asking first.
MEDIA_TYPES: Final = ("application/json", "application/x-json-stream")

# D.HH:MM:SS.fffffff; the days and the fraction are optional.
DURATION: Final = re.compile(r"(?:(\d{1,7})\.)?(\d{1,2}):(\d{2}):(\d{2})(?:\.(\d{1,7})\d*)?", re.ASCII)
INSTRUMENTATION_KEY: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
SEVERITIES: Final = {"verbose": 0, "information": 1, "warning": 2, "error": 3, "critical": 4}
# More errors than this are counted and not described, so that the response stays small.
MAX_DESCRIBED_ERRORS: Final = 1_000


@dataclass(slots=True)
class TrackRows:
    """The rows of one upload.

    Attributes:
        rows: Rows by table.
        received: How many envelopes there were.
        accepted: How many of them became rows.
        errors: The others, as the protocol describes them.
        size: The size of the upload, in bytes.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    received: int = 0
    accepted: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0

    @property
    def status(self) -> int:
        """The HTTP status of the response: 200 if all envelopes were accepted, 206 if some were, 400 if none was."""
        if self.accepted == self.received > 0:
            return 200
        return 206 if self.accepted else 400

    def refuse(self, index: int, message: str) -> None:
        """Record the error of one rejected envelope, by its index in the upload."""
        if len(self.errors) < MAX_DESCRIBED_ERRORS:
            self.errors.append({"index": index, "statusCode": 400, "message": message})

    def response(self) -> dict[str, Any]:
        """Return the response's JSON object: numbers of received and accepted envelopes, and the errors."""
        return {"itemsReceived": self.received, "itemsAccepted": self.accepted, "errors": self.errors}


def rows_of_upload(body: bytes, *, key: str | None) -> TrackRows:
    """Convert the body of an upload to rows.

    Args:
        body: The body.
        key: The instrumentation key that items must have, none of which may be a request; None accepts all.

    Raises:
        TooManyItemsError: It holds too much.
    """
    check_json_items(body)
    items = read_envelopes(body)
    if len(items) > MAX_ENVELOPES:
        raise TooManyItemsError(f"the upload has {len(items)} items: {MAX_ENVELOPES} at most, send smaller batches")
    rows = rows_of_envelopes(items if key is None else only_other_items(items, key))
    rows.size = len(body)
    return rows


def read_envelopes(body: bytes) -> list[object]:
    """Split an upload into its JSON envelopes. One that is not JSON becomes a `MalformedError` in its place.

    A body that is no JSON document is read line by line, so that a broken line does not lose the others.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        lines = [line for line in body.splitlines() if line.strip()]
        if len(lines) <= 1 or body.lstrip()[:1] == b"[":
            return [MalformedError(f"not JSON: {error}")]
        return [_parse_json_line(line) for line in lines]
    return document if isinstance(document, list) else [document]


def _parse_json_line(line: bytes) -> object:
    """Parse one line as JSON; return (not raise) a `MalformedError` if it is not JSON."""
    try:
        item: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        return MalformedError(f"not JSON: {error}")
    return item


def only_other_items(items: Iterable[object], key: str) -> list[object]:
    """Return the items with errors in place of those that only the router may send, or that are for another resource.

    Args:
        items: What `read_envelopes` returned.
        key: The instrumentation key that an item must have.
    """
    return [MalformedError(problem) if (problem := _foreign_problem(item, key)) else item for item in items]


def _foreign_problem(item: object, key: str) -> str | None:
    """Return why an item that is not from the router is refused; None if it is not."""
    if not isinstance(item, dict):
        return None
    if str(item.get("iKey", "")).lower() != key.lower():
        return "iKey is not this store's instrumentation key"
    data = item.get("data")
    if isinstance(data, dict) and data.get("baseType") == "RequestData":
        return "only the router may send requests here: they need its token"
    return None


def rows_of_envelopes(items: list[object]) -> TrackRows:
    """Convert envelopes to rows. A malformed envelope is recorded as an error; the others are accepted."""
    result = TrackRows(received=len(items))
    received_us = time.time_ns() // 1_000
    for index, item in enumerate(items):
        try:
            if isinstance(item, MalformedError):
                raise item
            table, rows = _rows_of_envelope(item, received_us)
        except MalformedError as error:
            result.refuse(index, str(error))
            continue
        result.accepted += 1
        result.rows.setdefault(table, []).extend(rows)
    return result


def _rows_of_envelope(item: object, received_us: int) -> tuple[str, list[Row]]:
    """Convert one App Insights envelope; return its table's name and its rows."""
    if not isinstance(item, dict):
        raise MalformedError(f"an envelope is a JSON object, not {type(item).__name__}")
    key = item.get("iKey")
    if not isinstance(key, str) or not INSTRUMENTATION_KEY.fullmatch(key):
        raise MalformedError("iKey is not an instrumentation key (a UUID)")
    stamp = _parse_time(item.get("time"))
    tags = _object_or_empty(item.get("tags"), "tags")
    data = _object_or_empty(item.get("data"), "data")
    base = _object_or_empty(data.get("baseData"), "data.baseData")
    base_type = data.get("baseType")
    if not isinstance(base_type, str) or base_type not in _READERS:
        raise MalformedError(f"data.baseType is {base_type!r}: kept are {', '.join(_READERS)}")
    table, read = _READERS[base_type]
    count = _item_count(item.get("sampleRate"))
    properties = properties_json(_object_or_empty(base.get("properties"), "properties"))
    sender = tuple(bounded_text(tags.get(tag), 1_024) for tag in _CONTEXT_TAGS)
    rows: list[Row] = []
    for values, count_of_row in read(base):
        # The order of schema.CONTEXT.
        items = min(count * count_of_row, MAX_ITEM_COUNT)
        rows.append((stamp, received_us, *values, *sender[:7], key.lower(), *sender[7:], items, properties))
    return table, rows


_CONTEXT_TAGS: Final = (
    "ai.operation.id",
    "ai.operation.name",
    "ai.operation.parentId",
    "ai.cloud.role",
    "ai.cloud.roleInstance",
    "ai.application.ver",
    "ai.internal.sdkVersion",
    "ai.user.id",
    "ai.session.id",
    "ai.location.ip",
    "ai.operation.syntheticSource",
)


def _object_or_empty(value: object, what: str) -> Mapping[str, Any]:
    """Return a JSON object as it is, and an empty one for None; raise `MalformedError` for any other value."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is not a JSON object")
    return value


def _parse_time(value: object) -> int:
    """Parse an envelope's ISO 8601 time; return microseconds since 1970. Without an offset it is in UTC."""
    if not isinstance(value, str):
        raise MalformedError("time is missing")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise MalformedError(f"time {value[:40]!r} is not an ISO 8601 time") from error
    return epoch_microseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _item_count(rate: object) -> int:
    """Return the number of items that a sampled item represents: 4 at a sample rate of 25 per cent."""
    if rate is None:
        return 1
    number = finite_number(rate, "sampleRate")
    if not 0 < number <= 100:
        raise MalformedError(f"sampleRate is {rate!r}: per cent above 0 and up to 100 were expected")
    return min(max(1, round(100 / number)), MAX_ITEM_COUNT)


def duration_ms(value: object) -> float:
    """Parse a .NET duration `D.HH:MM:SS.fffffff`; return milliseconds.

    Raises:
        MalformedError: It is not of this form.
    """
    match = DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise MalformedError(f"duration {str(value)[:40]!r} is not D.HH:MM:SS.fffffff")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[:4])
    if hours > 23 or minutes > 59 or seconds > 59:
        raise MalformedError(f"duration {value!r} has more than 23 hours, 59 minutes or 59 seconds")
    ticks = int((match[5] or "").ljust(7, "0"))
    # In ticks of 100 ns until here: a single division rounds only once.
    return (((days * 24 + hours) * 60 + minutes) * 60 * 10_000_000 + seconds * 10_000_000 + ticks) / 10_000


def _severity_number(value: object) -> int | None:
    """Convert a severity level (a name, or 0 to 4) to its number; None stays None."""
    if value is None:
        return None
    if isinstance(value, str):
        level = SEVERITIES.get(value.lower())
    else:
        level = value if type(value) is int and 0 <= value <= 4 else None
    if level is None:
        raise MalformedError(f"severityLevel is {value!r}: known are {', '.join(SEVERITIES)} and 0 to 4")
    return level


def _success_field(base: Mapping[str, Any], code: str) -> bool:
    """Return an item's field `success`; if it is missing, derive it from the result code."""
    succeeded = base.get("success")
    if succeeded is None:
        return is_success_code(code)
    if not isinstance(succeeded, bool):
        raise MalformedError(f"success is {succeeded!r}: true or false was expected")
    return succeeded


def _required_text(base: Mapping[str, Any], key: str, limit: int) -> str:
    """Return a required string field, cut to `limit` characters; raise `MalformedError` if it is missing or empty."""
    value = base.get(key)
    if not isinstance(value, str) or not value:
        raise MalformedError(f"{key} is missing")
    return bounded_text(value, limit)


def _measurements_json(base: Mapping[str, Any]) -> str:
    """Return the item's custom measurements (finite numbers by name) as JSON text."""
    measurements = _object_or_empty(base.get("measurements"), "measurements")
    return json_text(
        {bounded_text(key, 150): finite_number(value, f"measurement {key!r}") for key, value in measurements.items()}
    )


# For each row: the values of the columns that only this table has, in the schema's order, and how many items it counts.
_Values = list[tuple[Row, int]]


def _request_values(base: Mapping[str, Any]) -> _Values:
    """Convert RequestData to the column values of one AppRequests row."""
    code = bounded_text(base.get("responseCode"), 1_024) or "0"
    return [
        (
            (
                _required_text(base, "id", 512),
                bounded_text(base.get("name"), 1_024),
                bounded_text(base.get("url"), 2_048),
                bounded_text(base.get("source"), 1_024),
                _success_field(base, code),
                code,
                duration_ms(base.get("duration")),
                _measurements_json(base),
            ),
            1,
        )
    ]


def _dependency_values(base: Mapping[str, Any]) -> _Values:
    """Convert RemoteDependencyData to the column values of one AppDependencies row."""
    code = bounded_text(base.get("resultCode"), 1_024)
    succeeded = True if base.get("success") is None and not code else _success_field(base, code)
    return [
        (
            (
                bounded_text(base.get("id"), 512),
                _required_text(base, "name", 1_024),
                bounded_text(base.get("target"), 1_024),
                bounded_text(base.get("type"), 1_024),
                bounded_text(base.get("data"), 8_192),
                succeeded,
                code,
                duration_ms(base.get("duration")),
                _measurements_json(base),
            ),
            1,
        )
    ]


def _exception_values(base: Mapping[str, Any]) -> _Values:
    """Convert ExceptionData to the column values of one AppExceptions row, with outermost and innermost exception."""
    details = base.get("exceptions")
    if not isinstance(details, list) or not details or not all(isinstance(detail, dict) for detail in details):
        raise MalformedError("exceptions is not a list of at least one JSON object")
    frames = [
        stack[0]
        if isinstance(stack := detail.get("parsedStack"), list) and stack and isinstance(stack[0], dict)
        else {}
        for detail in (details[0], details[-1])
    ]
    outer, inner = (
        (bounded_text(detail.get("typeName"), 1_024), bounded_text(detail.get("message"), 32_768), frame)
        for detail, frame in zip((details[0], details[-1]), frames, strict=True)
    )
    outer_assembly, outer_method = (bounded_text(outer[2].get(key), 1_024) for key in ("assembly", "method"))
    inner_assembly, inner_method = (bounded_text(inner[2].get(key), 1_024) for key in ("assembly", "method"))
    values: Row = (
        bounded_text(base.get("problemId"), 1_024) or f"{outer[0]} at {outer_method}",
        outer[0], outer_assembly, outer_method,
        outer[0], outer[1], outer_assembly, outer_method,
        inner[0], inner[1], inner_assembly, inner_method,
        _severity_number(base.get("severityLevel")),
        json_text(details),
        _measurements_json(base),
    )  # fmt: skip
    return [(values, 1)]


def _message_values(base: Mapping[str, Any]) -> _Values:
    """Convert MessageData to the column values of one AppTraces row."""
    values = (
        _required_text(base, "message", 32_768),
        _severity_number(base.get("severityLevel")),
        _measurements_json(base),
    )
    return [(values, 1)]


def _metric_values(base: Mapping[str, Any]) -> _Values:
    """Convert MetricData to column values: one AppMetrics row for each data point."""
    points = base.get("metrics")
    if not isinstance(points, list) or not points:
        raise MalformedError("metrics is not a list of at least one point")
    rows: _Values = []
    for point in points:
        metric = _object_or_empty(point, "a metric")
        total = finite_number(metric.get("value"), "a metric's value")
        count = metric.get("count")
        if count is not None and (type(count) is not int or count < 0):
            raise MalformedError(f"a metric's count is {count!r}: a whole number was expected")
        least, most = (
            total if metric.get(key) is None else finite_number(metric[key], f"a metric's {key}")
            for key in ("min", "max")
        )
        rows.append(
            (
                (_required_text(metric, "name", 1_024), total, least, most),
                1 if count is None else min(count, MAX_ITEM_COUNT),
            )
        )
    return rows


def _event_values(base: Mapping[str, Any]) -> _Values:
    """Convert EventData to the column values of one AppEvents row."""
    return [((_required_text(base, "name", 512), _measurements_json(base)), 1)]


_READERS: Final[dict[str, tuple[str, Callable[[Mapping[str, Any]], _Values]]]] = {
    "RequestData": ("AppRequests", _request_values),
    "RemoteDependencyData": ("AppDependencies", _dependency_values),
    "ExceptionData": ("AppExceptions", _exception_values),
    "MessageData": ("AppTraces", _message_values),
    "MetricData": ("AppMetrics", _metric_values),
    "EventData": ("AppEvents", _event_values),
}
