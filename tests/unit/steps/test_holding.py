"""A hold by hand: the gate that looks acts on it, the record has it, and where no gate would, it is refused."""

from datetime import UTC, datetime, timedelta

import pytest

from controlled_rollout import record, steps
from controlled_rollout.errors import ConflictError, EndpointError, RecordUnavailableError, TargetUnavailableError
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


def gate_looks(workspace: Workspace, target: MemoryTarget, version: str = "new", **fields: datetime) -> None:
    """Append a look of the gate to the record."""
    since = fields.pop("gate_since", datetime.now(UTC))
    looks(workspace, target, f"{RUN}/gate", version, gate_since=since, **fields)


def looks(workspace: Workspace, target: MemoryTarget, who: str, version: str = "new", **fields: datetime) -> None:
    """Append somebody's look to the record; that of a gate has its begin."""
    look = Decision.about(target.newest("digits"), version, step="look", who=who, outcome="pass", **fields)
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


async def test_what_no_gate_would_act_on_is_refused_and_nothing_is_changed(
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


async def test_between_a_shift_and_the_first_look_of_its_gate_no_gate_would_act_on_it(
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
        monkeypatch.setattr(record, "read_newest_first", unreadable)

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
    rollout = target.newest("digits").rollout
    assert rollout is not None and rollout.held is None, "or nobody would take it back any more if nobody looks"
    assert lines(workspace) == []


async def test_a_hold_of_somebody_else_that_the_gate_may_be_about_to_act_on_is_not_taken_off(
    workspace: Workspace, target: MemoryTarget
) -> None:
    newest = target.newest("digits")
    held = target.store(newest.hold("new", owner=None, at=datetime.now(UTC)), StoredChange(who="Bob"))
    record.append(workspace, Decision.about(newest, "new", step="go_on", who=f"{RUN}/gate"))
    with pytest.raises(ConflictError, match="its gate has let it go on"):
        await hold(workspace)
    assert target.newest("digits") == held
    # Now the gate has acted on it.
    record.append(workspace, Decision.about(held, "new", step="hold", who=f"{RUN}/gate"))
    await hold(workspace)


async def test_a_shift_that_is_faster_than_the_hold_refuses_it(workspace: Workspace, target: MemoryTarget) -> None:
    """The share that was to be held is gone, and the gate of the next one would ignore it."""

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
    gate_looks(workspace, target, time=later)
    await hold(workspace)
    rollout = target.newest("digits").rollout
    assert rollout is not None and rollout.held == later


async def test_a_hold_after_airflows_clock_was_set_back_is_one_for_the_gate_that_began_before_that(
    workspace: Workspace, target: MemoryTarget
) -> None:
    began = datetime.now(UTC) + timedelta(hours=1)
    gate_looks(workspace, target, gate_since=began)
    await hold(workspace)
    rollout = target.newest("digits").rollout
    assert rollout is not None and rollout.held == began


async def test_looks_of_others_than_the_gate_act_on_no_hold(workspace: Workspace, target: MemoryTarget) -> None:
    await steps.shift(workspace, "digits", "new", percentile=5, change=Change(who="Ada"), owner=RUN, progress=quiet)
    looks(workspace, target, "Ada")  # as by `controlled-rollout gate`
    with pytest.raises(ConflictError, match="no gate has looked at its present share yet"):
        await hold(workspace)
    gate_looks(workspace, target)
    record.append(workspace, Decision.about(target.newest("digits"), "new", step="go_on", who=f"{RUN}/gate"))
    looks(workspace, target, f"{RUN}/shift_50")  # the last look before the share is raised
    with pytest.raises(ConflictError, match="its gate has let it go on"):
        await hold(workspace)
    gate_looks(workspace, target)  # somebody has cleared the gate
    looks(workspace, target, "Ada")
    await hold(workspace)
    assert len(lines(workspace)) == 1


async def test_while_a_person_is_asked_a_hold_is_refused_because_the_answer_would_not_heed_it(
    workspace: Workspace, target: MemoryTarget
) -> None:
    record.append(workspace, Decision.about(target.newest("digits"), "new", step="ask", who=f"{RUN}/ask"))
    looks(workspace, target, f"{RUN}/ask")  # while the person thinks
    with pytest.raises(ConflictError, match="a person is asked since"):
        await hold(workspace)
    rollout = target.newest("digits").rollout
    assert rollout is not None and rollout.held is None, "with it nobody would take it back if nobody looks"
    gate_looks(workspace, target)  # somebody has cleared the gate
    await hold(workspace)
    assert len(lines(workspace)) == 1


async def test_without_a_line_about_its_gate_in_the_record_a_hold_is_refused(
    workspace: Workspace, target: MemoryTarget
) -> None:
    for file in workspace.records_folder.iterdir():
        file.unlink()
    looks(workspace, target, "Ada")
    with pytest.raises(ConflictError, match="the record has no look of a gate"):
        await hold(workspace)


async def test_who_rolls_a_version_out_by_hand_looks_as_its_gate(workspace: Workspace, target: MemoryTarget) -> None:
    ada = Change(who="Ada")
    await steps.roll_back(workspace, "digits", "new", change=ada, progress=quiet)
    await steps.deploy(workspace, "digits", "third", image="a@sha256:3", owner="Ada", change=ada, progress=quiet)
    await steps.shift(workspace, "digits", "third", percentile=10, change=ada, progress=quiet)
    looks(workspace, target, "Bob", "third")
    with pytest.raises(ConflictError, match="no gate has looked at its present share yet"):
        await hold(workspace, "third")
    looks(workspace, target, "Ada", "third")
    await hold(workspace, "third")


async def test_a_target_that_is_away_for_a_moment_keeps_no_hold_from_being_taken_off(
    workspace: Workspace, target: MemoryTarget
) -> None:
    """The hold would stay in an endpoint whose gate goes on: then nobody takes the treatment back any more."""

    def gate_goes_on_and_the_target_is_away() -> None:
        del target.before["apply"]
        record.append(workspace, Decision.about(target.newest("digits"), "new", step="go_on", who=f"{RUN}/gate"))
        target.before["history"] = away

    def away() -> None:
        del target.before["history"]
        raise TargetUnavailableError("it does not answer")

    target.before["apply"] = gate_goes_on_and_the_target_is_away
    with pytest.raises(ConflictError, match="its gate has let it go on"):
        await hold(workspace)
    rollout = target.newest("digits").rollout
    assert rollout is not None and rollout.held is None


async def test_a_hold_that_cannot_be_taken_off_again_is_said_to_be_there_still(
    workspace: Workspace, target: MemoryTarget
) -> None:
    def away() -> None:
        raise TargetUnavailableError("it does not answer")

    def gate_goes_on_and_the_target_is_away() -> None:
        record.append(workspace, Decision.about(target.newest("digits"), "new", step="go_on", who=f"{RUN}/gate"))
        target.before = {"history": away}

    target.before["apply"] = gate_goes_on_and_the_target_is_away
    with pytest.raises(TargetUnavailableError) as refused:
        await steps.hold(workspace, "digits", "new", change=PERSON, timeout=timedelta(0), progress=quiet)
    assert "its gate has let it go on" in str(refused.value)
    assert "still says that it is on hold (it does not answer)" in str(refused.value)


async def test_a_target_that_is_away_for_a_moment_does_not_fail_a_hold(
    workspace: Workspace, target: MemoryTarget
) -> None:
    def away() -> None:
        del target.before["apply"]
        raise TargetUnavailableError("it does not answer")

    target.before["apply"] = away
    await hold(workspace)
    assert len(lines(workspace)) == 1


async def test_a_hold_after_the_gate_was_cleared_is_a_new_one_although_the_mark_of_the_last_is_still_there(
    workspace: Workspace, target: MemoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate that begins again acts only on a hold from after its begin; it takes the mark off at its first look."""
    await hold(workspace)
    cleared = datetime.now(UTC)
    monkeypatch.setattr(holding, "SAME_HOLD", timedelta(0))
    gate_looks(workspace, target)
    await hold(workspace)
    rollout = target.newest("digits").rollout
    assert rollout is not None and rollout.held is not None and rollout.held > cleared
