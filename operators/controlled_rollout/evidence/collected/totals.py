"""The summaries of many parts added up, exactly: in whichever order parts come, the result is the same. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeVar

from controlled_rollout.evidence.collected.engine import BinNumber, PartSummary
from controlled_rollout.expectations.result import Counted
from controlled_rollout.gate import Moments
from controlled_rollout.gate.model import EXPECTED, UNEXPECTED

__all__ = ["Totals"]

Key = TypeVar("Key")


@dataclass(slots=True)
class ExactMoments:
    """How many values, their sum, and the sum of their squares, without rounding."""

    count: int = 0
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)

    def add(self, moments: Moments) -> None:
        """Add the values that some moments are of."""
        mean = Fraction(moments.mean)
        self.count += moments.count
        self.total += moments.count * mean
        self.squares += Fraction(moments.variance) * max(0, moments.count - 1) + moments.count * mean**2

    def moments(self) -> Moments:
        """Return count, mean and sample variance."""
        mean = self.total / self.count
        spread = self.squares - self.total * mean
        return Moments(self.count, float(mean), float(spread / (self.count - 1)) if self.count > 1 else 0.0)


@dataclass(slots=True)
class Totals:
    """What several parts hold together, by the number of the bin; the attributes are those of `PartSummary`.

    Attributes:
        faults: By expectation what went wrong inside of it.
    """

    requests: dict[BinNumber, int] = field(default_factory=dict)
    means: dict[str, dict[BinNumber, ExactMoments]] = field(default_factory=dict)
    categories: dict[str, dict[BinNumber, dict[str, int]]] = field(default_factory=dict)
    not_numbers: dict[str, int] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)
    faults: dict[str, str] = field(default_factory=dict)

    def add_expectations(self, counted: Counted) -> None:
        """Add the rows of expectations in some parts, as categories, and what went wrong inside of one."""
        self.faults = {**counted.faults, **self.faults}
        # As they are called in parts.
        self.columns |= {f"${name}" if name.startswith("$") else name for name in counted.columns}
        for name, by_bin in counted.by_bin.items():
            counts = self.categories.setdefault(name, {})
            for number, rows in by_bin.items():
                tally = {EXPECTED: rows.rows - rows.unexpected, UNEXPECTED: rows.unexpected}
                _add_counts(counts.setdefault(number, {}), tally)

    def add(self, part: PartSummary) -> None:
        """Add one part."""
        self.columns |= part.columns
        _add_counts(self.requests, part.requests)
        _add_counts(self.not_numbers, part.not_numbers)
        for metric, by_bin in part.means.items():
            sums = self.means.setdefault(metric, {})
            for number, moments in by_bin.items():
                sums.setdefault(number, ExactMoments()).add(moments)
        for metric, tallies in part.categories.items():
            counts = self.categories.setdefault(metric, {})
            for number, tally in tallies.items():
                _add_counts(counts.setdefault(number, {}), tally)

    def means_in(self, number: BinNumber) -> dict[str, Moments]:
        """Return the moments of each metric that has values in a bin."""
        return {metric: sums[number].moments() for metric, sums in self.means.items() if number in sums}

    def categories_in(self, number: BinNumber) -> dict[str, dict[str, int]]:
        """Return how often each category of each metric was drawn in a bin, categories in order of their names."""
        return {
            metric: dict(sorted(counts[number].items()))
            for metric, counts in self.categories.items()
            if number in counts
        }


def _add_counts(totals: dict[Key, int], counts: Mapping[Key, int]) -> None:
    """Add counts to totals by key."""
    for key, count in counts.items():
        totals[key] = totals.get(key, 0) + count
