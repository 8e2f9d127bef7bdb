"""What all steps have in common: validate, wait, size, apply, wait until served, record, report.

A step may be killed anywhere and called again: it comes to the same end. What it decides is an edit of the newest
revision, stored with compare-and-swap; when another writer was faster, it decides again on that revision. A target that
does not answer delays a step, up to its time-out.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Final, Literal, Protocol, TypeVar

from controlled_rollout import record
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import (
    ConflictError,
    ControlledRolloutError,
    EndpointNotFoundError,
    NameTakenError,
)
from controlled_rollout.record import Decision
from controlled_rollout.record.in_time import within_time
from controlled_rollout.rollout import WaitingRun
from controlled_rollout.steps.rules import check_control_is_the_same
from controlled_rollout.target.history import check_holder
from controlled_rollout.target.protocol import Change, Revision, Target
from controlled_rollout.target.waiting import (
    Progress,
    retry_until_available,
    wait_until_ready,
    wait_until_served,
    wait_until_without_traffic,
)
from controlled_rollout.workspace import Workspace

__all__ = ["Edit", "Permit", "Scale", "Step", "format_split", "run_step"]

Edit = Callable[[Endpoint], Endpoint]
Result = TypeVar("Result")
Permit = Callable[[Sequence[Revision]], Awaitable[None]]

# How often a step decides again because another writer stored a revision first.
MAX_ATTEMPTS: Final = 10
CONFLICT_INTERVAL_S: Final = 1.0
# When a step writes down for the first time that somebody looks, and how often at least; most are done before.
FIRST_NOTE_S: Final = 1.0
LONGEST_NOTE_S: Final = 60.0


class Scale(Protocol):
    """Gives versions the replicas for their share of the load, before their traffic changes."""

    async def __call__(
        self, target: Target, before: Endpoint, after: Endpoint, *, timeout: timedelta, progress: Progress
    ) -> None:
        """Scale versions from the replicas that `before` needs to those that `after` needs; wait until ready."""
        ...


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step does differently from the others.

    Attributes:
        name: Its name in the record.
        version: The version that it is about.
        edit: Returns the endpoint as it is to be, or raises why not. Pure: it may be called again on a newer revision.
        permit: Raises unless the record has what permits the step, given the endpoint's revisions; None asks nothing.
            Called again for every newer revision that the edit is applied to.
        done: What is reached, in a sentence, given the endpoint as stored.
        purpose: The reason that is stored with the revision if the caller gives none.
        scale: How versions get the replicas for their new share before the change is applied; None leaves them.
        ready_before: Whether the version has to be ready before that.
        whole_split: Whether the router has to serve the whole split of the revision. If not, the step is done once its
            version gets no requests: then another version that is not ready does not delay it.
        creates: The endpoint to begin with where there is none, for the step that creates a version; it waits until
            that version is ready after the change. None for all other steps.
        conflict_timeout: How long to wait while another run holds the endpoint; 0 fails at once.
        waiting_run: As what the run waits meanwhile; None for a step that does not wait.
        going_back: Whether this is a roll-back, whose caller tries again: a target that does not answer fails it.
        owner: The run that has to hold the endpoint; None for whoever does.
        is_look: Whether the step shows that somebody looks after the rollout.
    """

    name: Literal["deploy", "shift", "promote", "roll_back", "retire"]
    version: str
    edit: Edit
    done: Callable[[Endpoint], str]
    purpose: str
    permit: Permit | None = None
    scale: Scale | None = None
    ready_before: bool = False
    whole_split: bool = True
    creates: Endpoint | None = None
    conflict_timeout: timedelta = timedelta(0)
    waiting_run: WaitingRun | None = None
    going_back: bool = False
    owner: str | None = None
    is_look: bool = True


async def run_step(
    step: Step,
    workspace: Workspace,
    target: Target,
    endpoint: str,
    *,
    change: Change,
    timeout: timedelta,
    progress: Progress,
) -> Endpoint:
    """Run one step: check, wait, scale, apply the edit, wait until served, record. Return the endpoint as stored.

    Args:
        step: The step.
        workspace: Where the record is.
        target: Where the endpoint is, open.
        endpoint: The endpoint's name.
        change: Who takes the step, and why.
        timeout: How long each wait may take.
        progress: Called with a sentence when something changes.

    Raises:
        ConflictError: The edit is refused because of somebody else's change.
        DeploymentError: The version is not ready in time, cannot get the replicas it needs, or the router did not
            confirm the split in time.
        EndpointNotFoundError: There is no such endpoint, and the step does not create one.
    """
    change = change.with_default(step.purpose)
    async with _noting_looks(step, target, endpoint):
        return await _run(step, workspace, target, endpoint, change, timeout, progress)


async def _run(
    step: Step,
    workspace: Workspace,
    target: Target,
    endpoint: str,
    change: Change,
    timeout: timedelta,
    progress: Progress,
) -> Endpoint:
    """Run one step as `run_step` describes."""
    wait = partial(wait_until_ready, target, endpoint, step.version, timeout=timeout, progress=progress)
    if scale := step.scale:
        # Validate before waiting.
        before, after, _ = await _call(step, partial(_edit_newest, step, target, endpoint), timeout, progress)
        if step.name == "promote":
            # Another promotion that comes first was decided on the same control: this one is told that it lost.
            step = replace(step, edit=partial(_edit_same_control, step, before))
        if step.ready_before:
            await wait()
        await scale(target, before, after, timeout=timeout, progress=progress)
    stored, history = await _apply_when_free(step, target, endpoint, change, timeout, progress)
    if step.creates:
        # A version that never becomes ready was rolled out all the same: the record has to show it.
        await _record_step(workspace, step, stored, history, change, progress)
        progress(f"version {step.version!r} is in revision {stored.revision}; waiting until it is ready")
        await wait()
    if step.whole_split:
        served = await wait_until_served(target, endpoint, stored.revision, timeout=timeout, progress=progress)
        if served.seen_requests == 0:
            progress(f"revision {stored.revision} is set, and not yet seen by traffic: no request has come since")
    else:
        await wait_until_without_traffic(
            target, endpoint, step.version, stored.revision, timeout=timeout, progress=progress
        )
    if not step.creates:
        await _record_step(workspace, step, stored, history, change, progress)
    progress(step.done(stored))
    return stored


@asynccontextmanager
async def _noting_looks(step: Step, target: Target, endpoint: str) -> AsyncIterator[None]:
    """Context manager: while a step is under way, write down again and again that somebody looks after its rollout."""
    if not step.is_look or step.creates:
        yield
        return
    noting = asyncio.create_task(_keep_noting(target, endpoint, step.version), name="looks")
    try:
        yield
    finally:
        noting.cancel()
        await asyncio.gather(noting, return_exceptions=True)


async def _keep_noting(target: Target, endpoint: str, version: str) -> None:
    """Write down that somebody looks at a treatment, often enough for its `silence`; a note that fails is missed."""
    pause_s = FIRST_NOTE_S
    while True:
        await asyncio.sleep(pause_s)
        with suppress(Exception):  # whatever a target answers, the step itself decides what it means
            rollout = (await target.endpoint(endpoint)).rollout
            if rollout is not None and rollout.version == version:
                pause_s = min(max(rollout.silence.total_seconds() / 4, FIRST_NOTE_S), LONGEST_NOTE_S)
                await target.note_look(endpoint, version)


async def _apply_when_free(
    step: Step, target: Target, endpoint: str, change: Change, timeout: timedelta, progress: Progress
) -> tuple[Endpoint, Sequence[Revision]]:
    """Apply the step's edit; while another run holds the endpoint, retry until the step's conflict timeout.

    Returns:
        The endpoint as stored, and the revisions that it was made from.
    """
    deadline = time.monotonic() + step.conflict_timeout.total_seconds()
    last_message = ""
    try:
        while True:
            try:
                return await _apply(step, target, endpoint, change, timeout, progress)
            except NameTakenError:
                raise
            except ConflictError as conflict:
                if time.monotonic() >= deadline:
                    raise
                if str(conflict) != last_message:
                    last_message = str(conflict)
                    progress(f"waiting: {last_message}")
            await _wait_in_turn(step, target, endpoint, change)
            await asyncio.sleep(CONFLICT_INTERVAL_S)
    except BaseException:
        await _wait_in_turn(step, target, endpoint, change, ends=True)
        raise


async def _wait_in_turn(step: Step, target: Target, endpoint: str, change: Change, *, ends: bool = False) -> None:
    """Write into the endpoint that the step's run waits for it, or no longer does; later if that is not possible now.

    Runs that wait come in the order in which they were due, whichever sees first that the endpoint is free.
    """
    run = step.waiting_run
    if run is None:
        return
    try:
        newest = await target.endpoint(endpoint)
        edited = newest.without_waiting(run.owner) if ends else newest.wait(run)
        if edited is not newest and (ends or newest.rollout is not None or newest.waiting):
            word = "no longer waits" if ends else "waits"
            await target.apply(edited, Change(who=change.who, reason=f"{run.owner} {word} to roll out {step.version}"))
    except ControlledRolloutError:
        return  # another writer was faster, or the target does not answer


async def _apply(
    step: Step, target: Target, endpoint: str, change: Change, timeout: timedelta, progress: Progress
) -> tuple[Endpoint, Sequence[Revision]]:
    """Apply the step's edit to the newest revision; retry with the newer revision if another writer was faster."""
    attempts, refused = 0, -1
    warned = ""
    while True:
        attempts += 1
        newest, edited, history = await _call(step, partial(_edit_newest, step, target, endpoint), timeout, progress)
        if (warning := _rollout_ended_by(change.who, newest, edited)) and warning != warned:
            progress(warned := warning)
        try:
            # Applied also when nothing changes: a killed step continues the work on a revision that it had stored.
            stored = await _call(step, partial(target.apply, edited, change), timeout, progress)
            held = stored.rollout is not None and stored.rollout.version == step.version
            if step.is_look and held and stored.revision == newest.revision:
                # A revision would be a sign that somebody is there; nothing has changed, so this is one.
                with suppress(ControlledRolloutError):
                    await target.note_look(endpoint, step.version)
            return stored, history
        except ConflictError:
            # No writer was faster if the revision is the one that was refused before: something else is in the way.
            if attempts == MAX_ATTEMPTS or newest.revision == refused:
                raise
            refused = newest.revision
            await asyncio.sleep(random.uniform(0.01, 0.1))  # noqa: S311 - spreads writers, hides nothing


def _rollout_ended_by(who: str, before: Endpoint, after: Endpoint) -> str:
    """Return a sentence if a change ends the rollout of somebody else than `who`; empty if it does not."""
    rollout = before.rollout
    if rollout is None or rollout.is_same(after.rollout) or rollout.is_of(who):
        return ""
    is_promoted = after.control is not None and after.control.name == rollout.version
    end = "finds it promoted" if is_promoted else "ends as a conflict"
    return (
        f"warning: this ends the rollout of {rollout.version!r} by {rollout.owner}, which has held endpoint "
        f"{before.name!r} since {rollout.started:%Y-%m-%d %H:%M:%S %Z}: {rollout.owner} {end} and changes nothing more"
    )


def _edit_same_control(step: Step, before: Endpoint, newest: Endpoint) -> Endpoint:
    """Return what a promotion makes of the newest revision; raise if that has another control than when it began."""
    check_control_is_the_same(before, newest, step.version)
    return step.edit(newest)


async def _edit_newest(step: Step, target: Target, endpoint: str) -> tuple[Endpoint, Endpoint, Sequence[Revision]]:
    """Return the newest revision, what the step makes of it, and all revisions; raise if it is refused."""
    history: Sequence[Revision] = ()
    try:
        history = await target.history(endpoint)
        newest = history[-1].endpoint
    except EndpointNotFoundError:
        if step.creates is None:
            raise
        newest = step.creates
    try:
        edited = step.edit(newest)
    except ConflictError:
        if history:
            check_holder(history, step.version, step.owner)
        raise
    if step.permit and history:
        await step.permit(history)
    return newest, edited, history


async def _call(step: Step, call: Callable[[], Awaitable[Result]], timeout: timedelta, progress: Progress) -> Result:
    """Make a call of the target and return its result; if the step goes on, again and again until it answers."""
    limit = timedelta(0) if step.going_back else timeout
    return await retry_until_available(call, timeout=limit, progress=progress)


async def _record_step(
    workspace: Workspace,
    step: Step,
    stored: Endpoint,
    history: Sequence[Revision],
    change: Change,
    progress: Progress,
) -> None:
    """Append the step's decision to the endpoint's record, and what it lacks before it.

    The step is done: if that fails, its line is made from the stored revision by whoever appends next.
    """
    decision = Decision.about(stored, step.version, step=step.name, who=change.who, reason=change.reason)
    try:
        where = record.storage_of(workspace, stored.name).name
        await within_time(where, lambda: record.append(workspace, decision, history=history))
    except ControlledRolloutError as error:
        progress(
            f"warning: the record lags behind: revision {stored.revision} is not in it yet, and will be appended with "
            f"the next entry: {error}"
        )


def format_split(endpoint: Endpoint) -> str:
    """Return the effective traffic of all versions as text."""
    return ", ".join(f"{name} {percent:g} %" for name, percent in endpoint.effective_traffic().items())
