"""Make rows of App Insights' upload protocol: JSON envelopes, each accepted or refused by itself.

The exporters of Azure Monitor send it to `/v2.1/track`, as a JSON array or as one JSON object a line.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from controlled_rollout.telemetry_store.schema import Row
from controlled_rollout.telemetry_store.values import (
    MAX_ITEM_COUNT,
    MalformedError,
    finite,
    json_text,
    microseconds,
    properties_json,
    success,
    text,
)

__all__ = ["TrackRows", "duration_ms", "read_envelopes", "rows_of"]

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
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    received: int = 0
    accepted: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The response's status: 200 if all envelopes were accepted, 206 if some were, 400 if none was."""
        if self.accepted == self.received > 0:
            return 200
        return 206 if self.accepted else 400

    def refuse(self, index: int, message: str) -> None:
        """Record one refused envelope by its index."""
        if len(self.errors) < MAX_DESCRIBED_ERRORS:
            self.errors.append({"index": index, "statusCode": 400, "message": message})

    def response(self) -> dict[str, Any]:
        """Return the JSON document of the response."""
        return {"itemsReceived": self.received, "itemsAccepted": self.accepted, "errors": self.errors}


def read_envelopes(body: bytes) -> list[object]:
    """Return the envelopes of an upload; one that is not JSON becomes a `MalformedError` in its place.

    A body that is no JSON document is read line by line, so that a broken line does not lose the others.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        lines = [line for line in body.splitlines() if line.strip()]
        if len(lines) <= 1 or body.lstrip()[:1] == b"[":
            return [MalformedError(f"not JSON: {error}")]
        return [_read_line(line) for line in lines]
    return document if isinstance(document, list) else [document]


def _read_line(line: bytes) -> object:
    try:
        item: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        return MalformedError(f"not JSON: {error}")
    return item


def rows_of(items: list[object]) -> TrackRows:
    """Make rows of envelopes; a malformed one is refused by its index, the others are accepted."""
    result = TrackRows(received=len(items))
    received_us = time.time_ns() // 1_000
    for index, item in enumerate(items):
        try:
            if isinstance(item, MalformedError):
                raise item
            table, rows = _envelope(item, received_us)
        except MalformedError as error:
            result.refuse(index, str(error))
            continue
        result.accepted += 1
        result.rows.setdefault(table, []).extend(rows)
    return result


def _envelope(item: object, received_us: int) -> tuple[str, list[Row]]:
    if not isinstance(item, dict):
        raise MalformedError(f"an envelope is a JSON object, not {type(item).__name__}")
    key = item.get("iKey")
    if not isinstance(key, str) or not INSTRUMENTATION_KEY.fullmatch(key):
        raise MalformedError("iKey is not an instrumentation key (a UUID)")
    stamp = _time(item.get("time"))
    tags = _mapping(item.get("tags"), "tags")
    data = _mapping(item.get("data"), "data")
    base = _mapping(data.get("baseData"), "data.baseData")
    base_type = data.get("baseType")
    if not isinstance(base_type, str) or base_type not in _READERS:
        raise MalformedError(f"data.baseType is {base_type!r}: kept are {', '.join(_READERS)}")
    table, read = _READERS[base_type]
    count = _item_count(item.get("sampleRate"))
    properties = properties_json(_mapping(base.get("properties"), "properties"))
    sender = tuple(text(tags.get(tag), 1_024) for tag in _CONTEXT_TAGS)
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


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedError(f"{what} is not a JSON object")
    return value


def _time(value: object) -> int:
    if not isinstance(value, str):
        raise MalformedError("time is missing")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise MalformedError(f"time {value[:40]!r} is not an ISO 8601 time") from error
    return microseconds(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _item_count(rate: object) -> int:
    """Return how many items an item with this sample rate stands for: 4 at a rate of 25 per cent."""
    if rate is None:
        return 1
    number = finite(rate, "sampleRate")
    if not 0 < number <= 100:
        raise MalformedError(f"sampleRate is {rate!r}: per cent above 0 and up to 100 were expected")
    return min(max(1, round(100 / number)), MAX_ITEM_COUNT)


def duration_ms(value: object) -> float:
    """Read a duration, `D.HH:MM:SS.fffffff`, as milliseconds.

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


def _severity(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, str):
        level = SEVERITIES.get(value.lower())
    else:
        level = value if type(value) is int and 0 <= value <= 4 else None
    if level is None:
        raise MalformedError(f"severityLevel is {value!r}: known are {', '.join(SEVERITIES)} and 0 to 4")
    return level


def _succeeded(base: Mapping[str, Any], code: str) -> bool:
    succeeded = base.get("success")
    if succeeded is None:
        return success(code)
    if not isinstance(succeeded, bool):
        raise MalformedError(f"success is {succeeded!r}: true or false was expected")
    return succeeded


def _required(base: Mapping[str, Any], key: str, limit: int) -> str:
    value = base.get(key)
    if not isinstance(value, str) or not value:
        raise MalformedError(f"{key} is missing")
    return text(value, limit)


def _measurements(base: Mapping[str, Any]) -> str:
    measurements = _mapping(base.get("measurements"), "measurements")
    return json_text({text(key, 150): finite(value, f"measurement {key!r}") for key, value in measurements.items()})


# For each row: the values of the columns that only this table has, in the schema's order, and how many items it counts.
_Values = list[tuple[Row, int]]


def _request(base: Mapping[str, Any]) -> _Values:
    code = text(base.get("responseCode"), 1_024) or "0"
    return [
        (
            (
                _required(base, "id", 512),
                text(base.get("name"), 1_024),
                text(base.get("url"), 2_048),
                text(base.get("source"), 1_024),
                _succeeded(base, code),
                code,
                duration_ms(base.get("duration")),
                _measurements(base),
            ),
            1,
        )
    ]


def _dependency(base: Mapping[str, Any]) -> _Values:
    code = text(base.get("resultCode"), 1_024)
    succeeded = True if base.get("success") is None and not code else _succeeded(base, code)
    return [
        (
            (
                text(base.get("id"), 512),
                _required(base, "name", 1_024),
                text(base.get("target"), 1_024),
                text(base.get("type"), 1_024),
                text(base.get("data"), 8_192),
                succeeded,
                code,
                duration_ms(base.get("duration")),
                _measurements(base),
            ),
            1,
        )
    ]


def _exception(base: Mapping[str, Any]) -> _Values:
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
        (text(detail.get("typeName"), 1_024), text(detail.get("message"), 32_768), frame)
        for detail, frame in zip((details[0], details[-1]), frames, strict=True)
    )
    outer_assembly, outer_method = (text(outer[2].get(key), 1_024) for key in ("assembly", "method"))
    inner_assembly, inner_method = (text(inner[2].get(key), 1_024) for key in ("assembly", "method"))
    values: Row = (
        text(base.get("problemId"), 1_024) or f"{outer[0]} at {outer_method}",
        outer[0], outer_assembly, outer_method,
        outer[0], outer[1], outer_assembly, outer_method,
        inner[0], inner[1], inner_assembly, inner_method,
        _severity(base.get("severityLevel")),
        json_text(details),
        _measurements(base),
    )  # fmt: skip
    return [(values, 1)]


def _message(base: Mapping[str, Any]) -> _Values:
    values = (_required(base, "message", 32_768), _severity(base.get("severityLevel")), _measurements(base))
    return [(values, 1)]


def _metric(base: Mapping[str, Any]) -> _Values:
    points = base.get("metrics")
    if not isinstance(points, list) or not points:
        raise MalformedError("metrics is not a list of at least one point")
    rows: _Values = []
    for point in points:
        metric = _mapping(point, "a metric")
        total = finite(metric.get("value"), "a metric's value")
        count = metric.get("count")
        if count is not None and (type(count) is not int or count < 0):
            raise MalformedError(f"a metric's count is {count!r}: a whole number was expected")
        least, most = (
            total if metric.get(key) is None else finite(metric[key], f"a metric's {key}") for key in ("min", "max")
        )
        rows.append(
            ((_required(metric, "name", 1_024), total, least, most), 1 if count is None else min(count, MAX_ITEM_COUNT))
        )
    return rows


def _event(base: Mapping[str, Any]) -> _Values:
    return [((_required(base, "name", 512), _measurements(base)), 1)]


_READERS: Final[dict[str, tuple[str, Callable[[Mapping[str, Any]], _Values]]]] = {
    "RequestData": ("AppRequests", _request),
    "RemoteDependencyData": ("AppDependencies", _dependency),
    "ExceptionData": ("AppExceptions", _exception),
    "MessageData": ("AppTraces", _message),
    "MetricData": ("AppMetrics", _metric),
    "EventData": ("AppEvents", _event),
}
