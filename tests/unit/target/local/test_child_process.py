"""A child process: its environment, its output, its end."""

import sys
from pathlib import Path

import pytest

from controlled_rollout.target.local.child_process import ChildProcess, describe_exit, inherited_environment
from controlled_rollout.target.local.log_file import LogFile
from tests.polling import until


def test_a_child_inherits_no_secret() -> None:
    caller = {"PATH": "/bin", "LC_ALL": "C.UTF-8", "AZURE_CLIENT_SECRET": "x", "HTTPS_PROXY": "http://me:pw@proxy"}

    assert inherited_environment(caller) == {"PATH": "/bin", "LC_ALL": "C.UTF-8"}


@pytest.mark.parametrize(
    ("code", "text"),
    [(0, "exited with code 0"), (3, "exited with code 3"), (-9, "was ended by SIGKILL"), (-200, "by signal 200")],
)
def test_exit_code_is_described_in_words(code: int, text: str) -> None:
    assert text in describe_exit(code)


async def start(script: str, log: LogFile) -> ChildProcess:
    return await ChildProcess.start([sys.executable, "-c", script], environment=inherited_environment(), log=log)


async def test_the_output_of_a_child_is_in_its_log_when_it_has_ended(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "one.log")
    child = await start(
        "import sys; print('x' * 200_000, flush=True); print('last words', file=sys.stderr); sys.exit(3)", log
    )

    assert await child.wait() == 3
    assert log.tail(1) == ["last words"]
    assert len(log.tail(2)[0]) == 200_000


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "one.log")
    child = await start(
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)", log
    )
    await until(lambda: "ready" in log.tail(1), "the child is ready")

    assert await child.stop(grace_s=0.1) == -9
    assert "was killed" in log.tail(1)[0]


async def test_the_children_of_a_child_end_with_it(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "one.log")
    child = await start(
        "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.exit(1)", log
    )

    assert await child.wait() == 1
    grandchild = int(log.tail(1)[0])
    await until(lambda: not runs(grandchild), "the grandchild has ended")


def runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
