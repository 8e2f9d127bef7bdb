"""A task that acts on any rollout is no person for what its own run rolls out."""

from pathlib import Path

import pytest

from controlled_rollout import steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError, NothingToDoError, NotJudgedError
from controlled_rollout.steps import Change
from controlled_rollout.target.protocol import Change as TargetChange
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget

RUN = "weekly/run-2"


async def target_with_control(monkeypatch: pytest.MonkeyPatch) -> MemoryTarget:
    """Return the target of all steps, with an endpoint that has one version, its control."""
    target = MemoryTarget()
    monkeypatch.setattr(steps, "connect", target.open)
    first = Endpoint(name="digits").create_version("old", is_control=True, image="a@sha256:1")
    await target.apply(first, TargetChange(who="setup"))
    return target


async def test_task_of_the_run_that_rolls_out_promotes_and_raises_nothing_unjudged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await target_with_control(monkeypatch)
    workspace = Workspace.local(tmp_path)
    change = Change(who=f"{RUN}/task")
    await steps.deploy(workspace, "digits", "new", image="a@sha256:1", owner=RUN, change=change)
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


async def test_second_instance_of_a_mapped_group_on_the_same_endpoint_is_refused_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, target = Workspace.local(tmp_path), await target_with_control(monkeypatch)
    mine, other = f"{RUN}[0]", f"{RUN}[1]"
    image = "a@sha256:1"
    await steps.deploy(workspace, "digits", "new", image=image, owner=mine, change=Change(who=f"{mine}/deploy"))
    by_other = Change(who=f"{other}/task")
    with pytest.raises(ConflictError, match=r"is held by weekly/run-2\[0\] rolling out 'new'"):
        await steps.deploy(workspace, "digits", "new", image=image, owner=other, change=by_other)
    with pytest.raises(
        NothingToDoError, match=r"is in the rollout of weekly/run-2\[0\]: it is not for weekly/run-2\[1\]"
    ):
        await steps.roll_back(workspace, "digits", "new", change=by_other, owner=other)
    # Neither it nor a task outside the group is a person for what the run rolls out.
    for run in (other, RUN):
        with pytest.raises(NotJudgedError, match="has to approve it"):
            await steps.promote(workspace, "digits", "new", change=Change(who=f"{run}/task"), run=run)
    assert (await target.endpoint("digits")).rollout is not None


@pytest.mark.parametrize("renamed", ["new-2", "old"])
async def test_a_run_rolls_back_what_it_holds_although_its_tasks_name_another_version(
    renamed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a template of the date, over midnight: the treatment would keep its share, and nobody would look."""
    workspace, target = Workspace.local(tmp_path), await target_with_control(monkeypatch)
    change = Change(who=f"{RUN}/task")
    await steps.deploy(workspace, "digits", "new", image="a@sha256:1", owner=RUN, change=change)
    await steps.shift(workspace, "digits", "new", percentile=50, change=change, owner=RUN)
    messages: list[str] = []

    with pytest.raises(NothingToDoError):
        await steps.roll_back(workspace, "digits", renamed, change=change, owner="weekly/run-1")
    await steps.roll_back(workspace, "digits", renamed, change=change, owner=RUN, progress=messages.append)

    endpoint = await target.endpoint("digits")
    assert endpoint.effective_traffic() == {"old": 100, "new": 0}
    assert endpoint.rollout is None
    assert messages[0].startswith(f"{RUN} has not rolled out '{renamed}', and holds endpoint 'digits' for 'new'")
