"""Counts and means as they come from a metric store, and how the two are put together."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from controlled_rollout.gate import Counts, Moments

__all__ = ["CountRow", "MeanRow", "with_means"]


@dataclass(frozen=True, slots=True)
class CountRow:
    """One version's counts in one bin; `before`: whether they lie before the rollout began."""

    start: datetime
    version: str
    before: bool
    counts: Counts


@dataclass(frozen=True, slots=True)
class MeanRow:
    """The values that one version had of one metric in one bin; `before` as in `CountRow`."""

    start: datetime
    version: str
    before: bool
    name: str
    moments: Moments


def with_means(rows: Iterable[CountRow], means: Iterable[MeanRow], *, kinds: int) -> list[CountRow]:
    """Return the counts with the metrics of the same bin and version in them.

    Args:
        rows: The counts.
        means: The metrics; a bin in which a version has values but no request is kept too.
        kinds: How many latency thresholds each count has.
    """
    found = {(row.start, row.version, row.before): row for row in rows}
    for mean in means:
        key = (mean.start, mean.version, mean.before)
        row = found.get(key) or CountRow(*key, Counts(requests=0, errors=0, slow=(0,) * kinds))
        found[key] = replace(row, counts=replace(row.counts, means={**row.counts.means, mean.name: mean.moments}))
    return list(found.values())
