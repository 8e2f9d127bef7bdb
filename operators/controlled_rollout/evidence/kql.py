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
    "overview_query",
    "until_line",
    "users_query",
]

# Longer than any duration: fills up where one gate has fewer thresholds than another in the same query.
NEVER_MS: Final = 1e18
# Everything but a number from 100 to 499: 5xx, text such as `Timeout`, and 0 where a caller hung up before an answer.
# And an answer that the version broke off, or that took too long, after it had begun: Envoy's flags say so.
_IS_ERROR: Final = (
    "(not(ResultCode matches regex '^[1-4][0-9][0-9]([.]0*)?$')"
    " or Flags matches regex '(^|,)(UC|UPE|UR|LR|UT|UMSDR|SI)(,|$)')"
)

# The caller has hung up before there was an answer.
_HUNG_UP: Final = "(ResultCode matches regex '^0([.]0*)?$' and Flags matches regex '(^|,)DC(,|$)')"
# The version has refused the request without scoring it, because it had no room; the scoring runtime says so, with 503.
_NO_ROOM: Final = (
    "(ResultCode matches regex '^503([.]0*)?$' and Reason in ('queue-full', 'waited-too-long', 'memory-full'))"
)


def until_line(until: datetime) -> str:
    """Return the KQL line that sets `Until`, the end of the time that a query reads; it goes before such a query."""
    return f"let Until = {_kql_datetime(until)};\n"


def baseline_query(requests: Sequence[StoreRequest]) -> str:
    """Return the KQL that counts control's requests before each rollout by logarithmic latency bucket."""
    rows = [
        [
            number,
            *_checked_names(request, request.key.control),
            _iso_time(request.key.first),
            _iso_time(request.key.started),
        ]
        for number, request in enumerate(requests)
    ]
    first, last = min(request.key.first for request in requests), max(request.key.started for request in requests)
    return (
        f"{_gates_table(rows, 'From = todatetime(Row[3])', 'To = todatetime(Row[4])')}"
        f"{_evidence_rows(_kql_datetime(first), _kql_datetime(last))}"
        f"{_join_with_gates(f'TimeGenerated >= From and TimeGenerated < To and not({_NO_ROOM})')}"
        f"| extend Bucket = bin(log(max_of(DurationMs, {_kql_real(FASTEST_MS)})) * {_kql_real(BUCKETS_PER_E)}, 1.0)\n"
        "| summarize Requests = count() by Gate, Bucket"
    )


def counts_query(requests: Sequence[StoreRequest], *, bin_width: timedelta) -> str:
    """Return the KQL of each version's counts per bin, before and since its rollout began (`until_line` goes first).

    A request is slow when it takes longer than control's quantile, the treatment's longer than the tolerated multiple.
    """
    n_thresholds = max(len(request.thresholds_ms) for request in requests)
    rows: list[list[Any]] = []
    for number, request in enumerate(requests):
        for version, factor in ((request.key.control, 1.0), (request.key.treatment, 1 + request.key.tolerance)):
            limits = [float(_kql_real(threshold * factor)) for threshold in request.thresholds_ms]
            limits += [NEVER_MS] * (n_thresholds - len(limits))
            rows.append(
                [
                    number,
                    *_checked_names(request, version),
                    _iso_time(request.since),
                    _iso_time(request.key.started),
                    *limits,
                ]
            )
    limits_of = [f"Limit{number} = toreal(Row[{number + 5}])" for number in range(n_thresholds)]
    slow = "".join(
        f",\n    Slow{number} = countif(DurationMs > Limit{number} and not({_NO_ROOM}))"
        for number in range(n_thresholds)
    )
    slow_by_scoring = "".join(
        f",\n    Scored{number} = countif(ScoringMs > Limit{number} and not({_NO_ROOM}))"
        for number in range(n_thresholds)
    )
    return (
        f"{_gates_table(rows, 'From = todatetime(Row[3])', 'Started = todatetime(Row[4])', *limits_of)}"
        f"{_evidence_rows(_kql_datetime(min(request.since for request in requests)), 'Until')}"
        f"{_join_with_gates('TimeGenerated >= From')}"
        "| summarize Requests = count(), Represented = sum(ItemCount),\n"
        f"    Errors = countif({_IS_ERROR} and not({_NO_ROOM})), Overloaded = countif({_NO_ROOM}),\n"
        f"    HungUp = countif({_HUNG_UP}), LeftQueue = sum(iff(isnull(LeftQueue), 0, LeftQueue)),\n"
        f"    Timed = countif(isnotnull(ScoringMs) and not({_NO_ROOM})){slow}{slow_by_scoring}\n"
        f"    by Gate, Version, Bin = bin(TimeGenerated, {_kql_timespan(bin_width)}), Before = TimeGenerated < Started"
    )


def users_query(request: StoreRequest, *, until: datetime | None, bin_width: timedelta, guard: timedelta) -> str:
    """Return the KQL of each version's users per bin, by how they were drawn: see `gate/users.py`.

    A user counts once at each step, by the first request there, and no more once the treatment has answered at an
    earlier one. `Above` is the treatment's largest part at the earlier steps at which the user was in control. Before
    the rollout each user counts once.

    Args:
        request: Whose users, and the steps.
        until: How far to read; None leaves it open, for `until_line`.
        bin_width: The length of a bin.
        guard: What came so soon after a step began may have gone by the split before, and is left out.
    """
    key, end = request.key, "Until" if until is None else _kql_datetime(until)
    steps = key.steps or ((key.started, 0.0),)
    control, treatment = check_name(key.control), check_name(key.treatment)
    times = [f"TimeGenerated < {_kql_datetime(key.started)}, -1"]
    for number, (at, _) in enumerate(steps[1:]):
        times.append(f"TimeGenerated < {_kql_datetime(at)}, {number}")
        times.append(f"TimeGenerated < {_kql_datetime(at + guard)}, -2")
    shares = "".join(f"Step == {number}, {_kql_real(share)}, " for number, (_, share) in enumerate(steps))
    slow = "".join(
        f",\n    Slow{number} = countif(DurationMs > iff(Version == '{treatment}', "
        f"{_kql_real(threshold * (1 + key.tolerance))}, {_kql_real(threshold)}) and not({_NO_ROOM}))"
        for number, threshold in enumerate(request.thresholds_ms)
    )
    return (
        f"let Seen = {_evidence_rows(_kql_datetime(request.since), end, with_user=True)}"
        f"| where Endpoint == '{check_name(key.endpoint)}' and Version in ('{control}', '{treatment}')\n"
        "| where isnotempty(User)\n"
        f"| extend Step = case({', '.join(times)}, {len(steps) - 1})\n"
        "| where Step != -2\n"
        f"| extend Share = case({shares}0.0);\n"
        "let First = Seen\n"
        "| summarize arg_min(TimeGenerated, Version, ResultCode, Flags, Reason, DurationMs, Share) by User, Step;\n"
        "let Users = Seen\n"
        f"| extend Treated = iff(Version == '{treatment}' and Step >= 0, Step, {len(steps)})\n"
        "| summarize TreatedSince = min(Treated) by User;\n"
        "First\n"
        "| join kind=inner (Users) on User\n"
        "| where Step <= TreatedSince\n"
        "| join kind=inner (First | project User, OtherStep = Step, OtherShare = Share) on User\n"
        "| extend Drawn = iff(OtherStep >= 0 and OtherStep < Step, OtherShare, 0.0)\n"
        "| summarize Above = max(Drawn)\n"
        "    by User, Step, TimeGenerated, Version, ResultCode, Flags, Reason, DurationMs, Share\n"
        "| where Above == 0.0 or Above < Share\n"
        f"| summarize Users = count(), Errors = countif({_IS_ERROR} and not({_NO_ROOM})),\n"
        f"    Overloaded = countif({_NO_ROOM}){slow}\n"
        f"    by Version, Bin = bin(TimeGenerated, {_kql_timespan(bin_width)}), Before = Step < 0, Above"
    )


def arrivals_query(
    *, first: datetime, until: datetime, since: datetime, lag_since: datetime, bin_width: timedelta
) -> str:
    """Return the KQL of how far back recently ingested rows reach, and how late the newest ones arrived.

    Args:
        first: The oldest moment that any gate reads.
        until: How far the gates read.
        since: `Oldest` is of what arrived since then.
        lag_since: `LateMs` is of what arrived since then.
        bin_width: The length of a bin.
    """
    width = _kql_timespan(bin_width)
    return (
        "AppRequests\n"
        f"| where TimeGenerated >= {_kql_datetime(first)} and TimeGenerated < {_kql_datetime(until)}\n"
        "| extend Arrived = ingestion_time()\n"
        f"| where Arrived >= {_kql_datetime(min(since, lag_since))}\n"
        "| extend Endpoint = tostring(Properties.endpoint)\n"
        f"| extend Late = iff(Arrived >= {_kql_datetime(lag_since)},"
        f" (Arrived - bin(TimeGenerated, {width}) - {width}) / 1ms, real(null))\n"
        f"| extend Began = iff(Arrived >= {_kql_datetime(since)}, TimeGenerated, datetime(null))\n"
        "| summarize Oldest = min(Began), LateMs = percentile(Late, 99) by Endpoint"
    )


def mean_query(kql: str, request: StoreRequest, *, until: datetime | None, bin_width: timedelta) -> str:
    """Return the KQL of one numeric metric per bin and version: count, mean and sample variance of its values.

    Args:
        kql: The author's query: one row a value, with TimeGenerated, Version and Value.
        request: Whose versions, and since when.
        until: How far to read; None leaves it open, for `until_line`.
        bin_width: The length of a bin.
    """
    return _summarized_by_bin(
        kql, "Count = count(), Mean = avg(Value), Variance = variance(Value)", "Version", request, until, bin_width
    )


def category_query(kql: str, request: StoreRequest, *, until: datetime | None, bin_width: timedelta) -> str:
    """Return the KQL of one categorical metric per bin and version: how often each category occurs.

    Args:
        kql: The author's query: one row a value, with TimeGenerated, Version and Value; an empty one is none.
        request: Whose versions, and since when.
        until: How far to read; None leaves it open, for `until_line`.
        bin_width: The length of a bin.
    """
    text = f"{_one_statement(kql)}\n| extend Value = tostring(Value)\n| where isnotempty(Value)"
    return _summarized_by_bin(text, "Count = count()", "Version, Category = Value", request, until, bin_width)


def _summarized_by_bin(
    kql: str, aggregates: str, by: str, request: StoreRequest, until: datetime | None, bin_width: timedelta
) -> str:
    """Return a metric's KQL with filters on time and versions, and aggregated by bin."""
    end = "Until" if until is None else _kql_datetime(until)
    versions = f"'{check_name(request.key.control)}', '{check_name(request.key.treatment)}'"
    return (
        f"{_one_statement(kql)}\n"
        f"| where TimeGenerated >= {_kql_datetime(request.since)} and TimeGenerated < {end}\n"
        f"| where Version in ({versions}) and isnotnull(Value)\n"
        f"| summarize {aggregates}\n"
        f"    by {by}, Bin = bin(TimeGenerated, {_kql_timespan(bin_width)}),"
        f" Before = TimeGenerated < {_kql_datetime(request.key.started)}"
    )


def _one_statement(kql: str) -> str:
    """Return a metric's KQL without the semicolon at its end, so that operators can be appended."""
    return kql.strip().rstrip(";")


def newest_query(endpoint: str, *, start: datetime, end: datetime) -> str:
    """Return the KQL of the time of an endpoint's newest request."""
    return (
        f"{_evidence_rows(_kql_datetime(start), _kql_datetime(end))}"
        f"| where Endpoint == '{check_name(endpoint)}'\n"
        "| summarize Newest = max(TimeGenerated)"
    )


def overview_query(endpoint: str, *, start: datetime, end: datetime | None, width: timedelta) -> str:
    """Return the KQL of what callers saw of an endpoint's versions over time, for people; it counts as the gate does.

    Args:
        endpoint: The endpoint's name.
        start: When the time that is read begins.
        end: When it ends; None for the present.
        width: The length of a bin.
    """
    return (
        f"{_evidence_rows(_kql_datetime(start), 'now()' if end is None else _kql_datetime(end))}"
        f"| where Endpoint == '{check_name(endpoint)}'\n"
        f"| summarize Requests = sum(ItemCount), Errors = countif({_IS_ERROR} and not({_NO_ROOM})),\n"
        f"    Overloaded = countif({_NO_ROOM}), P50 = percentile(DurationMs, 50), P95 = percentile(DurationMs, 95),\n"
        f"    P99 = percentile(DurationMs, 99) by Version, bin(TimeGenerated, {_kql_timespan(width)})\n"
        "| order by TimeGenerated desc, Version asc"
    )


def _evidence_rows(start: str, end: str, *, with_user: bool = False) -> str:
    """Return the KQL that reads what is evidence: requests to `/score` that the router split by weight, each once.

    `routed_by` is set by the router's own rule after it has let the caller in. Rows of answers 401 and 403 are left out
    as well, for a router that does not remove that header from what callers send.

    Args:
        start: KQL of when the time that is read begins.
        end: KQL of when it ends.
        with_user: Whether the rows have the hash of the caller's key as well, empty without a key.
    """
    user = (", User = tostring(Properties.user)", ", User") if with_user else ("", "")
    return (
        "AppRequests\n"
        f"| where TimeGenerated >= {start} and TimeGenerated < {end}\n"
        "| where tostring(Properties.routed_by) == 'weights' and ResultCode !in ('401', '403')\n"
        "| where Name endswith '/score' and not(Name startswith 'OPTIONS ')\n"
        # A span that was sent twice has the same ids.
        "| extend Endpoint = tostring(Properties.endpoint), Version = tostring(Properties.version)"
        ", Flags = tostring(Properties.response_flags), Reason = tostring(Properties.reason)"
        ", ScoringMs = todouble(tostring(Properties.scoring_ms))"
        ", LeftQueue = toint(tostring(Properties.left_queue))"
        f"{user[0]}\n"
        "| distinct OperationId, Id, TimeGenerated, Endpoint, Version, ResultCode, Flags, Reason, DurationMs, ItemCount"
        ", ScoringMs, LeftQueue"
        f"{user[1]}\n"
    )


def _gates_table(rows: list[list[Any]], *columns: str) -> str:
    """Return the KQL that defines the table `Gates`: one row of parameters per gate, as a single literal."""
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    names = ("Gate = toint(Row[0])", "Endpoint = tostring(Row[1])", "Version = tostring(Row[2])", *columns)
    # Nothing in it needs escaping: names are checked, the rest is numbers and times.
    return f"let Gates = print Rows = parse_json('{text}')\n| mv-expand Row = Rows\n| project {', '.join(names)};\n"


def _join_with_gates(condition: str) -> str:
    """Return the KQL that joins requests with the table `Gates` and keeps the rows for which a condition holds."""
    return f"| lookup kind=inner Gates on Endpoint, Version\n| where {condition}\n"


def _checked_names(request: StoreRequest, version: str) -> tuple[str, str]:
    """Return the endpoint's and the version's name after a check, so that neither can inject KQL."""
    return check_name(request.key.endpoint), check_name(version)


def _iso_time(moment: datetime) -> str:
    """Return a time as ISO 8601 text in UTC; raise ValueError if it has no time zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _kql_datetime(moment: datetime) -> str:
    """Return a time as a KQL `datetime(…)` literal."""
    return f"datetime({_iso_time(moment)})"


def _kql_timespan(width: timedelta) -> str:
    """Return a duration as a KQL timespan literal in milliseconds."""
    return f"{width // timedelta(milliseconds=1)}ms"


def _kql_real(number: float) -> str:
    """Return a finite number as a KQL literal; raise ValueError if it is not finite."""
    if not math.isfinite(number):
        raise ValueError(f"{number!r} is not finite")
    return f"{number:.6f}"
