"""What is sent to a caller: the answers that the runtime gives by itself, and the check of those that a script gives.

The runtime's own answers have the stock server's form: a JSON object with a message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Response(NamedTuple):
    """An HTTP status, headers and a body; the body is an iterator if the script streams it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | Iterator[bytes]


class InvalidResponse(Exception):
    """A script's answer cannot be sent with HTTP; the message says what of it."""


class StreamFailed(Exception):
    """A script's streamed body raised an exception, which is in the log."""


HEALTHY = Response(200, [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", "7")], b"Healthy")
# The status of a request whose body is too large.
TOO_LARGE = 413
# Answers with these statuses have no body.
WITHOUT_BODY = (204, 304)
# They belong to one connection, not to an answer: the stock server leaves them out as well (RFC 9110, 7.6.1).
HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
# Why the runtime has answered a request itself; the router puts it into telemetry.
REASON_HEADER = "x-controlled-rollout-reason"
# How many milliseconds a request was scored, any wait left out; the router puts it into telemetry.
SCORING_HEADER = "x-controlled-rollout-scoring-ms"
# How many callers have hung up while they waited for a slot, since the last answer that said so. The router has only
# seen that they hung up: its telemetry is told with the next answer.
LEFT_QUEUE_HEADER = "x-controlled-rollout-left-queue"
# The request was certainly not scored, and another replica may take it: the router sends it there.
SEND_AGAIN_HEADER = "x-controlled-rollout-send-again"
# A script that sent them would hide its own failures, or have its requests scored twice.
RUNTIMES_OWN = frozenset((LEFT_QUEUE_HEADER, REASON_HEADER, SCORING_HEADER, SEND_AGAIN_HEADER))
# Whole seconds are the shortest that HTTP knows.
RETRY_AFTER_S = 1
# Envoy takes no answer with more, by default.
MAX_HEADERS = 100
MAX_HEADER_BYTES = 60 * 1024
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Visible characters of latin-1; spaces and tabs not at the ends (RFC 9110, 5.5).
FIELD_VALUE = re.compile(r"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")


def checked_status(status: str) -> int:
    """Return the number of a WSGI status such as `200 OK`.

    Raises:
        InvalidResponse: It is not the status of an answer.
    """
    # A subclass could say something else to each question.
    code = str.split(status, " ", 1)[0] if isinstance(status, str) else ""
    if not re.fullmatch("[2-5][0-9][0-9]", code, re.ASCII):
        raise InvalidResponse(f"the status {status!r} is not in 200 … 599")
    return int(code)


def checked_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return a script's headers without those of the connection and the runtime, and without spaces around values.

    Raises:
        InvalidResponse: A name or a value cannot be sent, or there are too many.
    """
    sent = []
    for name, value in headers:
        if not (isinstance(name, str) and TOKEN.fullmatch(name)):
            raise InvalidResponse(f"a header's name is {name!r}: it may have letters, digits and hyphens")
        if not isinstance(value, str):
            raise InvalidResponse(f"the header {name} is {value!r}: it has to be text")
        # A subclass could fail later, where no script's failure is answered.
        name, value = str.__str__(name), str.__str__(value)
        stripped = value.strip(" \t")
        if not FIELD_VALUE.fullmatch(stripped):
            raise InvalidResponse(f"the header {name} has a character that is not sent in headers: {value[:200]!r}")
        if name.lower() not in HOP_BY_HOP and name.lower() not in RUNTIMES_OWN:
            sent.append((name, stripped))
    size = sum(len(name) + len(value) + 4 for name, value in sent)
    if len(sent) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise InvalidResponse(
            f"there are {len(sent)} headers of {size:,} bytes: at most {MAX_HEADERS} of {MAX_HEADER_BYTES:,} are taken"
        )
    return sent


def whole_body(headers: list[tuple[str, str]], parts: Iterable[object]) -> bytes:
    """Return a body in one piece; one that is longer than the script said is not read on: it may have no end.

    Args:
        headers: Headers that `checked_headers` has returned.
        parts: The script's body.

    Raises:
        InvalidResponse: It is longer than its `Content-Length`, or a part is not bytes.
    """
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    most = max((int(value) for value in lengths if re.fullmatch("[0-9]{1,18}", value)), default=0)
    body: list[bytes] = []
    size = 0
    for part in parts:
        body.append(checked_part(part))
        size += len(body[-1])
        if size > most:
            raise InvalidResponse(f"Content-Length is {', '.join(sorted(set(lengths)))}, and the body is longer")
    return b"".join(body)


def checked_length(headers: list[tuple[str, str]], body: bytes, *, has_body: bool) -> list[tuple[str, str]]:
    """Return the headers with exactly one `Content-Length`, the body's; without a body, as the script said.

    Args:
        headers: Headers that `checked_headers` has returned.
        body: The whole body.
        has_body: Whether an answer of this kind has a body: not to HEAD, and not with status 204 or 304.

    Raises:
        InvalidResponse: The script said another length.
    """
    lengths = {value for name, value in headers if name.lower() == "content-length"}
    if has_body and lengths - {str(len(body))}:
        raise InvalidResponse(f"Content-Length is {', '.join(sorted(lengths))}, and the body has {len(body):,} bytes")
    others = [(name, value) for name, value in headers if name.lower() != "content-length"]
    if has_body:
        return [*others, ("Content-Length", str(len(body)))]
    return others


def checked_part(part: object) -> bytes:
    """Return a part of a script's body as bytes.

    Raises:
        InvalidResponse: It is of another type.
    """
    if isinstance(part, (bytes, bytearray, memoryview)):
        # Not `bytes(part)`: a subclass could have another length, and its chunk a wrong size.
        return bytes(memoryview(part))
    raise InvalidResponse(f"a part of the body is of type {type(part).__name__}: it has to be bytes")


def close_body(body: object) -> None:
    """Close a streamed body, so that a script's generator ends."""
    close = getattr(body, "close", None)
    if close is not None:
        close()


def _message(
    status: int, message: str, *, run_failed: bool = False, reason: str = "", send_again: bool = False
) -> Response:
    body = json.dumps({"message": message}).encode()
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("x-ms-run-function-failed", str(run_failed)),
    ]
    if reason:
        headers.append((REASON_HEADER, reason))
    if status == 503:
        headers.append(("Retry-After", str(RETRY_AFTER_S)))
    if send_again:
        headers.append((SEND_AGAIN_HEADER, "1"))
    return Response(status, headers, body)


def queue_full(capacity: int, *, hangs: bool = False) -> Response:
    """Return the 503 for a request beyond the queue's capacity.

    Args:
        capacity: How many requests may be scored or wait.
        hangs: Whether a request that is timed out keeps a slot.
    """
    message = f"overloaded: {capacity} requests are being scored or wait for a slot already"
    return _overload_response(message, "queue-full", hangs=hangs, send_again=True)


def bodies_full(max_bytes: int) -> Response:
    """Return the 503 for a body that does not fit into the memory for bodies."""
    message = f"overloaded: requests with bodies of {max_bytes:,} bytes are being read or wait already"
    return _message(503, message, reason="memory-full", send_again=True)


def waited_too_long(max_wait_s: float, *, before: bool = False, hangs: bool = False) -> Response:
    """Return the 503 for a request that no slot became free for in time.

    Args:
        max_wait_s: How long a request may wait.
        before: Whether it has waited at another replica, so that it is not sent to a third one.
        hangs: Whether a request that is timed out keeps a slot.
    """
    message = f"overloaded: the request waited {max_wait_s * 1000:g} ms for a slot"
    return _overload_response(message, "waited-too-long", hangs=hangs, send_again=not before)


def _overload_response(message: str, reason: str, *, hangs: bool, send_again: bool) -> Response:
    """Return the 503 for a request without a slot; its reason is another one where it is the model that keeps a slot.

    A model that hangs for ever in all slots is timed out once in each. What is refused from then on has to count
    against it (docs/gate.md), or it would never be taken back.
    """
    if hangs:
        message, reason = f"{message}; a request that was timed out keeps one", "scoring-hangs"
    return _message(503, message, reason=reason, send_again=send_again)


def scored_in(response: Response, seconds: float) -> Response:
    """Return a response that says how long its request was scored; a streamed one, how long until its first bytes."""
    return response._replace(headers=[*response.headers, (SCORING_HEADER, f"{seconds * 1000:.1f}")])


def timed_out(scoring_timeout_s: float) -> Response:
    """Return the 504 for a request whose `run()` took too long."""
    message = f"Scoring timeout after {scoring_timeout_s * 1000:g} ms"
    return _message(504, message, run_failed=True, reason="timeout")


def too_large(max_body_bytes: int) -> Response:
    """Return the 413 for a body that is larger than allowed."""
    return _message(TOO_LARGE, f"the request's body exceeds {max_body_bytes:,} bytes", reason="body-too-large")


def too_slow() -> Response:
    """Return the 408 for a request that arrives too slowly."""
    return _message(408, "the request did not arrive in time")


def malformed(status: int, reason: str) -> Response:
    """Return the refusal of what is not an HTTP/1.1 request, or not a whole one."""
    return _message(status, f"the request cannot be read: {reason}")


def script_failed() -> Response:
    """Return the 500 for a failure of the script."""
    message = "An unexpected error occurred in scoring script. Check the logs for more info."
    return _message(500, message, run_failed=True)


def internal_error() -> Response:
    """Return the 500 for a failure of the application itself, not of the script."""
    return _message(500, "An unexpected internal error occurred. Check the logs for more info.")
