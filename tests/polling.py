"""Wait for a condition in a test, and fail with what was waited for."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

__all__ = ["pause_s", "until", "wait_until"]

# A check that takes long is repeated after a pause that is longer still, up to a bound: waiting must not take a
# processor from what is waited for.
INTERVAL_S = 0.02
PAUSES_PER_CHECK = 3
LONGEST_PAUSE_S = 0.5
Value = TypeVar("Value")


@overload
async def until(
    condition: Callable[[], Awaitable[Value | None]],
    what: str,
    *,
    timeout_s: float = ...,
    interval_s: float | None = ...,
) -> Value: ...
@overload
async def until(
    condition: Callable[[], Value | None], what: str, *, timeout_s: float = ..., interval_s: float | None = ...
) -> Value: ...
async def until(
    condition: Callable[[], object], what: str, *, timeout_s: float = 30.0, interval_s: float | None = None
) -> object:
    """Wait until a condition holds, and return its value.

    Args:
        condition: A function or a coroutine function; any true value means that it holds.
        what: What is waited for, for the message.
        timeout_s: How long to wait, in seconds.
        interval_s: The pause between two checks, in seconds; None for one that fits how long a check takes.

    Raises:
        AssertionError: It did not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, _message(what, timeout_s)
        await asyncio.sleep(pause_s(time.monotonic() - began, interval_s))


def wait_until(
    condition: Callable[[], Value | None],
    what: str,
    *,
    timeout_s: float = 30.0,
    interval_s: float | None = None,
    error: type[Exception] = AssertionError,
) -> Value:
    """Wait like `until`, in a thread without an event loop.

    Raises:
        error: The condition did not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        if value := condition():
            return value
        if time.monotonic() >= deadline:
            raise error(_message(what, timeout_s))
        time.sleep(pause_s(time.monotonic() - began, interval_s))


def pause_s(check_s: float, interval_s: float | None) -> float:
    """Return how long to pause after a check that took so many seconds.

    Args:
        check_s: How long the check took.
        interval_s: The pause that a caller asks for, in seconds; None if it asks for none.
    """
    if interval_s is not None:
        return interval_s
    return min(max(INTERVAL_S, PAUSES_PER_CHECK * check_s), LONGEST_PAUSE_S)


def _message(what: str, timeout_s: float) -> str:
    return f"not within {timeout_s:g} s: {what}"
