"""Waiting for a condition, in bounded time."""

import asyncio
import itertools
import logging

import pytest

from controlled_rollout.polling import block_until, cancel, until


async def test_a_condition_that_holds_later_ends_the_wait() -> None:
    checks = itertools.count()

    assert await until(lambda: next(checks) == 3, 10, interval_s=0.001)
    assert next(checks) == 4


async def test_a_coroutine_function_is_awaited_at_each_check() -> None:
    checks = itertools.count()

    async def third() -> bool:
        return next(checks) == 2

    assert await until(third, 10, interval_s=0.001)


async def test_a_condition_that_never_holds_is_given_up() -> None:
    assert not await until(lambda: None, 0.01, interval_s=0.001)


async def test_without_time_the_condition_is_checked_once() -> None:
    checks = itertools.count()

    assert not await until(lambda: next(checks) == 1, 0)
    assert next(checks) == 1


@pytest.mark.parametrize(("holds_at", "result"), [(0, True), (3, True), (10**9, False)])
def test_a_thread_can_wait_too(holds_at: int, result: bool) -> None:
    checks = itertools.count()

    assert block_until(lambda: next(checks) == holds_at, 10 if result else 0.01, interval_s=0.001) is result


async def test_all_tasks_are_cancelled_although_one_had_ended_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("no such file")

    failed = asyncio.create_task(fail(), name="reads the file")
    waiting = asyncio.create_task(asyncio.Event().wait())
    await asyncio.wait([failed])

    with caplog.at_level(logging.ERROR):
        await cancel(failed, None, waiting)

    assert waiting.cancelled()
    assert "the task reads the file had ended with an error" in caplog.text
    assert "no such file" in caplog.text


async def test_who_cancels_can_be_cancelled_meanwhile() -> None:
    begun = asyncio.Event()

    async def end_slowly() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            begun.set()
            await asyncio.Event().wait()

    slow = asyncio.create_task(end_slowly())
    await asyncio.sleep(0)
    canceller = asyncio.create_task(cancel(slow))
    await begun.wait()

    canceller.cancel()

    with pytest.raises(asyncio.CancelledError):
        await canceller
    await asyncio.wait([slow])
