"""Which version answers a caller stays the same: the key that a split goes by, and the ranges of its hash. Pure.

A router that splits by a key takes the key's hash modulo a million, and the version in whose range the result lies.
So a caller moves when, and only when, the range that it lies in is given to another version. `arranged` gives away as
little as possible: a version that grows takes from the default, and nobody else's callers move. Without remembering the
ranges that is impossible for three versions that grow (docs/adr/0069), so the endpoint's document has them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, PositiveInt

from controlled_rollout.errors import EndpointError
from controlled_rollout.value import Value
from controlled_rollout.version import Name

__all__ = ["STICKY_FORMS", "Sticky", "StickyKey", "UserRange", "arranged"]

STICKY_FORMS: Final = "`header:<name>` or `cookie:<name>`"
# What a name of a header or of a cookie is made of.
TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
# Headers that are no caller's own: the same for all callers, another one for each request, or taken off by the router.
NOT_OF_A_CALLER: Final = frozenset(
    {
        "authorization", "azureml-model-deployment", "connection", "content-length", "content-type", "cookie", "expect",
        "host", "keep-alive", "proxy-authorization", "proxy-connection", "te", "traceparent", "trailer",
        "transfer-encoding", "upgrade", "x-request-id",
    }
)  # fmt: skip
RESERVED: Final = ("x-envoy-", "x-controlled-rollout-", "x-forwarded-")
# More ranges than this would slow the router down: they are then arranged anew, and callers move.
MAX_RANGES: Final = 64


@dataclass(frozen=True, slots=True)
class StickyKey:
    """The key by which a split goes.

    Attributes:
        kind: Where callers send it: in a `header` or in a `cookie`.
        name: The header's name in small letters, or the cookie's name as it is.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        """Return the key as an author writes it, such as `header:x-user`."""
        return f"{self.kind}:{self.name}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key that an author has written.

        Raises:
            EndpointError: It is neither a header nor a cookie, or a header that is no caller's own.
        """
        kind, _, name = text.partition(":")
        if kind not in ("header", "cookie") or not TOKEN.fullmatch(name):
            raise EndpointError(
                f"sticky = {text[:100]!r} names no key of a caller: give {STICKY_FORMS}, a name of 1 to 64 characters"
            )
        if kind == "header":
            name = name.lower()
            if name in NOT_OF_A_CALLER or name.startswith(RESERVED):
                raise EndpointError(
                    f"sticky = {text!r}: the header {name!r} does not tell one caller from another, or the router sets "
                    "or removes it: name a header in which callers send an id of theirs"
                )
        return cls(kind, name)


def _canonical_key(text: str) -> str:
    """Return a sticky key's text in its one spelling; raise ValueError, for pydantic, if it is not one."""
    try:
        return str(StickyKey.parse(text))
    except EndpointError as error:
        raise ValueError(str(error)) from error


# The setting of an endpoint: the text of a `StickyKey`.
Sticky = Annotated[
    str, AfterValidator(_canonical_key), Field(json_schema_extra={"pattern": f"^(header|cookie):{TOKEN.pattern}$"})
]


class UserRange(Value):
    """A range of the keys' hashes and the version that answers it; it begins where the one before it ends.

    Attributes:
        version: The version.
        width: How many of the million hashes are in it.
    """

    version: Name
    width: PositiveInt


def arranged(before: Iterable[UserRange], weights: Mapping[str, int], default: str) -> tuple[UserRange, ...]:
    """Return ranges with the given weights in which as few hashes as possible have another version than before.

    A version that shrinks gives what it had last. A version that grows takes what the default had or others have given,
    beside its own ranges if there is any.

    Args:
        before: The ranges until now; what they leave of all hashes was the default's.
        weights: Parts by version; they add up to all hashes.
        default: The version that has what no other version has.
    """
    total = sum(weights.values())
    ranges = _of_total([(one.version, one.width) for one in before], total, default)
    for version, width in _hash_counts(ranges).items():
        if version != default and width > weights.get(version, 0):
            ranges = _shrink(ranges, version, width - weights.get(version, 0), default)
    for version, weight in weights.items():
        if version != default:
            ranges = _grow(ranges, version, weight - _hash_counts(ranges).get(version, 0), default)
    if len(ranges) > MAX_RANGES:
        return arranged((), weights, default)
    return tuple(UserRange(version=version, width=width) for version, width in ranges)


Ranges = list[tuple[str, int]]


def _of_total(ranges: Ranges, total: int, default: str) -> Ranges:
    """Return ranges that cover just so many hashes: cut at the end, or filled up with the default's."""
    covered: Ranges = []
    for version, width in ranges:
        if total > 0:
            covered.append((version, min(width, total)))
            total -= width
    return _merged([*covered, (default, max(0, total))])


def _merged(ranges: Sequence[tuple[str, int]]) -> Ranges:
    """Return ranges without empty ones, and without two of one version that touch."""
    merged: Ranges = []
    for version, width in ranges:
        if width and merged and merged[-1][0] == version:
            merged[-1] = (version, merged[-1][1] + width)
        elif width:
            merged.append((version, width))
    return merged


def _hash_counts(ranges: Ranges) -> dict[str, int]:
    """Return how many hashes each version has."""
    widths: dict[str, int] = {}
    for version, width in ranges:
        widths[version] = widths.get(version, 0) + width
    return widths


def _shrink(ranges: Ranges, version: str, surplus: int, default: str) -> Ranges:
    """Return the ranges after a version has given a number of hashes to the default, at the sides where it grows."""
    while surplus > 0:
        index = max(index for index, (owner, _) in enumerate(ranges) if owner == version)
        width = ranges[index][1]
        given = min(width, surplus)
        grows_to_the_left = index > 0 and ranges[index - 1][0] == default
        if grows_to_the_left and (index + 1 == len(ranges) or ranges[index + 1][0] != default):
            parts = [(default, given), (version, width - given)]
        else:
            parts = [(version, width - given), (default, given)]
        ranges = _merged([*ranges[:index], *parts, *ranges[index + 1 :]])
        surplus -= given
    return ranges


def _grow(ranges: Ranges, version: str, missing: int, default: str) -> Ranges:
    """Return the ranges after a version has taken a number of hashes from the default."""
    while missing > 0:
        index, is_at_start = _place_to_grow(ranges, version, default)
        width = ranges[index][1]
        taken = min(width, missing)
        before = 0 if is_at_start else width - taken
        if is_at_start is None:  # between two others: room to both sides
            before = (width - taken) // 2
        parts = [(default, before), (version, taken), (default, width - taken - before)]
        ranges = _merged([*ranges[:index], *parts, *ranges[index + 1 :]])
        missing -= taken
    return ranges


def _place_to_grow(ranges: Ranges, version: str, default: str) -> tuple[int, bool | None]:
    """Return the default's range from which a version grows, and whether from its start; None from its middle."""
    free = [index for index, (owner, _) in enumerate(ranges) if owner == default]
    for index in free:
        if index > 0 and ranges[index - 1][0] == version:
            return index, True
    for index in free:
        if index + 1 < len(ranges) and ranges[index + 1][0] == version:
            return index, False
    largest = max(free, key=lambda index: ranges[index][1])
    if largest == 0:
        return largest, True
    return largest, False if largest == len(ranges) - 1 else None
