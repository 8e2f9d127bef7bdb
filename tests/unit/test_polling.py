"""Waiting for a condition, in bounded time."""

import itertools

import pytest

from controlled_rollout.polling import block_until, until


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
