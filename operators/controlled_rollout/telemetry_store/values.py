"""Make column values of the values in uploads: bounded text, valid UTF-8, valid JSON, finite numbers."""

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from controlled_rollout.telemetry_store.user_hash import KEY_ATTRIBUTE

__all__ = [
    "LATEST_US",
    "MAX_ITEM_COUNT",
    "MalformedError",
    "bounded_text",
    "epoch_microseconds",
    "finite_number",
    "is_success_code",
    "json_text",
    "properties_json",
]

# 2262-04-11, the end of nanoseconds in 64 bits; DuckDB's TIMESTAMP reaches much further.
LATEST_US: Final = 9_223_372_036_854_775
MAX_ITEM_COUNT: Final = 2**31 - 1
# App Insights' own limits, in characters.
MAX_KEY: Final = 150
MAX_PROPERTY: Final = 8_192


class MalformedError(ValueError):
    """An item is not as its protocol requires; the message is sent back to the sender."""


def bounded_text(value: object, limit: int = MAX_PROPERTY) -> str:
    """Convert a JSON value to text of at most `limit` characters that is valid UTF-8; None becomes an empty string."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return json_text(value)[:limit]
    cut = str(value)[:limit]
    # JSON can hold lone surrogates; the database would refuse a whole batch because of one.
    return cut if cut.isascii() else cut.encode("utf-8", "replace").decode("utf-8")


def json_text(value: object) -> str:
    """Serialize a value as compact JSON text that is valid UTF-8.

    Raises:
        MalformedError: It holds NaN or an infinity, which JSON has no form for.
    """
    try:
        document = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"a value cannot be kept as JSON: {error}") from error
    return document if document.isascii() else document.encode("utf-8", "replace").decode("utf-8")


def properties_json(properties: Mapping[str, Any]) -> str:
    """Serialize custom properties as Azure stores them: all values as text, keys and values cut to its limits.

    A caller's key is never kept, whoever has sent it.
    """
    kept = {key: value for key, value in properties.items() if key != KEY_ATTRIBUTE}
    return json_text({bounded_text(key, MAX_KEY): bounded_text(value) for key, value in kept.items()})


def epoch_microseconds(moment: datetime) -> int:
    """Convert a datetime to microseconds since 1970.

    Raises:
        MalformedError: It lies outside what a column can hold.
    """
    try:
        # In two parts: a float cannot carry the microseconds of today's dates exactly.
        stamp = int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond
    except (OverflowError, ValueError, OSError) as error:
        raise MalformedError(f"time {moment!r} is out of range: 1970 to 2262 can be kept") from error
    if not 0 <= stamp <= LATEST_US:
        raise MalformedError(f"time {moment.isoformat()} is out of range: 1970 to 2262 can be kept")
    return stamp


def is_success_code(result_code: str) -> bool:
    """Whether App Insights counts a result code as success: an HTTP status from 100 to 399."""
    return result_code.isdecimal() and 100 <= int(result_code) < 400


def finite_number(value: object, what: str) -> float:
    """Convert a JSON number to a finite float; `what` names it in the error.

    Raises:
        MalformedError: It is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedError(f"{what} is {value!r}: a number was expected")
    try:
        number = float(value)
    except OverflowError as error:
        raise MalformedError(f"{what} is too large: a finite number was expected") from error
    if not math.isfinite(number):
        raise MalformedError(f"{what} is {value!r}: a finite number was expected")
    return number
