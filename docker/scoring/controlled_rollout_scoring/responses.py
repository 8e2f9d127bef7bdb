"""The responses that the runtime gives by itself, in the stock server's form: a JSON object with a message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple


class Response(NamedTuple):
    """An HTTP status, headers and a body; the body is an iterator if the script streams it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | Iterator[bytes]


HEALTHY = Response(200, [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", "7")], b"Healthy")


def _message(status: int, message: str) -> Response:
    body = json.dumps({"message": message}).encode()
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("x-ms-run-function-failed", "False"),
    ]
    return Response(status, headers, body)


def queue_full(capacity: int) -> Response:
    """Return the 503 for a request beyond the queue's capacity."""
    return _message(503, f"overloaded: {capacity} requests are being scored or wait for a slot already")


def waited_too_long(max_wait_s: float) -> Response:
    """Return the 503 for a request that no slot became free for in time."""
    return _message(503, f"overloaded: the request waited {max_wait_s * 1000:g} ms for a slot")


def timed_out(scoring_timeout_s: float) -> Response:
    """Return the 504 for a request whose `run()` took too long."""
    return _message(504, f"Scoring timeout after {scoring_timeout_s * 1000:g} ms")


def too_large(max_body_bytes: int) -> Response:
    """Return the 413 for a body that is larger than allowed."""
    return _message(413, f"the request's body exceeds {max_body_bytes:,} bytes")


def incomplete(content_length: int) -> Response:
    """Return the 400 for a body that ended before its `Content-Length`."""
    return _message(400, f"the request's body ended before its {content_length:,} bytes")


def internal_error() -> Response:
    """Return the 500 for a failure of the application itself, not of the script."""
    return _message(500, "An unexpected internal error occurred. Check the logs for more info.")
