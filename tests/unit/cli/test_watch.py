"""What is drawn on a terminal, and nowhere else: `status --watch`, and that a command is at work."""

import argparse
import asyncio
import io
from datetime import timedelta
from typing import Any

import pytest

from controlled_rollout.cli import watch as watched
from controlled_rollout.cli.progress import at_work
from controlled_rollout.cli.view import print_line
from controlled_rollout.errors import ArgumentError, ControlledRolloutError, TargetUnavailableError, WorkspaceError

INTERVAL = timedelta(seconds=1)
OPTIONS = argparse.Namespace(output="table", endpoint="digits")


class Ended(Exception):
    """Stands for Ctrl-C."""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watch(answers: list[Any], output: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    """Watch results, or errors, until there are no more; return what was printed."""

    async def read() -> tuple[Any, list[str]]:
        if not answers:
            raise Ended
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer, [str(answer)]

    async def no_wait(seconds: float) -> None:
        assert seconds == INTERVAL.total_seconds()

    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setattr(watched.asyncio, "sleep", no_wait)  # type: ignore[attr-defined]
    with pytest.raises(Ended):
        asyncio.run(watched.watch(OPTIONS, read, interval=INTERVAL))
    return output.getvalue()


def test_in_a_pipe_only_what_has_changed_is_appended_and_an_outage_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    away: ControlledRolloutError = TargetUnavailableError("the supervisor does not answer")

    printed = watch(["one", "one", away, away, "two"], io.StringIO(), monkeypatch)

    assert [line for line in printed.splitlines() if line and " UTC" not in line] == [
        "one", "not known now: the supervisor does not answer", "two",
    ]  # fmt: skip
    assert "\x1b" not in printed


def test_on_a_terminal_each_look_is_drawn_over_the_one_before_and_fits_80_by_24(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")

    printed = watch(["line\n" * 50, "x" * 200], Terminal(), monkeypatch)

    looks = printed.split("\x1b[H")[1:]
    assert [look.count("\n") <= 23 for look in looks] == [True, True]
    assert "more lines" in looks[0]
    assert all(len(line.removesuffix("\x1b[K")) <= 80 for look in looks for line in look.split("\n")[:-1])


def test_an_interval_that_would_hammer_the_target_is_refused() -> None:
    async def read() -> tuple[Any, list[str]]:
        pytest.fail("it was read")

    with pytest.raises(ArgumentError, match=r"0\.1 s is too short: give 1 s or more"):
        asyncio.run(watched.watch(OPTIONS, read, interval=timedelta(seconds=0.1)))


def test_a_workspace_that_is_not_valid_ends_the_watching_instead_of_being_asked_for_ever() -> None:
    async def read() -> tuple[Any, list[str]]:
        raise WorkspaceError("aks.yaml: 'gatway' is not known")

    with pytest.raises(WorkspaceError, match="gatway"):
        asyncio.run(watched.watch(OPTIONS, read, interval=INTERVAL))


@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "pipe"])
def test_a_command_at_work_is_seen_on_a_terminal_only_and_its_lines_stay_whole(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Terminal() if is_terminal else io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setattr("sys.stderr", Terminal())

    with at_work("deploy [v2a] of digits"):
        print_line("version 'v2a' is ready")

    printed = output.getvalue()
    assert "version 'v2a' is ready" in printed
    assert ("deploy [v2a] of digits" in printed) == is_terminal
    assert is_terminal or printed == "version 'v2a' is ready\n"
