"""What the queries of an engine find, as summaries of parts: the same for every engine. Pure."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.collected.engine import Observation, PartSummary
from controlled_rollout.evidence.collected.part_columns import ColumnType, PartColumns
from controlled_rollout.evidence.collected.parts_sql import NOT_A_BUCKET, NULL_BUCKET
from controlled_rollout.evidence.collected.values import NOT_A_NUMBER, NULL, bucket_name, category_of
from controlled_rollout.gate import Moments

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MOST_FOR_QUANTILES", "MOST_NAMED", "Alike", "PartSums", "alike_parts", "quantiles_of"]

# Quantiles are known well enough from so many requests; of more, those whose ids have the lowest hashes are taken.
MOST_FOR_QUANTILES: Final = 1_000_000
# A metric with more different values is none of categories; the gate judges fewer.
MOST_CATEGORIES: Final = 10_000
# Sums of many numbers depend on their order in the digits after these.
DIGITS: Final = 12

# Of a part's columns that are not observed so many are remembered, for messages: callers may send any number of them.
MOST_NAMED: Final = 20

# Parts in which each observed column has one type, those types, and by part the columns that are data: the observed
# ones and the first others.
Alike = tuple[list[str], PartColumns, dict[str, frozenset[str]]]


def alike_parts(columns: Mapping[str, PartColumns], names: Iterable[str]) -> list[Alike]:
    """Return parts in groups in which each of some columns has one type, with those types and each part's columns.

    A column may be a number in one part and text in the next; read together, an engine would make all of them text, or
    fail.

    Args:
        columns: By part its columns.
        names: The columns that are read, besides those that say whether a request counts.
    """
    wanted = sorted({*names, "$addressed", "$status"})
    groups: dict[object, list[str]] = {}
    for part, found in columns.items():
        key = tuple((found.types.get(name), found.renamed.get(name)) for name in wanted)
        groups.setdefault(key, []).append(part)
    return [
        (alike, columns[alike[0]], {part: _named_columns(columns[part], wanted) for part in alike})
        for alike in groups.values()
    ]


def _named_columns(columns: PartColumns, wanted: Sequence[str]) -> frozenset[str]:
    """Return the columns of a part that are data: the wanted ones, and the first others."""
    return frozenset([*columns.data[:MOST_NAMED], *(name for name in columns.data if name in wanted)])


class PartSums:
    """Adds up what queries find of parts whose columns have the same types.

    Args:
        data: By part its columns that are data.
        columns: The columns of each of them.
        observations: What is observed.
    """

    def __init__(
        self, data: Mapping[str, frozenset[str]], columns: PartColumns, observations: Sequence[Observation]
    ) -> None:
        """Start with parts without requests."""
        self.means = [one for one in observations if one.kind == "mean"]
        self.categories = [one for one in observations if one.kind == "category"]
        self._data = data
        self._columns = columns
        self._requests: dict[str, dict[int, int]] = {part: {} for part in data}
        self._counted: dict[str, dict[str, dict[int, dict[str, int]]]] = {
            part: {one.metric: {} for one in self.categories} for part in data
        }
        self._moments: dict[str, dict[str, dict[int, Moments]]] = {
            part: {one.metric: {} for one in self.means} for part in data
        }
        self._odd: dict[str, dict[str, int]] = {part: {} for part in data}

    def add_categories(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows of `categories_sql`.

        Raises:
            EvidenceUnavailableError: A column has too many different values.
        """
        names: list[dict[Any, str]] = [{} for _ in self.categories]
        every = 2 ** len(self.categories) - 1
        for part, number, bits, *values, count in rows:
            if bits == every:
                self._requests[part][number] = count
                continue
            index = len(self.categories) - (every ^ bits).bit_length()
            observation = self.categories[index]
            # No two are equal that are not a number.
            value = math.nan if (found := values[index]) != found else found
            if value not in names[index]:
                names[index][value] = _category_name(value, observation, self._columns.type_of(observation.column))
                if len(names[index]) > MOST_CATEGORIES:
                    raise EvidenceUnavailableError(
                        f"the metric {observation.metric!r}: column {observation.column!r} has more than "
                        f"{MOST_CATEGORIES:,} different values: a number can be cut into buckets=10, and what differs "
                        "in each request is no category"
                    )
            tally = self._counted[part][observation.metric].setdefault(number, {})
            name = names[index][value]
            tally[name] = tally.get(name, 0) + count

    def add_means(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows of `means_sql`."""
        for part, number, *values in rows:
            for index, observation in enumerate(self.means):
                count, mean, variance, no_numbers = values[4 * index : 4 * index + 4]
                self._odd[part][observation.metric] = self._odd[part].get(observation.metric, 0) + no_numbers
                if count:
                    moments = Moments(count, _rounded(mean), _rounded(variance or 0.0))
                    self._moments[part][observation.metric][number] = moments

    def summaries(self) -> dict[str, PartSummary]:
        """Return the summary of each part."""
        return {
            part: PartSummary(self._requests[part], self._moments[part], self._counted[part], self._odd[part], data)
            for part, data in self._data.items()
        }


def quantiles_of(values: "NDArray[np.float64]", wanted: Sequence[float]) -> tuple[float, ...]:
    """Return quantiles that are values themselves: the smallest one up to which there is such a part of all.

    Args:
        values: Numbers, in any order.
        wanted: Which quantiles, from 0 to 1.
    """
    import numpy as np

    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not len(ordered):
        return ()
    # 0.07 of a hundred values are seven, and 0.07 * 100 is a little more than seven.
    places = [max(0, math.ceil(round(one * len(ordered), 6)) - 1) for one in wanted]
    # There is one zero, whatever its sign.
    return tuple(float(ordered[place]) + 0.0 for place in places)


def _category_name(value: Any, observation: Observation, kind: ColumnType) -> str:
    """Return what a value of `categories_sql` is called."""
    if observation.edges is not None:
        return {NULL_BUCKET: NULL, NOT_A_BUCKET: NOT_A_NUMBER}.get(value) or bucket_name(value, observation.edges)
    if kind == "json" and value is not None:
        try:
            return category_of(json.loads(value))
        except (ValueError, RecursionError):  # longer than what is read of it, or nested too deep
            return category_of(value)
    return category_of(value)


def _rounded(number: float) -> float:
    """Return a number with as many digits as do not depend on the order in which others were added up."""
    return float(f"{number:.{DIGITS}g}")
