"""Requests, errors and slow requests over time, in bounded memory however long a rollout lasts. Pure."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any, Final

__all__ = ["CountSeries", "CountSpan"]

# Bins that a later look may still revise are kept one by one; older ones are added up.
RECENT: Final = 1_024
# Spans of older bins; with more of them neighbours are added up.
FOLDED: Final = 512
# Where a row has what: the counts of each version are its requests, its errors and its slow requests.
START, SHARE, COUNTS = 0, 1, 2


@dataclass(frozen=True, slots=True)
class CountSpan:
    """The counts of a span of time.

    Attributes:
        start: Seconds since 1970.
        share: The treatment's part of the traffic that was set last in it, 0 to 1; None if it is not known.
        treatment, control: Requests, errors, and for each quantile the slower requests.
    """

    start: float
    share: float | None
    treatment: tuple[int, ...]
    control: tuple[int, ...]


@dataclass
class CountSeries:
    """The bins of one series of looks.

    Attributes:
        width: The length of a bin in seconds.
        quantiles: How many latency quantiles are counted.
        folded_width: The length of a span of older bins, in seconds.
        folded: Those spans, oldest first.
        recent: The newest bins, oldest first.
        n_folded: How many bins `folded` has.
    """

    width: float
    quantiles: int
    folded_width: float = 0.0
    folded: list["array[float]"] = field(default_factory=list)
    recent: list["array[float]"] = field(default_factory=list)
    n_folded: int = 0

    def apply(self, keep: int, bins: Iterable[Mapping[str, Any]]) -> None:
        """Replace the bins after the first `keep` ones.

        Bins that were added up stay as they were: a look revises the newest ones.

        Args:
            keep: How many bins stay.
            bins: The bins after those, as the record has them.
        """
        del self.recent[max(0, keep - self.n_folded) :]
        known_until = self.folded[-1][START] + self.folded_width if self.folded else float("-inf")
        for bin_ in bins:
            row = self._row(bin_)
            if row[START] >= known_until:
                self.recent.append(row)
                if len(self.recent) > 2 * RECENT:
                    self._fold()

    def spans(self, most: int) -> list[CountSpan]:
        """Return the counts as at most `most` spans of the same length, oldest first."""
        rows = [*self.folded, *self.recent]
        if not rows:
            return []
        begin, width = rows[0][START], self.span_width(most)
        groups: dict[int, array[float]] = {}
        for row in rows:
            _add(groups, int((row[START] - begin) // width), row, begin, width)
        return [self._span(groups[index]) for index in sorted(groups)]

    def span_width(self, most: int) -> float:
        """Return the length of a span in seconds if there are at most `most` of them."""
        rows = [*self.folded[:1], *self.recent[:1]]
        if not rows:
            return self.width
        newest = self.recent[-1] if self.recent else self.folded[-1]
        n_bins = int((newest[START] - rows[0][START]) // self.width) + 1
        least = -(-n_bins // most)
        if self.folded:
            # A span of older bins cannot be divided.
            least = max(least, round(self.folded_width / self.width))
        return float(self.width * least)

    def _row(self, bin_: Mapping[str, Any]) -> "array[float]":
        """Return a bin as a row of numbers."""
        share = bin_.get("share")
        counts = chain.from_iterable(self._counts(bin_[version]) for version in ("treatment", "control"))
        start = datetime.fromisoformat(bin_["start"]).timestamp()
        return array("d", [start, -1.0 if share is None else share, *counts])

    def _counts(self, counts: Mapping[str, Any]) -> Sequence[float]:
        """Return a version's counts: requests, errors, and slow requests for each quantile."""
        slow = list(counts.get("slow", ()))[: self.quantiles]
        return [counts["requests"], counts["errors"], *slow, *[0] * (self.quantiles - len(slow))]

    def _fold(self) -> None:
        """Add the older half of the recent bins to the spans; with too many spans make them twice as long."""
        older, self.recent = self.recent[:RECENT], self.recent[RECENT:]
        self.n_folded += len(older)
        self.folded_width = self.folded_width or self.width
        while True:
            begin = self.folded[0][START] if self.folded else older[0][START]
            groups: dict[int, array[float]] = {}
            for row in chain(self.folded, older):
                _add(groups, int((row[START] - begin) // self.folded_width), row, begin, self.folded_width)
            if len(groups) <= FOLDED:
                self.folded = [groups[index] for index in sorted(groups)]
                return
            self.folded_width *= 2

    def _span(self, row: "array[float]") -> CountSpan:
        """Return a row as a span."""
        half = COUNTS + 2 + self.quantiles
        return CountSpan(
            row[START],
            None if row[SHARE] < 0 else row[SHARE],
            tuple(map(int, row[COUNTS:half])),
            tuple(map(int, row[half:])),
        )


def _add(groups: dict[int, "array[float]"], index: int, row: "array[float]", begin: float, width: float) -> None:
    """Add a row to the group of its span of time."""
    group = groups.get(index)
    if group is None:
        groups[index] = group = array("d", row)
        group[START] = begin + index * width
        return
    if row[SHARE] >= 0:
        group[SHARE] = row[SHARE]
    for position in range(COUNTS, len(row)):
        group[position] += row[position]
