"""Blocking file work in a thread that ends when the task that waits for it is cancelled."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["CancelCheck", "WorkCancelledError", "in_thread", "never_cancelled"]

Result = TypeVar("Result")

CancelCheck = Callable[[], None]
"""Called by long work between two steps; raises `WorkCancelledError` once the task that waits was cancelled."""


class WorkCancelledError(Exception):
    """The task that waits for the work was cancelled."""


def never_cancelled() -> None:
    """Do nothing: the `CancelCheck` for callers that are not asyncio tasks."""


async def in_thread(work: Callable[[CancelCheck], Result]) -> Result:
    """Run blocking work in a thread and return its result. If cancelled, wait until the thread has ended.

    Otherwise the thread might still write into a folder that its owner removes meanwhile, and half of it would stay.

    Args:
        work: Takes a `CancelCheck`, to be called between two steps.
    """
    cancelled = threading.Event()

    def check_cancelled() -> None:
        """Raise `WorkCancelledError` in the thread if the asyncio task was cancelled."""
        if cancelled.is_set():
            raise WorkCancelledError

    future = asyncio.ensure_future(asyncio.to_thread(work, check_cancelled))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        cancelled.set()
        while not future.done():
            try:
                await asyncio.shield(asyncio.wait([future]))
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # marks it as retrieved: the caller sees the cancellation instead
        raise
