"""The step that puts a rollout on hold by hand: its gate goes on looking, and a person decides."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from controlled_rollout import record
from controlled_rollout.defaults import SERVED_TIMEOUT
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import (
    ConflictError,
    ControlledRolloutError,
    EndpointNotFoundError,
    TargetUnavailableError,
)
from controlled_rollout.evaluation.judgements import record_answer
from controlled_rollout.record import Decision
from controlled_rollout.record.in_time import within_time
from controlled_rollout.steps import edits
from controlled_rollout.target.connect import connect
from controlled_rollout.target.protocol import Change, Revision, Target
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
# After it the gate has ended as well, and a person decides already: the answer is not bound by a hold.
PERSON_IS_ASKED: Final = "ask"
ENDS_SEARCH: Final = (*GATE_IS_DONE, *GATE_IS_TO_COME, PERSON_IS_ASKED)


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
        calls = _Calls(target, timeout, progress)
        present = (await calls.history(endpoint))[-1].endpoint
        edits.hold(present, version, at=datetime.now(UTC))  # validate before anything is stored
        stored = await _apply(workspace, calls, endpoint, version, change)
    await record_answer(
        workspace, endpoint, version, step="hold", who=change.who, reason=change.reason, progress=progress
    )
    progress(f"{version!r} is on hold: promote it or roll it back, or clear its gate")
    return stored


@dataclass(frozen=True)
class _Calls:
    """The target, whose calls are repeated while it does not answer."""

    target: Target
    timeout: timedelta
    progress: Progress

    async def history(self, name: str) -> Sequence[Revision]:
        """Return an endpoint's revisions, oldest first; raise TargetUnavailableError if there is no answer in time."""
        return await retry_until_available(
            lambda: self.target.history(name), timeout=self.timeout, progress=self.progress
        )

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        """Store a revision, once, and return it; raise TargetUnavailableError if there is no answer in time."""
        return await retry_until_available(
            lambda: self.target.apply(endpoint, change), timeout=self.timeout, progress=self.progress
        )


async def _apply(workspace: Workspace, target: _Calls, endpoint: str, version: str, change: Change) -> Endpoint:
    """Store the endpoint with its rollout on hold; try again if another writer was faster.

    A gate first records that it goes on, and then asks whether there is a hold. Here the hold is stored first, and then
    the record is asked: of two at the same moment at least one sees the other, so that no hold is lost silently.

    Raises:
        ConflictError: No gate looks at the present share now, or it has let the rollout go on at the same moment; then
            the hold is taken off again, and an earlier one stays.
        TargetUnavailableError: The target did not answer in time, also not to take the hold off again.
    """
    for attempt in range(TRIES):
        history = await target.history(endpoint)
        newest = history[-1].endpoint
        edits.hold(newest, version, at=datetime.now(UTC))
        is_mine = held_by(history) == change.who
        try:
            looked = await _check_gate_looks(workspace, endpoint, version)
        except ConflictError as error:
            if is_mine:  # a try that was killed has stored it
                await _remove_stored_hold(target, newest, version, change, because=error)
            raise
        if is_mine and _is_from_just_now(newest):
            return newest
        # Not before the gate's begin and last look by its own clock: it would take the hold for one that has ended.
        at = max(datetime.now(UTC), looked)
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
        except ControlledRolloutError as error:
            earlier = newest.rollout.held if newest.rollout else None
            await _remove_stored_hold(target, stored, version, change, because=error, earlier=earlier)
            raise
        return stored
    raise AssertionError


def _is_from_just_now(endpoint: Endpoint) -> bool:
    """Return whether the endpoint's rollout was put on hold just now, such as by a try of this task that was killed."""
    held = endpoint.rollout.held if endpoint.rollout else None
    return held is not None and datetime.now(UTC) - held < SAME_HOLD


def held_by(history: Sequence[Revision]) -> str | None:
    """Return who has put an endpoint's rollout on hold; None if it is not on hold. Pure.

    Args:
        history: The endpoint's revisions, oldest first.
    """
    who, held = None, history[-1].endpoint.rollout and history[-1].endpoint.rollout.held
    for revision in reversed(history):
        rollout = revision.endpoint.rollout
        if held is None or rollout is None or rollout.held != held:
            break
        who = revision.change.who
    return who


async def _remove_stored_hold(
    target: _Calls,
    held: Endpoint,
    version: str,
    change: Change,
    *,
    because: ControlledRolloutError,
    earlier: datetime | None = None,
) -> None:
    """Store the endpoint without a hold that was stored and is refused.

    Args:
        target: Where the endpoint is.
        held: The endpoint with the hold.
        version: The treatment.
        change: Who had put it on hold.
        because: Why it is refused.
        earlier: Since when an earlier hold had been there, which it has replaced, and which nobody has ended.

    Raises:
        TargetUnavailableError: The hold is still there.
    """
    if problem := await _try_to_remove_hold(target, held, version, change, earlier):
        raise TargetUnavailableError(
            f"{because}. The endpoint still says that it is on hold ({problem}): until a next gate looks, nobody takes "
            f"{version!r} back if nobody looks. Put it on hold once more, which takes that off, or roll it back"
        ) from because


async def _try_to_remove_hold(
    target: _Calls, held: Endpoint, version: str, change: Change, earlier: datetime | None
) -> str:
    """Take a hold off unless somebody has ended it already; return why it is still there, or ""."""
    sentence = f"the new hold of {version} is taken off: its gate was faster, or the record cannot be read"
    problem = ""
    for _ in range(TRIES):
        try:
            newest = (await target.history(held.name))[-1].endpoint
            if newest.rollout is None or held.rollout is None or newest.rollout.held != held.rollout.held:
                return ""
            wanted = newest.resume(version, owner=None, at=datetime.now(UTC))
            if earlier is not None:
                wanted = newest.without_hold().hold(version, owner=None, at=earlier)
            await target.apply(wanted, Change(who=change.who, reason=sentence))
        except EndpointNotFoundError:
            return ""
        except ConflictError as error:
            problem = str(error)
        except ControlledRolloutError as error:
            return str(error)
        else:
            return ""
    return problem


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
) -> datetime:
    """Return from when on the gate acts on a hold; raise ConflictError if none looks at the present share now.

    Raises:
        ConflictError: No gate would act on the hold.
        RecordUnavailableError: The record cannot be read.
    """
    newest = await within_time(
        record.storage_of(workspace, endpoint).name,
        lambda: sign_of_gate(record.read_newest_first(workspace, endpoint, version)),
        timeout_s=timeout_s,
    )
    if newest is None:
        raise ConflictError(
            f"version {version!r} of endpoint {endpoint!r} cannot be put on hold now: the record has no look of a gate "
            "that would act on it; try again once a gate has looked, or roll it back"
        )
    if newest.step in GATE_IS_DONE:
        raise ConflictError(
            f"version {version!r} of endpoint {endpoint!r} cannot be put on hold now: its gate has let it go on "
            f"({newest.step.replace('_', ' ')} at {newest.time:%H:%M:%S %Z}), and the next task is under way; try "
            "again once the next gate looks, or roll it back"
        )
    if newest.step == PERSON_IS_ASKED:
        raise ConflictError(
            f"version {version!r} of endpoint {endpoint!r} cannot be put on hold now: a person is asked since "
            f"{newest.time:%H:%M:%S %Z} whether it goes on, and it waits for the answer; give that answer, or roll it "
            "back"
        )
    if newest.step in GATE_IS_TO_COME:
        raise ConflictError(
            f"version {version!r} of endpoint {endpoint!r} cannot be put on hold now: no gate has looked at its "
            f"present share yet ({newest.step} at {newest.time:%H:%M:%S %Z}), and one that begins later ignores "
            "an earlier hold; try again once it has looked, or roll it back"
        )
    # The later one: if a clock was set back meanwhile, or the two are of two machines, the gate's begin may be later.
    return max(newest.time, newest.gate_since or newest.time)


def sign_of_gate(newest_first: Iterable[Decision]) -> Decision | None:
    """Return the newest line that tells whether a gate looks now: its look, or a step after which it does not. Pure.

    Others look, too: a person by `controlled-rollout gate`, a task before it raises a share, one that asks a person.
    No hold keeps what comes after those from going on. Who rolls a version out by hand looks as its gate.

    Args:
        newest_first: The record's decisions about the version, newest first; read no further than is needed.
    """
    has_hold = False
    for decision in newest_first:
        has_hold = has_hold or decision.step == "hold"
        if has_hold and decision.step in GATE_IS_DONE:
            continue  # it was about to let it go on, and has acted on the hold
        is_of_gate = decision.gate_since is not None or decision.who == decision.run
        if decision.step in ENDS_SEARCH or (decision.step == "look" and is_of_gate):
            return decision
    return None
