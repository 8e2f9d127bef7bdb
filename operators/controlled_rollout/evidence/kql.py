"""The queries that the gate sends to a Log Analytics workspace, Azure's or the local store's. Pure text.

One query serves many gates: what each asks for stands in a small table inside the query; the rows say whose they are.
"""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from controlled_rollout.endpoint import check_name
from controlled_rollout.evidence.bins import BUCKETS_PER_E, FASTEST_MS
from controlled_rollout.evidence.model import Ask

__all__ = [
    "arrivals_query",
    "baseline_query",
    "category_query",
    "counts_query",
    "mean_query",
    "newest_query",
    "until_line",
]

# No duration reaches it: stands where one gate has fewer thresholds than another in the same query.
NEVER_MS: Final = 1e18


def until_line(until: datetime) -> str:
    """Return the line that says how far a query reads; it stands before the queries of `counts_query`."""
    return f"let Until = {_datetime(until)};\n"


def baseline_query(asks: Sequence[Ask]) -> str:
    """Return the KQL of the controls' latency histograms before each rollout, by logarithmic bucket of milliseconds."""
    rows = [
        [number, *_names(ask, ask.subject.control), _time(ask.subject.first), _time(ask.subject.started)]
        for number, ask in enumerate(asks)
    ]
    first, last = min(ask.subject.first for ask in asks), max(ask.subject.started for ask in asks)
    return (
        f"{_asked(rows, 'From = todatetime(Row[3])', 'To = todatetime(Row[4])')}"
        f"{_requests(_datetime(first), _datetime(last))}"
        f"{_of_the_asked('TimeGenerated >= From and TimeGenerated < To')}"
        f"| extend Bucket = bin(log(max_of(DurationMs, {_real(FASTEST_MS)})) * {_real(BUCKETS_PER_E)}, 1.0)\n"
        "| summarize Requests = sum(ItemCount) by Ask, Bucket"
    )


def counts_query(asks: Sequence[Ask], *, bin_width: timedelta) -> str:
    """Return the KQL of the versions' counts by bin, before and since each rollout began; `until_line` goes before it.

    A request is slow when it takes longer than control's quantile, the treatment's longer than the tolerated multiple.
    """
    kinds = max(len(ask.thresholds_ms) for ask in asks)
    rows: list[list[Any]] = []
    for number, ask in enumerate(asks):
        for version, factor in ((ask.subject.control, 1.0), (ask.subject.treatment, 1 + ask.subject.tolerance)):
            limits = [float(_real(threshold * factor)) for threshold in ask.thresholds_ms]
            limits += [NEVER_MS] * (kinds - len(limits))
            rows.append([number, *_names(ask, version), _time(ask.since), _time(ask.subject.started), *limits])
    limits_of = [f"Limit{number} = toreal(Row[{number + 5}])" for number in range(kinds)]
    slow = "".join(f",\n    Slow{number} = sumif(ItemCount, DurationMs > Limit{number})" for number in range(kinds))
    return (
        f"{_asked(rows, 'From = todatetime(Row[3])', 'Started = todatetime(Row[4])', *limits_of)}"
        f"{_requests(_datetime(min(ask.since for ask in asks)), 'Until')}"
        f"{_of_the_asked('TimeGenerated >= From')}"
        "| summarize Requests = sum(ItemCount),\n"
        f"    Errors = sumif(ItemCount, toint(ResultCode) >= 500 or ResultCode == '0'){slow}\n"
        f"    by Ask, Version, Bin = bin(TimeGenerated, {_milliseconds(bin_width)}), Before = TimeGenerated < Started"
    )


def arrivals_query(*, first: datetime, until: datetime, since: datetime, bin_width: timedelta) -> str:
    """Return the KQL of what has arrived since a moment: how far back it reaches, and how long after its bin's end.

    Args:
        first: The oldest moment that any gate looks at.
        until: How far the gates look.
        since: What arrived before was seen by the look before.
        bin_width: The length of a bin.
    """
    width = _milliseconds(bin_width)
    return (
        "AppRequests\n"
        f"| where TimeGenerated >= {_datetime(first)} and TimeGenerated < {_datetime(until)}\n"
        "| extend Arrived = ingestion_time()\n"
        f"| where Arrived >= {_datetime(since)}\n"
        "| extend Endpoint = tostring(Properties.endpoint)\n"
        f"| extend LateMs = (Arrived - bin(TimeGenerated, {width}) - {width}) / 1ms\n"
        "| summarize Oldest = min(TimeGenerated), LateMs = percentile(LateMs, 99) by Endpoint"
    )


def mean_query(kql: str, ask: Ask, *, until: datetime | None, bin_width: timedelta) -> str:
    """Return the KQL of one numeric metric: how many values each version had by bin, their mean and sample variance.

    Args:
        kql: The author's query: one row a value, with TimeGenerated, Version and Value.
        ask: Whose versions, and since when.
        until: How far to read; None leaves it open, for `until_line`.
        bin_width: The length of a bin.
    """
    return _summarized(
        kql, "Count = count(), Mean = avg(Value), Variance = variance(Value)", "Version", ask, until, bin_width
    )


def category_query(kql: str, ask: Ask, *, until: datetime | None, bin_width: timedelta) -> str:
    """Return the KQL of one categorical metric: how often each version had each category by bin.

    Args:
        kql: The author's query: one row a value, with TimeGenerated, Version and Value; an empty one is none.
        ask: Whose versions, and since when.
        until: How far to read; None leaves it open, for `until_line`.
        bin_width: The length of a bin.
    """
    text = f"{_one_statement(kql)}\n| extend Value = tostring(Value)\n| where isnotempty(Value)"
    return _summarized(text, "Count = count()", "Version, Category = Value", ask, until, bin_width)


def _summarized(kql: str, values: str, by: str, ask: Ask, until: datetime | None, bin_width: timedelta) -> str:
    end = "Until" if until is None else _datetime(until)
    versions = f"'{check_name(ask.subject.control)}', '{check_name(ask.subject.treatment)}'"
    return (
        f"{_one_statement(kql)}\n"
        f"| where TimeGenerated >= {_datetime(ask.since)} and TimeGenerated < {end}\n"
        f"| where Version in ({versions}) and isnotnull(Value)\n"
        f"| summarize {values}\n"
        f"    by {by}, Bin = bin(TimeGenerated, {_milliseconds(bin_width)}),"
        f" Before = TimeGenerated < {_datetime(ask.subject.started)}"
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
    """The requests that the weights sent to a version; rows that do not say who chose count as such."""
    return (
        "AppRequests\n"
        f"| where TimeGenerated >= {start} and TimeGenerated < {end}\n"
        "| where tostring(Properties.routed_by) != 'header'\n"
    )


def _asked(rows: list[list[Any]], *columns: str) -> str:
    """The table of what is asked for: one literal, so that a thousand gates are parsed as quickly as one."""
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    names = ("Ask = toint(Row[0])", "Endpoint = tostring(Row[1])", "Version = tostring(Row[2])", *columns)
    # Nothing in it needs escaping: names are checked, the rest is numbers and times.
    return f"let Asked = print Rows = parse_json('{text}')\n| mv-expand Row = Rows\n| project {', '.join(names)};\n"


def _of_the_asked(condition: str) -> str:
    return (
        "| extend Endpoint = tostring(Properties.endpoint), Version = tostring(Properties.version)\n"
        "| lookup kind=inner Asked on Endpoint, Version\n"
        f"| where {condition}\n"
    )


def _names(ask: Ask, version: str) -> tuple[str, str]:
    return check_name(ask.subject.endpoint), check_name(version)


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
