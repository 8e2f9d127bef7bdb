"""What a metric store answered, checked value by value: anything unreadable is `EvidenceUnavailableError`. Pure.

An answer is not trusted to have the form that the query asks for: a proxy, another version of the store, or somebody's
function of the same name may have given it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.bins import floor_to_bin, thresholds
from controlled_rollout.evidence.metric_store import Answer, Arrivals, StoreRequest, UnreadableError
from controlled_rollout.evidence.rows import CountRow, MetricRow, UserRow
from controlled_rollout.gate import Counts, Moments, UserCounts

__all__ = ["arrivals_of", "count_rows", "histogram_thresholds", "metric_rows", "newest_of", "user_rows"]

Row = Mapping[str, Any]
Value = TypeVar("Value")

# More requests than this in one bin, and longer times than this, are no measurements.
MOST: Final = 10**12
LONGEST_LAG_MS: Final = 1e12
# Logarithmic buckets of durations, 100 to a factor of e: from below a microsecond to three hundred years.
BUCKETS: Final = range(-1_000, 3_001)
# Squares of a metric's values have to be numbers too.
LARGEST_VALUE: Final = 1e100
# Text of an answer in an error's message.
SHOWN: Final = 80


def histogram_thresholds(rows: Iterable[Row], requests: Sequence[StoreRequest]) -> list[Answer[tuple[float, ...]]]:
    """Return each gate's latency quantiles from the rows of `kql.baseline_query`, or why its rows are unreadable.

    Raises:
        UnreadableError: A row does not say which gate it is for.
    """

    def quantiles(request: StoreRequest, own: Sequence[Row]) -> tuple[float, ...]:
        """Return the quantiles of one gate."""
        histogram: dict[int, int] = {}
        for row in own:
            bucket = _whole_number(row, "Bucket", least=BUCKETS[0], most=BUCKETS[-1])
            if bucket in histogram:
                raise _unreadable_column_error("Bucket", bucket, "each bucket once")
            histogram[bucket] = _whole_number(row, "Requests")
        return thresholds(histogram, request.key.quantiles)

    return _by_gate(rows, requests, quantiles)


def count_rows(
    rows: Iterable[Row], requests: Sequence[StoreRequest], *, until: datetime, bin_width: timedelta
) -> list[Answer[list[CountRow]]]:
    """Return each gate's counts from the rows of `kql.counts_query`, or why its rows are unreadable.

    Raises:
        UnreadableError: A row does not say which gate it is for.
    """

    def counts(request: StoreRequest, own: Sequence[Row]) -> list[CountRow]:
        """Return the counts of one gate."""
        found: dict[tuple[datetime, str, bool], CountRow] = {}
        for row in own:
            key = _bin_key(row, request, until=until, bin_width=bin_width)
            if key in found:
                raise _unreadable_column_error("Bin", key[0], "each bin once for each version")
            counts = _read_counts(row, len(request.thresholds_ms))
            hung_up = _whole_number(row, "HungUp", most=counts.errors)
            found[key] = CountRow(*key, counts, hung_up=hung_up, left_queue=_whole_number(row, "LeftQueue"))
        return list(found.values())

    return _by_gate(rows, requests, counts)


def metric_rows(
    name: str, rows: Iterable[Row], request: StoreRequest, *, until: datetime, is_category: bool
) -> list[MetricRow]:
    """Return one of the author's metrics by bin and version.

    Raises:
        EvidenceUnavailableError: A row is unreadable.
    """
    width = request.key.window.bin_width
    values: dict[tuple[datetime, str, bool], Moments | dict[str, int]] = {}
    # A category's order is that of its name, so that the same answer is always the same evidence.
    ordered = sorted(rows, key=lambda row: str(row.get("Category"))) if is_category else rows
    for row in ordered:
        key = _bin_key(row, request, until=until, bin_width=width)
        if is_category:
            tally = values.setdefault(key, {})
            category = row["Category"]
            if not isinstance(category, str) or not isinstance(tally, dict) or category in tally:
                raise _unreadable_column_error("Category", category, "each category once as text")
            tally[category] = _whole_number(row, "Count")
        elif key in values:
            raise _unreadable_column_error("Bin", key[0], "each bin once for each version")
        else:
            values[key] = _read_moments(name, row)
    return [MetricRow(*key, name, value) for key, value in values.items()]


def user_rows(rows: Iterable[Row], request: StoreRequest, *, until: datetime) -> list[UserRow]:
    """Return the users by bin and version, from the rows of `kql.users_query`.

    Raises:
        UnreadableError: A row is unreadable.
    """
    users_by_key: dict[tuple[datetime, str, bool, float], UserRow] = {}
    for row in rows:
        key = _bin_key(row, request, until=until, bin_width=request.key.window.bin_width)
        users = _whole_number(row, "Users")
        scored = users - _whole_number(row, "Overloaded", most=users)
        above = _finite_number(row, "Above", least=0.0, most=1.0)
        counts = UserCounts(
            users=users,
            errors=_whole_number(row, "Errors", most=scored),
            slow=tuple(_whole_number(row, f"Slow{n}", most=scored) for n in range(len(request.thresholds_ms))),
            above=above,
            overloaded=users - scored,
        )
        if (*key, above) in users_by_key:
            raise _unreadable_column_error("Above", above, "each way of being drawn once for each bin and version")
        users_by_key[(*key, above)] = UserRow(*key, counts)
    return list(users_by_key.values())


def arrivals_of(rows: Iterable[Row]) -> dict[str, Answer[Arrivals]]:
    """Return what arrived lately by endpoint, or why that is unreadable; from the rows of `kql.arrivals_query`."""
    arrivals: dict[str, Answer[Arrivals]] = {}
    for row in rows:
        endpoint = row["Endpoint"]
        if not isinstance(endpoint, str):
            raise _unreadable_column_error("Endpoint", endpoint, "a name")
        try:
            if endpoint in arrivals:
                raise _unreadable_column_error("Endpoint", endpoint, "each endpoint once")
            arrivals[endpoint] = _arrivals(row)
        except EvidenceUnavailableError as error:
            arrivals[endpoint] = error
    return arrivals


def newest_of(rows: Sequence[Row]) -> datetime | None:
    """Return the one time that `kql.newest_query` answers; None if there is none."""
    if not rows or rows[0]["Newest"] is None:
        return None
    return _utc_time(rows[0], "Newest")


def _by_gate(
    rows: Iterable[Row], requests: Sequence[StoreRequest], read: Callable[[StoreRequest, Sequence[Row]], Value]
) -> list[Answer[Value]]:
    """Return what `read` makes of each gate's rows; one gate's unreadable row touches no other gate."""
    own: list[list[Row]] = [[] for _ in requests]
    for row in rows:
        own[_whole_number(row, "Gate", most=len(requests) - 1)].append(row)
    answers: list[Answer[Value]] = []
    for request, gate_rows in zip(requests, own, strict=True):
        try:
            answers.append(read(request, gate_rows))
        except EvidenceUnavailableError as error:
            answers.append(error)
    return answers


def _unreadable_column_error(column: str, value: object, wanted: str) -> UnreadableError:
    """Return the error that a column has a value that cannot be."""
    shown = repr(value) if len(repr(value)) <= SHOWN else f"{repr(value)[:SHOWN]}…"
    return UnreadableError(
        f"the metric store answered {column} = {shown} where {wanted} was asked for: check what answers there, and the "
        "telemetry's schema"
    )


def _whole_number(row: Row, column: str, *, least: int = 0, most: int = MOST) -> int:
    """Return a column's value as an integer within bounds; raise for NaN, null, text and everything else."""
    value = row[column]
    wanted = f"a whole number from {least} to {most}"
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _unreadable_column_error(column, value, wanted)
    if not least <= value <= most or value != int(value):
        raise _unreadable_column_error(column, value, wanted)
    return int(value)


def _finite_number(row: Row, column: str, *, least: float, most: float) -> float:
    """Return a column's value as a float within bounds; raise for NaN, null, text and everything else."""
    value = row[column]
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise _unreadable_column_error(column, value, f"a finite number from {least:g} to {most:g}")
    return float(value)


def _utc_time(row: Row, column: str) -> datetime:
    """Return a column's value as a time in UTC; raise if it is none."""
    value = row[column]
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise _unreadable_column_error(column, value, "a time with its zone")
    try:
        return value.astimezone(UTC)
    except (OverflowError, ValueError) as error:
        raise _unreadable_column_error(column, value, "a time with its zone") from error


def _bin_key(row: Row, request: StoreRequest, *, until: datetime, bin_width: timedelta) -> tuple[datetime, str, bool]:
    """Return a row's bin, version, and whether its requests came before the rollout began; raise if they cannot be."""
    start, version, before = _utc_time(row, "Bin"), row["Version"], row["Before"]
    first = floor_to_bin(request.since, bin_width)
    if not first <= start < until or start != floor_to_bin(start, bin_width):
        raise _unreadable_column_error(
            "Bin", start.isoformat(), f"the start of a bin from {first:%H:%M:%S} to {until:%H:%M:%S}"
        )
    if version not in (request.key.control, request.key.treatment):
        raise _unreadable_column_error("Version", version, f"{request.key.control!r} or {request.key.treatment!r}")
    started = request.key.started
    if not isinstance(before, bool) or (start >= started if before else start + bin_width <= started):
        raise _unreadable_column_error(
            "Before", before, f"whether requests from {start:%H:%M:%S} on came before {started:%H:%M:%S}"
        )
    return start, version, before


def _read_counts(row: Row, n_thresholds: int) -> Counts:
    """Return a row's counts; raise if there are more errors or slow requests than requests."""
    requests = _whole_number(row, "Requests")
    represented = _whole_number(row, "Represented", least=requests)
    scored = requests - _whole_number(row, "Overloaded", most=requests)
    timed = _whole_number(row, "Timed", most=scored)
    return Counts(
        requests=requests,
        errors=_whole_number(row, "Errors", most=scored),
        slow=tuple(_whole_number(row, f"Slow{number}", most=scored) for number in range(n_thresholds)),
        represented=represented if represented > requests else 0,
        overloaded=requests - scored,
        scoring=(timed, *(_whole_number(row, f"Scored{number}", most=timed) for number in range(n_thresholds))),
    )


def _read_moments(name: str, row: Row) -> Moments:
    """Return the moments of a numeric metric's values; raise if they cannot be those of finite numbers."""
    count = _whole_number(row, "Count")
    try:
        mean = _finite_number(row, "Mean", least=-LARGEST_VALUE, most=LARGEST_VALUE) if count else 0.0
        # A single value has no sample variance: null, or NaN as text.
        variance = _finite_number(row, "Variance", least=0.0, most=LARGEST_VALUE**2) if count > 1 else 0.0
    except EvidenceUnavailableError as error:
        raise UnreadableError(f"{error}; every Value of the metric {name!r} has to be a finite number") from error
    return Moments(count, mean, variance)


def _arrivals(row: Row) -> Arrivals:
    """Return a row's oldest time and lag of recently ingested requests; raise if one of them is unreadable."""
    late_ms = row["LateMs"]
    # A percentile of no rows is null, or NaN as a number or as text.
    is_none = late_ms is None or late_ms == "NaN" or (isinstance(late_ms, float) and math.isnan(late_ms))
    oldest = None if row["Oldest"] is None else _utc_time(row, "Oldest")
    if is_none:
        return Arrivals(oldest, None)
    lag_ms = _finite_number(row, "LateMs", least=-LONGEST_LAG_MS, most=LONGEST_LAG_MS)
    return Arrivals(oldest, timedelta(milliseconds=max(0.0, lag_ms)))
