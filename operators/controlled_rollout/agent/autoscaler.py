"""The autoscaler of a namespace's versions: each second one reading of every Envoy, and a change where it is due."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from controlled_rollout.agent.namespace_state import NamespaceState, ObservedDeployment, observed_deployment
from controlled_rollout.agent.scaling import Scaling, scalings
from controlled_rollout.autoscaling import History
from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import DEPLOYMENT, HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT, Kind
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.target.kubernetes import envoy_stats
from controlled_rollout.target.kubernetes.annotations import NOT_SCALED, SCALED
from controlled_rollout.target.kubernetes.envoy_stats import GatewayStats
from controlled_rollout.target.kubernetes.scaling import SCALE_MANAGER
from controlled_rollout.workspace import Workspace

__all__ = ["Autoscaler", "targets_of"]

log = logging.getLogger(__name__)

INTERVAL_S: Final = 1.0
# How long an Envoy may take to say its counters.
COUNTERS_TIMEOUT_S: Final = 3.0
# How often autoscalers of others are looked for.
OTHERS_INTERVAL_S: Final = 5.0


class Autoscaler:
    """Scales the versions of a namespace while it runs; remembers nothing that a new one would need.

    Args:
        api: The cluster.
        workspace: The workspace of the namespace.
        state: What is known of the namespace, kept up to date by others.
        is_current: Says whether it is up to date.
    """

    def __init__(self, api: Api, workspace: Workspace, state: NamespaceState, is_current: Callable[[], bool]) -> None:
        self._api = api
        self._workspace = workspace
        self._state = state
        self._is_current = is_current
        self._histories: dict[str, History] = {}
        self._complaint = ""

    async def run(self) -> None:
        """Scale each second until this is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_foreign_autoscalers())
            while True:
                begun_s = time.monotonic()
                await self.step()
                await asyncio.sleep(max(0.0, begun_s + INTERVAL_S - time.monotonic()))

    async def step(self) -> None:
        """Read the counters once, and change the number of replicas of each version for which that is due."""
        if not self._is_current():
            return
        counters = await self._read_envoy_counters() if self._has_work() else None
        due = scalings(self._state, counters, self._histories, now=time.time(), now_s=time.monotonic())
        for scaling in due:
            if scaling.replicas != scaling.deployment.replicas or scaling.note != scaling.deployment.note:
                try:
                    await self._carry_out(scaling)
                except ControlledRolloutError as error:
                    self._log_once(f"Deployment {scaling.deployment.name} was not scaled: {error}")

    def _has_work(self) -> bool:
        """Return whether any version is scaled by its load."""
        return any(
            version.autoscale_enabled
            for revision in self._state.revisions.values()
            for version in revision.endpoint.versions.values()
        )

    async def _read_envoy_counters(self) -> GatewayStats | None:
        """Return the counters of every Envoy that is ready; None if one of them cannot be read."""
        try:
            async with asyncio.timeout(COUNTERS_TIMEOUT_S):
                return await envoy_stats.read_in_flight(self._api, self._workspace, self._state.ready_envoys())
        except (ControlledRolloutError, TimeoutError) as error:
            self._log_once(f"the Envoys' counters cannot be read, replicas stay as they are: {error or 'no answer'}")
            return None

    async def _carry_out(self, scaling: Scaling) -> None:
        """Set a version's number of replicas and say why at its Deployment, or say why it is left alone.

        Nothing is changed if the Deployment is no longer as it was seen: the next second sees what it is then.
        """
        deployment = scaling.deployment
        namespace, name = self._workspace.namespace, deployment.name
        annotations: dict[str, str | None] = {NOT_SCALED: scaling.note or None}
        if scaling.replicas != deployment.replicas:
            body: Object = {
                "metadata": {"resourceVersion": deployment.resource_version},
                "spec": {"replicas": scaling.replicas},
            }
            try:
                scale = await self._api.merge_patch(
                    DEPLOYMENT.path(namespace, name, "scale"), body, manager=SCALE_MANAGER
                )
            except ApiError as error:
                if error.status in (404, 409):
                    return
                raise
            change = f"{deployment.replicas} → {scaling.replicas} replicas: {scaling.reason}"
            log.info("endpoint %s, version %s: %s", deployment.endpoint, deployment.version, change)
            annotations[SCALED] = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {change}"
            version = scale["metadata"]["resourceVersion"]
            scaled = replace(
                deployment,
                replicas=scaling.replicas,
                resource_version=version,
                # So that the watch, which tells of it later, does not tell of an edit.
                generation=deployment.generation + 1,
            )
            self._note_change(deployment, scaled)
            deployment = scaled
        elif scaling.note:
            log.info("endpoint %s, version %s is left alone: %s", deployment.endpoint, deployment.version, scaling.note)
        path = DEPLOYMENT.path(namespace, name)
        noted = await self._api.merge_patch(path, {"metadata": {"annotations": annotations}}, manager=SCALE_MANAGER)
        self._note_change(deployment, observed_deployment(noted))

    def _note_change(self, before: ObservedDeployment, after: ObservedDeployment) -> None:
        """Note what a request has made of a Deployment, unless the watch has told of it meanwhile."""
        if self._state.deployments.get(before.name) is before:
            self._state.deployments[before.name] = after

    async def _watch_foreign_autoscalers(self) -> None:
        """Read the autoscalers of others at intervals."""
        while True:
            try:
                self._state.autoscalers = await self._foreign_autoscalers()
            except ControlledRolloutError as error:
                self._log_once(f"whether others scale versions is not known: {error}")
            await asyncio.sleep(OTHERS_INTERVAL_S)

    async def _foreign_autoscalers(self) -> dict[str, str]:
        """Return the autoscalers of others by the names of the Deployments that they scale."""
        found: dict[str, str] = {}
        for kind in (HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT):
            listed = await self._api.find(kind.path(self._workspace.namespace))
            found |= targets_of(kind, (listed or {}).get("items") or [])
        return found

    def _log_once(self, sentence: str) -> None:
        """Log a sentence, unless it was the last one."""
        if sentence != self._complaint:
            self._complaint = sentence
            log.warning("namespace %s: %s", self._workspace.namespace, sentence)


def targets_of(kind: Kind, autoscalers: list[Object]) -> dict[str, str]:
    """Return autoscalers by the names of the Deployments that they scale, as `HorizontalPodAutoscaler 'x'`. Pure.

    Args:
        kind: HorizontalPodAutoscaler, or KEDA's ScaledObject, whose target is a Deployment unless it says otherwise.
        autoscalers: Those of a namespace.
    """
    targets = ((one, (one.get("spec") or {}).get("scaleTargetRef") or {}) for one in autoscalers)
    return {
        target["name"]: f"{kind.name} {one['metadata']['name']!r}"
        for one, target in targets
        if target.get("kind", DEPLOYMENT.name) == DEPLOYMENT.name and "name" in target
    }
