"""Work in a thread, cancelled."""

import asyncio
import threading

import pytest

from controlled_rollout.image.cancellable_thread import CancelCheck, in_thread


async def test_a_thread_has_ended_when_its_cancelled_task_has() -> None:
    running, ended = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def work(check_cancelled: CancelCheck) -> None:
        loop.call_soon_threadsafe(running.set)
        try:
            while True:
                check_cancelled()
        finally:
            ended.set()

    task = asyncio.create_task(in_thread(work))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ended.is_set()
