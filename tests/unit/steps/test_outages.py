"""A run's step that gives a version more traffic outlasts an outage: its failure would roll a good version back."""

from datetime import timedelta

import pytest

from controlled_rollout import steps
from controlled_rollout.errors import AccessError, ControlledRolloutError, TargetUnavailableError
from controlled_rollout.steps import Change, going_back
from controlled_rollout.target import waiting
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget

RUN = "weekly/run-1"
CHANGE = Change(who=f"{RUN}/shift_10", reason="")
IMAGE = "local/digits@sha256:" + "0" * 64
NO_TIME = timedelta(0)


@pytest.fixture
async def target(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> MemoryTarget:
    """Return a target with a control and a treatment of RUN, that can be away."""
    target = MemoryTarget()
    monkeypatch.setattr(steps, "connect", target.open)
    monkeypatch.setattr(waiting, "RETRY_S", 0.001)
    monkeypatch.setattr(going_back, "FIRST_PAUSE_S", 0.001)
    for version in ("old", "new"):
        await steps.deploy(workspace, "digits", version, image=IMAGE, owner=RUN, change=CHANGE)
    return target


async def test_a_runs_shift_goes_on_trying_after_its_time_to_wait_for_the_target(
    workspace: Workspace, target: MemoryTarget
) -> None:
    target.failing_calls = 3
    said: list[str] = []
    await steps.shift(
        workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN, timeout=NO_TIME, progress=said.append
    )
    assert target.newest("digits").effective_traffic()["new"] == 10
    assert [sentence for sentence in said if "not shifted yet, trying again" in sentence]


async def test_a_person_is_told_at_once_that_the_target_is_away(workspace: Workspace, target: MemoryTarget) -> None:
    target.failing_calls = 3
    with pytest.raises(TargetUnavailableError):
        await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, timeout=NO_TIME)


@pytest.mark.parametrize(
    ("error", "outage"),
    [(AccessError, True), (TargetUnavailableError, True), (ControlledRolloutError, False), (OSError, False)],
)
def test_only_errors_of_the_surroundings_are_an_outage(error: type[Exception], outage: bool) -> None:
    assert going_back.is_outage(error("no")) is outage
