"""When a process that runs is replaced because it does not answer."""

import asyncio
from collections.abc import Iterable

from controlled_rollout.target.local.liveness import LivenessCheck


def checked(answers: Iterable[bool], *, start_s: float = 60.0, max_failures: int = 3) -> LivenessCheck:
    """Return a check whose probes give these answers, and then end the process."""
    remaining = iter(answers)

    async def probe() -> bool:
        return next(remaining)

    return LivenessCheck(probe, start_s=start_s, interval_s=0.001, max_failures=max_failures)


async def running() -> int:
    await asyncio.Event().wait()
    return 0


async def test_only_failures_in_a_row_count() -> None:
    exited = asyncio.create_task(running())

    problem = await checked([True, False, False, True, False, False, False]).watch(exited)

    assert problem == "did not answer 3 times in a row"
    exited.cancel()


async def test_a_process_may_take_its_time_until_the_first_answer() -> None:
    exited = asyncio.create_task(running())

    problem = await checked([False] * 50 + [True] + [False] * 2, max_failures=2).watch(exited)

    assert problem == "did not answer 2 times in a row"
    exited.cancel()


async def test_a_process_that_never_answers_is_replaced() -> None:
    exited = asyncio.create_task(running())

    problem = await checked([False, False], start_s=0.0).watch(exited)

    assert problem == "did not answer within 0 s of its start"
    exited.cancel()


async def test_the_end_of_the_process_is_no_problem_of_the_check() -> None:
    async def end() -> int:
        return 1

    exited = asyncio.create_task(end())
    await exited
    check = checked([])

    assert await check.watch(exited) is None
    assert not check.is_answering
