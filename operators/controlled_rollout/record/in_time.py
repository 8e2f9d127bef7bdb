"""Work on a record in bounded time: a network folder that is away blocks a thread for as long as it likes."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from controlled_rollout.errors import RecordUnavailableError

__all__ = ["within_time"]

Result = TypeVar("Result")

# An alarm or a roll-back waits at most so long for the record.
TIMEOUT_S: Final = 15.0

# By record: work that was given up and still blocks its thread. A further thread would block as well.
_given_up: dict[str, Future[Any]] = {}


async def within_time(record: str, work: Callable[[], Result], *, timeout_s: float | None = None) -> Result:
    """Run blocking work on a record in a thread and return its result.

    The thread of work that was given up is left behind: nothing can end it, and the process may end without it.

    Args:
        record: The record's name, for the message.
        work: Reads or appends.
        timeout_s: For how long, in seconds; None for `TIMEOUT_S`.

    Raises:
        RecordUnavailableError: The work failed so, or it takes longer than that, or earlier work on this record still
            does.
    """
    timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
    earlier = _given_up.get(record)
    if earlier is not None and not earlier.done():
        raise RecordUnavailableError(f"the record in {record} does not answer: earlier work on it has not ended yet")
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()  # from now on it cannot be cancelled

    def run() -> None:
        """Do the work and keep its result or its error for the caller."""
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    # A daemon: an executor's thread would keep the process from ending.
    threading.Thread(target=run, name="record", daemon=True).start()
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), timeout_s)
    except TimeoutError as error:
        if future.done():
            raise
        _given_up[record] = future
        raise RecordUnavailableError(
            f"the record in {record} does not answer within {timeout_s:g} s: check that it can be reached from here"
        ) from error
