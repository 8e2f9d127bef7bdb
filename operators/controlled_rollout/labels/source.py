"""Labels and where they come from: the protocol of a source, and what a value of a database or a file is as a label."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, Protocol, TypeAlias

from controlled_rollout.errors import EvidenceUnavailableError

__all__ = ["LONGEST_LABEL", "Label", "LabelRow", "LabelSource", "arrival_of", "class_of", "label_of"]

# A JSON scalar; None is no label.
Label: TypeAlias = bool | int | float | str | None

LONGEST_LABEL: Final = 1_000
MOST_ROWS: Final = 100_000
LONGEST_TEXT: Final = 10_000_000
NUMBER: Final = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
# Up to here every whole number is a float.
EXACT: Final = 2**53


@dataclass(frozen=True, slots=True)
class LabelRow:
    """What became known of one request.

    Attributes:
        correlation_id: The correlation id of the request (`x-ms-client-request-id`, the trace id, or the request id).
        label: What was right: one value for all rows of the request, or one for each row. None: not known yet.
        arrived: When the label became known, with a time zone; a later label of the same request is a correction.
    """

    correlation_id: str
    label: Label | tuple[Label, ...]
    arrived: datetime


class LabelSource(Protocol):
    """Where labels come from, such as a table of a database or files."""

    @property
    def description(self) -> str:
        """What the source is, for messages and the record; without credentials."""
        ...

    def read(self, *, since: datetime, until: datetime, limit: int) -> Iterator[LabelRow]:
        """Yield the labels that arrived in a time, in any order.

        Labels are only ever added, with the time at which they are: an arrival that lies before that of labels that
        were read already changes what was judged.

        Args:
            since: Arrivals from then on.
            until: Arrivals before.
            limit: The most labels that may be yielded.

        Raises:
            EvidenceUnavailableError: The source cannot be read in full, or has more labels than `limit`.
        """
        ...


def label_of(value: Any) -> Label | tuple[Label, ...]:
    """Return what a value of a database or a file is as a label.

    Args:
        value: A scalar, a list, or a JSON list as text.

    Raises:
        EvidenceUnavailableError: It is nothing that can be a label.
    """
    if isinstance(value, str) and value.startswith("[") and value.endswith("]") and len(value) <= LONGEST_TEXT:
        try:
            value = json.loads(value)
        except ValueError:
            return _label_value(value)
    if isinstance(value, list | tuple) or (hasattr(value, "tolist") and not hasattr(value, "dtype")):
        if len(value) > MOST_ROWS:
            raise EvidenceUnavailableError(
                f"a label is a list of {len(value):,} values, and {MOST_ROWS:,} are read: a request has no more rows"
            )
        return tuple(_label_value(one) for one in value)
    if hasattr(value, "tolist"):  # of numpy
        return label_of(value.tolist())
    return _label_value(value)


def _label_value(value: Any) -> Label:
    """Return one value as a label; what is no finite number is no label."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float | Decimal):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, str):
        if len(value) > LONGEST_LABEL:
            raise EvidenceUnavailableError(
                f"a label is a text of {len(value):,} characters, and {LONGEST_LABEL:,} are read: name the column with "
                "the class or the number that was right"
            )
        return value
    if hasattr(value, "item"):
        return _label_value(value.item())
    raise EvidenceUnavailableError(
        f"a label is a {type(value).__name__}: give a column with a text, a number, true or false, or a list of these"
    )


def arrival_of(value: Any) -> datetime:
    """Return the time at which a label arrived from what a database or a file has; without a time zone it is UTC.

    Args:
        value: A time, a date, an ISO 8601 text, or seconds since 1970.

    Raises:
        EvidenceUnavailableError: It is no time.
    """
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            return datetime.fromtimestamp(float(value), UTC)
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise EvidenceUnavailableError(
            f"the arrival of a label is a {type(value).__name__} that is no time: name a column with times, such as "
            "2026-03-01T12:00:00Z"
        ) from error
    raise EvidenceUnavailableError(
        f"the arrival of a label is a {type(value).__name__}, which is no time: name a column with times"
    )


def class_of(value: Label) -> Label:
    """Return a class as what it is compared by: what means the same number or truth value is the same class.

    A file or a database often has as text what a model answers as a number: `"1"`, 1, 1.0 and true are one class.
    """
    if isinstance(value, str):
        text = value.strip()
        if NUMBER.fullmatch(text):
            return class_of(float(text))
        return {"true": 1, "false": 0}.get(text.lower(), value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT:
        return int(value)
    return value
