"""Wait for a condition in a test, and fail with what was waited for."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

__all__ = ["until", "wait_until"]

INTERVAL_S = 0.02
Value = TypeVar("Value")


@overload
async def until(
    condition: Callable[[], Awaitable[Value | None]], what: str, *, timeout_s: float = ..., interval_s: float = ...
) -> Value: ...
@overload
async def until(
    condition: Callable[[], Value | None], what: str, *, timeout_s: float = ..., interval_s: float = ...
) -> Value: ...
async def until(
    condition: Callable[[], object], what: str, *, timeout_s: float = 30.0, interval_s: float = INTERVAL_S
) -> object:
    """Wait until a condition holds, and return its value.

    Args:
        condition: A function or a coroutine function; any true value means that it holds.
        what: What is waited for, for the message.
        timeout_s: How long to wait, in seconds.
        interval_s: The pause between two checks, in seconds.

    Raises:
        AssertionError: It did not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, _message(what, timeout_s)
        await asyncio.sleep(interval_s)


def wait_until(
    condition: Callable[[], Value | None],
    what: str,
    *,
    timeout_s: float = 30.0,
    interval_s: float = INTERVAL_S,
    error: type[Exception] = AssertionError,
) -> Value:
    """Wait like `until`, in a thread without an event loop.

    Raises:
        error: The condition did not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise error(_message(what, timeout_s))
        time.sleep(interval_s)
    return value


def _message(what: str, timeout_s: float) -> str:
    return f"not within {timeout_s:g} s: {what}"
