"""A rollout on hold: its mark in the endpoint, and how long nobody has seen its evidence."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from controlled_rollout import record
from controlled_rollout.evaluation.judgements import record_answer
from controlled_rollout.gate import Outcome
from controlled_rollout.record import Decision
from controlled_rollout.record.in_time import within_time
from controlled_rollout.target.protocol import Change, Target
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.evaluation.look import Look
    from controlled_rollout.evaluation.next_action import GateTerms

__all__ = ["last_look", "mark", "marked", "put_on_hold", "recorded_hold", "unseen_for", "with_newest_hold"]


def marked(endpoint: "Endpoint", terms: "GateTerms") -> "Endpoint":
    """Return the endpoint with the mark that its rollout is, or is no longer, on hold; itself if that is right. Pure.

    Args:
        endpoint: The endpoint as it is.
        terms: The gate's terms.
    """
    held = terms.on_hold_since(endpoint.rollout)
    if held is None:
        return endpoint.resume(terms.version, owner=terms.owner, at=terms.waiting_since)
    return endpoint.hold(terms.version, owner=terms.owner, at=held)


async def mark(
    target: Target, endpoint: "Endpoint", terms: "GateTerms", log: Callable[[str], None], reason: str = ""
) -> None:
    """Write into the endpoint that its rollout is, or is no longer, on hold; without effect on what a look decides.

    A mark that cannot be written is written at a later look.

    Args:
        target: Where the endpoint is, open.
        endpoint: The endpoint as the look has seen it.
        terms: The gate's terms.
        log: Takes a sentence for the task's log.
        reason: Why it is on hold; empty if that is not known.
    """
    wanted = marked(endpoint, terms)
    if wanted is endpoint:
        return
    on_hold = wanted.rollout is not None and wanted.rollout.held is not None
    word = "on hold: a person decides" if on_hold else "no longer on hold"
    try:
        why = reason if on_hold and reason else f"{terms.version} is {word}"
        await target.apply(wanted, Change(who=terms.who, reason=why))
    except Exception as error:  # another writer was faster, or the target does not answer
        log(f"that {terms.version} is {word} is not written into the endpoint yet: {error}")


async def with_newest_hold(
    workspace: Workspace, target: Target, endpoint: "Endpoint", terms: "GateTerms", log: Callable[[str], None]
) -> "Endpoint":
    """Return the endpoint as a look has seen it, or as it is now if somebody has put its rollout on hold meanwhile.

    The record then says that the rollout is on hold after all: the newest line about a share is what counts.

    Args:
        workspace: Where the record is.
        target: Where the endpoint is, open.
        endpoint: The endpoint as the look has seen it.
        terms: The gate's terms.
        log: Takes a sentence for the task's log.
    """
    newest = await target.endpoint(endpoint.name)
    same = endpoint.rollout is not None and endpoint.rollout.is_same(newest.rollout)
    if not same or terms.on_hold_since(newest.rollout) is None:
        return endpoint
    reason = f"{terms.version} was put on hold while its gate was about to let it go on"
    await _record_hold(workspace, terms, reason, log)
    return newest


async def put_on_hold(workspace: Workspace, terms: "GateTerms", reason: str, log: Callable[[str], None]) -> None:
    """Write into endpoint and record that a rollout is on hold; the hold does not depend on it.

    Args:
        workspace: Where both are.
        terms: The gate's terms, with the time of the hold.
        reason: Why, in a sentence.
        log: Takes a sentence for the task's log if one of the two cannot be written.
    """
    from controlled_rollout.target.connect import connect

    try:
        async with connect(workspace) as target:
            await mark(target, await target.endpoint(terms.endpoint), terms, log, reason)
    except Exception as error:
        log(f"that {terms.version} is on hold is not written into the endpoint yet: {error}")
    await _record_hold(workspace, terms, reason, log)


async def _record_hold(workspace: Workspace, terms: "GateTerms", reason: str, log: Callable[[str], None]) -> None:
    """Write into the record that a rollout is on hold; log if that is not possible: the gate waits all the same."""
    try:
        await record_answer(
            workspace, terms.endpoint, terms.version, step="hold", who=terms.who, reason=reason, progress=log
        )
    except Exception as error:
        log(f"that {terms.version} is on hold is not in the record: {error}")


async def _read(
    workspace: Workspace, terms: "GateTerms", find: Callable[[Iterator[Decision]], datetime | None]
) -> datetime | None:
    """Return what `find` finds in the record of the version, newest first; None if the record cannot be read."""
    endpoint, version = terms.endpoint, terms.version
    try:
        return await within_time(
            record.storage_of(workspace, endpoint).name,
            lambda: find(record.read_newest_first(workspace, endpoint, version)),
        )
    except Exception:
        return None


async def recorded_hold(workspace: Workspace, terms: "GateTerms") -> datetime | None:
    """Return when this task recorded that the rollout is on hold since it began to wait; None if it has not.

    Args:
        workspace: Where the record is.
        terms: The gate's terms.
    """
    # Without the record people are told once more.
    return await _read(workspace, terms, lambda decisions: hold_of(decisions, terms))


def hold_of(newest_first: Iterable[Decision], terms: "GateTerms") -> datetime | None:
    """Return when this task recorded that the rollout is on hold since it began to wait; None if it has not. Pure.

    Also if its clock was set back behind its begin since then: its looks carry that begin.

    Args:
        newest_first: The record's decisions about the version, newest first; read no further than is needed.
        terms: The gate's terms.
    """
    earlier_by_clock = False
    for decision in newest_first:
        if decision.who != terms.who:
            continue
        is_of_task = (decision.gate_since or decision.time) >= terms.waiting_since
        if decision.step == "look":
            if not is_of_task:
                break
            if earlier_by_clock:
                return terms.waiting_since
        if decision.step == "hold":
            if is_of_task:
                return decision.time
            earlier_by_clock = True
    return None


async def last_look(workspace: Workspace, terms: "GateTerms") -> datetime | None:
    """Return when a look at the treatment was last recorded; None if there is none, or the record cannot be read.

    Args:
        workspace: Where the record is.
        terms: The gate's terms.
    """
    # Without it the time counts from when the task began to wait.
    return await _read(
        workspace, terms, lambda decisions: next((one.time for one in decisions if one.step == "look"), None)
    )


async def unseen_for(workspace: Workspace, look: "Look", terms: "GateTerms", *, now: datetime) -> timedelta | None:
    """Return how long no look has seen the evidence of a rollout on hold; None if it is seen, or that is not known.

    Args:
        workspace: Where the record is.
        look: The present look.
        terms: The gate's terms.
        now: The present.
    """
    held = terms.on_hold_since(look.document.rollout)
    if held is None or terms.unseen_timeout is None or look.verdict.outcome is not Outcome.CANNOT_SEE:
        return None
    # Without the record nobody knows how long: keep the treatment.
    seen = await _read(workspace, terms, lambda decisions: _last_seen(decisions, held))
    return now - seen if seen is not None else None


def _last_seen(decisions: Iterable[Decision], held: datetime) -> datetime | None:
    """Return when a look during the hold last saw the evidence; the hold's begin if none did; None without looks."""
    blind = None
    for decision in decisions:
        if decision.step != "look":  # lines of steps may be appended late, so their order says nothing
            continue
        if decision.time <= held:
            break
        if decision.outcome != Outcome.CANNOT_SEE.value:
            return decision.time
        blind = held
    return blind
