"""What a collected value is called as a category, and the buckets of a number. Pure.

Two values are one category only if they are the same JSON value: the text "1" is not the number 1.
"""

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

__all__ = ["LONGEST_TEXT", "NOT_A_NUMBER", "NULL", "bucket_edges", "bucket_name", "category_of"]

# Null, and a column that a part has not at all: whether other requests of the part have it says nothing about this one.
NULL: Final = "$null"
NOT_A_NUMBER: Final = "$not a number"
# Longer texts are told apart by so many characters.
LONGEST_TEXT: Final = 200
# Up to here every whole number is a float.
EXACT: Final = 2.0**53
# What a text could be taken for: a number, a constant of JSON, one of the names above, or a text in quotation marks.
AMBIGUOUS: Final = re.compile(r"[-+]?[0-9.]|(true|false|nan|-?inf)$|[\"$\[{]")


def category_of(value: Any) -> str:
    """Return what a value is called as a category.

    Args:
        value: None, a truth value, a number, a text; lists and objects as what JSON makes of them.
    """
    if value is None:
        return NULL
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _number(float(value))
    if isinstance(value, str):
        text = value[:LONGEST_TEXT]
        return json.dumps(text, ensure_ascii=False) if not text or AMBIGUOUS.match(text) else text
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)[:LONGEST_TEXT]


def _number(number: float) -> str:
    """Return a number as text, whole ones without a point."""
    if number.is_integer() and abs(number) <= EXACT:
        return str(int(number))
    return repr(number) if math.isfinite(number) else "nan" if math.isnan(number) else "inf" if number > 0 else "-inf"


def bucket_edges(quantiles: Sequence[float]) -> tuple[float, ...]:
    """Return the buckets' upper edges from control's quantiles, ascending.

    A value that control has so often that it is several quantiles gets a bucket of its own.

    Args:
        quantiles: The smallest value, the quantiles between the buckets, the largest value.
    """
    edges = set(quantiles[1:-1])
    edges |= {math.nextafter(one, -math.inf) for one, other in pairwise(quantiles) if one == other}
    return tuple(sorted(edges))


def bucket_name(number: int, edges: Sequence[float]) -> str:
    """Return what a bucket is called: its number for the order, and its edges."""
    if not edges:
        return "01 all"
    if number == 0:
        return f"01 up to {edges[0]:.6g}"
    if number == len(edges):
        return f"{number + 1:02} above {edges[-1]:.6g}"
    return f"{number + 1:02} to {edges[number]:.6g}"
