"""What an engine does with parts of collected data: sums by bin, and quantiles. DuckDB's is in `duckdb_engine.py`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal, Protocol, TypeAlias

from controlled_rollout.gate import Moments

__all__ = ["LARGEST_VALUE", "BaselineQuantiles", "Observation", "PartSummary", "SummaryEngine"]

# The number of a bin: its start is so many bin widths after 1970.
BinNumber: TypeAlias = int
# Squares of values have to be numbers too.
LARGEST_VALUE: Final = 1e100


@dataclass(frozen=True, slots=True)
class Observation:
    """What is observed of each request for one metric of the gate.

    A mean observes the request's mean over its rows. A category observes the row that the request's id draws: the rows
    of one request are not independent.

    Attributes:
        metric: The metric's name.
        column: The column of the collection.
        kind: Whether the metric is a mean, or categories.
        edges: Categories of a number: the buckets' upper edges, ascending; None: each value is a category.
        bounds: A mean: values outside count as the nearer bound; None: as they are.
    """

    metric: str
    column: str
    kind: Literal["mean", "category"]
    edges: tuple[float, ...] | None = None
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class PartSummary:
    """What one part holds of a rollout, by the number of the bin.

    Attributes:
        requests: How many requests.
        means: By metric the moments of the requests' values.
        categories: By metric how often each category was drawn.
        not_numbers: By metric how many requests hold something for a mean that is no finite number.
        columns: Columns of the part that are data: the observed ones that it has, and the first others.
    """

    requests: Mapping[BinNumber, int] = field(default_factory=dict)
    means: Mapping[str, Mapping[BinNumber, Moments]] = field(default_factory=dict)
    categories: Mapping[str, Mapping[BinNumber, Mapping[str, int]]] = field(default_factory=dict)
    not_numbers: Mapping[str, int] = field(default_factory=dict)
    columns: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class BaselineQuantiles:
    """Quantiles of a metric's observations before the rollout.

    Attributes:
        count: How many observations are numbers.
        values: The quantiles; empty without observations.
    """

    count: int
    values: tuple[float, ...]


class SummaryEngine(Protocol):
    """Reads Parquet parts of one collection, which are local files or what the engine can read by name.

    Both methods take requests that the router split by weight only, and raise `EvidenceUnavailableError` if a part
    cannot be read. Every engine gives the same numbers for the same parts.
    """

    def summaries(
        self, parts: Sequence[str], observations: Sequence[Observation], *, since: datetime, bin_width: timedelta
    ) -> list[PartSummary]:
        """Return the summary of each part, of the requests that arrived at `since` or later."""
        ...

    def quantiles(
        self,
        parts: Sequence[str],
        wanted: Sequence[tuple[Observation, Sequence[float]]],
        *,
        since: datetime,
        until: datetime,
    ) -> list[BaselineQuantiles]:
        """Return each observation's quantiles over all parts, of the requests that arrived from `since` to `until`."""
        ...
