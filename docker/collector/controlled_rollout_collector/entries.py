"""Records of a spool as entries of collections: a request's input, its answer, and what scripts collect."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from controlled_rollout_collector.rows import Row, Rows, read_rows, read_script_rows
from controlled_rollout_collector.selection import Selection

__all__ = ["INPUTS", "PREDICTIONS", "Entry", "UnreadableRecordError", "read_entries"]

INPUTS: Final = "inputs"
PREDICTIONS: Final = "predictions"
# Before the name of a script's collection that is called like one of those: its rows are not the requests' own.
SCRIPT_PREFIX: Final = "script-"
# A longer body is kept as its type, size and SHA-256: as rows it may take fifty times as much memory as it has bytes.
MAX_BODY_BYTES: Final = 8 * 1024 * 1024
# A record of a time that is none is of the year 1970; the last time that a date can be made of.
LAST_TIME_S: Final = 253_402_300_799.0


class UnreadableRecordError(Exception):
    """A record is not as the scoring runtime writes them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one request, or one call of a script's collector, adds to a collection.

    Attributes:
        collection: The collection.
        request_id: The request's id.
        correlation_id: The caller's own id.
        time_us: When the request arrived, or the script collected, in microseconds since 1970.
        duration_ms: How long the request took; None for what a script collects, and for inputs.
        status: The answer's status; None for what a script collects.
        content_type: The body's media type.
        size: The body's size, in bytes.
        sha256: The body's SHA-256, hexadecimal.
        truncated: Whether the body, or its rows, are not kept because they are too many.
        body: The body, if it is kept and no rows.
        rows: The rows: at least one of a request, and none of an empty table that a script has collected.
        fields: What a script's collector has added, such as the names of its model.
        is_script: Whether a script has collected it.
        is_addressed: Whether the caller named the version, so that the split has not chosen it: no evidence for a gate.
    """

    collection: str
    request_id: str
    correlation_id: str
    time_us: int
    duration_ms: float | None
    status: int | None
    content_type: str
    size: int
    sha256: str
    truncated: bool
    body: bytes | None
    rows: Sequence[Row]
    fields: Mapping[str, Any] = field(default_factory=dict)
    is_script: bool = False
    is_addressed: bool = False


def read_entries(head_text: bytes, bodies: memoryview, selection: Selection) -> list[Entry]:
    """Return the entries of a record.

    Args:
        head_text: Its JSON head.
        bodies: Its bodies, one behind the other.
        selection: What of the rows is kept.

    Raises:
        UnreadableRecordError: The record is not as the scoring runtime writes them.
    """
    try:
        head = json.loads(head_text)
        if head["kind"] == "exchange":
            return _request_and_answer_entries(head, bodies, selection)
        if head["kind"] == "collected":
            return [_collected_entry(head, bodies, selection)]
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnreadableRecordError(f"{type(error).__name__}: {error}") from error
    raise UnreadableRecordError(f"its kind is {head['kind']!r}")


def _request_and_answer_entries(head: Mapping[str, Any], bodies: memoryview, selection: Selection) -> list[Entry]:
    """Return the two entries of a request and its answer."""
    asked, answered = head["request"], head["response"]
    if asked["kept"] + answered["kept"] != len(bodies):
        raise ValueError(f"it has {len(bodies)} bytes of bodies, and not {asked['kept']} and {answered['kept']}")
    parts = bodies[: asked["kept"]], bodies[asked["kept"] :]
    return [
        _entry(head, INPUTS, asked, parts[0], selection),
        _entry(head, PREDICTIONS, answered, parts[1], selection),
    ]


def _entry(
    head: Mapping[str, Any], collection: str, described: Mapping[str, Any], body: memoryview, selection: Selection
) -> Entry:
    """Return the entry of a request's body or of its answer's."""
    is_answer = collection == PREDICTIONS
    size, content_type = int(described["size"]), _text(described["type"])
    is_cut = size > len(body)
    read = _rows_of_body(body, is_cut, lambda content: read_rows(content, content_type, is_answer=is_answer))
    keeps_body = not read.is_data and not read.too_large and not selection.has_rules
    return Entry(
        collection=collection,
        request_id=_text(head["id"]),
        correlation_id=_text(head["correlation"]),
        time_us=_microseconds(head["time"]),
        duration_ms=float(head["duration_ms"]) if is_answer else None,
        status=int(head["status"]),
        content_type=content_type,
        size=size,
        sha256=_text(described.get("sha256") or hashlib.sha256(body).hexdigest()),
        truncated=read.too_large,
        body=bytes(body) if keeps_body and body else None,
        rows=selection.apply(read.rows, collection) or [{}],
        is_addressed=head.get("addressed") is True,
    )


def _rows_of_body(body: memoryview, is_cut: bool, read: Callable[[bytes], Rows]) -> Rows:
    """Return the rows of a body, none of one that is not whole or takes too much memory."""
    return Rows(is_data=False, too_large=True) if is_cut or len(body) > MAX_BODY_BYTES else read(bytes(body))


def _collected_entry(head: Mapping[str, Any], body: memoryview, selection: Selection) -> Entry:
    """Return the entry of what a script has collected."""
    name, columns = _text(head["collection"]), head.get("columns")
    if columns is not None and not isinstance(columns, list):
        raise ValueError(f"its columns are {columns!r:.200}, which is not a list")
    read = _rows_of_body(body, False, lambda content: read_script_rows(content, columns))
    collection = SCRIPT_PREFIX + name if name in (INPUTS, PREDICTIONS) else name
    return Entry(
        collection=collection,
        request_id=_text(head["id"]),
        correlation_id=_text(head["correlation"]),
        time_us=_microseconds(head["time"]),
        duration_ms=None,
        status=None,
        content_type="application/json",
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        truncated=read.too_large,
        body=None if read.is_data or read.too_large or selection.has_rules else bytes(body),
        # Rules that name the collection mean the name that the script has given it.
        rows=selection.apply(read.rows, name) if read.is_data else [{}],
        fields={key: value for key, value in head.items() if isinstance(key, str)},
        is_script=True,
        is_addressed=head.get("addressed") is True,
    )


def _text(value: Any) -> str:
    """Return a text of a record's head, as it can be written in UTF-8; raise TypeError if it is none."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value.encode("utf-8", "replace").decode()


def _microseconds(seconds: Any) -> int:
    """Return a time in microseconds; a time that no clock should show is 1970."""
    number = float(seconds)
    return round(number * 1e6) if math.isfinite(number) and 0 <= number <= LAST_TIME_S else 0
