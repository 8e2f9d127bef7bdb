"""How tests run, and run once more: with a command in the place of pytest."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


def run_tests(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run `scripts/run-tests` in a folder of its own, with a shell command instead of pytest."""
    (folder / "scripts").mkdir()
    for name in ("run-tests", "failed_tests.py"):
        shutil.copy(SCRIPTS / name, folder / "scripts")
    fake = folder / "fake-pytest"
    fake.write_text(f'#!/bin/sh\necho "run: $*"\n{command}\n')
    fake.chmod(0o755)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [folder / "scripts" / "run-tests", "2", str(fake)],
        capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}, timeout=60,
    )  # fmt: skip


@pytest.fixture
def last_failed(tmp_path: Path) -> Path:
    """The file with what failed in an earlier run: a test that is gone."""
    file = tmp_path / ".pytest_cache" / "v" / "cache" / "lastfailed"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"tests/test_gone.py::test_gone": True}))
    return file


def test_what_failed_in_an_earlier_run_neither_runs_again_nor_excuses_this_one(
    tmp_path: Path, last_failed: Path
) -> None:
    ended = run_tests(tmp_path, "[ $# -gt 2 ] && exit 1 || exit 0")

    assert ended.returncode == 1
    assert ended.stdout.count("run:") == 1
    assert not last_failed.exists()


def test_what_failed_in_this_run_runs_once_more_alone(tmp_path: Path, last_failed: Path) -> None:
    failed = json.dumps({"tests/test_a.py::test_b[x]@group": True})

    ended = run_tests(tmp_path, f"[ $# -gt 2 ] || exit 0\necho '{failed}' > {last_failed}\nexit 1")

    assert ended.returncode == 0, ended.stderr
    assert "run: --quiet tests/test_a.py::test_b[x]\n" in ended.stdout
    assert "UNSTABLE" in ended.stdout
