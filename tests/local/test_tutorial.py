"""The tutorial, as it stands: its files are written, its commands run, and they print what the page says."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.pages import REPOSITORY, Block, read_blocks
from tests.ports import free_port

PAGE = REPOSITORY / "docs" / "tutorial.md"
BLOCKS = read_blocks(PAGE)
# Airflow's own set-up and its import take most of it, on a busy machine minutes.
DEADLINE_S = 900
MARK = "===== block"
NUMBER = r"\d[\d.,e+]*"


def script() -> str:
    """Return the page's commands and files, in their order, as one script that marks where each block begins.

    Blocks of `sh` are left out: they install, or serve until Ctrl-C.
    """
    parts = []
    for number, block in enumerate(BLOCKS):
        # Also where a program's last line has no end.
        parts.append(f'echo; echo "{MARK} {number}, $SECONDS s"')
        if file := block.options.get("title"):
            parts.append(f"mkdir -p $(dirname {file}); cat > {file} <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
        elif block.language == "bash":
            parts.append(block.text)
    return "\n".join(parts)


def pattern(line: str) -> re.Pattern[str]:
    """Return what a printed line has to look like: `…` stands for anything, and numbers and spaces may differ.

    Numbers in names, such as `trees-10`, may not.
    """
    words = re.findall(rf"…|\s+|[a-z]+-\d+|{NUMBER}|[a-z]+|[^…\s\da-z]+", line.strip())
    return re.compile("".join(map(_pattern_of_word, words)))


def _pattern_of_word(word: str) -> str:
    """Return what a word of a line has to look like."""
    if word == "…":
        return ".*"
    if word.isspace():
        return r"\s+"
    return NUMBER if word[0].isdigit() else re.escape(word)


def missing(expected: str, printed: str) -> list[str]:
    """Return the first line that was not printed after the ones before it; empty if all were."""
    lines: Iterator[str] = iter(printed.splitlines())
    for line in expected.splitlines():
        if line.strip() != "…" and not any(pattern(line).fullmatch(candidate.strip()) for candidate in lines):
            return [line]
    return []


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The variables of somebody who begins, with the images' cache of the tests."""
    # Most of what runs is Airflow: to measure it would take half as long again, and show nothing of this project.
    dropped = ("AIRFLOW", "CONTROLLED_ROLLOUT", "COVERAGE", "PYTEST")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**kept, "PATH": path, "CONTROLLED_ROLLOUT_CACHE": os.environ["CONTROLLED_ROLLOUT_CACHE"]}


@pytest.mark.timeout(DEADLINE_S + 60)
def test_the_tutorial_runs_as_it_stands_and_prints_what_it_says(tmp_path: Path, environment: dict[str, str]) -> None:
    port = str(free_port())
    text = script().replace("local up", f"local up --port {port}").replace("8088", port)
    log = tmp_path.with_name("tutorial.log")
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(DEADLINE_S)
        finally:
            if process.poll() != 0:
                # What it has started is in its group, and may be there without it.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                down = ["controlled-rollout", "local", "down", "--root", str(tmp_path / "workspace")]
                subprocess.run(down, env=environment, check=False, capture_output=True, timeout=60)
    printed = log.read_text(encoding="utf-8").replace(port, "8088")
    airflow = tmp_path / "airflow.log"
    assert code == 0, printed[-3_000:] + (airflow.read_text(encoding="utf-8")[-3_000:] if airflow.exists() else "")
    outputs = dict(re.findall(rf"^{MARK} (\d+), \d+ s\n(.*?)(?=^{MARK}|\Z)", printed, re.MULTILINE | re.DOTALL))
    wrong = {
        str(block): lines
        for number, block in enumerate(BLOCKS)
        if says_what_was_printed(block) and (lines := missing(block.text, outputs[str(number - 1)]))
    }
    assert not wrong, printed


def says_what_was_printed(block: Block) -> bool:
    """Return whether a block shows the output of the block before it."""
    return block.language == "text" and not block.options
