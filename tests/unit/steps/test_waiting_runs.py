"""Runs that wait for an endpoint come in the order in which they were due, and an older model replaces no newer one."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout import steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError, NameTakenError, NothingToDoError
from controlled_rollout.rollout import WaitingRun
from controlled_rollout.steps import Change, edits, skeleton
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
FIRST = Endpoint(name="digits").create_version("old", is_control=True, run_date=NOW)


def waiting(number: int, *, until: datetime = NOW + 9 * HOUR) -> WaitingRun:
    return WaitingRun(owner=f"weekly/run-{number}", run_date=NOW + number * HOUR, until=until)


def deploy(endpoint: Endpoint, number: int, *, at: datetime = NOW) -> Endpoint:
    """Roll out the version of a run."""
    return edits.deploy(
        endpoint, f"run{number}", image="a@sha256:1", owner=f"weekly/run-{number}", at=at, settings={},
        run_date=NOW + number * HOUR,
    )  # fmt: skip


def test_run_that_was_due_first_is_next() -> None:
    queue = FIRST.wait(waiting(3)).wait(waiting(1)).wait(waiting(2))
    assert [run.owner for run in queue.waiting] == ["weekly/run-1", "weekly/run-2", "weekly/run-3"]
    assert queue.wait(waiting(2)) is queue
    for later in (2, 3):
        with pytest.raises(ConflictError, match="awaited by weekly/run-1, which was due earlier"):
            deploy(queue, later)
    begun = deploy(queue, 1)
    assert begun.rollout is not None and begun.rollout.owner == "weekly/run-1"
    assert [run.owner for run in begun.waiting] == ["weekly/run-2", "weekly/run-3"]


def test_run_that_has_given_up_is_not_waited_for() -> None:
    queue = FIRST.wait(waiting(1, until=NOW + HOUR)).wait(waiting(2))
    with pytest.raises(ConflictError, match="due earlier"):
        deploy(queue, 2)
    assert deploy(queue, 2, at=NOW + HOUR).rollout is not None
    assert deploy(queue.without_waiting("weekly/run-1"), 2).rollout is not None


def test_version_of_an_earlier_run_does_not_replace_that_of_a_later_one() -> None:
    newer = deploy(FIRST, 3).promote("run3").release("run3")
    with pytest.raises(NothingToDoError, match="an older model does not replace a newer one"):
        deploy(newer, 2)
    assert deploy(newer, 4).rollout is not None
    # By hand, and over a control that was deployed by hand, everything may be deployed.
    by_hand = edits.deploy(newer, "hand", image="a@sha256:1", owner="ada", at=NOW, settings={})
    assert by_hand.version("hand").run_date is None
    assert deploy(by_hand.promote("hand").release("hand"), 2).rollout is not None


async def test_runs_that_wait_at_once_deploy_in_the_order_in_which_they_were_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, workspace = MemoryTarget(), Workspace.local(tmp_path)
    monkeypatch.setattr(steps, "connect", target.open)
    monkeypatch.setattr(skeleton, "CONFLICT_INTERVAL_S", 0.001)
    order: list[str] = []

    async def run(number: int, wait: timedelta = timedelta(seconds=20)) -> None:
        stored = await steps.deploy(
            workspace, "digits", f"run{number}", image="a@sha256:1", owner=f"weekly/run-{number}",
            change=Change(who=f"weekly/run-{number}/deploy"), run_date=NOW + number * HOUR, conflict_timeout=wait,
            progress=lambda line: None,
        )  # fmt: skip
        order.append(f"run{number}")
        if stored.rollout is not None:
            await steps.promote(
                workspace, "digits", f"run{number}", change=Change(who="ada"), progress=lambda line: None
            )

    await run(0)
    target.store(target.newest("digits").claim("run0", owner="weekly/other", at=NOW), Change(who="weekly/other/x"))
    runs = [asyncio.create_task(run(number)) for number in (3, 1, 2)]
    gives_up = asyncio.create_task(run(9, timedelta(seconds=0.3)))
    with pytest.raises(ConflictError):
        await gives_up
    while len(target.newest("digits").waiting) < 3:
        await asyncio.sleep(0.001)
    target.store(target.newest("digits").release("run0"), Change(who="weekly/other/x"))
    await asyncio.gather(*runs)
    assert order == ["run0", "run1", "run2", "run3"]
    assert target.newest("digits").waiting == ()
    assert target.newest("digits").control == target.newest("digits").version("run3")


async def test_run_whose_version_exists_with_another_image_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = MemoryTarget()
    first = Endpoint(name="digits").create_version("old", is_control=True, image="a@sha256:1")
    await target.apply(first, Change(who="setup"))
    monkeypatch.setattr(steps, "connect", target.open)
    with pytest.raises(NameTakenError, match=r"already has a version 'old' with image 'a@sha256:1'.*choose another"):
        await asyncio.wait_for(
            steps.deploy(
                Workspace.local(tmp_path), "digits", "old", image="a@sha256:2", owner="weekly/run-2",
                change=Change(who="weekly/run-2/deploy"), conflict_timeout=HOUR, progress=lambda line: None,
            ),
            timeout=10,
        )  # fmt: skip


def test_name_of_a_treatment_may_become_free() -> None:
    treated = deploy(FIRST, 1)
    with pytest.raises(ConflictError, match="already has a version 'run1'") as raised:
        edits.deploy(treated, "run1", image="b@sha256:2", owner="weekly/run-2", at=NOW, settings={})
    assert type(raised.value) is ConflictError
