"""The answers that the runtime gives by itself, in the stock server's form: a JSON object with a message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple


class Answer(NamedTuple):
    """A status, headers and a body; the body is an iterator if the script streams it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | Iterator[bytes]


HEALTHY = Answer(200, [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", "7")], b"Healthy")


def _message(status: int, message: str) -> Answer:
    body = json.dumps({"message": message}).encode()
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("x-ms-run-function-failed", "False"),
    ]
    return Answer(status, headers, body)


def overloaded(places: int) -> Answer:
    """503: nothing more may wait."""
    return _message(503, f"overloaded: {places} requests are being scored or wait for their turn already")


def waited_too_long(max_wait_s: float) -> Answer:
    """503: the turn did not come in time."""
    return _message(503, f"overloaded: the request waited {max_wait_s * 1000:g} ms for its turn")


def timed_out(scoring_timeout_s: float) -> Answer:
    """504: `run()` took too long."""
    return _message(504, f"Scoring timeout after {scoring_timeout_s * 1000:g} ms")


def too_large(max_body_bytes: int) -> Answer:
    """413: the body is larger than allowed."""
    return _message(413, f"the request's body exceeds {max_body_bytes:,} bytes")


def cut_off(declared: int) -> Answer:
    """400: the caller went away in the middle of its request."""
    return _message(400, f"the request's body ended before its {declared:,} bytes")


def failed() -> Answer:
    """500: the application itself failed, not the script."""
    return _message(500, "An unexpected internal error occurred. Check the logs for more info.")
