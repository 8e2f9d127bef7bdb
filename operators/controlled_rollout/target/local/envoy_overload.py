"""What the router does when a version has no room: whom it prefers, what it sends again, and what it says. Pure.

A replica says in a header why it has refused a request, and that another one may take it. The router puts the reason
into the request's span and answers the same way where it refuses by itself.
"""

from typing import Any, Final

from controlled_rollout.target.overload import (
    REASON_HEADER,
    RETRY_AFTER_S,
    SEND_AGAIN_HEADER,
    SENT_HEADER,
    TAGGED_HEADERS,
)

__all__ = [
    "LEAST_REQUEST",
    "local_replies",
    "refusal_headers",
    "retry_policy",
    "sent_header",
    "tags",
]

Json = dict[str, Any]

_TYPE: Final = "type.googleapis.com/envoy."
# Of all replicas the one with the fewest requests: a random choice of two would let a request wait beside a free slot.
LEAST_REQUEST: Final[Json] = {
    "policies": [
        {
            "typed_extension_config": {
                "name": "envoy.load_balancing_policies.least_request",
                "typed_config": {
                    "@type": _TYPE + "extensions.load_balancing_policies.least_request.v3.LeastRequest",
                    "selection_method": "FULL_SCAN",
                },
            }
        }
    ]
}


def local_replies() -> Json:
    """Return the form of Envoy's own error responses: JSON, with the reason in a header, and 504 after a time-out."""
    timed_out = _with_reason("timeout", _flags("UMSDR", "UT"))
    return {
        "mappers": [
            {
                **timed_out,
                "status_code": 504,
                "body": {"inline_string": "the version did not answer within its scoring timeout"},
            },
            _with_reason("no-replica", _flags("UH", "UF", "UO"), comes_again=True),
            _with_reason("router-full", _flags("OM"), comes_again=True),
            _with_reason("body-too-large", _status_filter(413)),
        ],
        "body_format": {"json_format": {"status": "%RESPONSE_CODE%", "message": "%LOCAL_REPLY_BODY%"}},
    }


def _flags(*flags: str) -> Json:
    """Return the filter of responses with one of these flags."""
    return {"response_flag_filter": {"flags": list(flags)}}


def _status_filter(status: int) -> Json:
    """Return the filter of responses with a status."""
    value = {"default_value": status, "runtime_key": "controlled-rollout.none"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _with_reason(reason: str, replies: Json, *, comes_again: bool = False) -> Json:
    """Return what adds a reason to some of Envoy's own replies.

    Args:
        reason: The reason.
        replies: The filter of these replies.
        comes_again: Whether callers are told when to ask again.
    """
    return {"filter": replies, "headers_to_add": refusal_headers(reason, comes_again=comes_again)}


def refusal_headers(reason: str, *, comes_again: bool = True) -> list[Json]:
    """Return the response headers of a refusal: its reason, and when to ask again."""
    headers = {REASON_HEADER: reason, **({"retry-after": str(RETRY_AFTER_S)} if comes_again else {})}
    return [_overwriting_header(name, value) for name, value in headers.items()]


def _overwriting_header(name: str, value: str) -> Json:
    """Return a header that replaces what came under its name."""
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def sent_header() -> Json:
    """Return the request header that says when the router had the whole request."""
    return _overwriting_header(SENT_HEADER, "%START_TIME(%s.%3f)% %REQUEST_DURATION%")


def tags() -> list[Json]:
    """Return the span's attributes that come from an answer's headers."""
    return [{"tag": tag, "value": f"%RESP({header.upper()})%"} for tag, header in TAGGED_HEADERS.items()]


def retry_policy() -> Json:
    """Return which requests are sent to another replica: only those that were certainly not scored."""
    return {
        "retry_on": "connect-failure,reset-before-request,refused-stream,retriable-headers",
        "retriable_headers": [{"name": SEND_AGAIN_HEADER, "present_match": True}],
        "num_retries": 2,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": _TYPE + "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
            }
        ],
        "host_selection_retry_max_attempts": 5,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.050s"},
    }
