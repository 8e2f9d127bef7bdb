"""The reaper: the processes that it kills when the supervisor has ended."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlled_rollout.target.local import reaper


class Processes:
    """The reaper of a runtime folder, and processes with and without its mark."""

    def __init__(self, folder: Path) -> None:
        self.runtime = folder / "runtime"
        self.runtime.mkdir()
        self._mark = str(folder)
        self.started: list[subprocess.Popen[bytes]] = []

    def start_reaper(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-I", "-S", reaper.__file__, f"TEST_MARK={self._mark}", str(self.runtime)]
        self.started.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        return self.started[-1]

    def start(self, mark: str | None = None) -> subprocess.Popen[bytes]:
        environment = {"TEST_MARK": mark or self._mark}
        self.started.append(subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True))
        return self.started[-1]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    for process in processes.started:
        process.kill()
        process.communicate()


def test_when_its_pipe_closes_the_reaper_kills_the_marked_processes_only(processes: Processes) -> None:
    marked, other, ending = processes.start(), processes.start("another"), processes.start_reaper()
    assert marked.poll() is None

    ending.communicate(timeout=20)

    assert (ending.returncode, marked.wait(10)) == (0, -9)
    assert other.poll() is None
    assert not processes.runtime.exists()


def test_a_child_that_was_being_started_when_the_supervisor_was_killed_is_killed_too(processes: Processes) -> None:
    marked, ending = processes.start(), processes.start_reaper()
    assert ending.stdin is not None
    ending.stdin.close()
    assert marked.wait(10) == -9

    late = processes.start()

    assert (ending.wait(20), late.wait(10)) == (0, -9)


def test_what_a_supervisor_that_ended_by_itself_has_left_is_killed(processes: Processes) -> None:
    marked, ending = processes.start(), processes.start_reaper()

    ending.communicate(reaper.ENDED, timeout=20)

    assert (ending.returncode, marked.wait(10)) == (0, -9)
    assert not processes.runtime.exists()
