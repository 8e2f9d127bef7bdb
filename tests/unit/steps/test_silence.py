"""Taking a treatment back that nobody looks at: once, only if nobody is there, and clean for a run that comes back."""

import asyncio
import json
from contextlib import suppress
from datetime import timedelta

import pytest

from controlled_rollout import record, steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError, DeploymentError, NothingToDoError, TargetUnavailableError
from controlled_rollout.rollout import OnSilence
from controlled_rollout.steps import Change, going_back, silence, skeleton
from controlled_rollout.steps.silence import SilenceWatch, take_back
from controlled_rollout.target import connect as connect_module
from controlled_rollout.target import silence as silence_module
from controlled_rollout.target import waiting
from controlled_rollout.target.silence import Signs, TakeBack
from controlled_rollout.target.silence_checks import SilenceChecks
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget

RUN = "weekly/run-2"
CHANGE = Change(who=f"{RUN}/task")
PERSON = Change(who="Ada", reason="I know better")


def quiet(sentence: str) -> None:
    """Take a progress message."""


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> MemoryTarget:
    target = MemoryTarget()
    for module in (steps, connect_module, silence):
        monkeypatch.setattr(module, "connect", target.open)
    monkeypatch.setattr(waiting, "RETRY_S", 0.001)
    monkeypatch.setattr(going_back, "FIRST_PAUSE_S", 0.001)
    return target


@pytest.fixture
async def canary(workspace: Workspace, target: MemoryTarget) -> TakeBack:
    """A treatment with 10 % of the traffic, and what to take back once nobody has looked."""
    for version in ("old", "new"):
        await steps.deploy(
            workspace, "digits", version, image="a@sha256:1", owner=RUN if version == "new" else "weekly/run-1",
            change=CHANGE, on_silence=OnSilence.ROLL_BACK, silence=timedelta(seconds=1), progress=quiet,
        )  # fmt: skip
    await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN, progress=quiet)
    return await order(target)


async def order(target: MemoryTarget) -> TakeBack:
    """Return what a watcher decides when nobody has looked since now."""
    newest = (await target.history("digits"))[-1]
    rollout = newest.endpoint.rollout
    assert rollout is not None
    signs = Signs(newest, target.looks.get("digits"))
    revision, looked = signs.key
    return TakeBack(endpoint="digits", rollout=rollout, revision=revision, looked=looked, since=signs.at)


def share(target: MemoryTarget) -> float:
    return target.newest("digits").effective_traffic()["new"]


async def test_treatment_is_taken_back_by_the_step_and_record_of_any_roll_back(
    workspace: Workspace, target: MemoryTarget, canary: TakeBack
) -> None:
    stored = await take_back(workspace, target, canary, progress=quiet)
    assert stored.rollout is None and share(target) == 0
    last = list(record.read(workspace, "digits"))[-1]
    assert (last.step, last.version, last.who) == ("roll_back", "new", "on_silence")
    assert last.reason.startswith("nobody looked since 2") and last.reason.endswith("(silence 1 s)")
    assert target.looks == {}, "it is no sign that somebody looks"


async def test_taking_back_again_changes_nothing(workspace: Workspace, target: MemoryTarget, canary: TakeBack) -> None:
    """As after a supervisor that was killed once the revision was stored."""
    stored = await take_back(workspace, target, canary, progress=quiet)
    lines = len(list(record.read(workspace, "digits")))
    again = await take_back(workspace, target, canary, progress=quiet)
    assert again == stored
    assert len(list(record.read(workspace, "digits"))) == lines


async def test_it_goes_on_after_a_router_that_did_not_confirm(
    workspace: Workspace, target: MemoryTarget, canary: TakeBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(going_back, "SERVED_TIMEOUT", timedelta(seconds=0.05))
    target.unserved = True
    said: list[str] = []

    def serve_later(sentence: str) -> None:
        said.append(sentence)
        target.unserved = target.unserved and "not taken back yet" not in sentence

    await take_back(workspace, target, canary, timeout=timedelta(seconds=60), progress=serve_later)
    assert any("not taken back yet" in sentence for sentence in said)
    assert share(target) == 0
    assert [line.step for line in record.read(workspace, "digits")].count("roll_back") == 1


@pytest.mark.parametrize(
    "sign", ["look", "hold", "shift", "shift by hand", "promotion", "roll-back", "another rollout"]
)
async def test_whoever_was_faster_is_not_overruled(
    sign: str, workspace: Workspace, target: MemoryTarget, canary: TakeBack
) -> None:
    newest = target.newest("digits")
    later: dict[str, Endpoint] = {
        "hold": newest.hold("new", owner=RUN, at=canary.since),
        "shift": newest.shift("new", 20),
        "shift by hand": newest.shift("new", 20).release("new"),
        "promotion": newest.promote("new").release("new"),
        "roll-back": newest.roll_back("new").release("new"),
        "another rollout": newest.roll_back("new").release("new").claim("new", owner="weekly/run-3", at=canary.since),
    }
    if sign == "look":
        await target.note_look("digits", "new")
    else:
        target.store(later[sign], PERSON)
    before = target.newest("digits")
    with pytest.raises((NothingToDoError, ConflictError)):
        await take_back(workspace, target, canary, progress=quiet)
    assert target.newest("digits") == before


async def test_a_look_that_comes_between_decision_and_change_is_in_time(
    workspace: Workspace, target: MemoryTarget, canary: TakeBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer stores first, so the edit is made again; meanwhile somebody has looked."""
    newest = target.newest("digits")
    later = newest.model_copy(update={"description": "edited"})

    def write_first() -> None:
        del target.before["apply"]
        target.store(later, PERSON)

    target.before["apply"] = write_first
    with pytest.raises(NothingToDoError, match="somebody has looked meanwhile"):
        await take_back(workspace, target, canary, progress=quiet)
    assert share(target) == 10


async def test_run_that_comes_back_finds_who_took_the_traffic_back_and_ends_cleanly(
    workspace: Workspace, target: MemoryTarget, canary: TakeBack
) -> None:
    await take_back(workspace, target, canary, progress=quiet)
    revision = target.newest("digits").revision
    understood = (
        rf"{RUN} no longer holds endpoint 'digits' .*: the traffic of 'new' was taken back from {RUN} in revision "
        rf"{revision} \(nobody looked since"
    )
    with pytest.raises(ConflictError, match=understood):
        await steps.shift(workspace, "digits", "new", percentile=50, change=CHANGE, owner=RUN, progress=quiet)
    with pytest.raises(ConflictError, match=understood):
        await steps.promote(workspace, "digits", "new", change=CHANGE, owner=RUN, progress=quiet)
    assert target.newest("digits").revision == revision
    # Its roll-back finds all done, so that the version, which is its own, may be retired.
    for _ in range(2):
        await steps.roll_back(workspace, "digits", "new", change=CHANGE, owner=RUN, progress=quiet)
    assert target.newest("digits").revision == revision
    reason = await steps.reason_not_promoted(workspace, "digits", "new", RUN, quiet)
    assert reason is not None and "was not promoted: the traffic of 'new' was taken back" in reason
    await steps.retire(workspace, "digits", "new", change=CHANGE, progress=quiet)
    assert list(target.newest("digits").versions) == ["old"]


async def test_roll_back_of_the_run_leaves_alone_what_a_person_has_done_since(
    workspace: Workspace, target: MemoryTarget, canary: TakeBack
) -> None:
    await take_back(workspace, target, canary, progress=quiet)
    await steps.shift(workspace, "digits", "new", percentile=5, change=PERSON, progress=quiet)
    await steps.shift(workspace, "digits", "new", percentile=0, change=PERSON, progress=quiet)
    with pytest.raises(NothingToDoError, match=rf"it is not for {RUN} to roll back|is not for {RUN}"):
        await steps.roll_back(workspace, "digits", "new", change=CHANGE, owner=RUN, progress=quiet)


async def test_step_that_waits_is_a_sign_that_somebody_is_there(
    workspace: Workspace, target: MemoryTarget, canary: TakeBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skeleton, "FIRST_NOTE_S", 0.01)
    target.never_ready.add("other")
    target.unserved = True
    with pytest.raises(Exception, match="router"):
        await steps.shift(
            workspace, "digits", "new", percentile=5, change=CHANGE, owner=RUN, timeout=timedelta(seconds=0.3),
            progress=quiet,
        )  # fmt: skip
    assert target.looks["digits"].version == "new"


async def test_shift_to_the_share_that_a_version_has_is_a_sign_too(
    workspace: Workspace, target: MemoryTarget, canary: TakeBack
) -> None:
    await steps.shift(workspace, "digits", "new", percentile=10, change=CHANGE, owner=RUN, progress=quiet)
    assert target.looks["digits"].version == "new"
    assert not canary.is_right(Signs((await target.history("digits"))[-1], target.looks["digits"]))


async def test_watch_takes_back_when_the_time_has_come_and_not_before(
    workspace: Workspace, target: MemoryTarget, canary: TakeBack
) -> None:
    said: list[str] = []
    watch = SilenceWatch(workspace, SilenceChecks())
    newest = (await target.history("digits"))[-1]
    await watch.look_after(target, newest, progress=said.append)
    assert share(target) == 10, "who begins to watch gives others time to look"
    while share(target):
        await watch.look_after(target, newest, progress=said.append)
    assert target.newest("digits").rollout is None
    assert any("rolled back" in sentence for sentence in said)
    calls = len(target.calls)
    await watch.look_after(target, (await target.history("digits"))[-1], progress=said.append)
    assert target.calls[calls:] == ["history"], "nothing is asked where nobody has to look"


async def test_what_cannot_be_stored_is_not_tried_for_an_hour_before_people_are_told(
    workspace: Workspace, target: MemoryTarget, canary: TakeBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as while the agent's Role lacks a permission, or the disk is full."""
    monkeypatch.setattr(silence, "NOT_STORED_S", 0.05)
    tries = 0

    def refuse() -> None:
        nonlocal tries
        tries += 1
        raise TargetUnavailableError("the API server answered 403")

    target.before["apply"] = refuse
    async with asyncio.timeout(60):
        with pytest.raises(TargetUnavailableError, match="403"):
            await take_back(workspace, target, canary, progress=quiet)
    assert tries > 1
    assert share(target) == 10


async def test_watch_that_could_not_take_back_waits_before_it_tries_again(
    workspace: Workspace, target: MemoryTarget, canary: TakeBack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "ROLL_BACK_TIMEOUT", timedelta(0))
    monkeypatch.setattr(silence_module, "GRACE", timedelta(0))
    monkeypatch.setattr(silence_module, "FIRST_PAUSE", timedelta(seconds=0.5))
    checks = SilenceChecks()
    watch, newest = SilenceWatch(workspace, checks), (await target.history("digits"))[-1]
    early = newest.model_copy(update={"created": newest.created - timedelta(days=1)})
    tries = 0

    def refuse() -> None:
        nonlocal tries
        tries += 1
        raise DeploymentError("the router refuses the route")

    target.before["apply"] = refuse
    while tries < 2:
        with suppress(DeploymentError):
            await watch.look_after(target, early, progress=quiet)
    tries_that_failed = checks.failed_tries("digits")
    assert tries_that_failed is not None
    assert (tries_that_failed.count, tries_that_failed.problem) == (2, "the router refuses the route")
    calls = target.calls.count("history")
    await watch.look_after(target, early, progress=quiet)
    assert (tries, target.calls.count("history")) == (2, calls)
    del target.before["apply"]
    while share(target):
        await watch.look_after(target, early, progress=quiet)
    await watch.look_after(target, (await target.history("digits"))[-1], progress=quiet)
    assert checks.failed_tries("digits") is None


def test_the_process_of_a_local_supervisor_says_how_it_ended(
    workspace: Workspace,
    target: MemoryTarget,
    canary: TakeBack,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"root": str(workspace.root), "storage": None}
    arguments = json.loads(json.dumps({"workspace": settings, "take_back": canary.model_dump(mode="json")}))
    assert silence.main(arguments) == 0
    assert share(target) == 0
    target.store(target.newest("digits").shift("new", 20), PERSON)
    assert silence.main(arguments) == 0
    assert "somebody has looked meanwhile" in capsys.readouterr().out
    target.drop("digits")
    assert silence.main(arguments) == 0
    assert "there is no endpoint" in capsys.readouterr().out
    target.failing_calls = 1
    monkeypatch.setattr(silence, "ROLL_BACK_TIMEOUT", timedelta(0))
    assert silence.main(arguments) == 1
    # By this start the supervisor finds the line.
    assert capsys.readouterr().err.startswith("endpoint digits: it does not answer")
