"""Waiting until every Envoy has taken over what Envoy Gateway does not report on, such as the keys of a Secret."""

import asyncio
import time
from typing import Final

from controlled_rollout.cluster.api import Api, ApiError
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import AccessError, ConflictError, TargetUnavailableError
from controlled_rollout.target.kubernetes.reconciling import ATTEMPTS, write_rules
from controlled_rollout.target.kubernetes.route_rules import Mark, rename_mark
from controlled_rollout.target.kubernetes.route_transition import mark_of_same_split
from controlled_rollout.target.kubernetes.watching import read_view
from controlled_rollout.workspace import Workspace

__all__ = ["unconfirmed_after"]

POLL_S: Final = 0.1
# An Envoy's worker threads take a configuration over some milliseconds after its counters show it.
SETTLE_S: Final = 0.2


async def unconfirmed_after(api: Api, workspace: Workspace, endpoint: Endpoint, timeout_s: float) -> str | None:
    """Wait until every Envoy has taken over all that was changed before this call; return None when they have.

    Envoy Gateway makes the configuration of its Envoys from all objects at once. So the present split is written again
    under another mark: an Envoy whose counters have it has taken over the other changes as well.

    Args:
        api: The cluster.
        workspace: Where in it endpoints are.
        endpoint: The newest revision.
        timeout_s: How long to wait, in seconds.

    Returns:
        What is still waited for when the time is over, or what waiting does not help against; None if nothing.
    """
    deadline = time.monotonic() + timeout_s
    mark: Mark | None = None
    while True:
        try:
            mark = mark or await _rename_split(api, workspace, endpoint)
            if mark is None:
                return None  # no rule of any Envoy leads to the endpoint: nobody is let in
            view = await read_view(api, workspace, endpoint)
            if view.has_taken_over(mark):
                await asyncio.sleep(SETTLE_S)
                return None
            reason = view.unconfirmed or f"its rules have not had the mark {mark.rule} since"
        except ConflictError as error:
            return str(error)  # waiting does not help
        except (TargetUnavailableError, AccessError, ApiError) as error:
            reason = str(error)
        if time.monotonic() >= deadline:
            return reason
        await asyncio.sleep(POLL_S)


async def _rename_split(api: Api, workspace: Workspace, endpoint: Endpoint) -> Mark | None:
    """Write the present split under another mark; return it, or None if the route has no rules of ours.

    Raises:
        ConflictError: Somebody has edited the rules, or others change the route all the time.
    """
    for _ in range(ATTEMPTS):
        view = await read_view(api, workspace, endpoint)
        if view.managed is None:
            return None
        if view.hand_edit:
            raise ConflictError(view.hand_edit)
        mark = mark_of_same_split(view.managed.mark, confirmed=view.confirmed)
        if await write_rules(api, workspace, endpoint.name, view.route, rename_mark(view.rules, mark)):
            return mark
    raise ConflictError(f"others changed the HTTPRoute of endpoint {endpoint.name!r} at each of {ATTEMPTS} attempts")
