"""OTLP/HTTP traces -> rows: what the OpenTelemetry Collector's Azure Monitor exporter does on a cluster.

https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

import base64
import binascii
import json
import time
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from google.protobuf.json_format import ParseDict, ParseError  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from controlled_rollout.telemetry_store.schema import Row
from controlled_rollout.telemetry_store.values import (
    LATEST_US,
    MalformedError,
    properties_json,
    success,
    text,
)

__all__ = ["PROTOBUF", "SpanRows", "read_request", "rows_of", "status_body", "success_body"]

PROTOBUF: Final = "application/x-protobuf"
INVALID_ARGUMENT: Final = 3  # google.rpc.Code

# The same things under their names before and after the HTTP conventions became stable.
STATUS_KEYS: Final = ("http.response.status_code", "http.status_code")
URL_KEYS: Final = ("url.full", "http.url")
METHOD_KEYS: Final = ("http.request.method", "http.method")


@dataclass(slots=True)
class SpanRows:
    """The rows of one export, and what was refused of it."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    rejected: int = 0
    reason: str = ""


def read_request(body: bytes, *, is_json: bool) -> ExportTraceServiceRequest:
    """Decode one export.

    Raises:
        MalformedError: The body is not an ExportTraceServiceRequest.
    """
    request = ExportTraceServiceRequest()
    try:
        if is_json:
            document = json.loads(body)
            if not isinstance(document, dict):
                raise MalformedError("the body is not a JSON object")
            _identifiers_as_base64(document)
            ParseDict(document, request, ignore_unknown_fields=True)
        else:
            request.ParseFromString(body)
    except (DecodeError, ParseError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise MalformedError(f"the body is not an ExportTraceServiceRequest: {error}") from None
    return request


def _identifiers_as_base64(document: dict[str, Any]) -> None:
    """OTLP spells identifiers in hexadecimal where protobuf's JSON mapping has base64."""
    for resource in document.get("resourceSpans") or ():
        for scope in resource.get("scopeSpans") or ():
            for span in scope.get("spans") or ():
                for key in ("traceId", "spanId", "parentSpanId"):
                    if span.get(key):
                        try:
                            span[key] = base64.b64encode(bytes.fromhex(span[key])).decode("ascii")
                        except (ValueError, binascii.Error):
                            raise MalformedError(f"{key} {span[key]!r} is not hexadecimal") from None


def success_body(result: SpanRows, *, is_json: bool) -> bytes:
    """Return the answer to an export that was taken, naming what was refused of it."""
    answer = ExportTraceServiceResponse()
    if result.rejected:
        answer.partial_success.rejected_spans = result.rejected
        answer.partial_success.error_message = result.reason
    if is_json:
        partial = {"rejectedSpans": str(result.rejected), "errorMessage": result.reason} if result.rejected else None
        return json.dumps({"partialSuccess": partial} if partial else {}).encode()
    encoded: bytes = answer.SerializeToString()
    return encoded


def status_body(message: str, *, is_json: bool, code: int = INVALID_ARGUMENT) -> bytes:
    """Return a google.rpc.Status: what OTLP asks for in the body of every refusal."""
    if is_json:
        return json.dumps({"code": code, "message": message}).encode()
    # Two fields (1: varint code, 2: string message) do not make a dependency on all of googleapis worth while.
    encoded = message.encode("utf-8", "replace")[:1_000]
    return b"\x08" + _varint(code) + b"\x12" + _varint(len(encoded)) + encoded


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def rows_of(request: ExportTraceServiceRequest) -> SpanRows:
    """Make rows of spans: SERVER and CONSUMER become AppRequests, the other kinds AppDependencies."""
    result = SpanRows()
    received = time.time_ns() // 1_000
    for resource_spans in request.resource_spans:
        resource = {item.key: _plain(item.value) for item in resource_spans.resource.attributes}
        role = text(resource.get("service.name"))
        instance = text(resource.get("service.instance.id") or resource.get("host.name"))
        version = text(resource.get("service.version"))
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                try:
                    table, own, parent, properties = _row(span)
                except MalformedError as error:
                    result.rejected += 1
                    result.reason = result.reason or str(error)
                    continue
                operation = span.trace_id.hex()
                # The order of schema.CONTEXT.
                context = (
                    operation, own[1], parent, role, instance, version, "otlp", "", "", "", "", "", 1, properties,
                )  # fmt: skip
                row = (span.start_time_unix_nano // 1_000, received, *own, *context)
                result.rows.setdefault(table, []).append(row)
    return result


def _row(span: Span) -> tuple[str, Row, str, str]:
    """Return the table, its own columns, the parent's identifier and the properties of one span.

    Raises:
        MalformedError: The span lacks an identifier or its times make no sense.
    """
    if len(span.trace_id) != 16 or len(span.span_id) != 8 or not any(span.trace_id) or not any(span.span_id):
        raise MalformedError("a span has no valid trace_id (16 bytes) and span_id (8 bytes), not all zero")
    start, end = span.start_time_unix_nano, span.end_time_unix_nano
    if not 0 < start <= end or end // 1_000 > LATEST_US:
        raise MalformedError(f"span {span.span_id.hex()} starts at {start} and ends at {end} ns: not a period of time")
    duration_ms = (end - start) / 1e6
    attributes = {item.key: _plain(item.value) for item in span.attributes}
    code = _status_code(attributes)
    url = _take(attributes, URL_KEYS, pop=True)
    method = _take(attributes, METHOD_KEYS)
    path = urlsplit_path(url) or _take(attributes, ("url.path", "http.route"))
    name = text(f"{method} {path}" if method and path else span.name, 1_024)
    succeeded = span.status.code != Status.STATUS_CODE_ERROR if code is None else success(code)
    result_code = "0" if code is None else code
    parent = span.parent_span_id.hex()
    properties = properties_json(attributes)
    identity = span.span_id.hex()
    if span.kind in (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CONSUMER):
        own: Row = (identity, name, text(url, 2_048), "", succeeded, result_code, duration_ms, "{}")
        return "AppRequests", own, parent, properties
    target = text(_take(attributes, ("server.address", "peer.service", "net.peer.name", "peer.address")))
    kind = "HTTP" if method else "InProc" if span.kind == Span.SPAN_KIND_INTERNAL else "Other"
    own = (identity, name, target, kind, text(url), succeeded, result_code, duration_ms, "{}")
    return "AppDependencies", own, parent, properties


def _status_code(attributes: dict[str, Any]) -> str | None:
    """Take the HTTP status out of the attributes: a number, or (as Envoy writes it) a number in words."""
    for key in STATUS_KEYS:
        value = attributes.get(key)
        written = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
        if written.isascii() and written.isdecimal() and len(written) <= 9:
            for used in STATUS_KEYS:
                attributes.pop(used, None)
            return str(int(written))
    return None


def _take(attributes: dict[str, Any], keys: tuple[str, ...], *, pop: bool = False) -> str:
    for key in keys:
        value = attributes.get(key)
        if isinstance(value, str) and value:
            if pop:
                del attributes[key]
            return value
    return ""


def urlsplit_path(url: str) -> str:
    """Return the path of an address, without its query; empty where it has none or is no address."""
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _plain(value: AnyValue) -> object:
    """Return an attribute's value as Python has it; bytes in base64, as OTLP/JSON would."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _plain(item.value) for item in value.kvlist_value.values}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode("ascii")
    plain: object = getattr(value, kind)
    return plain
