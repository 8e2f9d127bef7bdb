import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scripts.demo.processes import Processes, StartedProcess, started_at
from tests.polling import wait_until

# A leader with a child in a process group of its own, as Airflow has its tasks; both say when they are there.
FAMILY = """
import os, pathlib, signal, sys, time
if os.fork() == 0:
    os.setpgid(0, 0)
    {child}
    pathlib.Path("child").write_text(str(os.getpid()))
    time.sleep(60)
{leader}
pathlib.Path("leader").write_text(str(os.getpid()))
time.sleep(60)
"""
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    supervised = Processes(tmp_path)
    yield supervised
    supervised.end_all(grace_s=0)


def start_family(
    processes: Processes, folder: Path, *, child: str = "", leader: str = ""
) -> tuple[StartedProcess, list[int]]:
    code = FAMILY.format(child=child or "pass", leader=leader)
    started = processes.start("family", [sys.executable, "-c", code], env=os.environ, log=folder / "log")
    wait_until(
        lambda: all((folder / name).exists() and (folder / name).read_text() for name in ("child", "leader")),
        "the family has started",
    )
    return started, [int((folder / name).read_text()) for name in ("child", "leader")]


def are_gone(process_ids: list[int]) -> bool:
    # Whoever inherits an orphan may take its time to reap it.
    return not any(
        psutil.pid_exists(one) and psutil.Process(one).status() != psutil.STATUS_ZOMBIE for one in process_ids
    )


def test_process_group_ends_as_a_whole(processes: Processes, tmp_path: Path) -> None:
    started, family = start_family(processes, tmp_path)

    assert processes.is_running(started)
    assert processes.end(started, grace_s=10)
    assert are_gone(family)
    assert processes.started() == []


def test_process_that_ignores_sigterm_is_killed(processes: Processes, tmp_path: Path) -> None:
    started, family = start_family(processes, tmp_path, child=STUBBORN, leader=STUBBORN)

    assert not processes.end(started, grace_s=0.2)
    assert are_gone(family)


def test_next_run_ends_processes_of_a_killed_run(processes: Processes, tmp_path: Path) -> None:
    _, family = start_family(processes, tmp_path)
    next_run = Processes(tmp_path)

    next_run.end_all(grace_s=10)

    assert are_gone(family)
    assert not (tmp_path / "processes.json").exists()


def test_children_are_found_when_their_leader_is_gone(processes: Processes, tmp_path: Path) -> None:
    started, (child, leader) = start_family(processes, tmp_path)
    os.kill(leader, 9)
    wait_until(lambda: are_gone([leader]), "the leader has ended")

    assert processes.is_running(started)
    Processes(tmp_path).end_all(grace_s=10)
    assert are_gone([child])


def test_another_process_with_the_same_id_is_left_alone(tmp_path: Path) -> None:
    # The ledger's process is long gone, and its id now belongs to somebody else.
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as other:
        processes = Processes(tmp_path)
        processes._write([StartedProcess("gone", other.pid, started_at(other.pid) - 1000)])

        processes.end_all(grace_s=0.2)

        assert other.poll() is None
        assert processes.started() == []
        other.kill()


def test_the_output_is_in_the_log(processes: Processes, tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    started = processes.start("short", [sys.executable, "-c", code], env=os.environ, log=tmp_path / "log")

    wait_until(lambda: processes.exit_code(started) is not None, "the process has ended")

    assert processes.exit_code(started) == 3
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]
    assert not processes.is_running(started)
