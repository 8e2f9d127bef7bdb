"""Reads and writes lengths of time as people write them: `5 min`, `1.5 h`, `PT5M`."""

import math
import re
from datetime import timedelta
from typing import Annotated, Final

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    WrapSerializer,
)

__all__ = ["Duration", "format_duration", "format_elapsed", "parse_duration"]

SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400}
NUMBER_AND_UNIT: Final = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(SECONDS)})?")
ISO_8601: Final = TypeAdapter(timedelta)
MONTHS_OR_YEARS: Final = re.compile(r"P[^T]*[MY]")
# Longer waits mean nothing, and their sum with a date is beyond the calendar.
LONGEST: Final = timedelta(days=3660)


def parse_duration(value: timedelta | float | str) -> timedelta:
    """Return a duration from a timedelta, a number of seconds, or text such as `5 min` or `PT5M`.

    Args:
        value: A timedelta; a number of seconds; or text: a number with the unit `s`, `min`, `h` or `d` (none means
            seconds), or an ISO 8601 duration such as `PT1H30M` without months and years.

    Raises:
        ValueError: It is none of these, negative, longer than ten years, or has months or years.
    """
    if isinstance(value, str) and MONTHS_OR_YEARS.match(value.strip()):
        raise ValueError(
            f"{value!r} is not a length of time, because months and years have no fixed length: give days, such as "
            "'30 d' or 'P30D'"
        )
    length: timedelta | None = None
    try:
        if isinstance(value, timedelta):
            length = value
        elif isinstance(value, str):
            length = _parse_duration_text(value.strip())
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            length = timedelta(seconds=value)
    except (ValidationError, OverflowError):
        length = None
    if length is None or not timedelta(0) <= length <= LONGEST:
        raise ValueError(
            f"{value!r} is not a length of time: give a timedelta, seconds, or text such as '5 min' or 'PT5M', of ten "
            "years at most"
        )
    return length


def _parse_duration_text(text: str) -> timedelta | None:
    """Return the duration that a text such as `5 min` or `PT5M` means; None if it is neither form."""
    if match := NUMBER_AND_UNIT.fullmatch(text):
        return timedelta(seconds=float(match[1]) * SECONDS[match[2] or "s"])
    return ISO_8601.validate_python(text) if text.startswith("P") else None


def _dump_duration(length: timedelta, dump: SerializerFunctionWrapHandler) -> object:
    """Return a duration as Pydantic writes it in JSON, in days where that would be years, which are not read."""
    if length.days < 365:
        return dump(length)
    rest = str(dump(length - timedelta(days=length.days)))
    return f"P{length.days}D" + (rest.removeprefix("P") if rest != "PT0S" else "")


# A setting that is a length of time; for a schema what `parse_duration` reads, as far as a pattern can say it.
Duration = Annotated[
    timedelta,
    BeforeValidator(
        parse_duration,
        json_schema_input_type=Annotated[float, Field(ge=0, le=LONGEST.total_seconds())]
        | Annotated[
            str,
            Field(
                pattern=r"^\s*([0-9]+([.][0-9]+)?\s*(s|min|h|d)?|P[0-9][0-9.]*[DW].*|PT[0-9].*)\s*$",
                examples=["5 min", "PT5M"],
            ),
        ],
    ),
    WrapSerializer(_dump_duration, when_used="json"),
]


def format_duration(length: timedelta) -> str:
    """Return a duration in its largest whole unit, such as `90 s`, `5 min`, `1 d`; `parse_duration` reads it."""
    seconds = length.total_seconds()
    for unit, unit_seconds in reversed(SECONDS.items()):
        if seconds and seconds % unit_seconds == 0:
            return f"{seconds / unit_seconds:.0f} {unit}"
    return f"{seconds:f}".rstrip("0").rstrip(".") + " s"


def format_elapsed(length: timedelta) -> str:
    """Return a measured length of time in its two largest units, such as `40 s`, `5 min`, `1 h 12 min`, `2 d 3 h`."""
    seconds = round(length.total_seconds())
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    parts = []
    for unit, unit_seconds in reversed(SECONDS.items()):
        parts.append((seconds // unit_seconds, unit))
        seconds %= unit_seconds
    first = next((number for number, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [f"{count} {unit}" for count, unit in parts[first : first + 2] if count]
    return sign + (" ".join(shown) or "0 s")
