"""What people see of an endpoint is read in bounded time, and leaves nothing behind that piles up."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlled_rollout import steps
from controlled_rollout.errors import EndpointNotFoundError
from controlled_rollout.steps import Change
from controlled_rollout.view import reading
from controlled_rollout.view.followed_record import FollowedLine, FollowedRecord
from controlled_rollout.view.reading import KnownEndpoint, LogNotFoundError, read_log_tail, read_overview
from controlled_rollout.visible_text import visible_text
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget

DEADLINE_S = 30.0


def quiet(_: str) -> None:
    """Take a progress message."""


async def test_a_record_that_does_not_answer_leaves_the_endpoint_shown_and_is_not_asked_again_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, begun = threading.Event(), list[int]()

    def hang(_: FollowedRecord) -> Iterator[FollowedLine]:
        begun.append(1)
        answers.wait(DEADLINE_S)
        yield from ()

    target, workspace, known = MemoryTarget(), Workspace.local(tmp_path), KnownEndpoint()
    monkeypatch.setattr(steps, "connect", target.open)
    monkeypatch.setattr(FollowedRecord, "new_lines", hang)
    monkeypatch.setattr(reading, "RECORD_S", 0.05)
    for version, run in (("v1a", "weekly/run-1"), ("v2a", "weekly/run-2")):
        change = Change(who=f"{run}/deploy")
        await steps.deploy(workspace, "digits", version, image="a@sha256:1", owner=run, change=change, progress=quiet)
        if version == "v1a":
            await steps.promote(workspace, "digits", version, change=change, progress=quiet)

    async with asyncio.timeout(DEADLINE_S):
        rows = [await read_overview(workspace, target, "digits", known) for _ in range(4)]
    assert {row.rollout.version for row in rows if row.rollout} == {"v2a"}
    assert begun == [1]

    answers.set()
    async with asyncio.timeout(DEADLINE_S):
        while len(begun) == 1:
            await read_overview(workspace, target, "digits", known)


async def test_the_end_of_a_log_is_shown_in_bounded_size_and_time_however_long_its_lines_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_visible = list[int]()

    class TalkativeTarget(MemoryTarget):
        """A target of a version that writes one very long line."""

        async def logs(self, name: str, version: str, *, tail: int = 200) -> str:
            """Return it."""
            return "first " + "\x1b" * 1_000_000 + " last"

    def noted(text: str) -> str:
        made_visible.append(len(text))
        return visible_text(text)

    monkeypatch.setattr(reading, "visible_text", noted)
    log = await read_log_tail(Workspace.local(tmp_path), TalkativeTarget(), "digits", "v1a", tail=200)
    assert (len(log.text), log.cut) == (reading.LOG_BYTES, True)
    assert log.text.endswith(r"\x1b last")
    assert made_visible == [reading.LOG_BYTES]


async def test_a_log_that_nobody_has_written_is_missing_only_if_there_is_no_such_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, workspace, change = MemoryTarget(), Workspace.local(tmp_path), Change(who="maria")
    monkeypatch.setattr(steps, "connect", target.open)
    await steps.deploy(workspace, "digits", "v1a", image="a@sha256:1", owner="maria", change=change, progress=quiet)
    kept = {"v0a": "of a version that was deleted"}

    async def logs(name: str, version: str, *, tail: int = 200) -> str:
        return kept.get(version, "")

    monkeypatch.setattr(target, "logs", logs)
    for version, text in (("v1a", ""), *kept.items()):
        assert (await read_log_tail(workspace, target, "digits", version, tail=5)).text == text
    with pytest.raises(LogNotFoundError, match="'digits' has no version 'v9z'"):
        await read_log_tail(workspace, target, "digits", "v9z", tail=5)
    with pytest.raises(EndpointNotFoundError):
        await read_log_tail(workspace, target, "nothing", "v1a", tail=5)
