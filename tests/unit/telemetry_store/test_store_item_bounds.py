"""Bounds on the number of items in an upload, before it is decoded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from controlled_rollout.telemetry_store import item_bounds, otlp, track
from controlled_rollout.telemetry_store.item_bounds import TooManyItemsError, check_json_items, check_protobuf_items
from tests.local.telemetry_lab import export, message

DESCRIPTOR = ExportTraceServiceRequest.DESCRIPTOR


def spans(content: bytes) -> bytes:
    """Return an export whose one scope has some encoded spans."""
    return message(1, message(2, content))


MANY = item_bounds.MAX_PROTOBUF_FIELDS
BOMBS = {
    "spans": spans(message(2, b"") * MANY),
    "attributes": spans(message(2, message(9, b"") * MANY)),
    "events": spans(message(2, message(11, b"") * MANY)),
    "values of an attribute": spans(message(2, message(9, message(2, message(5, message(1, b"") * MANY))))),
    "attributes of the resource": message(1, message(1, message(1, b"") * MANY)),
    "resources": message(1, b"") * (MANY + 1),
    "unknown fields": b"\xf8\x01\x00" * (MANY + 1),
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS)
def test_an_export_of_too_many_items_is_refused_before_it_is_decoded(body: bytes) -> None:
    with pytest.raises(TooManyItemsError, match="smaller batches"):
        otlp.read_request(body, is_json=False)


def test_an_export_of_too_many_spans_is_refused_and_one_of_ten_thousand_is_not() -> None:
    too_many = spans(message(2, b"") * (item_bounds.MAX_SPANS + 1))

    with pytest.raises(TooManyItemsError, match="spans"):
        otlp.rows_of_export(too_many, is_json=False)

    check_protobuf_items(export(*[{}] * 10_000), DESCRIPTOR)


@pytest.mark.parametrize("item", [b"[],", b"{},", b"0,", b'{"a":[0]},', b"\n", b"\r"])
def test_a_json_upload_of_too_many_values_is_refused_before_it_is_decoded(item: bytes) -> None:
    body = b"[" + item * item_bounds.MAX_JSON_VALUES + b"0]"

    with pytest.raises(TooManyItemsError, match="smaller batches"):
        track.rows_of_upload(body, key=None)
    with pytest.raises(TooManyItemsError, match="smaller batches"):
        otlp.rows_of_export(body, is_json=True)


def test_an_upload_of_too_many_envelopes_is_refused() -> None:
    with pytest.raises(TooManyItemsError, match="items"):
        track.rows_of_upload(b"[" + b"{}," * item_bounds.MAX_ENVELOPES + b"{}]", key=None)


@given(st.binary(max_size=200))
def test_any_bytes_are_counted_without_an_error(body: bytes) -> None:
    list(item_bounds._fields_in(body, item_bounds._fields_of(DESCRIPTOR, {})))
    check_json_items(body)


def test_every_field_of_an_export_is_counted() -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(name="a", kind=2, start_time_unix_nano=5)
    span.attributes.add(key="k").value.double_value = 1.5
    body = request.SerializeToString()

    count = sum(1 for _ in item_bounds._fields_in(body, item_bounds._fields_of(DESCRIPTOR, {})))

    # Resource, scope, span; name, kind, start, attribute; key, value; the number.
    assert count == 10
