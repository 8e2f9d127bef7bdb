"""Bins, checked and turned into columns: one array per quantity, oldest bin first."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain, compress, pairwise
from math import isfinite
from operator import attrgetter, ge
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate.model import Bin, Counts, Moments

__all__ = ["Columns", "Metric", "Values", "columns"]

Floats = NDArray[np.float64]
# Some of the bins: a part of them, or true for each that is meant.
Selection = slice | NDArray[np.bool_]

NOT_AN_INTEGER: Final = "is not a whole number"
# Up to here every whole number is a float.
LARGEST: Final = 2**53
NOTHING: Final = Moments(0)
# Each takes two numbers a bin; values that hardly repeat (a user, a request) are not categories.
MAX_CATEGORIES: Final = 200


@dataclass(frozen=True, slots=True)
class Metric:
    """The events of one kind, per bin.

    Attributes:
        treatment, control: How many of each version's requests were such events.
    """

    treatment: Floats
    control: Floats

    def at(self, bins: "Selection") -> "Metric":
        """Return the metric in some of the bins."""
        return Metric(self.treatment[bins], self.control[bins])

    def times(self, kept: Floats) -> "Metric":
        """Return the metric with each bin's counts multiplied by 0 or 1."""
        return Metric(self.treatment * kept, self.control * kept)


@dataclass(frozen=True, slots=True)
class Values:
    """The moments of one numeric metric in one version, per bin."""

    count: Floats
    mean: Floats
    variance: Floats

    def at(self, bins: "Selection") -> "Values":
        """Return the values in some of the bins."""
        return Values(self.count[bins], self.mean[bins], self.variance[bins])

    def times(self, kept: Floats) -> "Values":
        """Return the values with each bin's count multiplied by 0 or 1."""
        return Values(self.count * kept, self.mean, self.variance)


@dataclass(frozen=True, slots=True)
class Columns:
    """The bins of one look, oldest first.

    Attributes:
        starts: When each bin begins.
        treatment, control: Each version's requests.
        errors: The errors of both.
        slow: The exceedances of both, one metric per latency quantile; empty where latency is not judged.
        shares: The treatment's set part, not a number where it is not known.
        means: By metric the treatment's and control's values; only metrics that some bin carries.
        categories: By metric and category how often each version had it; only what some bin carries.
        over_limit: The requests slower than the gate's `max_latency`; None where they are not counted.
        of_other_draw: Whether each bin's requests fell to the treatment with another part than `shares`; None if
            none did.
        overloaded: The requests that were refused because there was no room; None if none was.
        scoring: In bins in which some were refused: the requests of which it is known how long they were scored, then
            by each latency quantile those that were slower by that time; empty where nothing is known.
    """

    starts: Sequence[datetime]
    treatment: Floats
    control: Floats
    errors: Metric
    slow: tuple[Metric, ...]
    shares: Floats
    means: Mapping[str, tuple[Values, Values]]
    categories: Mapping[str, Mapping[str, Metric]]
    over_limit: Metric | None = None
    of_other_draw: NDArray[np.bool_] | None = None
    overloaded: Metric | None = None
    scoring: tuple[Metric, ...] = ()

    @property
    def has_known_split(self) -> NDArray[np.bool_]:
        """Whether it is known of each bin with which part its requests fell to the treatment."""
        known = ~np.isnan(self.shares)
        return known if self.of_other_draw is None else known & ~self.of_other_draw

    def since(self, first: int) -> "Columns":
        """Return the columns without the bins before index `first`."""
        return self.at(slice(first, None)) if first else self

    def at(self, bins: "Selection") -> "Columns":
        """Return the columns of some of the bins."""
        result = self._each(lambda metric: metric.at(bins), lambda values: values.at(bins))
        return replace(
            result,
            starts=self.starts[bins] if isinstance(bins, slice) else list(compress(self.starts, bins)),
            treatment=self.treatment[bins],
            control=self.control[bins],
            shares=self.shares[bins],
            of_other_draw=None if self.of_other_draw is None else self.of_other_draw[bins],
        )

    def without(self, left_out: NDArray[np.bool_]) -> "Columns":
        """Return the columns with nothing counted in the bins that are left out."""
        kept = (~left_out).astype(np.float64)
        result = self._each(lambda metric: metric.times(kept), lambda values: values.times(kept))
        return replace(result, treatment=self.treatment * kept, control=self.control * kept)

    def _each(self, of_metric: Callable[[Metric], Metric], of_values: Callable[[Values], Values]) -> "Columns":
        """Return the columns with other metrics and other values; the columns of the bins themselves stay."""
        return replace(
            self,
            errors=of_metric(self.errors),
            slow=tuple(map(of_metric, self.slow)),
            means={
                name: (of_values(treatment), of_values(control)) for name, (treatment, control) in self.means.items()
            },
            categories={
                name: {category: of_metric(metric) for category, metric in metrics.items()}
                for name, metrics in self.categories.items()
            },
            over_limit=None if self.over_limit is None else of_metric(self.over_limit),
            overloaded=None if self.overloaded is None else of_metric(self.overloaded),
            scoring=tuple(map(of_metric, self.scoring)),
        )

    def judged_by(self, counts: Mapping[str, Metric], chosen: str, other: str) -> tuple["Columns", Metric]:
        """Return the columns with the requests of two categories in place of all, and those of the chosen one."""
        nothing = Metric(np.zeros(len(self.starts)), np.zeros(len(self.starts)))
        these, those = counts.get(chosen, nothing), counts.get(other, nothing)
        treatment, control = these.treatment + those.treatment, these.control + those.control
        return replace(self, treatment=treatment, control=control), these

    def warm_up_bins(self, warm_up: timedelta) -> int:
        """Return how many bins start within `warm_up` after the first bin in which the treatment has requests."""
        served = np.flatnonzero(self.treatment)
        if not warm_up or not len(served):
            return 0
        end = self.starts[served[0]] + warm_up
        return sum(1 for start in self.starts if start < end)


def columns(
    bins: Iterable[Bin],
    *,
    quantiles: int,
    means: Iterable[str] = (),
    categories: Iterable[str] = (),
    limit: bool = False,
) -> Columns:
    """Sort the bins by time and turn them into arrays, one value per bin; raise EvidenceError for inconsistent counts.

    Args:
        bins: In any order.
        quantiles: How many latency quantiles each `Counts.slow` has to count, if it counts any.
        means: The numeric metrics to take.
        categories: The categorical metrics to take.
        limit: Whether it counts requests slower than the gate's `max_latency` as well, after the quantiles.

    Raises:
        EvidenceError: Counts are inconsistent, two bins begin at the same moment, or a time has no zone.
    """
    rows = list(bins)
    starts = [row.start for row in rows]
    naive = next((start for start in starts if start.utcoffset() is None), None)
    if naive is not None:
        raise EvidenceError(f"bin start {naive.isoformat()} has no time zone: give every bin an aware datetime")
    if any(map(ge, starts, starts[1:])):
        rows.sort(key=attrgetter("start"))
        starts = [row.start for row in rows]
        twice = next((start for start, other in pairwise(starts) if start == other), None)
        if twice is not None:
            raise EvidenceError(
                f"two bins begin at {twice.isoformat()}: merge them, or drop the one that was read twice"
            )
    treatment = [row.treatment for row in rows]
    control = [row.control for row in rows]
    thresholds = quantiles + limit
    counted = _latency_is_counted(starts, treatment, control, thresholds)
    requests_t, errors_t, slow_t = _counts_as_arrays(starts, "treatment", treatment, thresholds)
    requests_c, errors_c, slow_c = _counts_as_arrays(starts, "control", control, thresholds)
    slow = tuple(map(Metric, slow_t, slow_c)) if counted else ()
    return Columns(
        starts,
        requests_t,
        requests_c,
        Metric(errors_t, errors_c),
        slow[:quantiles],
        _shares_as_array(starts, [row.share for row in rows]),
        _means_as_arrays(starts, treatment, control, list(means)),
        _categories_as_arrays(starts, treatment, control, list(categories)),
        slow[quantiles] if limit and counted else None,
        None if all(row.checks_split for row in rows) else np.array([not row.checks_split for row in rows]),
        _overloaded_as_arrays(starts, treatment, control),
        _scoring_as_arrays(starts, treatment, control, thresholds)[: quantiles + 1] if counted else (),
    )


def _overloaded_as_arrays(
    starts: Sequence[datetime], treatment: Sequence[Counts], control: Sequence[Counts]
) -> Metric | None:
    """Return the requests that were refused for lack of room; None if there are none. Raise for impossible counts."""
    if not any(counts.overloaded for counts in chain(treatment, control)):
        return None
    for version, column in (("treatment", treatment), ("control", control)):
        for start, counts in zip(starts, column, strict=True):
            where = f"bin {start.isoformat()}: {version}"
            _check_count(where, "overloaded", counts.overloaded)
            if max(counts.errors, *counts.slow, 0) + counts.overloaded > counts.requests:
                fault = f"is more than what is neither an error nor slow of its {counts.requests} requests"
                _raise_fault(where, "overloaded", counts.overloaded, fault)
    return Metric(*(_float_array([counts.overloaded for counts in column]) for column in (treatment, control)))


def _scoring_as_arrays(
    starts: Sequence[datetime], treatment: Sequence[Counts], control: Sequence[Counts], thresholds: int
) -> tuple[Metric, ...]:
    """Return what is known of how long requests were scored; nothing if nothing is. Raise for impossible counts."""
    if not any(counts.scoring for counts in chain(treatment, control)):
        return ()
    nothing = (0,) * (1 + thresholds)
    for version, column in (("treatment", treatment), ("control", control)):
        for start, counts in zip(starts, column, strict=True):
            where = f"bin {start.isoformat()}: {version}"
            if counts.scoring and len(counts.scoring) != len(nothing):
                _raise_fault(where, "scoring", counts.scoring, f"has to be {len(nothing)} counts")
            for index, count in enumerate(counts.scoring):
                _check_count(where, f"scoring[{index}]", count)
                most = counts.scoring[0] if index else counts.requests - counts.overloaded
                if count > most:
                    _raise_fault(where, f"scoring[{index}]", count, f"is more than {most}")
    columns = ([counts.scoring or nothing for counts in column] for column in (treatment, control))
    return tuple(map(Metric, *(map(_float_array, zip(*column, strict=True)) for column in columns)))


def _shares_as_array(starts: Sequence[datetime], shares: Sequence[float | None]) -> Floats:
    """Return the treatment's set share of each bin as an array; NaN where it is not known."""
    result = np.array(shares, dtype=np.float64)
    if int(((result >= 0) & (result <= 1)).sum()) + shares.count(None) < len(shares):
        start, wrong = next(
            (start, share)
            for start, share in zip(starts, shares, strict=True)
            if share is not None and not 0 <= share <= 1
        )
        raise EvidenceError(
            f"bin {start.isoformat()}: share = {wrong!r} is not between 0 and 1 (it is a fraction, not per cent); "
            "use None where it is not known"
        )
    return result


def _counts_as_arrays(
    starts: Sequence[datetime], version: str, column: Sequence[Counts], quantiles: int
) -> tuple[Floats, Floats, list[Floats]]:
    """Return arrays of requests, errors and slow requests, one value per bin; raise for inconsistent counts.

    Slow requests that a version leaves out are 0: it has none, or latency is not counted at all.
    """
    nothing = (0,) * quantiles
    requests = [counts.requests for counts in column]
    errors = [counts.errors for counts in column]
    slow = list(chain.from_iterable(counts.slow or nothing for counts in column))
    try:
        if any(not {int}.issuperset(map(type, events)) for events in (requests, errors, slow)):
            raise ValueError(NOT_AN_INTEGER)
        total = _float_array(requests)
        events = np.vstack([_float_array(errors), _float_array(slow).reshape(len(column), quantiles).T])
        consistent = bool((events >= 0).all() and (events <= total).all() and (total <= LARGEST).all())
    except (ValueError, OverflowError):
        consistent = False
    if not consistent:
        for start, counts in zip(starts, column, strict=True):
            _raise_if_inconsistent(f"bin {start.isoformat()}: {version}", counts)
    return total, events[0], list(events[1:])


def _float_array(column: Sequence[float]) -> Floats:
    """Return values as an array of 64-bit floats."""
    return np.array(column, dtype=np.float64)


def _raise_if_inconsistent(where: str, counts: Counts) -> None:
    """Raise an EvidenceError that names a negative, non-integer or too large count of one bin, if it has one."""
    named = [("requests", counts.requests), ("errors", counts.errors)]
    named += [(f"slow[{index}]", count) for index, count in enumerate(counts.slow)]
    for name, count in named:
        _check_count(where, name, count)
        if count > counts.requests:
            _raise_fault(where, name, count, f"is more than its {counts.requests} requests")


def _check_count(where: str, name: str, count: object) -> None:
    """Raise EvidenceError unless a count is an integer from 0 to 2^53."""
    if type(count) is not int:
        _raise_fault(where, name, count, NOT_AN_INTEGER)
    if count < 0:
        _raise_fault(where, name, count, "is negative")
    if count > LARGEST:
        _raise_fault(where, name, count, "is more than can be counted exactly (2^53)")


def _raise_fault(where: str, name: str, count: object, fault: str) -> NoReturn:
    """Raise the EvidenceError that names a bin's wrong value and the fault in it."""
    raise EvidenceError(f"{where} {name} = {count!r} {fault}: correct the query that counted it")


def _latency_is_counted(
    starts: Sequence[datetime], treatment: Sequence[Counts], control: Sequence[Counts], quantiles: int
) -> bool:
    """Return whether the bins carry counts of slow requests; raise if only some of them do."""
    every = set(map(len, [counts.slow for counts in chain(treatment, control)]))
    if every == {quantiles} and quantiles:
        return True
    lengths = {len(counts.slow) for counts in chain(treatment, control) if counts.requests or counts.slow}
    if lengths <= {0}:
        return False
    if lengths != {quantiles}:
        start, version, n_counts = next(
            (start, version, len(counts.slow))
            for version, column in (("treatment", treatment), ("control", control))
            for start, counts in zip(starts, column, strict=True)
            if (counts.requests or counts.slow) and len(counts.slow) != quantiles
        )
        raise EvidenceError(
            f"bin {start.isoformat()}: {version} has {n_counts} counts of slow requests, the gate has {quantiles} "
            "latency quantiles: count one for each in every bin, or none in any"
        )
    return True


def _means_as_arrays(
    starts: Sequence[datetime], treatment: Sequence[Counts], control: Sequence[Counts], names: Sequence[str]
) -> dict[str, tuple[Values, Values]]:
    """Return each numeric metric's values of treatment and control as arrays; metrics that no bin has are left out."""
    means = {}
    for name in names:
        of_treatment, of_control = (
            [counts.means.get(name, NOTHING) for counts in column] for column in (treatment, control)
        )
        if any(moments is not NOTHING for moments in chain(of_treatment, of_control)):
            _check_moments(starts, f"treatment means[{name!r}]", of_treatment)
            _check_moments(starts, f"control means[{name!r}]", of_control)
            means[name] = _values_as_arrays(of_treatment), _values_as_arrays(of_control)
    return means


def _values_as_arrays(column: Sequence[Moments]) -> Values:
    """Return the count, mean and variance of one version's metric as arrays, one value per bin."""
    return Values(*(_float_array([field(moments) for moments in column]) for field in MOMENTS))


MOMENTS: Final[tuple[Callable[[Moments], float], ...]] = tuple(map(attrgetter, ("count", "mean", "variance")))


def _check_moments(starts: Sequence[datetime], name: str, column: Sequence[Moments]) -> None:
    """Raise EvidenceError if a bin's count, mean or variance of a numeric metric is not valid."""
    for start, moments in zip(starts, column, strict=True):
        where = f"bin {start.isoformat()}:"
        _check_count(where, f"{name}.count", moments.count)
        if moments.count and not isfinite(moments.mean):
            _raise_fault(where, f"{name}.mean", moments.mean, "is not a finite number")
        if not (isfinite(moments.variance) and moments.variance >= 0):
            _raise_fault(where, f"{name}.variance", moments.variance, "is not a number of 0 or more")


def _categories_as_arrays(
    starts: Sequence[datetime], treatment: Sequence[Counts], control: Sequence[Counts], names: Sequence[str]
) -> dict[str, dict[str, Metric]]:
    """Return by metric and category each version's counts as arrays, categories in order of first appearance."""
    categories: dict[str, dict[str, Metric]] = {}
    for name in names:
        tallies = [[counts.categories.get(name) for counts in column] for column in (treatment, control)]
        metrics: dict[str, Metric] = {}
        for index, pair in enumerate(zip(*tallies, strict=True)):
            for version, tally in zip(("treatment", "control"), pair, strict=True):
                for category, count in (tally or {}).items():
                    where = f"bin {starts[index].isoformat()}: {version}"
                    _check_count(where, f"categories[{name!r}][{category!r}]", count)
                    if category not in metrics:
                        if len(metrics) == MAX_CATEGORIES:
                            _raise_fault(where, f"categories[{name!r}]", category, f"is one more than {MAX_CATEGORIES}")
                        metrics[category] = Metric(np.zeros(len(starts)), np.zeros(len(starts)))
                    getattr(metrics[category], version)[index] = count
        if any(tally is not None for column in tallies for tally in column):
            categories[name] = metrics
    return categories
