"""The step that deletes a version without traffic: a given one, or the control that a promotion has replaced."""

from datetime import timedelta
from functools import partial

from controlled_rollout.defaults import RETIRE_TIMEOUT
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import EndpointNotFoundError, NothingToDoError
from controlled_rollout.steps import edits, rules
from controlled_rollout.steps.skeleton import Step, run_step
from controlled_rollout.target.history import Promotion
from controlled_rollout.target.protocol import Change
from controlled_rollout.target.waiting import Progress, retry_until_available
from controlled_rollout.workspace import Workspace

__all__ = ["former_control", "retire", "retire_former_control"]


async def retire(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    change: Change,
    by_hand: bool = False,
    timeout: timedelta = RETIRE_TIMEOUT,
    progress: Progress = print,
) -> Endpoint | None:
    """Delete a version that has no traffic; nothing to do if it does not exist.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name.
        version: The version to delete.
        change: Who does it and why, for the history.
        by_hand: Whether a person has typed the version's name: one that the endpoint has never had is an error.
        timeout: How long the deletion may take.
        progress: Called with a sentence when something changes.

    Returns:
        The endpoint as stored; None if there is no such endpoint.

    Raises:
        ConflictError: The version has traffic, or a run holds the endpoint to roll it out.
        EndpointError: The version is the default, or by hand: the endpoint has never had it.
    """
    from controlled_rollout.target.connect import connect

    async with connect(workspace) as target:
        step = _retirement_step(version)
        try:
            if by_hand:
                history = await retry_until_available(
                    lambda: target.history(endpoint), timeout=timeout, progress=progress
                )
                if not any(version in revision.endpoint.versions for revision in history):
                    history[-1].endpoint.version(version)
            return await run_step(step, workspace, target, endpoint, change=change, timeout=timeout, progress=progress)
        except EndpointNotFoundError:
            return None


async def retire_former_control(
    workspace: Workspace,
    endpoint: str,
    promoted: str,
    *,
    change: Change,
    owner: str | None = None,
    timeout: timedelta = RETIRE_TIMEOUT,
    progress: Progress = print,
) -> str:
    """Delete the version that was control before `promoted`, and return its name.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name.
        promoted: The version that took the former control's place.
        change: Who does it and why, for the history.
        owner: The run that has to have promoted it; None for whoever has.
        timeout: How long the deletion may take.
        progress: Called with a sentence when something changes.

    Raises:
        NothingToDoError: There is no former control, it is in use again, somebody else has promoted, or `promoted` is
            not control any more.
        ConflictError: Somebody has begun to use it in the meantime.
        EndpointNotFoundError: There is no such endpoint.
    """
    from controlled_rollout.target.connect import connect

    async with connect(workspace) as target:
        history = await retry_until_available(lambda: target.history(endpoint), timeout=timeout, progress=progress)
        former, _ = rules.replaced_by(history, promoted, owner)
        step = _retirement_step(former)
        await run_step(step, workspace, target, endpoint, change=change, timeout=timeout, progress=progress)
        return former


async def former_control(workspace: Workspace, endpoint: str, promoted: str, *, owner: str | None = None) -> Promotion:
    """Return when `promoted` became control and which version it replaced; raise NothingToDoError if it must stay.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name.
        promoted: The version that took the former control's place.
        owner: The run that has to have promoted it; None for whoever has.

    Raises:
        NothingToDoError: There is no former control, it is in use again, somebody else has promoted, or `promoted` is
            not control any more; or there is no such endpoint.
    """
    from controlled_rollout.target.connect import connect

    try:
        async with connect(workspace) as target:
            _, promotion = rules.replaced_by(await target.history(endpoint), promoted, owner)
            return promotion
    except EndpointNotFoundError as error:
        raise NothingToDoError(f"there is no former control to retire: {error}") from error


def _retirement_step(version: str) -> Step:
    """Return the step that deletes a version without traffic."""
    return Step(
        name="retire",
        version=version,
        edit=partial(edits.retire, version=version),
        done=lambda stored: f"{version!r} is deleted; endpoint {stored.name!r} has {', '.join(stored.versions)}",
        purpose=f"retire {version}",
        whole_split=False,
    )
