"""Takes a treatment back that nobody looks at any more: the roll-back of the supervisor and of the cluster's agent.

`python -m controlled_rollout.steps.silence <JSON>` takes one, for the local supervisor.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from controlled_rollout.defaults import ROLL_BACK_TIMEOUT
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import (
    ControlledRolloutError,
    EndpointNotFoundError,
    NothingToDoError,
    RouterTimeoutError,
)
from controlled_rollout.steps.going_back import may_pass, rollback_step, try_until_done
from controlled_rollout.steps.skeleton import run_step
from controlled_rollout.target.connect import connect
from controlled_rollout.target.history import ON_SILENCE
from controlled_rollout.target.protocol import Change, Revision, Target
from controlled_rollout.target.silence import Signs, TakeBack, unattended_rollout
from controlled_rollout.target.silence_checks import SilenceChecks
from controlled_rollout.target.waiting import Progress
from controlled_rollout.workspace import Workspace

__all__ = ["SilenceWatch", "take_back"]

# For how long one call tries to store what it takes back, such as while the target refuses it.
NOT_STORED_S: Final = 15.0


class SilenceWatch:
    """Takes treatments back that nobody looks at; for a process that runs beside the endpoints, such as the agent.

    Args:
        workspace: Where endpoints and records are.
        checks: What it remembers: whoever calls begins its rounds there, and finds there what has failed.
    """

    def __init__(self, workspace: Workspace, checks: SilenceChecks) -> None:
        self._workspace = workspace
        self._checks = checks

    async def look_after(self, target: Target, newest: Revision, *, progress: Progress) -> None:
        """Check one endpoint, and take its treatment back if nobody has looked at it for as long as its rollout says.

        To be called every few seconds for each endpoint with a rollout, one call at a time for each. After a try that
        failed it waits ever longer, up to a minute, before it tries again.

        Args:
            target: Where the endpoint is, open.
            newest: Its newest revision.
            progress: Called with a sentence when something is done.

        Raises:
            ControlledRolloutError: The target does not answer, or the treatment could not be taken back: call again.
        """
        name = newest.endpoint.name
        if unattended_rollout(newest.endpoint) is None:
            self._checks.forget(name)
            return
        order = self._checks.check(newest, await target.last_look(name))
        if order is None:
            return
        try:
            await take_back(self._workspace, target, order, progress=progress)
        except NothingToDoError as error:
            progress(str(error))
        except Exception as error:  # whatever it is: the next try waits, and people are told
            self._checks.note_end(order, str(error) or type(error).__name__)
            raise


async def take_back(
    workspace: Workspace,
    target: Target,
    order: TakeBack,
    *,
    timeout: timedelta | None = None,
    progress: Progress = print,
) -> Endpoint:
    """Set a treatment to 0 % that nobody has looked at, and release the endpoint, as `roll_back` does.

    Args:
        workspace: Where the record is.
        target: Where the endpoint is, open.
        order: What is to be taken back, and what that was decided on.
        timeout: How long to go on trying until the router confirms it; None for as long as any roll-back. What cannot
            even be stored is not tried for longer than `NOT_STORED_S`.
        progress: Called with a sentence when something changes, and after each try.

    Returns:
        The endpoint as stored.

    Raises:
        NothingToDoError: Somebody has looked, held, shifted or ended the rollout meanwhile.
        ConflictError: Another run has taken the endpoint meanwhile.
        DeploymentError: The router did not confirm the split until the time was over.
        ControlledRolloutError: It could not be stored: call again.
    """
    name, version = order.endpoint, order.rollout.version

    async def permit(history: Sequence[Revision]) -> None:
        """Raise NothingToDoError if there is a newer sign that somebody is there than what was decided on."""
        if history[-1].change.who == ON_SILENCE and history[-1].number == order.revision + 1:
            return  # this very step has stored it, and did not come to its end
        if not order.is_right(Signs(history[-1], await target.last_look(name))):
            raise NothingToDoError(f"{version!r} of endpoint {name!r} is not taken back: somebody has looked meanwhile")

    step = replace(rollback_step(version, owner=order.rollout.owner), permit=permit, is_look=False)
    change = Change(who=ON_SILENCE, reason=order.reason)

    async def attempt(limit: timedelta) -> Endpoint:
        """Take the step once; wait for the router no longer than `limit`."""
        try:
            # Before anything is scaled; the step asks again for the revision that it changes.
            await permit(await target.history(name))
        except EndpointNotFoundError as error:
            raise NothingToDoError(f"{version!r} is not taken back: {error}") from error
        return await run_step(step, workspace, target, name, change=change, timeout=limit, progress=progress)

    timeout, began_s = ROLL_BACK_TIMEOUT if timeout is None else timeout, time.monotonic()

    def goes_on(error: Exception) -> bool:
        """Return whether to try again: for as long as any roll-back once the router is to serve it, else not for long.

        Who calls this tries again by itself, and in between it tells people why the treatment keeps its traffic.
        """
        is_stored = isinstance(error, RouterTimeoutError)
        return is_stored or (may_pass(error) and time.monotonic() - began_s < NOT_STORED_S)

    return await try_until_done(attempt, timeout=timeout, progress=progress, done="taken back", try_again_after=goes_on)


async def _take_back_local(arguments: dict[str, Any]) -> None:
    """Take back what a local supervisor has found."""
    workspace = Workspace.from_settings({key: value for key, value in arguments["workspace"].items() if value})
    async with connect(workspace) as target:
        await take_back(workspace, target, TakeBack.model_validate(arguments["take_back"]))


def main(arguments: dict[str, Any]) -> int:
    """Run one roll-back for a local supervisor; return the exit code.

    Args:
        arguments: `workspace` (its settings) and `take_back` (what is to be taken back).
    """
    try:
        asyncio.run(_take_back_local(arguments))
    except NothingToDoError as error:
        print(error)  # noqa: T201 - into the supervisor's log
    except ControlledRolloutError as error:
        # One line, by whose start the supervisor finds it.
        reason = "; ".join(str(error).splitlines())
        print(f"endpoint {arguments['take_back']['endpoint']}: {reason}", file=sys.stderr)  # noqa: T201 - as above
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
