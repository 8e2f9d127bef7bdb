"""The steps of a rollout on a real local workspace: killed anywhere and called again, they come to the same end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from controlled_rollout import record, steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError, EndpointError
from controlled_rollout.evaluation import look as looks
from controlled_rollout.gate import Gate
from controlled_rollout.record import Decision
from controlled_rollout.target import connect as connect_module
from controlled_rollout.target.connect import connect
from controlled_rollout.target.protocol import Change, Target
from controlled_rollout.workspace import Workspace
from tests.local.local_target_lab import Lab

OWNER = "weekly/run-1"
DEADLINE = timedelta(seconds=60)


def quiet(line: str) -> None:
    """Discard progress lines."""


class Killed(BaseException):
    """Stands for the end of a task's process."""


class DyingTarget:
    """The real target, except that the task dies at one call: before it is sent, or before its answer is read."""

    def __init__(self, target: Target, deaths: "Deaths") -> None:
        self._target = target
        self._deaths = deaths

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        self._deaths.may_come()
        stored = await self._target.apply(endpoint, change)
        self._deaths.may_come()
        return stored


class Deaths:
    """Kills at every moment before and after a change, one after the other."""

    def __init__(self) -> None:
        self.survived = 0
        self.count = 0

    def may_come(self) -> None:
        if self.count == self.survived:
            self.survived += 1
            self.count = 0
            raise Killed
        self.count += 1


async def whole_rollout(lab: Lab, endpoint: str, image: str) -> Endpoint | None:
    """Run all steps of a rollout, each from its beginning, as retried tasks would."""
    who = f"{OWNER}/task"
    common: dict[str, Any] = {"change": Change(who=who), "timeout": DEADLINE, "progress": quiet}
    new = await lab.target.endpoint(endpoint)
    promoted = new.control is not None and new.control.name == "new"
    if not promoted:
        await steps.deploy(lab.workspace, endpoint, "new", image=image, owner=OWNER, **common)
        shifted = await steps.shift(lab.workspace, endpoint, "new", percentile=50, owner=OWNER, **common)
        record.append(lab.workspace, Decision.about(shifted, "new", step="go_on", who="gate", outcome="pass"))
    await steps.promote(lab.workspace, endpoint, "new", owner=OWNER, **common)
    return await steps.retire(lab.workspace, endpoint, "old", **common)


async def test_run_killed_before_or_after_any_change_ends_the_same_when_retried(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = await lab.image("old"), await lab.image("new")
    await steps.deploy(
        lab.workspace, "killed", "old", image=old, owner=OWNER, change=Change(who="setup"), progress=quiet
    )
    deaths = Deaths()

    @asynccontextmanager
    async def connect_to_dying(workspace: Workspace) -> AsyncIterator[DyingTarget]:
        async with connect(workspace) as target:
            yield DyingTarget(target, deaths)

    monkeypatch.setattr(steps, "connect", connect_to_dying)
    monkeypatch.setattr(connect_module, "connect", connect_to_dying)

    lives = 1
    while True:
        try:
            await whole_rollout(lab, "killed", new)
            break
        except Killed:
            lives += 1

    end = await lab.target.endpoint("killed")
    assert lives > 4, "the run was hardly killed"
    assert {name: version.image for name, version in end.versions.items()} == {"new": new}
    assert end.effective_traffic() == {"new": 100}
    assert end.control == end.default == end.versions["new"]
    assert end.rollout is None
    # Five changes (old created, new created, shifted, promoted, old retired), however often the run was killed.
    assert end.revision == 5


async def test_second_run_on_an_endpoint_fails_or_waits(lab: Lab) -> None:
    image = await lab.image("old")
    common: dict[str, Any] = {"image": image, "progress": quiet}
    await steps.deploy(lab.workspace, "contended", "old", owner="a/0", change=Change(who="setup"), **common)
    await steps.deploy(lab.workspace, "contended", "one", owner="a/1", change=Change(who="a/1/deploy"), **common)

    with pytest.raises(ConflictError, match=r"held by a/1 rolling out 'one'.*a/2 asked to roll out 'two'"):
        await steps.deploy(lab.workspace, "contended", "two", owner="a/2", change=Change(who="a/2/deploy"), **common)
    with pytest.raises(ConflictError, match="a/2 no longer holds"):
        await steps.shift(
            lab.workspace,
            "contended",
            "one",
            percentile=10,
            owner="a/2",
            change=Change(who="a/2/shift"),
            progress=quiet,
        )

    waiting_reported = asyncio.Event()
    waiting = asyncio.create_task(
        steps.deploy(
            lab.workspace,
            "contended",
            "two",
            image=image,
            owner="a/2",
            change=Change(who="a/2/deploy"),
            conflict_timeout=DEADLINE,
            progress=lambda line: waiting_reported.set() if line.startswith("waiting: ") else None,
        )
    )
    await asyncio.wait_for(waiting_reported.wait(), 30)
    await steps.roll_back(
        lab.workspace, "contended", "one", change=Change(who="somebody", reason="enough seen"), progress=quiet
    )
    end = await asyncio.wait_for(waiting, 60)
    assert end.rollout is not None
    assert (end.rollout.owner, list(end.versions)) == ("a/2", ["old", "one", "two"])


async def test_run_fails_after_a_person_has_ended_its_rollout(lab: Lab) -> None:
    image = await lab.image("old")
    await steps.deploy(
        lab.workspace, "helped", "old", image=image, owner="b/0", change=Change(who="setup"), progress=quiet
    )
    await steps.deploy(
        lab.workspace,
        "helped",
        "new",
        image=image,
        owner="b/1",
        change=Change(who="b/1/deploy"),
        progress=quiet,
    )

    await steps.promote(
        lab.workspace, "helped", "new", change=Change(who="somebody", reason="it is good"), progress=quiet
    )

    with pytest.raises(ConflictError, match="b/1 no longer holds"):
        await looks.look(lab.workspace, lab.target, "helped", "new", gate=Gate(), who="b/1/gate", owner="b/1")
    with pytest.raises(EndpointError, match="is the control"):
        await steps.roll_back(lab.workspace, "helped", "new", change=Change(who="b/1/roll_back"), progress=quiet)
    newest = (await lab.target.history("helped"))[-1]
    assert (newest.change.who, newest.change.reason) == ("somebody", "it is good")
    decisions = [decision.step for decision in record.read(lab.workspace, "helped", version="new")]
    assert decisions == ["deploy", "promote"]


async def test_look_that_cannot_be_recorded_makes_no_decision(lab: Lab) -> None:
    image = await lab.image("old")
    await steps.deploy(
        lab.workspace, "unkept", "old", image=image, owner="d/0", change=Change(who="setup"), progress=quiet
    )
    await steps.deploy(
        lab.workspace,
        "unkept",
        "new",
        image=image,
        owner="d/1",
        change=Change(who="d/1/deploy"),
        progress=quiet,
    )
    full = lab.workspace.records_folder / "unkept.jsonl"
    full.unlink()
    full.mkdir()  # a folder: appending to it fails for every user

    look = await looks.look(lab.workspace, lab.target, "unkept", "new", gate=Gate(), who="d/1/gate", owner="d/1")

    assert look.verdict.outcome == "cannot_see"
    assert "cannot be recorded" in look.verdict.reason
    full.rmdir()


async def test_a_version_with_traffic_is_not_retired(lab: Lab) -> None:
    image = await lab.image("old")
    await steps.deploy(
        lab.workspace, "kept", "old", image=image, owner="c/0", change=Change(who="setup"), progress=quiet
    )
    await steps.deploy(
        lab.workspace, "kept", "new", image=image, owner="c/1", change=Change(who="c/1/deploy"), progress=quiet
    )
    with pytest.raises(ConflictError, match="being rolled out by c/1"):
        await steps.retire(lab.workspace, "kept", "new", change=Change(who="somebody"), progress=quiet)
    await steps.shift(
        lab.workspace, "kept", "new", percentile=10, change=Change(who="c/1/shift"), owner="c/1", progress=quiet
    )
    with pytest.raises(ConflictError, match="has 10 % of the traffic"):
        await steps.retire(lab.workspace, "kept", "new", change=Change(who="somebody"), progress=quiet)
    assert await steps.retire(lab.workspace, "kept", "gone", change=Change(who="somebody"), progress=quiet) is not None
