"""Wait for a condition, in bounded time, and for asyncio tasks to end."""

import asyncio
import inspect
import logging
import time
from collections.abc import Callable

__all__ = ["block_until", "cancel", "until"]

log = logging.getLogger(__name__)

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


async def cancel(*tasks: "asyncio.Task[object] | None") -> None:
    """Cancel asyncio tasks, and wait until all of them have ended; an error of one is logged, and keeps no other alive.

    Args:
        tasks: Tasks that work in the background; None is one that was never started.
    """
    started = [task for task in tasks if task is not None]
    for task in started:
        task.cancel()
    for task, result in zip(started, await asyncio.gather(*started, return_exceptions=True), strict=True):
        if isinstance(result, Exception):
            log.error("the task %s had ended with an error", task.get_name(), exc_info=result)
