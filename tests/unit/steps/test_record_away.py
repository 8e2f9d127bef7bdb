"""Steps while the record cannot be appended to or read: they are done all the same, and say that the record lags."""

import threading
from datetime import timedelta

import pytest

from controlled_rollout import record, steps
from controlled_rollout.errors import RecordUnavailableError
from controlled_rollout.record import file_storage, in_time
from controlled_rollout.steps import Change
from controlled_rollout.target import connect as connect_module
from controlled_rollout.target import waiting
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget

RUN = "weekly/run-2"
CHANGE = Change(who=f"{RUN}/task")
SHORT = timedelta(seconds=0.05)


@pytest.fixture
async def target(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> MemoryTarget:
    """A treatment `new` with half of the traffic, rolled out by RUN."""
    target = MemoryTarget()
    monkeypatch.setattr(steps, "connect", target.open)
    monkeypatch.setattr(connect_module, "connect", target.open)
    monkeypatch.setattr(waiting, "RETRY_S", 0.001)
    for version in ("old", "new"):
        await steps.deploy(
            workspace, "digits", version, image="a@sha256:1", owner=RUN, change=CHANGE, progress=lambda line: None
        )
    await steps.shift(workspace, "digits", "new", percentile=50, change=CHANGE, progress=lambda line: None)
    return target


async def roll_back_and_retire(workspace: Workspace, target: MemoryTarget) -> list[str]:
    """Roll the treatment back as its run, retire it, and return the messages."""
    messages: list[str] = []
    rolled_back = await steps.roll_back(workspace, "digits", "new", change=CHANGE, owner=RUN, progress=messages.append)
    assert rolled_back is not None
    assert rolled_back.effective_traffic() == {"old": 100, "new": 0}
    assert rolled_back.rollout is None
    await steps.retire(workspace, "digits", "new", change=CHANGE, progress=messages.append)
    assert list(target.newest("digits").versions) == ["old"]
    return messages


async def test_a_roll_back_and_a_retirement_do_not_need_the_records_folder(
    workspace: Workspace, target: MemoryTarget
) -> None:
    (workspace.records_folder / "digits.jsonl").unlink()
    workspace.records_folder.rmdir()
    workspace.records_folder.write_text("not a folder")

    messages = await roll_back_and_retire(workspace, target)

    assert any(
        message.startswith("warning: the record lags behind: revision 4 is not in it yet") for message in messages
    )
    assert any(
        message.startswith("warning: the record lags behind: revision 5 is not in it yet") for message in messages
    )


async def test_a_roll_back_and_a_retirement_do_not_need_space_on_the_records_disk(
    workspace: Workspace, target: MemoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_storage._Appender, "write", full)

    messages = await roll_back_and_retire(workspace, target)

    assert any("No space left on device" in message for message in messages)


async def test_a_roll_back_and_a_retirement_wait_for_no_storage_that_hangs(
    workspace: Workspace, target: MemoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_time, "TIMEOUT_S", 0.05)
    answers = threading.Event()
    monkeypatch.setattr(record.log, "storage_of", lambda *arguments: answers.wait(30))

    try:
        messages = await roll_back_and_retire(workspace, target)
    finally:
        answers.set()

    assert any("does not answer within" in message for message in messages)


async def test_a_step_forward_is_done_too_and_its_line_is_said_to_lag(
    workspace: Workspace, target: MemoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: object, **options: object) -> None:
        raise RecordUnavailableError("the container is away")

    monkeypatch.setattr(record, "append", away)
    messages: list[str] = []

    stored = await steps.shift(workspace, "digits", "new", percentile=60, change=CHANGE, progress=messages.append)

    assert stored.effective_traffic()["new"] == 60
    assert (
        "warning: the record lags behind: revision 4 is not in it yet, and will be appended with the next entry: "
        "the container is away" in messages
    )


async def test_whoever_appends_next_appends_the_lines_that_are_missing(
    workspace: Workspace, target: MemoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file_storage._Appender, "write", full)
        await roll_back_and_retire(workspace, target)
    assert [decision.step for decision in record.read(workspace, "digits")] == ["deploy", "deploy", "shift"]

    await steps.deploy(
        workspace, "digits", "third", image="a@sha256:1", owner=RUN, change=CHANGE, progress=lambda line: None
    )

    decisions = list(record.read(workspace, "digits"))
    assert [(decision.step, decision.version, decision.revision) for decision in decisions[3:]] == [
        ("roll_back", "new", 4),
        ("retire", "new", 5),
        ("deploy", "third", 6),
    ]
    history = await target.history("digits")
    assert [(decision.time, decision.who, decision.reason) for decision in decisions[3:5]] == [
        (revision.created, revision.change.who, revision.change.reason) for revision in history[3:5]
    ]


async def test_a_step_that_was_killed_after_its_line_does_not_append_it_again(
    workspace: Workspace, target: MemoryTarget
) -> None:
    before = list(record.read(workspace, "digits"))
    for _ in range(3):
        await steps.shift(workspace, "digits", "new", percentile=50, change=CHANGE, progress=lambda line: None)
    assert list(record.read(workspace, "digits")) == before
