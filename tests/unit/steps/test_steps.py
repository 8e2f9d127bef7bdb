"""The steps on a target in memory: their common skeleton, and the particulars of each."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from controlled_rollout import record, steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import (
    ConflictError,
    DeploymentError,
    EndpointError,
    EndpointNotFoundError,
    NothingToDoError,
    NotJudgedError,
    TargetUnavailableError,
)
from controlled_rollout.record import Decision
from controlled_rollout.sizing import Load
from controlled_rollout.steps import Change, skeleton
from controlled_rollout.target import connect as connect_module
from controlled_rollout.target import waiting
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget

RUN, OTHER = "weekly/run-2", "weekly/run-1"
CHANGE = Change(who=f"{RUN}/task")
BY_OTHER = Change(who=f"{OTHER}/task", reason="of its own")
SHORT = timedelta(seconds=0.05)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> MemoryTarget:
    target = MemoryTarget()
    monkeypatch.setattr(steps, "connect", target.open)
    monkeypatch.setattr(connect_module, "connect", target.open)
    monkeypatch.setattr(waiting, "RETRY_S", 0.001)
    monkeypatch.setattr(skeleton, "CONFLICT_INTERVAL_S", 0.001)
    return target


async def deploy(
    workspace: Workspace, version: str, *, owner: str = RUN, conflict_timeout: timedelta = timedelta(0)
) -> Endpoint:
    return await steps.deploy(
        workspace,
        "digits",
        version,
        image="a@sha256:1",
        owner=owner,
        change=Change(who=f"{owner}/deploy"),
        conflict_timeout=conflict_timeout,
        timeout=SHORT,
        progress=lambda line: None,
    )


def let_go_on(workspace: Workspace, target: MemoryTarget, outcome: str = "pass", version: str = "new") -> None:
    """Append to the record what a gate appends that lets the rollout go on from its present share."""
    newest = target.newest("digits")
    record.append(workspace, Decision.about(newest, version, step="go_on", who=f"{RUN}/gate", outcome=outcome))


def recorded(workspace: Workspace) -> list[tuple[str, str, str]]:
    decisions = record.read(workspace, "digits")
    return [(decision.step, decision.version, decision.reason) for decision in decisions]


async def test_a_whole_rollout_opens_the_target_once_a_step_and_records_every_step(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old", owner=OTHER)
    openings = [target.openings]

    async def step(call: Callable[[], Awaitable[object]]) -> None:
        await call()
        openings.append(target.openings - sum(openings))

    await step(lambda: deploy(workspace, "new"))
    await step(lambda: steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN))
    await step(lambda: steps.roll_back(workspace, "digits", "new", change=CHANGE, owner=RUN))
    await step(lambda: deploy(workspace, "new"))
    let_go_on(workspace, target)
    await step(lambda: steps.promote(workspace, "digits", "new", change=CHANGE, owner=RUN))
    await step(lambda: steps.former_control(workspace, "digits", "new"))
    await step(lambda: steps.retire_former_control(workspace, "digits", "new", change=CHANGE))

    assert openings == [1] * 8
    assert list((await target.endpoint("digits")).versions) == ["new"]
    assert recorded(workspace) == [
        ("deploy", "old", "deploy old"),
        ("deploy", "new", "deploy new"),
        ("shift", "new", "send 10 % to new"),
        ("roll_back", "new", "roll back new"),
        ("deploy", "new", "deploy new"),
        ("go_on", "new", ""),
        ("promote", "new", "promote new to control"),
        ("retire", "old", "retire old"),
    ]


async def test_run_promotes_only_what_its_gate_has_passed_at_the_present_share(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old", owner=OTHER)
    await deploy(workspace, "new")
    await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN)
    for before in (None, "not_enough_evidence"):
        if before:
            let_go_on(workspace, target, before)
        with pytest.raises(NotJudgedError, match="a person has to approve it"):
            await steps.promote(workspace, "digits", "new", change=CHANGE, owner=RUN)
    let_go_on(workspace, target)
    await steps.shift(workspace, "digits", "new", percentile=50, change=CHANGE, owner=RUN)
    with pytest.raises(NotJudgedError, match=r"at 50 % was made at 10 % in revision 3"):
        await steps.promote(workspace, "digits", "new", change=CHANGE, owner=RUN)
    let_go_on(workspace, target)
    with pytest.raises(NotJudgedError, match="a person has to approve it"):
        await steps.promote(workspace, "digits", "new", change=CHANGE, owner=RUN, needs_approval=True)
    promoted = await steps.promote(workspace, "digits", "new", change=CHANGE, owner=RUN)
    assert promoted.control == promoted.version("new")
    # A retry finds it done: it asks for nothing.
    assert await steps.promote(workspace, "digits", "new", change=CHANGE, owner=RUN) == promoted


async def test_run_raises_a_share_only_after_a_gate_let_it_go_on(workspace: Workspace, target: MemoryTarget) -> None:
    await deploy(workspace, "old", owner=OTHER)
    await deploy(workspace, "new")
    await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN)
    target.calls.clear()
    with pytest.raises(NotJudgedError, match="nothing in the record of this rollout lets version 'new'"):
        await steps.shift(workspace, "digits", "new", percentile=50, change=CHANGE, owner=RUN)
    assert set(target.calls) == {"history"}  # refused before anything is waited for
    let_go_on(workspace, target, "not_enough_evidence")
    raised = await steps.shift(workspace, "digits", "new", percentile=50, change=CHANGE, owner=RUN)
    assert raised.effective_traffic()["new"] == 50
    # Going down asks for nothing.
    await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN)


async def test_run_does_not_promote_after_another_writer_changed_the_split_at_the_last_moment(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old", owner=OTHER)
    await deploy(workspace, "new")
    await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN)
    let_go_on(workspace, target)

    def interfere() -> None:
        target.before.clear()
        target.store(target.newest("digits").shift("new", 30), BY_OTHER)

    target.before["apply"] = interfere
    with pytest.raises(NotJudgedError, match="before the split, an image or the control changed"):
        await steps.promote(workspace, "digits", "new", change=CHANGE, owner=RUN)


@pytest.mark.parametrize("percentile", [0, 30])
async def test_shift_by_hand_names_the_rollout_that_it_ends_and_the_run_then_touches_nothing(
    workspace: Workspace, target: MemoryTarget, percentile: float
) -> None:
    await deploy(workspace, "old", owner=OTHER)
    await deploy(workspace, "new")
    await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN)
    let_go_on(workspace, target)
    messages: list[str] = []
    by_hand = await steps.shift(
        workspace, "digits", "new", percentile=percentile, change=Change(who="ada"), progress=messages.append
    )
    assert [m for m in messages if m.startswith(f"warning: this ends the rollout of 'new' by {RUN}, which has held")]

    for step in (
        steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN),
        steps.promote(workspace, "digits", "new", change=CHANGE, owner=RUN),
    ):
        with pytest.raises(ConflictError, match="no longer holds"):
            await step
    with pytest.raises(NothingToDoError, match="ada ended the rollout of 'new' by"):
        await steps.roll_back(workspace, "digits", "new", change=CHANGE, owner=RUN)
    assert target.newest("digits") == by_hand
    reason = await steps.reason_not_promoted(workspace, "digits", "new", RUN)
    assert reason and "ada ended the rollout" in reason


async def test_promotion_by_hand_ends_the_rollout_and_the_run_retires_nothing(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old", owner=OTHER)
    await deploy(workspace, "new")
    messages: list[str] = []
    await steps.promote(workspace, "digits", "new", change=Change(who="ada"), progress=messages.append)
    (warning,) = [m for m in messages if m.startswith("warning: this ends the rollout of 'new' by")]
    # The run's gates are skipped, its own promotion has nothing to do, and it succeeds: that is no conflict.
    assert warning.endswith(f"{RUN} finds it promoted and changes nothing more")

    promoted = await steps.promote(workspace, "digits", "new", change=CHANGE, owner=RUN)
    assert promoted.control == promoted.version("new")
    with pytest.raises(NothingToDoError, match="ada"):
        await steps.roll_back(workspace, "digits", "new", change=CHANGE, owner=RUN)
    with pytest.raises(NothingToDoError, match="ada"):
        await steps.retire_former_control(workspace, "digits", "new", change=CHANGE, owner=RUN)
    assert list(target.newest("digits").versions) == ["old", "new"]


async def test_shift_of_the_default_says_that_it_changes_nothing(workspace: Workspace, target: MemoryTarget) -> None:
    await deploy(workspace, "old")
    messages: list[str] = []
    await steps.shift(workspace, "digits", "old", percentile=30, change=CHANGE, progress=messages.append)
    assert messages[-1].endswith(
        "'old' is the default and gets whatever no other version has: shift another version instead"
    )


async def test_retirement_by_hand_of_a_version_that_never_was_is_an_error(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    await steps.roll_back(workspace, "digits", "new", change=CHANGE)
    for _ in range(2):  # one that is gone already is none
        assert await steps.retire(workspace, "digits", "new", change=CHANGE, by_hand=True) is not None
    with pytest.raises(EndpointError, match="has no version 'newer': it has old"):
        await steps.retire(workspace, "digits", "newer", change=CHANGE, by_hand=True)


async def test_a_step_that_is_repeated_stores_no_further_revision(workspace: Workspace, target: MemoryTarget) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    first = await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN)
    second = await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN)
    assert second == first
    assert len(await target.history("digits")) == 3


async def test_forbidden_change_is_refused_before_waiting(workspace: Workspace, target: MemoryTarget) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    target.never_ready.add("new")
    target.calls.clear()
    with pytest.raises(ConflictError, match="no longer holds"):
        await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=OTHER)
    assert set(target.calls) == {"history"}


async def test_traffic_does_not_move_to_a_version_that_is_not_ready(workspace: Workspace, target: MemoryTarget) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    target.never_ready.add("new")
    with pytest.raises(DeploymentError, match="did not become ready"):
        await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE)
    with pytest.raises(DeploymentError, match="did not become ready"):
        await steps.promote(workspace, "digits", "new", change=CHANGE)
    assert (await target.endpoint("digits")).effective_traffic() == {"old": 100, "new": 0}


async def test_a_deployment_that_does_not_become_ready_is_in_the_record(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old")
    target.never_ready.add("new")
    with pytest.raises(DeploymentError, match="did not become ready"):
        await deploy(workspace, "new")
    assert recorded(workspace)[-1] == ("deploy", "new", "deploy new")


async def test_a_split_that_the_router_does_not_confirm_fails_the_step_and_is_not_recorded(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    target.unserved = True
    with pytest.raises(DeploymentError, match="the router still serves"):
        await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, timeout=SHORT)
    assert recorded(workspace)[-1] == ("deploy", "new", "deploy new")


async def test_a_version_is_rolled_back_and_retired_while_another_version_is_not_ready(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE)
    newest = target.newest("digits")
    target.never_ready.add("third")
    target.store(newest.create_version("third", traffic_percentile=20), BY_OTHER)

    await steps.roll_back(workspace, "digits", "new", change=CHANGE, timeout=SHORT)
    assert (await target.status("digits")).weight_ppm == {"old": 1_000_000}
    await steps.retire(workspace, "digits", "new", change=CHANGE, timeout=SHORT)
    assert list(target.newest("digits").versions) == ["old", "third"]


async def test_a_version_gets_the_replicas_for_its_share_before_it_gets_the_share(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    target.loads = {"old": Load(requests_per_s=20, request_time_s=0.1)}
    target.calls.clear()
    for percentile in (50, 10, 50):
        await steps.shift(workspace, "digits", "new", percentile=percentile, change=CHANGE)
    changes = [call for call in target.calls if call.startswith(("scale", "apply"))]
    # Also where there are enough already: the autoscaler must not take them away before the traffic comes.
    to_new, to_old = ["scale new at least 2", "apply"], ["scale old at least 3", "apply"]
    assert changes == ["scale old at least 2", *to_new, *to_old, *to_new]


async def test_a_writer_that_was_faster_makes_the_step_decide_again(workspace: Workspace, target: MemoryTarget) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    newest = await target.endpoint("digits")

    def another_writer() -> None:
        target.before.clear()
        target.store(newest.create_version("third"), BY_OTHER)

    target.before["apply"] = another_writer
    stored = await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE)
    assert stored.revision == newest.revision + 2
    assert stored.effective_traffic() == {"old": 90, "new": 10, "third": 0}


async def test_a_step_gives_up_when_other_writers_are_always_faster(workspace: Workspace, target: MemoryTarget) -> None:
    await deploy(workspace, "old")
    versions = iter(range(100))

    def another_writer() -> None:
        newest = target.newest("digits")
        target.store(newest.update_version("old", tags={"writer": str(next(versions))}), BY_OTHER)

    target.before["apply"] = another_writer
    with pytest.raises(ConflictError, match="of its own"):
        await steps.promote(workspace, "digits", "old", change=CHANGE)
    assert next(versions) == skeleton.MAX_ATTEMPTS


async def test_a_target_that_does_not_answer_for_a_while_only_delays_a_step(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    for failing in range(1, 4):
        target.failing_calls = failing
        await steps.shift(workspace, "digits", "new", percentile=failing, change=CHANGE)
    assert (await target.endpoint("digits")).effective_traffic()["new"] == 3


async def test_a_deployment_waits_while_another_run_holds_the_endpoint_if_it_may(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old", owner=OTHER)
    await deploy(workspace, "first", owner=OTHER)
    with pytest.raises(ConflictError, match=f"held by {OTHER}"):
        await deploy(workspace, "new")
    with pytest.raises(ConflictError, match=f"held by {OTHER}"):
        await deploy(workspace, "new", conflict_timeout=SHORT)

    messages: list[str] = []

    def progress(message: str) -> None:
        messages.append(message)
        target.store(target.newest("digits").roll_back("first").release("first"), BY_OTHER)

    await steps.deploy(
        workspace,
        "digits",
        "new",
        image="a@sha256:1",
        owner=RUN,
        change=CHANGE,
        conflict_timeout=timedelta(seconds=10),
        progress=progress,
    )
    assert messages[0].startswith("waiting: endpoint 'digits' is held by")


async def test_without_the_version_or_the_endpoint_there_is_nothing_to_roll_back_or_retire(
    workspace: Workspace, target: MemoryTarget
) -> None:
    assert await steps.roll_back(workspace, "digits", "new", change=CHANGE) is None
    assert await steps.retire(workspace, "digits", "new", change=CHANGE) is None
    await deploy(workspace, "old")
    assert await steps.roll_back(workspace, "digits", "new", change=CHANGE) is None
    assert await steps.retire(workspace, "digits", "new", change=CHANGE) == await target.endpoint("digits")


async def test_mark_of_a_person_on_a_gate_on_hold_is_no_judgement_and_a_failure_after_it_rolls_back(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old", owner=OTHER)
    await deploy(workspace, "new")
    shifted = await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN)
    held = await target.apply(shifted.hold("new", owner=RUN, at=datetime.now(UTC)), CHANGE)
    record.append(workspace, Decision.about(held, "new", step="hold", who=f"{RUN}/gate", reason="no decision"))
    with pytest.raises(NotJudgedError, match="is 'hold'"):
        await steps.shift(workspace, "digits", "new", percentile=50, change=CHANGE, owner=RUN)
    rolled_back = await steps.roll_back(workspace, "digits", "new", change=CHANGE, owner=RUN)
    assert rolled_back is not None and rolled_back.effective_traffic()["new"] == 0
    assert rolled_back.rollout is None


async def test_a_run_deletes_the_endpoint_that_it_has_created_if_its_version_never_became_ready(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "old")
    with pytest.raises(NothingToDoError, match="answers: it stays"):
        await steps.roll_back(workspace, "digits", "old", change=CHANGE, owner=RUN)
    target.never_ready.add("old")
    assert await steps.roll_back(workspace, "digits", "old", change=CHANGE, owner=RUN) is None
    assert await target.endpoints() == []


async def test_a_control_is_rolled_back_only_to_another_version(workspace: Workspace, target: MemoryTarget) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    await steps.promote(workspace, "digits", "new", change=CHANGE)
    with pytest.raises(EndpointError, match="'old' was control before it"):
        await steps.roll_back(workspace, "digits", "new", change=CHANGE)
    back = await steps.roll_back(workspace, "digits", "new", to="old", change=CHANGE)
    assert back is not None
    assert back.control == back.version("old")
    assert recorded(workspace)[-1][:2] == ("promote", "old")


async def test_a_roll_back_is_not_refused_for_want_of_replicas(workspace: Workspace, target: MemoryTarget) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    await steps.shift(workspace, "digits", "new", percentile=50, change=CHANGE)
    target.loads = {"old": Load(requests_per_s=1000, request_time_s=1)}
    with pytest.raises(DeploymentError, match="would need"):
        await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE)
    rolled_back = await steps.roll_back(workspace, "digits", "new", change=CHANGE)
    assert rolled_back is not None
    assert rolled_back.effective_traffic() == {"old": 100, "new": 0}


async def test_endpoint_deleted_while_a_step_waits_is_reported(workspace: Workspace, target: MemoryTarget) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    target.before["load"] = lambda: target.drop("digits")
    with pytest.raises(EndpointNotFoundError):
        await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE)


async def test_roll_back_does_not_need_the_load(workspace: Workspace, target: MemoryTarget) -> None:
    await deploy(workspace, "old")
    await deploy(workspace, "new")
    await steps.shift(workspace, "digits", "new", percentile=50, change=CHANGE)
    messages: list[str] = []

    def fail() -> None:
        raise TargetUnavailableError("the router does not answer")

    target.before["load"] = fail
    rolled_back = await steps.roll_back(workspace, "digits", "new", change=CHANGE, progress=messages.append)

    assert rolled_back is not None
    assert "rolling back without waiting for more replicas: the router does not answer" in messages


async def test_the_second_of_two_promotions_at_once_is_told_that_it_lost(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "one")
    await deploy(workspace, "two")
    target.store(target.newest("digits").create_version("three"), BY_OTHER)

    def faster() -> None:
        target.before.clear()
        target.store(target.newest("digits").promote("two"), BY_OTHER)

    target.before["apply"] = faster
    with pytest.raises(
        ConflictError, match=r"'three' was to replace control 'one' .* 'two' has become control meanwhile"
    ):
        await steps.promote(workspace, "digits", "three", change=CHANGE, progress=print)

    control = target.newest("digits").control
    assert control is not None
    assert control.name == "two"


async def test_a_split_that_no_request_has_proven_is_said_to_be_just_that(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await deploy(workspace, "one")
    await deploy(workspace, "two")
    target.seen_requests = 0
    lines: list[str] = []

    await steps.shift(workspace, "digits", "two", percentile=10, change=CHANGE, progress=lines.append)

    assert any("is set, and not yet seen by traffic" in line for line in lines)
