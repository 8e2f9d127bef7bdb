"""The whole demo, as `make demo` runs it: a real Airflow, Envoy, load. `make demos` runs it with every fault."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from controlled_rollout.workspace import user_cache

REPOSITORY = Path(__file__).parents[2]

PROMOTED = r"promoted \S+ to control in [\d.]+ s; \d+ requests, 0 failed"

pytestmark = pytest.mark.timeout(1100)


def run_demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.demo", "--folder", str(folder), *arguments],
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        timeout=1050,
    )


def left_running(folder: Path) -> list[str]:
    lines = {
        process.info["pid"]: " ".join(process.info["cmdline"] or ())
        for process in psutil.process_iter(["pid", "cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
    }
    return [line for line in lines.values() if str(folder) in line]


def test_the_demo_promotes_without_a_failed_request_and_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    # A link: the environment may have been built by another test, and a replica left running names this folder.
    user_cache().mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").symlink_to(user_cache())
    monkeypatch.setenv("CONTROLLED_ROLLOUT_CACHE", str(tmp_path / "cache"))

    ended = run_demo(folder)

    last = ended.stdout.strip().splitlines()[-1]
    assert re.fullmatch(f"result: {PROMOTED}", last), ended.stdout
    assert ended.returncode == 0
    assert left_running(tmp_path) == []
    key = (folder / "load.key").read_text()
    assert not [log for log in (folder / "logs").iterdir() if key in log.read_text(errors="replace")]


# Two at a time, the longest first: a demo waits most of its time.
@pytest.mark.skipif(os.environ.get("RUN_DEMOS") != "1", reason="`make demos` runs it, on a machine that is idle")
@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        pytest.param(arguments, result, id=name, marks=pytest.mark.xdist_group(f"demo {name}"))
        for name, arguments, result in (
            ("flaky", ("--treatment", "flaky"), r"rolled back \S+: errors are higher, e-value .* of 3,000"),
            ("metrics down", ("--metrics", "down"), PROMOTED),
            ("failing", ("--treatment", "failing"), r"rolled back \S+: errors are higher, e-value .* of 3,000"),
            ("slow", ("--treatment", "slow"), r"rolled back \S+: latency is higher, e-value .* of 3,000"),
            (
                "skewed",
                ("--treatment", "skewed"),
                r"rolled back \S+: digit differs by more than 0\.1, e-value .*",
            ),
            ("crash", ("--treatment", "crash"), r"rolled back \S+: did not become ready: .*"),
        )
    ],
)
def test_the_demo_rolls_a_bad_model_back_and_waits_while_it_sees_nothing(
    arguments: tuple[str, ...], result: str, tmp_path: Path
) -> None:
    ended = run_demo(tmp_path / "demo", *arguments)

    last = ended.stdout.strip().splitlines()[-1]
    assert re.fullmatch(f"result: {result}", last), ended.stdout
    assert ended.returncode == 0
