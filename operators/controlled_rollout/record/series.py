"""A series of looks: how each look's bins follow from those before, so that the record grows with time, not its square.

Every look judges all bins since the rollout began. A line holds only those that the look before did not have; its
digest covers all of them.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate import Bin
from controlled_rollout.record.decision import Decision, Stretch
from controlled_rollout.record.place import Appender

__all__ = ["Marks", "bins_from_json", "bins_to_json", "canonical", "follow", "name_of"]

# Eight bytes tell two versions of one bin apart; the digest over all of them is what proves anything.
MARK_BYTES: Final = 8
# How many are followed: as many endpoints may have a gate in one triggerer without reading a record again.
MOST_RECORDS: Final = 4_096


def canonical(value: Any) -> bytes:
    """Return JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def name_of(settings: dict[str, Any], version: str) -> str:
    """Return the name of the series whose looks have these settings."""
    return hashlib.blake2b(canonical([version, settings]), digest_size=8).hexdigest()


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[tuple[Bin, ...]]:
    return TypeAdapter(tuple[Bin, ...])


def bins_to_json(bins: Sequence[Bin]) -> list[dict[str, Any]]:
    """Return bins as JSON values; what a bin does not have is left out."""
    written: list[dict[str, Any]] = _adapter().dump_python(tuple(bins), mode="json", exclude_defaults=True)
    return list(written)


def bins_from_json(values: Iterable[dict[str, Any]]) -> tuple[Bin, ...]:
    """Return the bins that `bins_to_json` wrote.

    Raises:
        EvidenceError: They are none.
    """
    try:
        return _adapter().validate_python(tuple(values))
    except ValidationError as error:
        raise EvidenceError(f"these are no bins ({error.error_count()} faults): give a line of the record") from None


@dataclass(slots=True)
class Marks:
    """Which bins a series has so far, as one mark each: little enough to be kept for a thousand gates.

    Attributes:
        marks: The bins' marks, one after the other.
    """

    marks: bytes = b""

    def __len__(self) -> int:
        return len(self.marks) // MARK_BYTES

    @property
    def digest(self) -> str:
        """Of all bins together."""
        return hashlib.blake2b(self.marks, digest_size=8).hexdigest()

    def follow(self, stretch: Stretch) -> None:
        """Take over a stretch that is in the record."""
        self.marks = self.marks[: stretch.keep * MARK_BYTES] + _marks(stretch.add)

    def stretch_to(self, bins: Sequence[Bin]) -> Stretch:
        """Return what leads from here to `bins`, and go there."""
        values = bins_to_json(bins)
        marks = _marks(values)
        keep = _common(self.marks, marks)
        self.marks = marks
        return Stretch(keep=keep, add=tuple(values[keep:]), digest=self.digest)


def _marks(values: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(hashlib.blake2b(canonical(value), digest_size=MARK_BYTES).digest() for value in values)


def _common(one: bytes, other: bytes) -> int:
    """Return how many marks two rows of marks have in common at their beginning."""
    most = min(len(one), len(other)) // MARK_BYTES
    if one[: most * MARK_BYTES] == other[: most * MARK_BYTES]:
        return most
    return next(
        place
        for place in range(most)
        if one[place * MARK_BYTES : (place + 1) * MARK_BYTES] != other[place * MARK_BYTES : (place + 1) * MARK_BYTES]
    )


@dataclass(slots=True)
class Series:
    """What the looks of one series have seen so far."""

    bins: Marks = field(default_factory=Marks)
    baseline: Marks = field(default_factory=Marks)


@dataclass(slots=True)
class Followed:
    """How far a part has been read, and which series it holds."""

    identity: str = ""
    offset: int = 0
    series: dict[str, Series] = field(default_factory=dict)


_followed: OrderedDict[str, Followed] = OrderedDict()
_guard = Lock()


def follow(appender: Appender) -> Followed:
    """Return what the open part of a record says now; only what was appended since the last time is read."""
    with _guard:
        found = _followed.pop(appender.name, None)
        if found is None or found.identity != appender.identity or found.offset > appender.size:
            found = Followed(appender.identity)
        _followed[appender.name] = found
        while len(_followed) > MOST_RECORDS:
            _followed.popitem(last=False)
    for line in appender.read_from(found.offset).splitlines():
        _take(found, line)
    found.offset = appender.size
    return found


def _take(found: Followed, line: bytes) -> None:
    if b'"series"' not in line:
        return
    try:
        look = Decision.model_validate_json(line).look
    except ValidationError:  # a crash cut it short
        return
    if look is not None:
        series = found.series.setdefault(look.series, Series())
        series.bins.follow(look.bins)
        series.baseline.follow(look.baseline)
