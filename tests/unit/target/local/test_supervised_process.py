"""A supervised process: its restarts and its end."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.target.local.child_process import inherited_environment
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.supervised_process import BackOff, Command, SupervisedProcess
from tests.polling import until

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def log(tmp_path: Path) -> LogFile:
    return LogFile(tmp_path / "process.log")


def supervise(log: LogFile, script: str, **settings: Any) -> SupervisedProcess:
    command = Command([sys.executable, "-S", "-c", script], inherited_environment())
    back_off = settings.pop("back_off", BackOff(first_s=0.01, longest_s=0.01, healthy_s=60))
    return SupervisedProcess("worker", settings.pop("command", lambda: command), log=log, back_off=back_off, **settings)


def test_pauses_double_up_to_a_limit_and_start_again_after_a_healthy_run() -> None:
    pauses = BackOff(first_s=0.5, longest_s=4, healthy_s=60)

    assert [pauses.next_pause(1) for _ in range(5)] == [0.5, 1, 2, 4, 4]
    assert pauses.next_pause(61) == 0.5


async def test_a_process_that_is_killed_is_started_again(log: LogFile) -> None:
    reasons: list[str] = []
    process = supervise(log, SLEEP, on_exit=reasons.append)
    process.start()
    first = await until(lambda: process.pid, "the first process runs")

    os.kill(first, 9)

    await until(lambda: process.pid not in (None, first), "another process runs")
    assert reasons == ["was ended by SIGKILL"]
    assert log.tail(1)[0].endswith("worker was ended by SIGKILL")
    await process.stop(grace_s=5)
    assert process.pid is None


async def test_starting_a_running_process_changes_nothing(log: LogFile) -> None:
    process = supervise(log, SLEEP)
    process.start()
    first = await until(lambda: process.pid, "the process runs")

    process.start()

    assert process.pid == first
    await process.stop(grace_s=5)


async def test_a_stopped_process_can_be_started_again(log: LogFile) -> None:
    process = supervise(log, SLEEP)
    process.start()
    await until(lambda: process.pid, "the process runs")
    await process.stop(grace_s=5)

    process.start()

    await until(lambda: process.pid, "the process runs again")
    assert not process.is_stopping
    await process.stop(grace_s=5)


async def test_stop_before_the_first_start_ends_supervision(log: LogFile) -> None:
    process = supervise(log, SLEEP)
    process.start()

    await asyncio.wait_for(process.stop(grace_s=60), 10)

    assert process.pid is None


async def test_a_stop_does_not_wait_for_the_end_of_a_pause(log: LogFile) -> None:
    reasons: list[str] = []
    process = supervise(log, "", on_exit=reasons.append, back_off=BackOff(600, 600, 600))
    process.start()
    await until(lambda: reasons, "the process has ended")

    await asyncio.wait_for(process.stop(grace_s=1), 10)

    assert reasons == ["exited with code 0"]


async def test_a_process_that_is_not_to_be_restarted_runs_to_its_end(log: LogFile) -> None:
    reasons: list[str] = []
    process = supervise(log, SLEEP, on_exit=reasons.append)
    process.start()
    pid = await until(lambda: process.pid, "the process runs")
    process.do_not_restart()
    assert process.pid == pid

    os.kill(pid, 15)

    await until(lambda: reasons, "the process has ended")
    await process.stop(grace_s=1)
    assert reasons == ["was ended by SIGTERM"]


async def test_a_program_that_cannot_be_started_is_tried_again(log: LogFile) -> None:
    reasons: list[str] = []
    process = supervise(log, "", command=lambda: Command(["/no/such/program"], {}), on_exit=reasons.append)
    process.start()

    await until(lambda: len(reasons) > 1, "two starts have failed")

    assert "could not be started" in reasons[0]
    await process.stop(grace_s=1)


async def test_unhealthy_process_is_restarted(log: LogFile) -> None:
    reasons: list[str] = []
    checks: list[int] = []

    async def watch(exited: "asyncio.Task[int]") -> str | None:
        checks.append(len(checks))
        return "does not answer" if len(checks) == 1 else None

    process = supervise(log, SLEEP, watch=watch, on_exit=reasons.append)
    process.start()

    await until(lambda: len(checks) == 2, "it was started again")

    assert reasons == ["does not answer"]
    await process.stop(grace_s=5)


async def test_command_is_built_for_every_start(log: LogFile) -> None:
    numbers: list[str] = []

    def command() -> Command:
        numbers.append(str(len(numbers)))
        return Command([sys.executable, "-S", "-c", f"print('start', {numbers[-1]})"], inherited_environment())

    process = supervise(log, "", command=command)
    process.start()

    await until(lambda: "start 1" in log.tail(10), "the second command ran")
    await process.stop(grace_s=1)
