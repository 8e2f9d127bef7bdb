"""What the Gateway does when a version has no room: what it sends again, and what it says; see `envoy_overload`. Pure.

Envoy Gateway has no field for a retry by a response's header. Envoy takes it from request headers as well, and these
are set by the route's own rules, after those of callers were taken off.
"""

from typing import Final

from controlled_rollout.cluster.api import Object
from controlled_rollout.target.overload import (
    REASON_HEADER,
    RETRY_AFTER_S,
    SEND_AGAIN_HEADER,
    SENT_HEADER,
    TAGGED_HEADERS,
)

__all__ = ["reason_tags", "request_headers", "response_overrides", "retry"]

# The reasons of the router's own refusals, by their status.
REASONS: Final = {413: "body-too-large", 503: "no-replica", 504: "timeout"}


def retry() -> Object:
    """Return which requests that no replica has scored are sent to another one; `request_headers` has one more kind."""
    return {
        "numRetries": 2,
        "retryOn": {"triggers": ["connect-failure", "reset-before-request", "refused-stream"]},
        "perRetry": {"backOff": {"baseInterval": "5ms", "maxInterval": "50ms"}},
    }


def request_headers() -> list[Object]:
    """Return the request headers by which refused requests are sent again, and a replica knows that they were."""
    return [
        {"name": SENT_HEADER, "value": "%START_TIME(%s.%3f)% %REQUEST_DURATION%"},
        {"name": "x-envoy-retry-on", "value": "retriable-headers"},
        {"name": "x-envoy-retriable-header-names", "value": SEND_AGAIN_HEADER},
    ]


def reason_tags() -> Object:
    """Return the attributes of spans that come from an answer's headers."""
    return {tag: f"%RESP({header.upper()})%" for tag, header in TAGGED_HEADERS.items()}


def response_overrides() -> list[Object]:
    """Return the headers of the router's own refusals: the reason, and when to ask again."""
    return [
        {
            "match": {"statusCodes": [{"type": "Value", "value": status}]},
            "source": "Local",
            "response": {"header": {"set": _headers(status, reason)}},
        }
        for status, reason in REASONS.items()
    ]


def _headers(status: int, reason: str) -> list[Object]:
    """Return the response headers of a refusal with a status."""
    headers = {REASON_HEADER: reason, **({"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {})}
    return [{"name": name, "value": value} for name, value in headers.items()]
