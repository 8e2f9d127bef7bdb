"""Requests for a workspace: a few at a time, and none is said to lack what was not read yet."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlled_rollout import record, steps
from controlled_rollout.errors import EndpointNotFoundError, TargetUnavailableError, WorkspaceError
from controlled_rollout.record import Decision
from controlled_rollout.steps import Change, holding
from controlled_rollout.target import connect as connect_module
from controlled_rollout.target.protocol import Target
from controlled_rollout.workspace import Workspace
from controlled_rollout_ui.api import workspaces
from controlled_rollout_ui.api.watched_workspace import AT_ONCE
from controlled_rollout_ui.api.workspaces import Workspaces
from tests.polling import until
from tests.unit.steps.memory_target import MemoryTarget

DEADLINE_S = 30.0


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An event at which the only workspace's connection answers, with an error."""
    event = threading.Event()

    def read_connection(_: str) -> Workspace:
        event.wait(DEADLINE_S)
        raise WorkspaceError("there is no connection 'ml': create it")

    monkeypatch.setattr(workspaces, "_read_connection", read_connection)
    monkeypatch.setattr(workspaces, "workspace_names", lambda: ("ml",))
    monkeypatch.setattr(workspaces, "FIRST_DETAIL_WAIT_S", 0.05)
    yield event
    event.set()


async def test_a_run_is_not_said_to_have_no_endpoint_while_workspaces_are_read(answers: threading.Event) -> None:
    shown = Workspaces()
    with pytest.raises(TargetUnavailableError, match=r"workspaces are being read \(ml\)"):
        await shown.detail_of_run("weekly", "run-1")
    answers.set()

    async def refusal() -> str | None:
        try:
            await shown.detail_of_run("weekly", "run-1")
        except TargetUnavailableError:
            return None
        except EndpointNotFoundError as error:
            return str(error)
        return None

    text = await until(refusal, "the answer", timeout_s=DEADLINE_S)
    assert text == "no version of any endpoint is of the run weekly/run-1; these workspaces do not answer: ml"


async def test_requests_open_few_connections_at_once_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, open_now, most = MemoryTarget(), 0, 0

    @asynccontextmanager
    async def connect(_: Workspace) -> AsyncIterator[Target]:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0)  # the others go on meanwhile
        yield target
        open_now -= 1

    async def logs(name: str, version: str, *, tail: int = 200) -> str:
        return "a line"

    monkeypatch.setattr(target, "logs", logs)
    monkeypatch.setattr(workspaces, "connect", connect)
    monkeypatch.setattr(workspaces, "_read_connection", lambda _: Workspace.local(tmp_path))
    monkeypatch.setattr(workspaces, "workspace_names", lambda: ("ml",))
    shown = Workspaces()
    async with asyncio.timeout(DEADLINE_S):
        read = [shown.log_tail("ml", "digits", "v1a", tail=5) for _ in range(5 * AT_ONCE)]
        assert {log.text for log in await asyncio.gather(*read)} == {"a line"}
    assert 0 < most <= AT_ONCE


@pytest.fixture
async def silent_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[str]]:
    """A rollout at 10 % whose record does not answer; the readings of it that have begun."""
    target, workspace, answers = MemoryTarget(), Workspace.local(tmp_path), threading.Event()
    for module in (steps, connect_module, workspaces):
        monkeypatch.setattr(module, "connect", target.open)
    monkeypatch.setattr(workspaces, "_read_connection", lambda _: workspace)
    monkeypatch.setattr(workspaces, "workspace_names", lambda: ("ml",))
    change, run = Change(who="weekly/run-1"), "weekly/run-1"
    for version in ("v1a", "v2a"):
        await steps.deploy(workspace, "digits", version, image="a@sha256:1", owner=run, change=change)
    await steps.shift(workspace, "digits", "v2a", percentile=10, owner=run, change=change)
    begun = list[str]()

    def read_newest_first(_: Workspace, endpoint: str, version: str) -> Iterator[Decision]:
        begun.append(version)
        answers.wait(DEADLINE_S)
        return iter(())

    monkeypatch.setattr(record, "read_newest_first", read_newest_first)
    yield begun
    answers.set()


async def test_a_record_that_does_not_answer_keeps_nobody_from_being_offered_the_roll_back(
    silent_record: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a gate would act on a hold is asked of the record; a roll-back needs nothing but the target."""
    monkeypatch.setattr(holding, "PREVIEW_S", 0.05)
    shown = await Workspaces().actions("ml", "digits", percentile=10)
    of_treatment = {preview.action: preview for preview in shown.actions if preview.version == "v2a"}
    assert of_treatment["roll_back"].allowed
    assert "does not answer within 0.05 s" in (of_treatment["hold"].refusal or "")


async def test_a_record_that_does_not_answer_blocks_one_thread_however_many_dialogs_ask_and_leave(
    silent_record: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "PREVIEW_S", 0.3)
    shown = Workspaces()
    left = asyncio.create_task(shown.actions("ml", "digits", percentile=10))
    await until(lambda: silent_record, "the reading of the record", timeout_s=DEADLINE_S)
    left.cancel()

    asked = [shown.actions("ml", "digits", percentile=10) for _ in range(AT_ONCE)]
    for answer in await asyncio.gather(*asked):
        [hold] = [one for one in answer.actions if (one.action, one.version) == ("hold", "v2a")]
        assert "does not answer" in (hold.refusal or "")
    assert silent_record == ["v2a"]
