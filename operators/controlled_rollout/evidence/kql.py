"""The queries that the gate sends to a Log Analytics workspace, Azure's or the local store's. Pure text.

One query serves many gates: what each needs is in a small table inside the query, and the rows have the gate's number.
"""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from controlled_rollout.evidence.bins import BUCKETS_PER_E, FASTEST_MS
from controlled_rollout.evidence.metric_store import StoreRequest
from controlled_rollout.version import check_name

__all__ = [
    "arrivals_query",
    "baseline_query",
    "category_query",
    "counts_query",
    "mean_query",
    "newest_query",
    "until_line",
]

# Longer than any duration: fills up where one gate has fewer thresholds than another in the same query.
NEVER_MS: Final = 1e18


def until_line(until: datetime) -> str:
    """Return the line that says how far a query reads; it goes before a query that leaves that open."""
    return f"let Until = {_datetime(until)};\n"


def baseline_query(requests: Sequence[StoreRequest]) -> str:
    """Return the KQL of the controls' latency histograms before each rollout, by logarithmic bucket of milliseconds."""
    rows = [
        [number, *_names(request, request.key.control), _time(request.key.first), _time(request.key.started)]
        for number, request in enumerate(requests)
    ]
    first, last = min(request.key.first for request in requests), max(request.key.started for request in requests)
    return (
        f"{_gates_table(rows, 'From = todatetime(Row[3])', 'To = todatetime(Row[4])')}"
        f"{_requests(_datetime(first), _datetime(last))}"
        f"{_rows_of_gates('TimeGenerated >= From and TimeGenerated < To')}"
        f"| extend Bucket = bin(log(max_of(DurationMs, {_real(FASTEST_MS)})) * {_real(BUCKETS_PER_E)}, 1.0)\n"
        "| summarize Requests = sum(ItemCount) by Gate, Bucket"
    )


def counts_query(requests: Sequence[StoreRequest], *, bin_width: timedelta) -> str:
    """Return the KQL of the versions' counts by bin, before and since each rollout began; `until_line` goes before it.

    A request is slow when it takes longer than control's quantile, the treatment's longer than the tolerated multiple.
    """
    n_thresholds = max(len(request.thresholds_ms) for request in requests)
    rows: list[list[Any]] = []
    for number, request in enumerate(requests):
        for version, factor in ((request.key.control, 1.0), (request.key.treatment, 1 + request.key.tolerance)):
            limits = [float(_real(threshold * factor)) for threshold in request.thresholds_ms]
            limits += [NEVER_MS] * (n_thresholds - len(limits))
            rows.append([number, *_names(request, version), _time(request.since), _time(request.key.started), *limits])
    limits_of = [f"Limit{number} = toreal(Row[{number + 5}])" for number in range(n_thresholds)]
    slow = "".join(
        f",\n    Slow{number} = sumif(ItemCount, DurationMs > Limit{number})" for number in range(n_thresholds)
    )
    return (
        f"{_gates_table(rows, 'From = todatetime(Row[3])', 'Started = todatetime(Row[4])', *limits_of)}"
        f"{_requests(_datetime(min(request.since for request in requests)), 'Until')}"
        f"{_rows_of_gates('TimeGenerated >= From')}"
        "| summarize Requests = sum(ItemCount),\n"
        f"    Errors = sumif(ItemCount, toint(ResultCode) >= 500 or ResultCode == '0'){slow}\n"
        f"    by Gate, Version, Bin = bin(TimeGenerated, {_milliseconds(bin_width)}), Before = TimeGenerated < Started"
    )


def arrivals_query(
    *, first: datetime, until: datetime, since: datetime, lag_since: datetime, bin_width: timedelta
) -> str:
    """Return the KQL of what arrived lately: how far back it reaches, and how long after its bin's end it came.

    Args:
        first: The oldest moment that any gate reads.
        until: How far the gates read.
        since: `Oldest` is of what arrived since then.
        lag_since: `LateMs` is of what arrived since then.
        bin_width: The length of a bin.
    """
    width = _milliseconds(bin_width)
    return (
        "AppRequests\n"
        f"| where TimeGenerated >= {_datetime(first)} and TimeGenerated < {_datetime(until)}\n"
        "| extend Arrived = ingestion_time()\n"
        f"| where Arrived >= {_datetime(min(since, lag_since))}\n"
        "| extend Endpoint = tostring(Properties.endpoint)\n"
        f"| extend Late = iff(Arrived >= {_datetime(lag_since)},"
        f" (Arrived - bin(TimeGenerated, {width}) - {width}) / 1ms, real(null))\n"
        f"| extend Began = iff(Arrived >= {_datetime(since)}, TimeGenerated, datetime(null))\n"
        "| summarize Oldest = min(Began), LateMs = percentile(Late, 99) by Endpoint"
    )


def mean_query(kql: str, request: StoreRequest, *, until: datetime | None, bin_width: timedelta) -> str:
    """Return the KQL of one numeric metric: how many values each version had by bin, their mean and sample variance.

    Args:
        kql: The author's query: one row a value, with TimeGenerated, Version and Value.
        request: Whose versions, and since when.
        until: How far to read; None leaves it open, for `until_line`.
        bin_width: The length of a bin.
    """
    return _summarized(
        kql, "Count = count(), Mean = avg(Value), Variance = variance(Value)", "Version", request, until, bin_width
    )


def category_query(kql: str, request: StoreRequest, *, until: datetime | None, bin_width: timedelta) -> str:
    """Return the KQL of one categorical metric: how often each version had each category by bin.

    Args:
        kql: The author's query: one row a value, with TimeGenerated, Version and Value; an empty one is none.
        request: Whose versions, and since when.
        until: How far to read; None leaves it open, for `until_line`.
        bin_width: The length of a bin.
    """
    text = f"{_one_statement(kql)}\n| extend Value = tostring(Value)\n| where isnotempty(Value)"
    return _summarized(text, "Count = count()", "Version, Category = Value", request, until, bin_width)


def _summarized(
    kql: str, aggregates: str, by: str, request: StoreRequest, until: datetime | None, bin_width: timedelta
) -> str:
    end = "Until" if until is None else _datetime(until)
    versions = f"'{check_name(request.key.control)}', '{check_name(request.key.treatment)}'"
    return (
        f"{_one_statement(kql)}\n"
        f"| where TimeGenerated >= {_datetime(request.since)} and TimeGenerated < {end}\n"
        f"| where Version in ({versions}) and isnotnull(Value)\n"
        f"| summarize {aggregates}\n"
        f"    by {by}, Bin = bin(TimeGenerated, {_milliseconds(bin_width)}),"
        f" Before = TimeGenerated < {_datetime(request.key.started)}"
    )


def _one_statement(kql: str) -> str:
    return kql.strip().rstrip(";")


def newest_query(endpoint: str, *, start: datetime, end: datetime) -> str:
    """Return the KQL of when the newest request of an endpoint began."""
    return (
        f"{_requests(_datetime(start), _datetime(end))}"
        f"| where tostring(Properties.endpoint) == '{check_name(endpoint)}'\n"
        "| summarize Newest = max(TimeGenerated)"
    )


def _requests(start: str, end: str) -> str:
    """Return the part that reads requests whose version the weights chose; rows without `routed_by` count as such."""
    return (
        "AppRequests\n"
        f"| where TimeGenerated >= {start} and TimeGenerated < {end}\n"
        "| where tostring(Properties.routed_by) != 'header'\n"
    )


def _gates_table(rows: list[list[Any]], *columns: str) -> str:
    """Return the table of what each gate needs: one literal, so that a thousand gates are parsed as quickly as one."""
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    names = ("Gate = toint(Row[0])", "Endpoint = tostring(Row[1])", "Version = tostring(Row[2])", *columns)
    # Nothing in it needs escaping: names are checked, the rest is numbers and times.
    return f"let Gates = print Rows = parse_json('{text}')\n| mv-expand Row = Rows\n| project {', '.join(names)};\n"


def _rows_of_gates(condition: str) -> str:
    return (
        "| extend Endpoint = tostring(Properties.endpoint), Version = tostring(Properties.version)\n"
        "| lookup kind=inner Gates on Endpoint, Version\n"
        f"| where {condition}\n"
    )


def _names(request: StoreRequest, version: str) -> tuple[str, str]:
    return check_name(request.key.endpoint), check_name(version)


def _time(moment: datetime) -> str:
    """ISO 8601 in UTC; a moment without a zone would silently be another one."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _datetime(moment: datetime) -> str:
    return f"datetime({_time(moment)})"


def _milliseconds(width: timedelta) -> str:
    return f"{width // timedelta(milliseconds=1)}ms"


def _real(number: float) -> str:
    """A KQL literal of a finite number: digits and a point, nothing else."""
    if not math.isfinite(number):
        raise ValueError(f"{number!r} is not finite")
    return f"{number:.6f}"
