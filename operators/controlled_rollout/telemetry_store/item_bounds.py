"""Count the items of an upload before it is decoded: an item of two bytes becomes an object of hundreds.

A kilobyte of gzip can hold millions of empty spans, so a bound on bytes alone bounds neither memory nor time.
"""

from collections.abc import Iterator
from typing import Any, Final

__all__ = ["MAX_ENVELOPES", "MAX_SPANS", "TooManyItemsError", "check_json_items", "check_protobuf_items"]

# An exporter sends up to 10,000 spans at once, each of which has some fields for each of its attributes.
MAX_SPANS: Final = 20_000
MAX_ENVELOPES: Final = 20_000
MAX_PROTOBUF_FIELDS: Final = 500_000
MAX_JSON_VALUES: Final = 400_000
JSON_STRUCTURE: Final = (b"{", b"[", b",", b":", b"\n", b"\r")
# The shortest field: its number and type in one byte, its value in another.
SHORTEST_FIELD_BYTES: Final = 2
# By field number: the fields of the message that a field holds; None for one that holds no message.
_Fields = dict[int, Any]


class TooManyItemsError(ValueError):
    """An upload holds more items than are decoded; the message is sent back to the sender."""


def check_json_items(body: bytes) -> None:
    """Check how many values a JSON document, or one a line, can hold at most; characters in texts count as well.

    Raises:
        TooManyItemsError: There are too many.
    """
    count = sum(body.count(character) for character in JSON_STRUCTURE)
    if count > MAX_JSON_VALUES:
        raise TooManyItemsError(f"the body has {count} separators: {MAX_JSON_VALUES} at most, send smaller batches")


def check_protobuf_items(body: bytes, descriptor: Any) -> None:
    """Check how many fields a protobuf message and the messages in it have. What is malformed is left to the parser.

    Args:
        body: The encoded message.
        descriptor: The message's type.

    Raises:
        TooManyItemsError: There are too many.
    """
    if len(body) <= MAX_PROTOBUF_FIELDS * SHORTEST_FIELD_BYTES:
        return
    for count, _ in enumerate(_fields_in(body, _fields_of(descriptor, {})), 1):
        if count > MAX_PROTOBUF_FIELDS:
            raise TooManyItemsError(f"the body has more than {MAX_PROTOBUF_FIELDS} fields: send smaller batches")


def _fields_of(descriptor: Any, known: dict[str, _Fields]) -> _Fields:
    """Return the fields of a message type that hold messages, by number; types may hold each other."""
    if descriptor.full_name not in known:
        fields: _Fields = {}
        known[descriptor.full_name] = fields
        fields |= {
            field.number: _fields_of(field.message_type, known) for field in descriptor.fields if field.message_type
        }
    return known[descriptor.full_name]


def _fields_in(body: bytes, fields: _Fields) -> Iterator[None]:
    """Yield once for each field of a message and of the messages in it, until something is malformed."""
    messages = [(0, len(body), fields)]
    try:
        while messages:
            position, end, fields = messages.pop()
            while position < end:
                yield
                key, position = _varint(body, position)
                kind = key & 7
                if kind == 2:
                    length, position = _varint(body, position)
                    if length and (inner := fields.get(key >> 3)) is not None:
                        messages.append((position, position + length, inner))
                    position += length
                elif kind == 0:
                    _, position = _varint(body, position)
                else:
                    position += {1: 8, 5: 4}.get(kind, 0)
    except IndexError:
        return


def _varint(body: bytes, position: int) -> tuple[int, int]:
    """Read a number of variable length; return it and the position after it."""
    byte = body[position]
    if byte < 0x80:
        return byte, position + 1
    number, shift = byte & 0x7F, 7
    while True:
        position += 1
        byte = body[position]
        number |= (byte & 0x7F) << shift
        if byte < 0x80 or shift > 63:
            return number, position + 1
        shift += 7
