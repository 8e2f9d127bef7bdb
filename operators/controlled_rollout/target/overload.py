"""The headers with which replicas and routers say that a version has no room, on every target. Pure.

The scoring runtime has the same names; it is no part of this package.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = [
    "REASON_HEADER",
    "RETRY_AFTER_S",
    "SEND_AGAIN_HEADER",
    "SENT_HEADER",
    "TAGGED_HEADERS",
    "WRONG_AUDIENCE_REASON",
]

# Why the scoring runtime or the router has answered a request itself.
REASON_HEADER: Final = "x-controlled-rollout-reason"
# Whose values the router's spans have, by the attribute's name; `-` where an answer has no such header. The second is
# how many milliseconds a request was scored, any wait left out; the third, how many callers have hung up while they
# waited in the replica's queue, since the last answer that said so.
TAGGED_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "reason": REASON_HEADER,
        "scoring_ms": "x-controlled-rollout-scoring-ms",
        "left_queue": "x-controlled-rollout-left-queue",
    }
)
# The request was certainly not scored, and another replica may take it.
SEND_AGAIN_HEADER: Final = "x-controlled-rollout-send-again"
# When the router had the whole request, by which a replica knows that another one has let it wait.
SENT_HEADER: Final = "x-controlled-rollout-sent"
RETRY_AFTER_S: Final = 1
# Why a token is refused that is for somebody else.
WRONG_AUDIENCE_REASON: Final = "wrong-audience"
