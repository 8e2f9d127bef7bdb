"""The reaper: the processes that it kills when the supervisor has ended."""

import subprocess
import sys
from pathlib import Path

from controlled_rollout.target.local import reaper


def test_when_its_pipe_closes_the_reaper_kills_the_marked_processes_only(tmp_path: Path) -> None:
    mark = f"TEST_MARK={tmp_path}"
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    marked = subprocess.Popen(["sleep", "60"], env={"TEST_MARK": str(tmp_path)}, start_new_session=True)
    unmarked = subprocess.Popen(["sleep", "60"], env={"TEST_MARK": "another"})
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, mark, str(runtime)], stdin=subprocess.PIPE
        )
        assert process.stdin is not None
        assert marked.poll() is None

        process.stdin.close()

        assert process.wait(10) == 0
        assert marked.wait(10) == -9
        assert unmarked.poll() is None
        assert not runtime.exists()
    finally:
        unmarked.kill()
        unmarked.wait()
