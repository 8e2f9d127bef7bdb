"""Going back goes on trying: what keeps a roll-back from its end now may be gone in a minute, and callers get errors.

An API server that answers 401, 403 or 5xx, a token that cannot be renewed, a router that does not confirm: each try
begins anew, with a new connection, because a roll-back that is half done and tried again comes to the same end.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Final, TypeVar

from controlled_rollout.defaults import SERVED_TIMEOUT
from controlled_rollout.duration import format_duration
from controlled_rollout.errors import (
    PROGRAMMING_ERRORS,
    AccessError,
    ArgumentError,
    ConflictError,
    DeploymentError,
    EndpointError,
    EndpointNotFoundError,
    ImageError,
    NothingToDoError,
    RecordUnavailableError,
    RouterTimeoutError,
    TargetUnavailableError,
)
from controlled_rollout.steps import edits
from controlled_rollout.steps.skeleton import Step, format_split
from controlled_rollout.target.scaling import scale_before_going_back
from controlled_rollout.target.waiting import Progress

__all__ = ["is_outage", "may_pass", "rollback_step", "try_until_done"]

Result = TypeVar("Result")

FIRST_PAUSE_S: Final = 1.0
# A cluster that answers again finishes the roll-back within this time.
MAX_PAUSE_S: Final = 30.0

# A decision of somebody else, a rule, a fault of the software: the next try would end the same.
FINAL_ERRORS: Final = (
    *PROGRAMMING_ERRORS,
    ArgumentError,
    ConflictError,
    DeploymentError,
    EndpointError,
    EndpointNotFoundError,
    ImageError,
    NothingToDoError,
)


def may_pass(error: Exception) -> bool:
    """Return whether a roll-back that failed so may succeed later without anybody changing what was asked."""
    return isinstance(error, RouterTimeoutError) or not isinstance(error, FINAL_ERRORS)


def is_outage(error: Exception) -> bool:
    """Return whether an error is of a rollout's surroundings: it says nothing about the model."""
    return isinstance(error, (AccessError, RecordUnavailableError, TargetUnavailableError))


async def try_until_done(
    attempt: Callable[[timedelta], Awaitable[Result]],
    *,
    timeout: timedelta,
    progress: Progress,
    done: str = "rolled back",
    try_again_after: Callable[[Exception], bool] = may_pass,
) -> Result:
    """Await `attempt` until it succeeds or fails for good; return its result. Pause between tries, ever longer.

    Args:
        attempt: Does the whole step, given how long it may wait for the router; it must be safe to repeat.
        timeout: How long to try; 0 tries once.
        progress: Called with a sentence after each try that failed.
        done: What is done once a try succeeds, for those sentences.
        try_again_after: Whether a try may succeed after one that raised this error.

    Raises:
        Exception: What the last try raised.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    for pause_s in _pauses_s():
        left_s = max(0.0, deadline - time.monotonic())
        try:
            return await attempt(min(SERVED_TIMEOUT, timedelta(seconds=left_s)))
        except Exception as error:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not try_again_after(error):
                raise
            pause_s = min(pause_s, left_s)
            progress(
                f"not {done} yet, trying again in {pause_s:.0f} s, for {_format(left_s)} at most: "
                f"{str(error) or type(error).__name__}"
            )
        await asyncio.sleep(pause_s)
    raise AssertionError  # the pauses do not end


def rollback_step(version: str, *, owner: str | None) -> Step:
    """Return the step that sets a treatment to 0 % and releases the endpoint."""
    return Step(
        name="roll_back",
        version=version,
        edit=partial(edits.roll_back, version=version, owner=owner),
        done=lambda stored: f"{version!r} is rolled back: {format_split(stored)}",
        purpose=f"roll back {version}",
        scale=scale_before_going_back,
        whole_split=False,
        going_back=True,
        owner=owner,
    )


def _pauses_s() -> Iterator[float]:
    """Yield the pauses between tries, in seconds: each twice as long as the one before, up to `MAX_PAUSE_S`."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(MAX_PAUSE_S, 2 * pause_s)


def _format(seconds: float) -> str:
    """Return seconds as text such as `59 min`."""
    return format_duration(timedelta(seconds=round(seconds)))
