"""A hold by hand: the gate that looks heeds it, the record has it, and where no gate would heed it, it is refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout import record, steps
from controlled_rollout.errors import ConflictError, EndpointError, RecordUnavailableError
from controlled_rollout.record import Decision
from controlled_rollout.rollout import OnSilence
from controlled_rollout.steps import Change, holding
from controlled_rollout.target import connect as connect_module
from controlled_rollout.target import waiting
from controlled_rollout.target.protocol import Change as StoredChange
from controlled_rollout.target.silence import unattended_rollout
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget

RUN = "weekly/run-2"
PERSON = Change(who="hold/manual/hold", reason="I want to look at it first")


def quiet(sentence: str) -> None:
    """Take a progress message."""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.local(tmp_path)


@pytest.fixture
async def target(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> MemoryTarget:
    """A target with a treatment at 10 % of the traffic, at which its gate has looked."""
    target = MemoryTarget()
    for module in (steps, connect_module, holding):
        monkeypatch.setattr(module, "connect", target.open)
    monkeypatch.setattr(waiting, "RETRY_S", 0.001)
    for version in ("old", "new"):
        await steps.deploy(
            workspace, "digits", version, image="a@sha256:1", owner=RUN if version == "new" else "weekly/run-1",
            change=Change(who=f"{RUN}/deploy"), progress=quiet,
        )  # fmt: skip
    shift = Change(who=f"{RUN}/shift")
    await steps.shift(workspace, "digits", "new", percentile=10, change=shift, owner=RUN, progress=quiet)
    gate_looks(workspace, target)
    return target


def gate_looks(workspace: Workspace, target: MemoryTarget, version: str = "new") -> None:
    """Append a look of the gate to the record."""
    look = Decision.about(target.newest("digits"), version, step="look", who=f"{RUN}/gate", outcome="pass")
    record.append(workspace, look)


async def hold(workspace: Workspace, version: str = "new") -> None:
    await steps.hold(workspace, "digits", version, change=PERSON, progress=quiet)


def lines(workspace: Workspace) -> list[tuple[str, str, str]]:
    return [(one.step, one.who, one.reason) for one in record.read(workspace, "digits") if one.step == "hold"]


async def test_the_endpoint_says_that_it_is_on_hold_and_the_record_by_whom_and_why(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await hold(workspace)
    newest = target.newest("digits")
    assert newest.rollout is not None
    assert newest.rollout.held is not None
    assert newest.effective_traffic()["new"] == 10
    assert lines(workspace) == [("hold", PERSON.who, PERSON.reason)]
    assert (await target.history("digits"))[-1].change == StoredChange(who=PERSON.who, reason=PERSON.reason)


async def test_a_task_that_was_killed_and_runs_again_changes_nothing_more(
    workspace: Workspace, target: MemoryTarget
) -> None:
    await hold(workspace)
    revision = target.newest("digits").revision
    await hold(workspace)
    assert target.newest("digits").revision == revision


async def test_another_writer_who_is_faster_does_not_fail_it(workspace: Workspace, target: MemoryTarget) -> None:
    tries: list[int] = []

    def another_writer() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ConflictError("another writer was faster")

    target.before["apply"] = another_writer
    await hold(workspace)
    assert len(tries) == 2
    rollout = target.newest("digits").rollout
    assert rollout is not None
    assert rollout.held is not None


async def test_where_writers_are_always_faster_the_conflict_is_said(workspace: Workspace, target: MemoryTarget) -> None:
    def another_writer() -> None:
        raise ConflictError("another writer was faster")

    target.before["apply"] = another_writer
    with pytest.raises(ConflictError, match="faster"):
        await hold(workspace)


async def test_what_no_gate_would_heed_is_refused_and_nothing_is_changed(
    workspace: Workspace, target: MemoryTarget
) -> None:
    revision = target.newest("digits").revision
    with pytest.raises(ConflictError, match="in no rollout"):
        await hold(workspace, "old")
    with pytest.raises(EndpointError, match="no version 'gone'"):
        await hold(workspace, "gone")
    went_on = Decision(time=datetime.now(UTC), endpoint="digits", version="new", step="go_on", who=f"{RUN}/gate")
    record.append(workspace, went_on)
    with pytest.raises(ConflictError, match="its gate has let it go on"):
        await hold(workspace)
    assert target.newest("digits").revision == revision
    assert lines(workspace) == []


async def test_between_a_shift_and_the_first_look_of_its_gate_nothing_would_heed_it(
    workspace: Workspace, target: MemoryTarget
) -> None:
    shift = Change(who="Ada")
    await steps.shift(workspace, "digits", "new", percentile=5, change=shift, owner=RUN, progress=quiet)
    with pytest.raises(ConflictError, match="no gate has looked at its present share yet") as refused:
        await hold(workspace)
    assert lines(workspace) == []
    # Who asks before is told the same.
    assert await holding.hold_refusal(workspace, "digits", "new") == str(refused.value)
    gate_looks(workspace, target)
    assert await holding.hold_refusal(workspace, "digits", "new") is None
    await hold(workspace)
    assert len(lines(workspace)) == 1


async def test_a_shift_by_whoever_rolls_out_by_hand_ends_the_hold_and_another_look_at_the_same_share_does_not(
    workspace: Workspace, target: MemoryTarget
) -> None:
    ada = Change(who="Ada")
    await steps.roll_back(workspace, "digits", "new", change=ada, progress=quiet)
    await steps.deploy(
        workspace, "digits", "third", image="a@sha256:3", owner="Ada", change=ada, on_silence=OnSilence.ROLL_BACK,
        progress=quiet,
    )  # fmt: skip
    await steps.shift(workspace, "digits", "third", percentile=10, change=ada, progress=quiet)
    gate_looks(workspace, target, "third")
    await hold(workspace, "third")
    await steps.shift(workspace, "digits", "third", percentile=10, change=ada, progress=quiet)
    assert unattended_rollout(target.newest("digits")) is None
    await steps.shift(workspace, "digits", "third", percentile=20, change=ada, progress=quiet)
    rollout = target.newest("digits").rollout
    assert rollout is not None
    assert (rollout.owner, rollout.held) == ("Ada", None)
    assert unattended_rollout(target.newest("digits")) == rollout


async def test_a_hold_in_the_moment_in_which_the_gate_goes_on_is_refused_and_leaves_nothing_behind(
    workspace: Workspace, target: MemoryTarget
) -> None:
    """The gate has asked whether there is a hold before this one is stored: it would go on in spite of it."""

    def gate_goes_on() -> None:
        del target.before["apply"]
        record.append(workspace, Decision.about(target.newest("digits"), "new", step="go_on", who=f"{RUN}/gate"))

    target.before["apply"] = gate_goes_on
    with pytest.raises(ConflictError, match="its gate has let it go on"):
        await hold(workspace)
    rollout = target.newest("digits").rollout
    assert rollout is not None and rollout.held is None
    assert lines(workspace) == []


async def test_a_second_hold_that_cannot_be_checked_leaves_the_first_one(
    workspace: Workspace, target: MemoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has ended the first one: without it the gate would go on."""
    await hold(workspace)
    first = target.newest("digits").rollout
    monkeypatch.setattr(holding, "SAME_HOLD", timedelta(0))

    def record_is_away() -> None:
        def unreadable(*_: object) -> None:
            raise RecordUnavailableError("the record does not answer")

        del target.before["apply"]
        monkeypatch.setattr(record, "last", unreadable)

    target.before["apply"] = record_is_away
    with pytest.raises(RecordUnavailableError):
        await hold(workspace)
    assert target.before == {}, "it was stored before it was taken off"
    assert target.newest("digits").rollout == first


async def test_a_try_that_was_killed_before_it_had_asked_the_gate_asks_it_when_it_runs_again(
    workspace: Workspace, target: MemoryTarget
) -> None:
    newest = target.newest("digits")
    target.store(newest.hold("new", owner=None, at=datetime.now(UTC)), StoredChange(who=PERSON.who))
    record.append(workspace, Decision.about(newest, "new", step="go_on", who=f"{RUN}/gate"))
    with pytest.raises(ConflictError, match="its gate has let it go on"):
        await hold(workspace)
    assert lines(workspace) == []


async def test_a_shift_that_is_faster_than_the_hold_refuses_it(workspace: Workspace, target: MemoryTarget) -> None:
    """The share that was to be held is gone, and the gate of the next one would not heed it."""

    def shift() -> None:
        del target.before["apply"]
        newest = target.newest("digits")
        record.append(workspace, Decision.about(newest, "new", step="go_on", who=f"{RUN}/gate"))
        target.store(newest.shift("new", 50), StoredChange(who=f"{RUN}/shift"))

    target.before["apply"] = shift
    with pytest.raises(ConflictError, match="its gate has let it go on"):
        await hold(workspace)
    rollout = target.newest("digits").rollout
    assert rollout is not None and rollout.held is None


async def test_a_hold_by_a_clock_that_is_behind_the_gates_is_one_for_the_gate(
    workspace: Workspace, target: MemoryTarget
) -> None:
    """A gate takes a hold from before its own begin for one that a person has ended."""
    later = datetime.now(UTC) + timedelta(hours=1)
    newest = target.newest("digits")
    record.append(workspace, Decision.about(newest, "new", step="look", who=f"{RUN}/gate", outcome="pass", time=later))
    await hold(workspace)
    rollout = target.newest("digits").rollout
    assert rollout is not None and rollout.held == later


async def test_a_hold_after_the_gate_was_cleared_is_a_new_one_although_the_mark_of_the_last_is_still_there(
    workspace: Workspace, target: MemoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate that begins again heeds only a hold from after its begin; it takes the mark off at its first look."""
    await hold(workspace)
    cleared = datetime.now(UTC)
    monkeypatch.setattr(holding, "SAME_HOLD", timedelta(0))
    gate_looks(workspace, target)
    await hold(workspace)
    rollout = target.newest("digits").rollout
    assert rollout is not None and rollout.held is not None and rollout.held > cleared
