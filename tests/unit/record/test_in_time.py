"""Work on a record that does not answer is given up, and neither blocks nor piles up."""

import asyncio
import threading

import pytest

from controlled_rollout.errors import RecordUnavailableError
from controlled_rollout.record import in_time


@pytest.fixture(autouse=True)
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_time, "TIMEOUT_S", 0.05)


async def test_result_and_error_of_the_work_are_passed_on() -> None:
    def fail() -> None:
        raise TimeoutError("from the work")

    assert await in_time.within_time("records/digits", lambda: 3) == 3
    with pytest.raises(TimeoutError, match="from the work"):
        await in_time.within_time("records/digits", fail)


async def test_work_that_does_not_end_is_given_up_and_not_begun_again_meanwhile() -> None:
    answers = threading.Event()
    begun: list[int] = []

    def hang() -> None:
        begun.append(1)
        answers.wait(30)

    with pytest.raises(RecordUnavailableError, match=r"records/hangs does not answer within 0\.05 s"):
        await in_time.within_time("records/hangs", hang)
    with pytest.raises(RecordUnavailableError, match="earlier work on it has not ended yet"):
        await in_time.within_time("records/hangs", hang)
    assert await in_time.within_time("records/answers", lambda: 1) == 1
    answers.set()
    while not in_time._given_up["records/hangs"].done():
        await asyncio.sleep(0)

    assert await in_time.within_time("records/hangs", lambda: 2) == 2
    assert begun == [1]
