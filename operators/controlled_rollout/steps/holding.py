"""The step that puts a rollout on hold by hand: its gate goes on looking, and a person decides."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from controlled_rollout import record
from controlled_rollout.defaults import SERVED_TIMEOUT
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError, ControlledRolloutError
from controlled_rollout.evaluation.judgements import record_answer
from controlled_rollout.record.in_time import within_time
from controlled_rollout.steps import edits
from controlled_rollout.target.connect import connect
from controlled_rollout.target.protocol import Change, Target
from controlled_rollout.target.waiting import Progress, retry_until_available
from controlled_rollout.workspace import Workspace

__all__ = ["hold", "hold_refusal"]

# A look may mark the endpoint at the same moment; more conflicts than this are not met.
TRIES: Final = 5
# A hold that is not older is this one, by a try that was killed.
SAME_HOLD: Final = timedelta(seconds=30)
# For how long a preview waits for the record: beside it, people are offered the roll-back, which needs no record.
PREVIEW_S: Final = 3.0
# After one of these the gate that has looked is done: the next task is not bound by a hold.
GATE_IS_DONE: Final = ("go_on", "approve")
# After one of these it has not begun: a gate takes a hold from before its time for one that a person has ended.
GATE_IS_TO_COME: Final = ("deploy", "shift")


async def hold(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    change: Change,
    timeout: timedelta = SERVED_TIMEOUT,
    progress: Progress = print,
) -> Endpoint:
    """Put the rollout of a version on hold: the gate that looks at it does not let it go on by itself any more.

    An alarm still rolls it back. A person ends the hold: promote, roll back, shift, or clear the gate's task.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name.
        version: The treatment.
        change: Who does it and why, for history and record.
        timeout: How long to wait for a target that does not answer.
        progress: Called with a sentence when something changes.

    Returns:
        The endpoint as stored.

    Raises:
        ConflictError: No run rolls the version out, it has no traffic, or no gate looks at its present share now.
        EndpointError: There is no such version.
        RecordUnavailableError: The record cannot be read or appended to.
        TargetUnavailableError: The target did not answer in time.
    """
    change = change.with_default(f"{version} is on hold: a person decides")
    async with connect(workspace) as target:
        present = await retry_until_available(lambda: target.endpoint(endpoint), timeout=timeout, progress=progress)
        edits.hold(present, version, at=datetime.now(UTC))  # validate before anything is stored
        stored = await _apply(workspace, target, endpoint, version, change)
    await record_answer(
        workspace, endpoint, version, step="hold", who=change.who, reason=change.reason, progress=progress
    )
    progress(f"{version!r} is on hold: promote it or roll it back, or clear its gate")
    return stored


async def _apply(workspace: Workspace, target: Target, endpoint: str, version: str, change: Change) -> Endpoint:
    """Store the endpoint with its rollout on hold; try again if another writer was faster.

    A gate first records that it goes on, and then asks whether there is a hold. Here the hold is stored first, and then
    the record is asked: of two at the same moment at least one sees the other, so that no hold is lost silently.

    Raises:
        ConflictError: No gate looks at the present share now, or it has let the rollout go on at the same moment; then
            the hold is taken off again, and an earlier one stays.
    """
    for attempt in range(TRIES):
        newest = await target.endpoint(endpoint)
        is_same = edits.hold(newest, version, at=datetime.now(UTC)) is newest and _is_from_just_now(newest)
        looked = await _check_gate_looks(workspace, endpoint, version)
        if is_same:
            return newest
        # Not before the gate's last look by the gate's own clock: it would take the hold for one that has ended.
        at = max(filter(None, (datetime.now(UTC), looked)))
        # A hold of before may have ended, because its gate was cleared, and the mark is still there.
        wanted = edits.hold(newest.without_hold(), version, at=at)
        try:
            stored = await target.apply(wanted, change)
        except ConflictError:
            if attempt == TRIES - 1:
                raise
            continue
        try:
            await _check_gate_looks(workspace, endpoint, version)
        except ControlledRolloutError:
            await _take_off(target, stored, version, change, earlier=newest.rollout.held if newest.rollout else None)
            raise
        return stored
    raise AssertionError


def _is_from_just_now(endpoint: Endpoint) -> bool:
    """Return whether the endpoint's rollout was put on hold just now, such as by a try of this task that was killed."""
    held = endpoint.rollout.held if endpoint.rollout else None
    return held is not None and datetime.now(UTC) - held < SAME_HOLD


async def _take_off(target: Target, held: Endpoint, version: str, change: Change, *, earlier: datetime | None) -> None:
    """Store the endpoint without the hold that was stored a moment ago, unless somebody has ended it already.

    An earlier hold that it has replaced is there again: nobody has ended that one.
    """
    sentence = f"the new hold of {version} is taken off: its gate was faster, or the record cannot be read"
    for _ in range(TRIES):
        newest = await target.endpoint(held.name)
        if newest.rollout is None or held.rollout is None or newest.rollout.held != held.rollout.held:
            return
        wanted = newest.resume(version, owner=None, at=datetime.now(UTC))
        if earlier is not None:
            wanted = newest.without_hold().hold(version, owner=None, at=earlier)
        with suppress(ConflictError):
            await target.apply(wanted, Change(who=change.who, reason=sentence))
            return


async def hold_refusal(workspace: Workspace, endpoint: str, version: str) -> str | None:
    """Return why a version could not be put on hold now because of its gate; None if nothing speaks against it.

    A record that does not answer soon is a reason, too.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name.
        version: The version that a run rolls out.
    """
    try:
        await _check_gate_looks(workspace, endpoint, version, timeout_s=PREVIEW_S)
    except ControlledRolloutError as error:
        return str(error)
    return None


async def _check_gate_looks(
    workspace: Workspace, endpoint: str, version: str, *, timeout_s: float | None = None
) -> datetime | None:
    """Return when the gate last looked; raise ConflictError if none looks at the present share now, or not yet.

    Raises:
        ConflictError: Nothing would heed the hold.
        RecordUnavailableError: The record cannot be read.
    """
    newest = await within_time(
        record.storage_of(workspace, endpoint).name,
        partial(record.last, workspace, endpoint, version),
        timeout_s=timeout_s,
    )
    if newest is not None and newest.step in GATE_IS_DONE:
        raise ConflictError(
            f"version {version!r} of endpoint {endpoint!r} cannot be put on hold now: its gate has let it go on "
            f"({newest.step.replace('_', ' ')} at {newest.time:%H:%M:%S %Z}), and the next task is under way; try "
            "again once the next gate looks, or roll it back"
        )
    if newest is not None and newest.step in GATE_IS_TO_COME:
        raise ConflictError(
            f"version {version!r} of endpoint {endpoint!r} cannot be put on hold now: no gate has looked at its "
            f"present share yet ({newest.step} at {newest.time:%H:%M:%S %Z}), and one that begins later does not heed "
            "a hold of before; try again once it has looked, or roll it back"
        )
    return newest.time if newest is not None and newest.step == "look" else None
