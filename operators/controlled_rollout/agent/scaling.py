"""What the autoscaler does about each version of a namespace in one second. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from controlled_rollout.agent.namespace_state import NamespaceState, ObservedDeployment, ObservedRoute
from controlled_rollout.autoscaling import History, Reading, decide
from controlled_rollout.sizing import autoscaler_limits
from controlled_rollout.target.counters import Counters
from controlled_rollout.target.kubernetes.envoy_stats import GatewayStats
from controlled_rollout.version import Version

__all__ = ["SETTLING_S", "Scaling", "reading_of", "scalings"]

# Envoys follow a route within moments: until then a cluster's name may still be another version's.
SETTLING_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """What is to be done about one version.

    Attributes:
        deployment: Its Deployment as it was seen.
        replicas: The replicas that it is to have; the present ones to leave it.
        reason: Why.
        note: Why the version is left alone; empty if it is not.
    """

    deployment: ObservedDeployment
    replicas: int
    reason: str = ""
    note: str = ""


def scalings(
    state: NamespaceState,
    stats: GatewayStats | None,
    histories: dict[str, History],
    *,
    now: float,
    now_s: float,
) -> list[Scaling]:
    """Return what is to be done about each version that the autoscaler scales; the histories are brought up to date.

    Args:
        state: What is known of the namespace.
        stats: The counters of every Envoy that is ready; None if one of them could not be read.
        histories: What was read before, by Deployment.
        now: The time in seconds since 1970.
        now_s: The agent's clock, in seconds.
    """
    result: list[Scaling] = []
    if state.autoscalers is None:
        # Two that scale one Deployment would undo each other's work.
        return result
    seen: set[str] = set()
    for deployment in state.deployments.values():
        revision = state.revisions.get(deployment.endpoint)
        version = revision.endpoint.versions.get(deployment.version) if revision else None
        if version is None or deployment.is_leaving:
            continue
        note = _why_not(version, deployment, state.autoscalers)
        if note is None or note:
            histories.pop(deployment.name, None)
            result.append(Scaling(deployment, deployment.replicas, note=note or ""))
            continue
        reading = reading_of(deployment.name, state.routes.get(deployment.endpoint), stats, now_s=now_s)
        decision = decide(
            autoscaler_limits(version),
            reading,
            wanted=deployment.replicas,
            ready=deployment.ready,
            now=now,
            history=histories.get(deployment.name, History()),
            floor=deployment.floor,
        )
        histories[deployment.name] = decision.history
        seen.add(deployment.name)
        result.append(Scaling(deployment, decision.replicas, decision.reason))
    for name in histories.keys() - seen:
        del histories[name]
    return result


def reading_of(
    service: str, route: ObservedRoute | None, stats: GatewayStats | None, *, now_s: float
) -> Reading | None:
    """Return what all Envoys count for a version now; None if that cannot be known.

    Args:
        service: The version's Service.
        route: The endpoint's route.
        stats: The counters of every Envoy; None if one of them could not be read.
        now_s: The agent's clock, in seconds.
    """
    if (
        stats is None
        or not stats.pods
        or route is None
        or not route.is_accepted
        or now_s - route.renamed_s < SETTLING_S
    ):
        return None
    clusters = [cluster for cluster, name in route.clusters.items() if name == service]
    if not clusters:
        # Nobody can call it.
        return Reading(0, 0)
    counted = []
    for envoy in stats.pods.values():
        if not envoy.healthy.keys() >= {*clusters}:
            # It has not loaded the route yet, or has lost the version's last replica.
            return None
        counted += [envoy.clusters.get(cluster, Counters()) for cluster in clusters]
    return Reading(sum(one.active for one in counted), sum(one.waiting for one in counted))


def _why_not(version: Version, deployment: ObservedDeployment, autoscalers: Mapping[str, str]) -> str | None:
    """Return why a version is left alone; empty if it is not, None if its settings say so and nobody need be told."""
    if not version.autoscale_enabled:
        return None
    if (other := autoscalers.get(deployment.name)) is not None:
        return f"{other} scales it, and two autoscalers would undo each other's work: delete it to let the load decide"
    if deployment.replicas and deployment.writer is not None:
        return f"{deployment.writer} has set the number of its replicas, and nobody changes what others have set"
    return ""
