"""When a process that runs is replaced because it does not answer."""

import asyncio
import time
from collections.abc import Iterable

import pytest

from controlled_rollout.target.local import liveness
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


async def test_a_probe_that_was_late_itself_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "LATE_S", 0.3)
    probes = 0

    async def probe() -> bool:
        nonlocal probes
        probes += 1
        if probes == 2:
            asyncio.get_running_loop().call_soon(time.sleep, 0.6)
        return probes == 1

    exited = asyncio.create_task(running())
    check = LivenessCheck(probe, start_s=60.0, interval_s=0.01, max_failures=2)

    assert await check.watch(exited) == "did not answer 2 times in a row"
    assert probes >= 5  # the first is answered, the third comes late and begins the count anew
    exited.cancel()


async def test_the_end_of_the_process_is_no_problem_of_the_check() -> None:
    async def end() -> int:
        return 1

    exited = asyncio.create_task(end())
    await exited
    check = checked([])

    assert await check.watch(exited) is None
    assert not check.is_answering
