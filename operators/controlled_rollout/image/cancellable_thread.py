"""Blocking file work in a thread that ends when the task that waits for it is cancelled."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Stop", "StoppedError", "in_thread", "never"]

Result = TypeVar("Result")

Stop = Callable[[], None]
"""Called between two pieces of work; raises `StoppedError` when nobody waits for the result any more."""


class StoppedError(Exception):
    """The task that asked for the work was cancelled."""


def never() -> None:
    """Never stop: for callers that are not tasks."""


async def in_thread(work: Callable[[Stop], Result]) -> Result:
    """Run `work` in a thread and return its result; on cancellation the thread has ended before this returns.

    A thread that went on writing into a folder that its owner already removes would leave half of it behind.

    Args:
        work: Called with a `Stop` that it calls between two pieces of its work.
    """
    stopped = threading.Event()

    def stop() -> None:
        if stopped.is_set():
            raise StoppedError

    future = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stopped.set()
        while not future.done():
            try:
                await asyncio.shield(asyncio.wait([future]))
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # retrieved: the cancellation is what the caller hears of
        raise
