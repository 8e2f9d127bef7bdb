"""Wait for a condition, in bounded time, and for asyncio tasks to end."""

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable

__all__ = ["block_until", "cancel", "until"]

INTERVAL_S = 0.02


async def until(condition: Callable[[], object], timeout_s: float, *, interval_s: float = INTERVAL_S) -> bool:
    """Poll a condition on the event loop until it holds; return False if it does not within `timeout_s` seconds.

    Args:
        condition: A function or a coroutine function; any true value means that it holds. It is checked at least once.
        timeout_s: How long to wait, in seconds; 0 checks once.
        interval_s: The pause between two checks, in seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return True
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(interval_s)


def block_until(condition: Callable[[], object], timeout_s: float, *, interval_s: float = INTERVAL_S) -> bool:
    """Poll a condition from a thread without an event loop; return False if it does not hold in `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval_s)
    return True


async def cancel(*tasks: "asyncio.Task[None] | None") -> None:
    """Cancel asyncio tasks, one after the other, and wait until each has ended; None is a task that never started."""
    for task in tasks:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
