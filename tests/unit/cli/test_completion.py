"""Real shells are asked what may follow on a command line."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from controlled_rollout.cli import main
from tests.needs import skip

DEADLINE_S: Final = 120
WITH_PROGRAM: Final = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def shell(name: str) -> str:
    """Return the program of a shell; skip the test where there is none."""
    return shutil.which(name) or skip(f"there is no {name}: `make lab` installs it on Debian, as root")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "controlled-rollout" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("controlled-rollout rep", {"replay", "replicas", "report"}),
        ("controlled-rollout status --out", {"--output"}),
        ("controlled-rollout status --output ", {"json", "table", "yaml"}),
        ("controlled-rollout keys ", {"token", "rotate"}),
    ],
)
def test_a_real_bash_completes_commands_options_and_choices(line: str, completed: set[str]) -> None:
    script = (
        'eval "$(controlled-rollout completion bash)"; COMP_LINE=$1; COMP_POINT=${#1}; COMP_TYPE=9; '
        '_python_argcomplete controlled-rollout; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ended = subprocess.run(
        [shell("bash"), "--norc", "-c", script, "-", line],
        env=WITH_PROGRAM, capture_output=True, text=True, check=True, timeout=DEADLINE_S,
    )  # fmt: skip

    assert completed <= {word.strip() for word in ended.stdout.splitlines()}


@pytest.mark.parametrize(
    ("line", "completed"),
    [("controlled-rollout dep", ["deploy"]), ("controlled-rollout status --output ", ["json", "table", "yaml"])],
)
def test_a_real_fish_completes_commands_and_choices(line: str, completed: list[str]) -> None:
    script = "controlled-rollout completion fish | source; complete --do-complete $argv[1]"

    ended = subprocess.run(
        [shell("fish"), "--no-config", "-c", script, line],
        env=WITH_PROGRAM, capture_output=True, text=True, check=True, timeout=DEADLINE_S,
    )  # fmt: skip

    assert [answer.partition("\t")[0] for answer in ended.stdout.splitlines()] == completed


def test_a_real_zsh_completes_what_is_typed_on_a_terminal() -> None:
    zsh, (ours, theirs) = shell("zsh"), pty.openpty()
    with subprocess.Popen(
        [zsh, "-f", "-i"],
        env={**WITH_PROGRAM, "TERM": "dumb"}, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            os.write(ours, b'autoload -U compinit; compinit -D; eval "$(controlled-rollout completion zsh)"\n')
            os.write(ours, b'print B""EGIN\n')
            read_until(ours, "BEGIN")
            # After the completion the line becomes the argument of `print`: Ctrl-A is its begin, Ctrl-E its end.
            os.write(ours, b'controlled-rollout dep\t\x01print -r -- "typed: \x05"; print E""ND\n')
            answer = read_until(ours, "END")
        finally:
            process.kill()
            os.close(ours)

    assert "\ntyped: controlled-rollout deploy" in answer.replace("\r", "")


def read_until(terminal: int, text: str) -> str:
    """Return what a terminal shows until it has shown a text."""
    shown, end = "", time.monotonic() + DEADLINE_S
    while text not in shown:
        assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], f"no {text!r} in {shown!r}"
        shown += os.read(terminal, 4096).decode(errors="replace")
    return shown
