"""Conversion of App Insights envelopes to rows."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.telemetry_store import track
from controlled_rollout.telemetry_store.schema import TABLES
from controlled_rollout.telemetry_store.values import MalformedError

KEY = "1f2c1a1e-0000-4000-8000-0123456789ab"


def envelope(base_type: str = "RequestData", base: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    request = {
        "ver": 2,
        "id": "b7ad6b7169203331",
        "name": "POST /score",
        "duration": "0.00:00:01.2345678",
        "success": True,
        "responseCode": "200",
        "url": "http://h/score",
        "properties": {"endpoint": "digits", "version": "v1"},
        "measurements": {"rows": 3},
    }
    return {
        "name": "Microsoft.ApplicationInsights.Request",
        "time": "2026-03-01T12:00:00.1234567Z",
        "iKey": KEY,
        "tags": {"ai.operation.id": "op", "ai.cloud.role": "router", "ai.internal.sdkVersion": "py:1"},
        "data": {"baseType": base_type, "baseData": request if base is None else base},
    } | changes


def rows(*items: Any) -> list[dict[str, Any]]:
    result = track.rows_of_envelopes(list(items))
    assert result.errors == []
    [(table, rows_of_table)] = result.rows.items()
    return [dict(zip((column.name for column in TABLES[table].stored), row, strict=True)) for row in rows_of_table]


def test_a_request_gets_the_workspace_s_columns() -> None:
    [row] = rows(envelope())

    assert row["TimeGenerated"] == 1_772_366_400_123_456
    assert row["DurationMs"] == 1_234.5678
    assert (row["ResultCode"], row["Success"], row["ItemCount"]) == ("200", True, 1)
    assert (row["OperationId"], row["AppRoleName"], row["SDKVersion"], row["IKey"]) == ("op", "router", "py:1", KEY)
    assert json.loads(row["Properties"]) == {"endpoint": "digits", "version": "v1"}
    assert json.loads(row["Measurements"]) == {"rows": 3.0}


@pytest.mark.parametrize(("rate", "count"), [(25, 4), (100, 1), (33.3, 3), (None, 1), (1e-12, 2**31 - 1)])
def test_a_sample_rate_becomes_an_item_count(rate: float | None, count: int) -> None:
    [row] = rows(envelope(sampleRate=rate))

    assert row["ItemCount"] == count


def test_every_base_type_has_its_table() -> None:
    items = {
        "AppDependencies": envelope("RemoteDependencyData", {"name": "GET", "duration": "00:00:00.5", "type": "HTTP"}),
        "AppExceptions": envelope(
            "ExceptionData",
            {
                "exceptions": [{"typeName": "ValueError", "message": "m"}, {"typeName": "KeyError", "message": "k"}],
                "severityLevel": "Error",
            },
        ),
        "AppTraces": envelope("MessageData", {"message": "hello", "severityLevel": 2}),
        "AppMetrics": envelope(
            "MetricData", {"metrics": [{"name": "m", "value": 6.0, "count": 3, "min": 1, "max": 3}]}
        ),
        "AppEvents": envelope("EventData", {"name": "promoted"}),
    }
    row = {table: rows(item)[0] for table, item in items.items()}

    assert row["AppDependencies"]["DurationMs"] == 500
    assert (row["AppExceptions"]["OuterType"], row["AppExceptions"]["InnermostType"]) == ("ValueError", "KeyError")
    assert row["AppExceptions"]["SeverityLevel"] == 3
    assert (row["AppTraces"]["Message"], row["AppTraces"]["SeverityLevel"]) == ("hello", 2)
    metric = row["AppMetrics"]
    assert (metric["Sum"], metric["Min"], metric["Max"], metric["ItemCount"]) == (6.0, 1.0, 3.0, 3)
    assert row["AppEvents"]["Name"] == "promoted"


@pytest.mark.parametrize(
    "fault",
    [
        7,
        None,
        [],
        envelope(iKey="not-a-uuid"),
        envelope(iKey=None),
        envelope(time="yesterday"),
        envelope(time=None),
        envelope(time="1890-01-01T00:00:00Z"),
        envelope(time="9999-12-31T23:59:59+00:00"),
        envelope(data=None),
        envelope("PageViewData"),
        envelope(base={}),
        envelope(base={"id": "x", "duration": "soon"}),
        envelope(base={"id": "x", "duration": "00:00:01", "success": "yes"}),
        envelope(base={"id": "x", "duration": "00:00:01", "measurements": {"m": float("nan")}}),
        envelope(base={"id": "x", "duration": "00:00:01", "measurements": {"m": 10**400}}),
        envelope(base={"id": "x", "duration": "00:00:01", "properties": []}),
        envelope(sampleRate=0),
        envelope(sampleRate=101),
        envelope(sampleRate="25"),
        envelope("MetricData", {"metrics": []}),
        envelope("MetricData", {"metrics": [{"name": "m", "value": "1"}]}),
        envelope("ExceptionData", {"exceptions": []}),
        envelope("MessageData", {"message": "m", "severityLevel": 9}),
    ],
)
def test_a_malformed_envelope_is_refused_with_its_index_and_loses_nothing_else(fault: object) -> None:
    result = track.rows_of_envelopes([envelope(), fault, envelope()])

    assert result.status == 206
    assert (result.received, result.accepted, len(result.rows["AppRequests"])) == (3, 2, 2)
    [error] = result.response()["errors"]
    assert (error["index"], error["statusCode"]) == (1, 400)
    assert error["message"]


def test_the_status_says_all_some_or_none() -> None:
    assert track.rows_of_envelopes([envelope()]).status == 200
    assert track.rows_of_envelopes([envelope(), 1]).status == 206
    assert track.rows_of_envelopes([1]).status == 400
    assert track.rows_of_envelopes([]).status == 400


def test_an_array_an_object_and_lines_are_read_and_a_broken_line_loses_only_itself() -> None:
    item = json.dumps(envelope())

    assert len(track.read_envelopes(f"[{item},{item}]".encode())) == 2
    assert len(track.read_envelopes(item.encode())) == 1
    lines = track.rows_of_envelopes(track.read_envelopes(f"{item}\n{{broken\n\n{item}\r\n".encode()))
    assert (lines.accepted, [error["index"] for error in lines.errors]) == (2, [1])


@pytest.mark.parametrize("body", [b"", b"[{", b"\xff\xfe", b"[" * 100_000])
def test_body_that_is_not_json_is_one_refused_item(body: bytes) -> None:
    result = track.rows_of_envelopes(track.read_envelopes(body))

    assert (result.status, result.accepted) == (400, 0)


def test_text_that_is_not_valid_utf8_does_not_reach_the_database() -> None:
    body = json.dumps([envelope(base={"id": "\ud800", "duration": "00:00:01", "properties": {"\udfff": "\ud800"}})])

    [row] = rows(*track.read_envelopes(body.encode()))

    assert (row["Id"], json.loads(row["Properties"])) == ("?", {"?": "?"})


@given(st.timedeltas(timedelta(0), timedelta(days=9_999_999)), st.integers(0, 9))
def test_duration_is_stored_in_milliseconds(length: timedelta, tick: int) -> None:
    hours, rest = divmod(length.seconds, 3_600)
    written = f"{length.days}.{hours:02d}:{rest // 60:02d}:{rest % 60:02d}.{length.microseconds:06d}{tick}"

    ticks = length // timedelta(microseconds=1) * 10 + tick
    assert track.duration_ms(written) == ticks / 10_000


@pytest.mark.parametrize(
    ("written", "expected"), [("00:00:00.123", 123.0), ("1:02:03", 3_723_000.0), ("2.00:00:00", 172_800_000.0)]
)
def test_days_and_fraction_may_be_missing(written: str, expected: float) -> None:
    assert track.duration_ms(written) == expected


@given(st.text(max_size=30))
def test_any_text_is_a_duration_or_malformed(written: str) -> None:
    try:
        milliseconds = track.duration_ms(written)
    except MalformedError:
        return
    assert milliseconds >= 0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["iKey", "time", "tags", "data", "sampleRate", "baseData"]), json_values, st.data())
def test_any_field_value_gives_a_row_or_a_refusal(field: str, value: Any, data: st.DataObject) -> None:
    item = envelope()
    if field == "baseData":
        item["data"]["baseData"][data.draw(st.sampled_from(sorted(item["data"]["baseData"])))] = value
    else:
        item[field] = value

    result = track.rows_of_envelopes([item])

    assert result.accepted + len(result.errors) == 1
    for row in result.rows.get("AppRequests", []):
        assert len(row) == len(TABLES["AppRequests"].stored)
        json.loads(str(row[-1]))
