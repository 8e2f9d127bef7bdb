"""A rollout on hold: its gate came to no decision, nothing is rolled back, and a person decides.

The hold is in the endpoint's document and not in the record: a roll-back that asks for it needs nothing but the target.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import PROGRAMMING_ERRORS, ConflictError, EndpointNotFoundError, RecordUnavailableError
from controlled_rollout.evaluation.judgements import append
from controlled_rollout.record import Decision
from controlled_rollout.target.protocol import Change, Target
from controlled_rollout.target.waiting import Progress
from controlled_rollout.workspace import Workspace

__all__ = ["HOLD_TIMEOUT", "end_hold", "hold_rollout"]

# How long to try to put a rollout on hold while the target does not answer: a task that gave up would be rolled back.
HOLD_TIMEOUT: Final = timedelta(hours=1)
# How often to edit the newest revision again because another writer stored one first.
MAX_ATTEMPTS: Final = 10
RETRY_S: Final = 5.0


async def hold_rollout(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    owner: str | None,
    change: Change,
    timeout: timedelta = HOLD_TIMEOUT,
    progress: Progress = print,
) -> None:
    """Put a rollout on hold: a person has to promote it, roll it back or clear its gate.

    Args:
        workspace: Where the endpoint and its record are.
        endpoint: The endpoint's name.
        version: The treatment.
        owner: The run that has to hold the endpoint; None for whichever does.
        change: Which gate has come to no decision, and why.
        timeout: How long to try while the target does not answer.
        progress: Called with a sentence if something does not answer.

    Raises:
        ConflictError: `owner` no longer holds the endpoint.
        EndpointNotFoundError: There is no such endpoint any more.
        Exception: What the last try raised, once the time is over.
    """
    from controlled_rollout.target.connect import connect

    edit = partial(Endpoint.hold, version=version, owner=owner, at=datetime.now(UTC))
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            async with connect(workspace) as target:
                stored = await _change(target, endpoint, edit, change)
            break
        except (ConflictError, EndpointNotFoundError, *PROGRAMMING_ERRORS):
            raise
        except Exception as error:  # a target that is away, or refuses this identity for a while
            if time.monotonic() > deadline:
                raise
            progress(f"not on hold yet, trying again: {error or type(error).__name__}")
        await asyncio.sleep(RETRY_S)
    try:
        await append(workspace, Decision.about(stored, version, step="hold", who=change.who, why=change.why))
    except RecordUnavailableError as error:
        progress(f"warning: the hold is not in the record: {error}")


async def end_hold(target: Target, endpoint: str, version: str, *, owner: str | None, who: str) -> Endpoint:
    """End the hold of a rollout, if it is on hold, because its gate or a later step has begun; return the endpoint.

    Args:
        target: Where the endpoint is, open.
        endpoint: The endpoint's name.
        version: The treatment.
        owner: The run that begins; nothing changes if another one holds the endpoint. None for whichever does.
        who: The task that begins.
    """
    edit = partial(Endpoint.resume, version=version, owner=owner, at=datetime.now(UTC))
    return await _change(target, endpoint, edit, Change(who=who, why="end the hold: the rollout goes on"))


async def _change(target: Target, endpoint: str, edit: Callable[[Endpoint], Endpoint], change: Change) -> Endpoint:
    """Apply an edit to the newest revision, again if another writer was faster; return the endpoint as stored."""
    for _ in range(MAX_ATTEMPTS):
        newest = await target.endpoint(endpoint)
        edited = edit(newest)
        if edited is newest:
            return newest
        try:
            return await target.apply(edited, change)
        except ConflictError as error:
            conflict = error
    raise conflict
