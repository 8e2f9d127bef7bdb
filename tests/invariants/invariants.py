"""What must hold whatever happens to a rollout."""

from datetime import datetime
from typing import Final

from controlled_rollout import record
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.evaluation.replay import replay
from controlled_rollout.record import Decision
from controlled_rollout.target.history import ON_SILENCE, creation_of
from controlled_rollout.target.protocol import Revision
from controlled_rollout.target.silence import Signs, unattended_rollout
from tests.invariants.simulated_airflow import FOR_PEOPLE, DagRun
from tests.invariants.world import World

__all__ = ["Violation", "check", "check_end", "check_is_at_zero"]

# So long after everything can be seen an alarm has had its consequence: a closed bin, two looks, three tasks.
REACTION_S: Final = 60.0
# So long after a shift requests may still come by the split before.
GUARD_S: Final = 15.0
# So long after `silence` at the latest a treatment that nobody looks at is taken back.
AFTER_SILENCE_S: Final = 30.0
SEEN: Final = ("pass", "not_enough_evidence")


class Violation(AssertionError):
    """An invariant does not hold."""


def check(world: World) -> None:
    """Check everything that must hold after each event."""
    for life in world.target.lives:
        first_unchecked = world.checked.get(id(life), 0)
        for index in range(first_unchecked, len(life)):
            _check_revision(world, life, index)
        world.checked[id(life)] = len(life)
    for index in range(world.checked_decisions, len(world.decisions)):
        if world.decisions[index].step == "go_on":
            _check_was_seen(world, index)
    world.checked_decisions = len(world.decisions)
    _check_alarms(world)
    _check_somebody_looks(world)
    _check_silence(world)
    _check_roll_back_tasks(world)


def check_end(world: World) -> None:
    """Check how all rollouts have ended, and that the record replays."""
    for part in world.record.parts():
        for look in replay(record.read_part(part)):
            if look.difference:
                raise Violation(f"replay: the look of {look.decision.time:%H:%M:%S}: {look.difference}")
    for run in world.runs:
        _check_run_end(world, run)
    _check_memory(world)


def check_is_at_zero(world: World, version: str, by: str) -> None:
    """Raise unless a version that was rolled back has no traffic, as stored and as served."""
    newest = world.newest
    stored = newest.effective_traffic().get(version, 0.0) if newest else 0.0
    served = world.target.split.weights.get(version, 0)
    if stored or served:
        raise Violation(f"{by} has succeeded, and {version!r} has {stored:g} % (served: {served} ppm)")


def _run_of(world: World, who: str) -> DagRun | None:
    """Return the DAG run one of whose tasks is the author `who`; None for a person."""
    return next((run for run in world.runs if who.startswith(f"{run.owner}/")), None)


def _check_revision(world: World, life: list[Revision], index: int) -> None:
    """Check one revision, given those before it."""
    revision, before = life[index], life[index - 1] if index else None
    if revision.number != index + 1 or revision.endpoint.revision != revision.number:
        raise Violation(f"history: revision {revision.number} at place {index + 1}")
    if before is None:
        return
    if revision.created < before.created:
        raise Violation(f"history: revision {revision.number} is older than the one before")
    old, new = before.endpoint, revision.endpoint
    if revision.change.who == ON_SILENCE:
        _check_nobody_was_there(world, before, revision)
    if old.rollout and new.rollout and _holder(old) != _holder(new):
        raise Violation(f"two rollouts: {_holder(old)} and, without an end between them, {_holder(new)}")
    run = _run_of(world, revision.change.who)
    for_people = revision.change.who.endswith(FOR_PEOPLE)
    if run is None or (for_people and not _is_treatment_of(run, new, life[:index])):
        return
    if not run.touched and not for_people:
        _check_not_ended(run, life[:index], revision)
    if new.control and (old.control is None or old.control.name != new.control.name):
        _check_promotion(world, run, life[:index], revision)
    elif _share(new, run.version) > _share(old, run.version) > 0:
        _check_raise(world, run, life[:index], revision)
    if old.rollout and not new.rollout and new.control and new.control.name != run.version:
        _check_cause(world, run, life[:index], revision)


def _is_treatment_of(run: DagRun, promoted: Endpoint, life: list[Revision]) -> bool:
    """Return whether a run's version is what a task for people of this run may not promote as a person may.

    It is if the run has rolled it out; what other runs have rolled out, and what is control already, it may promote.
    """
    if promoted.control is not None and promoted.control.name != run.version:
        return False
    before = life[-1].endpoint.control
    rollouts = (revision.endpoint.rollout for revision in life)
    return (before is None or before.name != run.version) and any(
        rollout is not None and rollout.version == run.version and rollout.is_of_run(run.owner) for rollout in rollouts
    )


def _check_not_ended(run: DagRun, life: list[Revision], revision: Revision) -> None:
    """Raise if a run changes an endpoint after somebody else has ended its rollout."""
    for later, earlier in zip(reversed(life), reversed(life[:-1]), strict=False):
        held, holds = (rev.endpoint.rollout and rev.endpoint.rollout.owner for rev in (earlier, later))
        if holds == run.owner:
            return
        if held == run.owner:
            # What was taken back because nobody looked is the run's own all the same: it may delete it.
            tidies_up = later.change.who == ON_SILENCE and revision.change.who.endswith(".retire_treatment")
            is_own = later.change.who.startswith(f"{run.owner}/") or tidies_up
            if not is_own and not revision.change.who.endswith(".roll_out"):
                raise Violation(
                    f"two owners: {later.change.who} has ended the rollout of {run.run_id} in revision {later.number}, "
                    f"and {revision.change.who} has stored revision {revision.number}"
                )
            return


def _holder(endpoint: Endpoint) -> tuple[str, str, datetime] | None:
    """Return who holds an endpoint, for which version, since when."""
    rollout = endpoint.rollout
    return (rollout.owner, rollout.version, rollout.started) if rollout else None


def _share(endpoint: Endpoint, version: str) -> float:
    """Return a version's per cent of the traffic; 0 if there is none."""
    return endpoint.effective_traffic().get(version, 0.0)


def _shifted(life: list[Revision], version: str) -> datetime:
    """Return since when a version has had its present share."""
    share = _share(life[-1].endpoint, version)
    shifted = life[-1].created
    for revision in reversed(life):
        if _share(revision.endpoint, version) != share:
            break
        shifted = revision.created
    return shifted


def _looks(world: World, version: str, since: datetime, known: int | None = None) -> list[Decision]:
    """Return the looks at a version since a moment, oldest first, of the first `known` decisions of the record."""
    return [
        decision
        for decision in world.decisions[:known]
        if decision.step == "look" and decision.version == version and decision.time >= since
    ]


def _check_promotion(world: World, run: DagRun, life: list[Revision], revision: Revision) -> None:
    """Raise unless a run that promotes has the positive fact for it: a pass at this share, or a person's approval."""
    before, version = life[-1].endpoint, run.version
    if before.control is None:
        return
    what = f"promoted: {revision.change.who} has made {version!r} control in revision {revision.number}"
    if before.rollout is None or (before.rollout.owner, before.rollout.version) != (run.owner, version):
        raise Violation(f"{what} without holding the endpoint")
    if world.newest and revision.endpoint.control and revision.endpoint.control.name != version:
        raise Violation(f"{what}, and it is not its version")
    owners = [other.owner for other in world.runs]
    creator = _run_of(world, creation_of(life, before.control.name).change.who)
    if creator is not None and owners.index(creator.owner) > owners.index(run.owner):
        raise Violation(f"{what} in place of {before.control.name!r}, which a newer run has rolled out")
    share, shifted = _share(before, version), _shifted(life, version)
    looks = _looks(world, version, before.rollout.started, world.known[id(revision)])
    if looks and looks[-1].outcome == "fail":
        raise Violation(f"{what} after a look that failed")
    approved = any(moment >= shifted for moment in run.approvals)
    passed = [fact for fact in _going_on(world, revision, share, shifted) if fact.outcome == "pass"]
    if share <= 0 or not (approved or passed):
        raise Violation(f"{what} without a pass at {share:g} % since {shifted:%H:%M:%S}, or an approval")
    if run.options.approval and not approved:
        raise Violation(f"{what} without the approval that its author asks for")
    if not approved and _is_plainly_broken(world, version, shifted, passed[-1].time):
        raise Violation(f"{what}, most of whose answers are errors")


def _check_raise(world: World, run: DagRun, life: list[Revision], revision: Revision) -> None:
    """Raise unless a run that raises its treatment's share has seen that nothing alarms at the present one."""
    before, version = life[-1].endpoint, run.version
    if before.rollout is None or before.control is None:
        return
    share, shifted = _share(before, version), _shifted(life, version)
    looks = _looks(world, version, before.rollout.started, world.known[id(revision)])
    what = f"raised: {revision.change.who} has raised {version!r} from {share:g} % in revision {revision.number}"
    if looks and looks[-1].outcome == "fail":
        raise Violation(f"{what} after a look that failed")
    approved = any(moment >= shifted for moment in run.approvals)
    if not approved and not _going_on(world, revision, share, shifted):
        raise Violation(f"{what} without a gate that let it go on from there since {shifted:%H:%M:%S}")


def _going_on(world: World, revision: Revision, share: float, since: datetime) -> list[Decision]:
    """Return the decisions before a revision with which a gate of its run let the rollout go on from a share."""
    run = _run_of(world, revision.change.who)
    return [
        decision
        for decision in world.decisions[: world.known[id(revision)]]
        if decision.step == "go_on" and decision.share == share and decision.time >= since
        if run is not None and decision.who.startswith(f"{run.owner}/") and decision.version == run.version
    ]


def _check_was_seen(world: World, index: int) -> None:
    """Raise unless a gate that let a rollout go on has just seen requests to its treatment at the present share."""
    decision = world.decisions[index]
    look = next((earlier for earlier in reversed(world.decisions[:index]) if earlier.who == decision.who), None)
    what = f"unseen: {decision.who} let {decision.version!r} go on at {decision.time:%H:%M:%S}"
    if look is None or look.step != "look" or look.outcome not in SEEN or look.share != decision.share:
        raise Violation(f"{what}, and its last look is {look}")
    life = next((life for life in world.target.lives if life[0].created <= decision.time <= life[-1].created), [])
    life = [revision for revision in life or world.target.revisions if revision.created <= decision.time]
    if life and decision.version in life[-1].endpoint.versions:
        since, until = (world.clock_seconds(at) for at in (_shifted(life, decision.version), decision.time))
        if not world.traffic.total(decision.version, since, until).requests:
            raise Violation(f"{what} without a request since {since:g} s")


def _check_cause(world: World, run: DagRun, life: list[Revision], revision: Revision) -> None:
    """Raise if a run has rolled its treatment back although nothing but outages has happened to it."""
    before, version = life[-1].endpoint, run.version
    if before.rollout is None or before.rollout.owner != run.owner or not _share(before, version):
        return
    started = before.rollout.started
    failed = any(look == version and started <= moment for moment, look in world.failed_looks)
    person = run.touched or run.rejected or bool(world.touched)
    fault = run.kills > 3 or version in world.disturbed or world.target.starting_s > 60
    # Its author wants a version back that nobody has judged in time, or that no look has seen for a while.
    on_deadline = run.options.on_deadline == "roll_back" or bool(run.options.more)
    if not (failed or person or fault or on_deadline):
        raise Violation(
            f"outage: {revision.change.who} has rolled {version!r} back in revision {revision.number}, and nothing but "
            f"outages has happened: {revision.change.reason}"
        )


def _is_plainly_broken(world: World, version: str, since: datetime, until: datetime) -> bool:
    """Return whether 40 % or more of a version's answers between two moments were errors, of 40 at least."""
    total = world.traffic.total(version, *(world.clock_seconds(moment) for moment in (since, until)))
    return total.requests >= 40 and total.errors >= 0.4 * total.requests


def _check_alarms(world: World) -> None:
    """Raise if looks go on at a rollout of a run after a look that failed, although nobody has intervened."""
    newest = world.newest
    if newest is None or newest.rollout is None:
        return
    rollout = newest.rollout
    run = next((run for run in world.runs if run.owner == rollout.owner), None)
    if run is None or run.touched or run.stopped or run.approvals or rollout.version in world.touched:
        return
    looks = _looks(world, rollout.version, rollout.started)
    failed = [index for index, look in enumerate(looks) if look.outcome == "fail"]
    if failed and len(looks) - failed[0] > 2:
        raise Violation(f"alarm: {len(looks) - failed[0] - 1} looks at {rollout.version!r} after one that failed")


def _check_somebody_looks(world: World) -> None:
    """Raise if a plainly broken treatment of a run keeps its traffic although all could be seen for a minute."""
    newest, now = world.newest, world.clock.seconds
    rollout = newest.rollout if newest else None
    run = next((run for run in world.runs if rollout is not None and run.owner == rollout.owner), None)
    if newest is None or rollout is None or run is None or newest.control is None:
        return
    nobody_knows = run.touched or run.stopped or run.is_over or run.approvals or world.forged
    if nobody_knows or rollout.version in world.touched or _share(newest, rollout.version) == 0:
        return
    shifted = world.clock_seconds(_shifted(world.target.revisions, rollout.version))
    broken = world.broken_since.get(rollout.version, now)
    seen_from = max(shifted + GUARD_S, broken, world.calm_since())
    seen = world.traffic.total(rollout.version, seen_from, now - REACTION_S)
    control = world.traffic.total(newest.control.name, shifted, now)
    if now - seen_from > 2 * REACTION_S and seen.requests >= 40 and control.requests >= 40 and not control.errors:
        raise Violation(
            f"nobody looks: {rollout.version!r} has answered nothing but errors since {broken:g} s, at its present "
            f"share since {shifted:g} s, and has {_share(newest, rollout.version):g} % at {now:g} s"
        )


def _check_nobody_was_there(world: World, before: Revision, revision: Revision) -> None:
    """Raise if a treatment was taken back before nobody had looked for `silence`, or that nobody has to look at."""
    what = f"taken back: revision {revision.number} of {world.clock_seconds(revision.created):g} s"
    rollout = unattended_rollout(before.endpoint)
    if rollout is None:
        raise Violation(f"{what}, although nobody had to look")
    looks = (look.at for look in world.target.looks if look.version == rollout.version and look.at <= revision.created)
    last = max([before.created, *looks])
    if revision.created - last < rollout.silence:
        raise Violation(f"{what}, although somebody was there at {world.clock_seconds(last):g} s")


def _check_silence(world: World) -> None:
    """Raise if a treatment that nobody has looked at for `silence` keeps its traffic, whatever else has happened."""
    revisions, now = world.target.revisions, world.clock.seconds
    rollout = unattended_rollout(revisions[-1].endpoint) if revisions else None
    if rollout is None or world.agent.away_until > now:
        return
    signs = Signs(revisions[-1], world.target.looked)
    silence_s = rollout.silence.total_seconds()
    # After a gap everybody is given as much time to look again.
    gap = max(world.agent.begun, world.agent.away_until, world.target.unavailable_until)
    due = max(world.clock_seconds(signs.at), gap) + silence_s
    if now > due + AFTER_SILENCE_S:
        raise Violation(
            f"silence: nobody has looked at {rollout.version!r} since {world.clock_seconds(signs.at):g} s, and it has "
            f"{_share(revisions[-1].endpoint, rollout.version):g} % at {now:g} s"
        )


def _check_memory(world: World) -> None:
    """Raise if a look in a process that remembers earlier looks concludes something else than in a new one."""
    newest = world.newest
    control = newest.control if newest else None
    if newest is None or control is None:
        return
    for version in newest.versions:
        if version != control.name:
            now = world.clock.now()
            remembered = world.verdict(version, now)
            world.forget_memory()
            new = world.verdict(version, now)
            if remembered != new:
                raise Violation(f"memory: a process that has looked before says {remembered}, a new one {new}")


def _check_roll_back_tasks(world: World) -> None:
    """Raise unless each roll-back that has just succeeded has left its treatment without traffic."""
    for run in world.runs:
        task = run.task("roll_back")
        key = (run.run_id, task.tries)
        if task.state == "success" and task.tries and not run.touched and key not in world.checked_tasks:
            world.checked_tasks.add(key)
            if run.version not in world.touched and not world.shared(run):
                check_is_at_zero(world, run.version, f"{run.run_id}/roll_back")


def _check_run_end(world: World, run: DagRun) -> None:
    """Raise if a run that is over leaves its treatment with traffic, or is green without a promotion."""
    if run.touched or run.stopped or run.version in world.touched or world.shared(run):
        return
    newest = world.newest
    rollout = newest.rollout if newest else None
    if rollout is not None and rollout.owner == run.owner and run.is_over:
        looks = _looks(world, rollout.version, rollout.started)
        if looks and looks[-1].outcome == "fail" and not run.approvals:
            raise Violation(f"alarm: {run.run_id} is over, the last look failed, and {rollout.version!r} still runs")
    held = rollout is not None and (rollout.owner, rollout.version) == (run.owner, run.version)
    if newest is not None and held and run.is_over and _share(newest, run.version):
        raise Violation(f"left: {run.run_id} is over, and {run.version!r} has {_share(newest, run.version):g} %")
    if not run.is_over and not world.waits_for_person(run):
        states = {task_id: task.state for task_id, task in run.tasks.items()}
        raise Violation(f"stuck: {run.run_id} goes on for ever: {states}")
    if run.is_over and run.state == "success" and run.task("roll_out").state == "success":
        controls = [
            revision for life in world.target.lives for revision in life
            if revision.endpoint.control and revision.endpoint.control.name == run.version
        ]  # fmt: skip
        if not controls:
            raise Violation(f"green: {run.run_id} has succeeded, and {run.version!r} was never control")
