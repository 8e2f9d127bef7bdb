"""Conversion of spans to rows."""

import base64
import json
import os
from typing import Any

import pytest
from google.rpc import code_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from controlled_rollout.telemetry_store import otlp
from controlled_rollout.telemetry_store.schema import TABLES
from controlled_rollout.telemetry_store.values import MalformedError

START_NS = 1_772_366_400_123_456_789
ENVOY: dict[str, Any] = {
    "http.url": "http://localhost:8080/api/v1/service/digits/score?patient=4711",
    "url.query": "patient=4711",
    "http.method": "POST",
    "http.status_code": "503",
    "response_flags": "UF",
    "guid:x-request-id": "0bd4",
    "endpoint": "digits",
    "version": "v2",
    "routed_by": "weights",
}


def export(attributes: dict[str, Any], **span_fields: Any) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    service = resource.resource.attributes.add(key="service.name")
    service.value.string_value = "controlled-rollout-router"
    fields = {
        "trace_id": b"\x0a" * 16,
        "span_id": b"\x0b" * 8,
        "name": "ingress",
        "kind": Span.SPAN_KIND_SERVER,
        "start_time_unix_nano": START_NS,
        "end_time_unix_nano": START_NS + 12_500_000,
    } | span_fields
    span = resource.scope_spans.add().spans.add(**fields)
    for key, value in attributes.items():
        kind = {bool: "bool_value", int: "int_value", str: "string_value", float: "double_value"}[type(value)]
        setattr(span.attributes.add(key=key).value, kind, value)
    return request


def row_of(request: ExportTraceServiceRequest, table: str = "AppRequests") -> dict[str, Any]:
    result = otlp.rows_of_spans(request)
    assert (result.rejected, result.reason) == (0, "")
    [row] = result.rows[table]
    return dict(zip((column.name for column in TABLES[table].stored), row, strict=True))


def test_a_span_of_envoy_becomes_a_request_as_azure_would_show_it() -> None:
    row = row_of(export(ENVOY))

    assert row["TimeGenerated"] == START_NS // 1_000
    assert row["DurationMs"] == 12.5
    assert (row["ResultCode"], row["Success"]) == ("503", False)
    assert row["Name"] == "POST /api/v1/service/digits/score"
    assert (row["OperationId"], row["Id"], row["ParentId"]) == ("0a" * 16, "0b" * 8, "")
    assert (row["AppRoleName"], row["ItemCount"]) == ("controlled-rollout-router", 1)
    assert row["Url"] == "http://localhost:8080/api/v1/service/digits/score"
    assert "4711" not in repr(row)
    properties = json.loads(row["Properties"])
    assert properties["routed_by"] == "weights"
    assert properties["response_flags"] == "UF"
    assert not {"http.status_code", "http.url"} & set(properties)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://[::1/score", "/score"),
        ("http://a b:port:80/score?x", "/score"),
        ("https:///score", "/score"),
        ("/score#x", "/score"),
    ],
)
def test_a_request_keeps_its_path_whatever_host_its_caller_has_sent(url: str, path: str) -> None:
    assert row_of(export({"http.method": "POST", "http.url": url}))["Name"] == f"POST {path}"


@pytest.mark.parametrize(
    ("attributes", "code", "succeeded"),
    [
        ({"http.response.status_code": 200}, "200", True),
        ({"http.status_code": "404"}, "404", False),
        ({"http.status_code": 399}, "399", True),
        ({"http.response.status_code": 500, "http.status_code": "200"}, "500", False),
        ({"http.status_code": "0"}, "0", False),
        ({"http.status_code": "abc"}, "0", True),
        ({"http.status_code": True}, "0", True),
        ({}, "0", True),
    ],
)
def test_the_result_code_is_read_under_both_names_as_number_or_text(
    attributes: dict[str, Any], code: str, succeeded: bool
) -> None:
    row = row_of(export(attributes))

    assert (row["ResultCode"], row["Success"]) == (code, succeeded)


def test_a_span_without_a_code_succeeded_unless_its_status_says_error() -> None:
    row = row_of(export({}, status=Status(code=Status.STATUS_CODE_ERROR)))

    assert (row["ResultCode"], row["Success"]) == ("0", False)


def test_other_kinds_of_spans_are_dependencies() -> None:
    row = row_of(
        export({"http.method": "GET", "http.url": "http://db/x"}, kind=Span.SPAN_KIND_CLIENT), "AppDependencies"
    )

    assert (row["Name"], row["DependencyType"], row["Data"]) == ("GET /x", "HTTP", "http://db/x")


@pytest.mark.parametrize(
    "fault",
    [
        {"trace_id": b""},
        {"trace_id": b"\0" * 16},
        {"span_id": b"\1" * 7},
        {"start_time_unix_nano": 0},
        {"end_time_unix_nano": START_NS - 1},
        {"end_time_unix_nano": 2**64 - 1},
    ],
)
def test_invalid_span_is_refused_and_the_others_are_kept(fault: dict[str, Any]) -> None:
    request = export(ENVOY)
    request.resource_spans.append(export(ENVOY, **fault).resource_spans[0])

    result = otlp.rows_of_spans(request)

    assert len(result.rows["AppRequests"]) == 1
    assert result.rejected == 1
    answer = ExportTraceServiceResponse.FromString(otlp.success_body(result, is_json=False))
    assert answer.partial_success.rejected_spans == 1
    assert answer.partial_success.error_message == result.reason != ""
    assert json.loads(otlp.success_body(result, is_json=True))["partialSuccess"]["rejectedSpans"] == "1"


def test_an_export_in_json_has_identifiers_in_hexadecimal() -> None:
    document = {
        "resourceSpans": [
            {
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "traceId": "5B8EFFF798038103D269B633813FC60C",
                                "spanId": "EEE19B7EC3C1B174",
                                "kind": 2,
                                "name": "x",
                                "startTimeUnixNano": str(START_NS),
                                "endTimeUnixNano": str(START_NS + 1_000),
                                "unknownField": 1,
                                "attributes": [{"key": "n", "value": {"intValue": "7"}}],
                            }
                        ]
                    }
                ]
            }
        ]
    }

    row = row_of(otlp.read_request(json.dumps(document).encode(), is_json=True))

    assert row["OperationId"] == "5b8efff798038103d269b633813fc60c"
    assert json.loads(row["Properties"]) == {"n": "7"}


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"resourceSpans": 3}', b'{"resourceSpans": [[]]}', b"\xff", b"[" * 10**5]
)
def test_json_that_is_not_an_export_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedError):
        otlp.read_request(body, is_json=True)


@given(st.binary(max_size=200))
def test_any_bytes_are_an_export_or_malformed_and_never_anything_else(body: bytes) -> None:
    try:
        request = otlp.read_request(body, is_json=False)
    except MalformedError:
        return
    otlp.rows_of_spans(request)


def test_a_header_that_is_not_utf8_costs_no_span_of_its_export() -> None:
    request = export({"sticky_key": "ab", "user_agent": "straße"})
    request.resource_spans[0].schema_url = "cd"
    request.resource_spans[0].scope_spans[0].spans.add(name="another caller's", kind=Span.SPAN_KIND_SERVER)
    body = request.SerializeToString().replace(b"ab", b"\xe9b").replace(b"cd", b"\xff\xfe")

    read = otlp.read_request(body, is_json=False)

    first, second = read.resource_spans[0].scope_spans[0].spans
    texts = {item.key: item.value.string_value for item in first.attributes}
    assert (texts["sticky_key"], texts["user_agent"]) == ("\\xe9b", "straße")
    assert (read.resource_spans[0].schema_url, second.name) == ("\\xff\\xfe", "another caller's")
    assert (first.trace_id, first.start_time_unix_nano) == (
        request.resource_spans[0].scope_spans[0].spans[0].trace_id,
        request.resource_spans[0].scope_spans[0].spans[0].start_time_unix_nano,
    )


def test_values_that_are_not_scalars_are_kept_as_json_text() -> None:
    request = export({})
    span = request.resource_spans[0].scope_spans[0].spans[0]
    listed = span.attributes.add(key="list").value.array_value.values
    listed.add().int_value = 1
    listed.add().string_value = "b"
    span.attributes.add(key="bytes").value.bytes_value = b"\x00\xff"
    nested = span.attributes.add(key="map").value.kvlist_value.values.add(key="k")
    nested.value.bool_value = True

    properties = json.loads(row_of(request)["Properties"])

    expected = {"list": '[1,"b"]', "bytes": base64.b64encode(b"\x00\xff").decode(), "map": '{"k":true}'}
    assert properties == expected


def test_the_status_of_a_refusal_is_a_google_rpc_status() -> None:
    message = "what went wrong: " + "x" * 200

    body = otlp.status_body(message, code=code_pb2.INVALID_ARGUMENT, is_json=False)

    status = status_pb2.Status.FromString(body)
    assert (status.code, status.message) == (3, message)
    document = json.loads(otlp.status_body(message, code=code_pb2.INVALID_ARGUMENT, is_json=True))
    assert document == {"code": 3, "message": message}


def test_a_status_message_is_short_and_valid_utf_8() -> None:
    body = otlp.status_body("\ud800" + "x" * 5_000, code=code_pb2.UNAVAILABLE, is_json=False)

    assert status_pb2.Status.FromString(body).message == "?" + "x" * 999


def test_one_process_can_make_rows_of_many_spans() -> None:
    request = export(ENVOY)
    spans = request.resource_spans[0].scope_spans[0].spans
    for _ in range(999):
        copy = spans.add()
        copy.CopyFrom(spans[0])
        copy.span_id = os.urandom(8)

    assert len(otlp.rows_of_spans(request).rows["AppRequests"]) == 1_000
