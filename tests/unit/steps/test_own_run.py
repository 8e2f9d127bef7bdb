"""A task that acts on any rollout is no person for what its own run rolls out."""

from pathlib import Path

import pytest

from controlled_rollout import steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import NotJudgedError
from controlled_rollout.steps import Change
from controlled_rollout.target.protocol import Change as TargetChange
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget

RUN = "weekly/run-2"


async def test_task_of_the_run_that_rolls_out_promotes_and_raises_nothing_unjudged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, target = Workspace.local(tmp_path), MemoryTarget()
    monkeypatch.setattr(steps, "connect", target.open)
    first = Endpoint(name="digits").create_version("old", is_control=True, image="a@sha256:1")
    await target.apply(first, TargetChange(who="setup"))
    change = Change(who=f"{RUN}/task")
    await steps.roll_out(workspace, "digits", "new", image="a@sha256:1", owner=RUN, change=change)
    await steps.shift(workspace, "digits", "new", percentile=10, change=change, run=RUN)

    with pytest.raises(NotJudgedError, match="has to approve it"):
        await steps.promote(workspace, "digits", "new", change=change, run=RUN)
    with pytest.raises(NotJudgedError, match="has to approve it"):
        await steps.shift(workspace, "digits", "new", percentile=50, change=change, run=RUN)
    await steps.roll_back(workspace, "digits", "new", change=change, owner=RUN)
    with pytest.raises(NotJudgedError, match="has to approve it"):
        await steps.promote(workspace, "digits", "new", change=change, run=RUN)

    by_hand = Change(who="promote/manual/promote")
    promoted = await steps.promote(workspace, "digits", "new", change=by_hand, run="promote/manual")
    assert promoted.control == promoted.version("new")
