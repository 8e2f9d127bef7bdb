"""The headers with which replicas and routers say that a version has no room, on every target. Pure.

The scoring runtime has the same names; it is no part of this package.
"""

from typing import Final

__all__ = [
    "REASON_HEADER",
    "RETRY_AFTER_S",
    "SCORING_HEADER",
    "SEND_AGAIN_HEADER",
    "SENT_HEADER",
    "WRONG_AUDIENCE_REASON",
]

# Why the scoring runtime or the router has answered a request itself.
REASON_HEADER: Final = "x-controlled-rollout-reason"
# How many milliseconds it has scored a request, any wait left out.
SCORING_HEADER: Final = "x-controlled-rollout-scoring-ms"
# The request was certainly not scored, and another replica may take it.
SEND_AGAIN_HEADER: Final = "x-controlled-rollout-send-again"
# When the router had the whole request, by which a replica knows that another one has let it wait.
SENT_HEADER: Final = "x-controlled-rollout-sent"
RETRY_AFTER_S: Final = 1
# Why a token is refused that is for somebody else.
WRONG_AUDIENCE_REASON: Final = "wrong-audience"
