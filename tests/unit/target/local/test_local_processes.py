"""Child processes, their logs, and what is left of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.target.local import ports, reaper
from controlled_rollout.target.local.client import LocalTarget
from controlled_rollout.target.local.processes import BackOff, Child, LogFile, how_it_ended, inherited_environment
from controlled_rollout.target.local.state import FolderLock
from controlled_rollout.workspace import Workspace
from tests.polling import until


def test_a_log_stays_below_its_limit_and_keeps_the_newest_lines(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "one.log", limit_bytes=2000)
    for number in range(500):
        log.write(f"line {number}\n".encode())

    assert sum(path.stat().st_size for path in (log.path, log.older)) <= 2000
    assert log.tail(3) == ["line 497", "line 498", "line 499"]
    assert len(log.tail(1000)) > 100
    assert log.path.stat().st_mode & 0o077 == 0


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert LogFile(tmp_path / "none.log").tail(5) == []


def test_pauses_double_up_to_a_limit_and_start_again_after_health() -> None:
    pauses = BackOff(first_s=0.5, longest_s=4, healthy_s=60)

    assert [pauses.after(1) for _ in range(5)] == [0.5, 1, 2, 4, 4]
    assert pauses.after(61) == 0.5


def test_a_child_knows_no_secret_of_its_caller() -> None:
    caller = {"PATH": "/bin", "LC_ALL": "C.UTF-8", "AZURE_CLIENT_SECRET": "x", "HTTPS_PROXY": "http://me:pw@proxy"}

    assert inherited_environment(caller) == {"PATH": "/bin", "LC_ALL": "C.UTF-8"}


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exited with code 0"), (3, "exited with code 3"), (-9, "was ended by SIGKILL")]
)
def test_an_exit_code_is_said_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words


async def run(script: str, log: LogFile, **environment: str) -> Child:
    return await Child.start([sys.executable, "-c", script], env=inherited_environment() | environment, log=log)


async def test_the_output_of_a_child_is_in_its_log_when_it_has_ended(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "one.log")
    child = await run(
        "import sys; print('x' * 200_000, flush=True); print('last words', file=sys.stderr); sys.exit(3)", log
    )

    assert await child.wait() == 3
    assert log.tail(1) == ["last words"]
    assert len(log.tail(2)[0]) == 200_000


async def test_a_child_that_does_not_listen_is_ended_in_bounded_time(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "one.log")
    child = await run(
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)", log
    )
    await until(lambda: "ready" in log.tail(1), "the child is ready")

    assert await child.stop(grace_s=0.1) == -9
    assert "was killed" in log.tail(1)[0]


async def test_what_a_child_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "one.log")
    child = await run(
        "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.exit(1)", log
    )

    assert await child.wait() == 1
    grandchild = int(log.tail(1)[0])
    await until(lambda: not _runs(grandchild), "the grandchild has ended")


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_when_its_pipe_closes_the_warden_ends_the_marked_processes_only(tmp_path: Path) -> None:
    mark = f"TEST_MARK={tmp_path}"
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    marked = subprocess.Popen(["sleep", "60"], env={"TEST_MARK": str(tmp_path)}, start_new_session=True)
    stranger = subprocess.Popen(["sleep", "60"], env={"TEST_MARK": "another"})
    try:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, mark, str(runtime)], stdin=subprocess.PIPE
        )
        assert guard.stdin is not None
        assert marked.poll() is None

        guard.stdin.close()

        assert guard.wait(10) == 0
        assert marked.wait(10) == -9
        assert stranger.poll() is None
        assert not runtime.exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_a_reserved_port_can_be_used_by_our_own_child_and_not_taken_twice() -> None:
    import socket

    with ports.reserve("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with socket.socket() as child:
            child.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            child.bind(("127.0.0.1", port))
            child.listen()
            with pytest.raises(WorkspaceError, match=f"port {port}"):
                ports.reserve("127.0.0.1", port)
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))


def test_one_process_owns_a_folder(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    first, second = FolderLock(workspace), FolderLock(workspace)

    assert first.take()
    assert not second.take()
    first.release()
    assert second.take()
    second.release()


async def test_without_a_supervisor_the_client_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailableError, match="controlled-rollout local up"):
        async with LocalTarget.open(Workspace.local(tmp_path)) as target:
            await target.endpoints()


def test_importing_the_client_imports_no_server() -> None:
    code = (
        "import sys, controlled_rollout.target.local.client as c; "
        "print([m for m in ('httpx', 'fastapi', 'uvicorn', 'rich') if m in sys.modules])"
    )
    environment = {"PATH": os.environ["PATH"]}

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)

    assert found.stdout.strip() == "[]"
