"""What a waiting step does, for endpoints that nobody waits for: drift is repaired, half-done changes are ended."""

import asyncio
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from controlled_rollout.agent.namespace_state import NamespaceState
from controlled_rollout.cluster.api import Api
from controlled_rollout.cluster.kinds import DEPLOYMENT
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.target.kubernetes import provisioning
from controlled_rollout.target.kubernetes.drift import Drift
from controlled_rollout.target.kubernetes.names import endpoint_object_name
from controlled_rollout.target.kubernetes.reconciling import idle_since
from controlled_rollout.target.kubernetes.target import KubernetesTarget
from controlled_rollout.target.protocol import EndpointStatus
from controlled_rollout.workspace import Workspace

__all__ = ["Repair", "is_settled", "repairable"]

log = logging.getLogger(__name__)

INTERVAL_S: Final = 1.0
# Every endpoint is looked at so often even if nothing is known to have changed.
LOOK_INTERVAL_S: Final = 300.0
# How soon after a look an endpoint is looked at again, and how long one is watched at a time.
PAUSE_S: Final = 15.0
WATCH_S: Final = 120.0
# Endpoints that are looked at or watched at the same time.
AT_ONCE: Final = 2


@dataclass
class _Looked:
    """When an endpoint was looked at last, by the agent's clock.

    Attributes:
        at_s: The time in seconds.
        pause_s: How long it is left alone then, if something is known to be wrong with it.
        revision: The number of the revision that was the newest.
    """

    at_s: float
    pause_s: float = PAUSE_S
    revision: int = 0

    def pause_for(self, revision: int) -> float:
        """Return how long the endpoint is left alone: for a new revision, what was in vain before may not be now."""
        return self.pause_s if revision == self.revision else PAUSE_S


class Repair:
    """Looks after the endpoints of a namespace while it runs.

    Args:
        api: The cluster.
        workspace: The workspace of the namespace.
        state: What is known of the namespace, kept up to date by others.
        changed: The endpoints of which somebody has deleted or edited an object since they were looked at.
    """

    def __init__(self, api: Api, workspace: Workspace, state: NamespaceState, changed: set[str]) -> None:
        self._api = api
        self._workspace = workspace
        self._state = state
        self._changed = changed
        self._looked: dict[str, _Looked] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Look after the endpoints until this is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._running = {name: task for name, task in self._running.items() if not task.done()}
                for name in self._due_endpoints(time.monotonic()):
                    if len(self._running) < AT_ONCE:
                        self._running[name] = tasks.create_task(self._repair_and_schedule(name))
                await asyncio.sleep(INTERVAL_S)

    def _due_endpoints(self, now_s: float) -> list[str]:
        """Return the endpoints that are to be looked at now, those that wait longest first."""
        due: dict[str, float] = {}
        self._looked = {name: looked for name, looked in self._looked.items() if name in self._state.revisions}
        self._changed.intersection_update(self._state.revisions)
        for name, revision in self._state.revisions.items():
            # Nobody is known to be gone when an agent starts: the endpoints come one after the other.
            looked = self._looked.setdefault(name, _Looked(now_s - LOOK_INTERVAL_S + 2 * len(self._looked)))
            pause_s = looked.pause_for(revision.number) if self._state.is_half_done(name) else LOOK_INTERVAL_S
            if name in self._changed:
                # Something new, as a new revision is.
                pause_s = PAUSE_S
            if name not in self._running and now_s - looked.at_s >= pause_s:
                due[name] = looked.at_s
        return sorted(due, key=due.__getitem__)

    async def _repair_and_schedule(self, name: str) -> None:
        """Repair an endpoint once, and note when it is due again."""
        self._changed.discard(name)
        if (newest := self._state.revisions.get(name)) is None:
            return
        pause_s = self._looked[name].pause_for(newest.number)
        is_settled_now: bool | None
        try:
            is_settled_now = await self._repair(name)
        except (ControlledRolloutError, TimeoutError) as error:
            log.warning("endpoint %s could not be repaired: %s", name, error)
            is_settled_now = False
        except Exception:  # whatever it is: it must not keep the agent from the other endpoints
            log.exception("endpoint %s could not be repaired", name)
            is_settled_now = False
        if is_settled_now:
            pause_s = PAUSE_S
        elif is_settled_now is not None:
            # What waiting does not mend is not to keep the cluster busy.
            pause_s = min(2 * pause_s, LOOK_INTERVAL_S)
        self._looked[name] = _Looked(time.monotonic(), pause_s, newest.number)

    async def _repair(self, name: str) -> bool | None:
        """Repair and reconcile an endpoint once; return whether all is as its newest revision asks for.

        Returns:
            None while a step is at work on it, or this agent's own watch was a moment ago.
        """
        revision, root = self._state.revisions[name], self._state.roots.get(endpoint_object_name(name))
        if root is not None and "deletionTimestamp" in root["metadata"]:
            return True
        if self._state.is_half_done(name):
            if idle_since(root, revision, datetime.now(UTC)) is None:
                return None
            log.info("endpoint %s: revision %d is not served, and no step is at work on it", name, revision.number)
            return await self._reconcile_until_settled(name)
        drift = await provisioning.find_drift(self._api, self._workspace, revision.endpoint)
        for difference in drift:
            log.warning("endpoint %s: %s", name, difference)
        if drift and not repairable(drift):
            log.warning("endpoint %s: the agent repairs nothing there; give it the settings that its steps have", name)
        return await self._reconcile_until_settled(name) if repairable(drift) else True

    async def _reconcile_until_settled(self, name: str) -> bool:
        """Watch an endpoint and reconcile it meanwhile, for a bounded time; return whether it has settled."""
        target = KubernetesTarget(self._workspace, self._api)
        try:
            async with asyncio.timeout(WATCH_S), aclosing(target.watch(name, reconcile=True)) as statuses:
                async for status in statuses:
                    if is_settled(status) or status.trouble:
                        return is_settled(status)
        except TimeoutError:
            log.info("endpoint %s: revision is still not served; it is looked at again later", name)
        return False


def is_settled(status: EndpointStatus) -> bool:
    """Return whether the newest revision is served as a whole. Pure."""
    return status.served_revision >= status.revision


def repairable(drift: list[Drift]) -> list[Drift]:
    """Return what is to be repaired of what was found. Pure.

    Nothing, if a Deployment differs that nobody else is known to have written: a step with other settings, or of
    another release, than the agent has made it. To write it again would restart all replicas, and the next step would
    do so once more.
    """
    if any(one.is_unattributed and one.subject.startswith(f"{DEPLOYMENT.name} ") for one in drift):
        return []
    return [one for one in drift if not one.is_left]
