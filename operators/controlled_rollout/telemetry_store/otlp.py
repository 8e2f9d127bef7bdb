"""Make rows of OTLP/HTTP traces, as the OpenTelemetry Collector's Azure Monitor exporter does on a cluster.

https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

import base64
import binascii
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.json_format import MessageToJson, ParseDict, ParseError  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from google.rpc import status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from controlled_rollout.telemetry_store.item_bounds import (
    MAX_SPANS,
    TooManyItemsError,
    check_json_items,
    check_protobuf_items,
)
from controlled_rollout.telemetry_store.schema import Row
from controlled_rollout.telemetry_store.text_bytes import read_any_text
from controlled_rollout.telemetry_store.user_hash import UserHash
from controlled_rollout.telemetry_store.values import (
    LATEST_US,
    MalformedError,
    bounded_text,
    is_success_code,
    properties_json,
)

__all__ = ["PROTOBUF", "SpanRows", "read_request", "rows_of_export", "rows_of_spans", "status_body", "success_body"]

PROTOBUF: Final = "application/x-protobuf"
MAX_STATUS_MESSAGE: Final = 1_000

# The same attributes, by their names in the stable and in the older HTTP conventions.
STATUS_KEYS: Final = ("http.response.status_code", "http.status_code")
URL_KEYS: Final = ("url.full", "http.url")
# What a GET asks for is its input: it may be about a person.
QUERY_KEYS: Final = ("url.query", "http.target")
PATH_OF_URL: Final = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)?([^?#]*)")
METHOD_KEYS: Final = ("http.request.method", "http.method")


@dataclass(slots=True)
class SpanRows:
    """The rows of one export.

    Attributes:
        rows: Rows by table.
        rejected: How many spans were refused.
        reason: Why the first of them was refused.
        size: The size of the export, in bytes.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    rejected: int = 0
    reason: str = ""
    size: int = 0


def rows_of_export(body: bytes, *, is_json: bool, users: UserHash | None = None) -> SpanRows:
    """Convert the body of an OTLP trace export to rows.

    Args:
        body: The body.
        is_json: Whether it is JSON.
        users: Makes hashes of callers' keys; None leaves callers out.

    Raises:
        MalformedError: The body is not an ExportTraceServiceRequest.
        TooManyItemsError: It holds too much.
    """
    request = read_request(body, is_json=is_json)
    spans = sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
    if spans > MAX_SPANS:
        raise TooManyItemsError(f"the export has {spans} spans: {MAX_SPANS} at most, send smaller batches")
    rows = rows_of_spans(request, users)
    rows.size = len(body)
    return rows


def read_request(body: bytes, *, is_json: bool) -> ExportTraceServiceRequest:
    """Decode the body of an OTLP trace export, which is protobuf or JSON.

    Raises:
        MalformedError: The body is not an ExportTraceServiceRequest.
        TooManyItemsError: It holds too much.
    """
    request = ExportTraceServiceRequest()
    if is_json:
        check_json_items(body)
    else:
        check_protobuf_items(body, request.DESCRIPTOR)
    try:
        if is_json:
            document = json.loads(body)
            if not isinstance(document, dict):
                raise MalformedError("the body is not a JSON object")
            _identifiers_as_base64(document)
            ParseDict(document, request, ignore_unknown_fields=True)
        else:
            try:
                request.ParseFromString(body)
            except DecodeError:
                request = read_any_text(body)
    except (DecodeError, ParseError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise MalformedError(f"the body is not an ExportTraceServiceRequest: {error}") from error
    return request


def _identifiers_as_base64(document: dict[str, Any]) -> None:
    """Rewrite identifiers from hexadecimal, as in OTLP/JSON, to base64, as in protobuf's JSON mapping."""
    for resource in document.get("resourceSpans") or ():
        for scope in resource.get("scopeSpans") or ():
            for span in scope.get("spans") or ():
                for key in ("traceId", "spanId", "parentSpanId"):
                    if span.get(key):
                        try:
                            span[key] = base64.b64encode(bytes.fromhex(span[key])).decode("ascii")
                        except (ValueError, binascii.Error) as error:
                            raise MalformedError(f"{key} {span[key]!r} is not hexadecimal") from error


def success_body(result: SpanRows, *, is_json: bool) -> bytes:
    """Return the body for an accepted OTLP export, with the number of rejected spans (partial success)."""
    response = ExportTraceServiceResponse()
    if result.rejected:
        response.partial_success.rejected_spans = result.rejected
        response.partial_success.error_message = result.reason
    return _serialize(response, is_json=is_json)


def status_body(message: str, *, code: int, is_json: bool) -> bytes:
    """Return a google.rpc.Status, which OTLP requires as the body of every error response.

    Args:
        message: A sentence for the sender.
        code: A google.rpc.Code.
        is_json: Whether the sender speaks JSON.
    """
    printable = message.encode("utf-8", "replace").decode("utf-8")
    return _serialize(status_pb2.Status(code=code, message=printable[:MAX_STATUS_MESSAGE]), is_json=is_json)


def _serialize(message: Message, *, is_json: bool) -> bytes:
    """Serialize a protobuf message as JSON or as binary."""
    encoded: bytes = MessageToJson(message, indent=None).encode() if is_json else message.SerializeToString()
    return encoded


def rows_of_spans(request: ExportTraceServiceRequest, users: UserHash | None = None) -> SpanRows:
    """Convert spans to rows: SERVER and CONSUMER spans to AppRequests, all others to AppDependencies.

    Args:
        request: The spans.
        users: Makes hashes of callers' keys; None leaves callers out.
    """
    result = SpanRows()
    received = time.time_ns() // 1_000
    for resource_spans in request.resource_spans:
        resource = {item.key: _python_value(item.value) for item in resource_spans.resource.attributes}
        role = bounded_text(resource.get("service.name"))
        instance = bounded_text(resource.get("service.instance.id") or resource.get("host.name"))
        version = bounded_text(resource.get("service.version"))
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                try:
                    table, values, parent, properties = _row_of_span(span, users)
                except MalformedError as error:
                    result.rejected += 1
                    result.reason = result.reason or str(error)
                    continue
                operation = span.trace_id.hex()
                # The order of schema.CONTEXT.
                context = (
                    operation, values[1], parent, role, instance, version, "otlp", "", "", "", "", "", 1, properties,
                )  # fmt: skip
                row = (span.start_time_unix_nano // 1_000, received, *values, *context)
                result.rows.setdefault(table, []).append(row)
    return result


def _row_of_span(span: Span, users: UserHash | None) -> tuple[str, Row, str, str]:
    """Convert one span; return its table, the columns that only this table has, the parent's id and the properties.

    Raises:
        MalformedError: The span lacks an identifier or its times make no sense.
    """
    if len(span.trace_id) != 16 or len(span.span_id) != 8 or not any(span.trace_id) or not any(span.span_id):
        raise MalformedError("a span has no valid trace_id (16 bytes) and span_id (8 bytes), not all zero")
    start, end = span.start_time_unix_nano, span.end_time_unix_nano
    if not 0 < start <= end or end // 1_000 > LATEST_US:
        raise MalformedError(f"span {span.span_id.hex()} starts at {start} and ends at {end} ns: not a period of time")
    duration_ms = (end - start) / 1e6
    attributes = {item.key: _python_value(item.value) for item in span.attributes}
    if users is not None:
        users.replace_key(attributes)
    code = _pop_http_status(attributes)
    url = _without_query(_first_text(attributes, URL_KEYS, remove=True))
    for key in QUERY_KEYS:
        attributes.pop(key, None)
    method = _first_text(attributes, METHOD_KEYS)
    path = _url_path(url) or _first_text(attributes, ("url.path", "http.route"))
    name = bounded_text(f"{method} {path}" if method and path else span.name, 1_024)
    succeeded = span.status.code != Status.STATUS_CODE_ERROR if code is None else is_success_code(code)
    result_code = "0" if code is None else code
    parent = span.parent_span_id.hex()
    properties = properties_json(attributes)
    identity = span.span_id.hex()
    if span.kind in (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CONSUMER):
        request: Row = (identity, name, bounded_text(url, 2_048), "", succeeded, result_code, duration_ms, "{}")
        return "AppRequests", request, parent, properties
    target = bounded_text(_first_text(attributes, ("server.address", "peer.service", "net.peer.name", "peer.address")))
    kind = "HTTP" if method else "InProc" if span.kind == Span.SPAN_KIND_INTERNAL else "Other"
    dependency = (identity, name, target, kind, bounded_text(url), succeeded, result_code, duration_ms, "{}")
    return "AppDependencies", dependency, parent, properties


def _pop_http_status(attributes: dict[str, Any]) -> str | None:
    """Remove the HTTP status from the attributes and return it; Envoy writes the number as text."""
    for key in STATUS_KEYS:
        value = attributes.get(key)
        digits = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
        if digits.isascii() and digits.isdecimal() and len(digits) <= 9:
            for name in STATUS_KEYS:
                attributes.pop(name, None)
            return str(int(digits))
    return None


def _first_text(attributes: dict[str, Any], keys: tuple[str, ...], *, remove: bool = False) -> str:
    """Return the first of several attributes whose value is a string; an empty string if there is none."""
    for key in keys:
        value = attributes.get(key)
        if isinstance(value, str) and value:
            if remove:
                del attributes[key]
            return value
    return ""


def _without_query(url: str) -> str:
    """Return a URL without what it asks for."""
    return re.split(r"[?#]", url, maxsplit=1)[0]


def _url_path(url: str) -> str:
    """Return the path of a URL, whose host is what a caller has sent and may be none; empty if it has none."""
    match = PATH_OF_URL.match(url)
    return match[1] if match else ""


def _python_value(value: AnyValue) -> object:
    """Convert an OTLP attribute's value to a Python object; bytes become base64 text, as in OTLP/JSON."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_python_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _python_value(item.value) for item in value.kvlist_value.values}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode("ascii")
    scalar: object = getattr(value, kind)
    return scalar
