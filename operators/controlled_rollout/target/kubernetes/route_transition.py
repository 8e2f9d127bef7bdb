"""What to do next for an endpoint, and how far things are: pure decisions from what the cluster says."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from controlled_rollout.cluster.api import FIELD_MANAGER, Object
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.target.kubernetes import route as routes
from controlled_rollout.target.kubernetes.names import version_object
from controlled_rollout.target.kubernetes.phases import Phase, RouteState, next_weights
from controlled_rollout.target.kubernetes.route import Mark, Served
from controlled_rollout.target.transition import Split

__all__ = [
    "CONTROLLER",
    "DIGEST",
    "Ack",
    "acknowledged",
    "changed_by_hand",
    "disagreement",
    "needs_policy",
    "next_rules",
    "services",
]

CONTROLLER: Final = "gateway.envoyproxy.io/gatewayclass-controller"
DIGEST: Final = "controlled-rollout/rules-digest"
# What a Gateway says of a route that it will never take: no waiting helps.
REFUSALS: Final = ("NotAllowedByListeners", "NoMatchingParent", "NoMatchingListenerHostname", "UnsupportedValue")


@dataclass(frozen=True)
class Ack:
    """What the gateway's controller says of an object, as it is now.

    Attributes:
        done: It has taken the newest generation over.
        why: Otherwise, what it waits for or what is wrong.
        refused: It never will.
    """

    done: bool
    why: str | None = None
    refused: bool = False


def services(versions: Collection[str], endpoint: str) -> dict[str, str]:
    """Return the versions by the names of their Services."""
    return {version_object(endpoint, version): version for version in versions}


def next_rules(
    endpoint: Endpoint,
    current: Sequence[Object],
    goal: Split,
    *,
    serving: Served | None,
    available: Collection[str],
    connected: Collection[str],
    confirmed: bool,
) -> dict[str, Object]:
    """Return the rules that the route should have next, by key, on the way to a split.

    A version can be reached by its name from the moment that it has a replica, for good.

    Args:
        endpoint: The newest revision.
        current: The route's present rules.
        goal: The split that may be served.
        serving: What our rules among the present ones say; None if there are none.
        available: The versions that have a replica.
        connected: The versions of which every Envoy has a replica in the cluster that shares the traffic.
        confirmed: Every Envoy serves the present rules.
    """
    before = serving or Served(Mark(0, Phase.CLOSED))
    phase, weights = next_weights(RouteState(before.weights, before.mark.phase, confirmed, connected, goal))
    reachable = [name for name in endpoint.versions if name in available or name in before.reachable]
    mark = _next_mark(endpoint.revision, phase, weights, goal, before=before, confirmed=confirmed)
    return routes.rules(endpoint, current, weights=weights, reachable=reachable, mark=mark)


def _next_mark(
    revision: int, phase: Phase, weights: Mapping[str, int], goal: Split, *, before: Served, confirmed: bool
) -> Mark:
    """Return the present mark if split and revision stay what they are; else one that no rules had before."""
    mark = before.mark
    default = mark.default if phase is Phase.ENTERING else goal.default
    if (mark.revision, mark.phase, mark.default) == (revision, phase, default) and _some(weights) == _some(
        before.weights
    ):
        return mark
    step = mark.step + 1 if mark.revision == revision else 0
    if phase is Phase.CLOSED:
        return Mark(revision, phase, step)
    is_served = confirmed and mark.phase is Phase.WHOLE
    served_revision = mark.revision if is_served else mark.served_revision
    return Mark(revision, phase, step, served_revision, default)


def _some(weights: Mapping[str, int]) -> dict[str, int]:
    return {version: weight for version, weight in weights.items() if weight}


def disagreement(weights: Mapping[str, int], counted: Mapping[str, int]) -> str | None:
    """Say how requests that the Envoys have counted contradict the split; None where they do not.

    Six standard deviations of a fair draw, and three requests: a split that is as it was set is called wrong less than
    once in a hundred million times.

    Args:
        weights: Parts of a million by version.
        counted: Requests by version, over the same time.
    """
    total, whole = sum(counted.values()), sum(weights.values())
    for version, weight in weights.items():
        share = weight / whole if whole else 0.0
        found, expected = counted.get(version, 0), total * share
        if abs(found - expected) > 6 * math.sqrt(total * share * (1 - share)) + 3:
            return (
                f"the Envoys have sent {found} of {total} requests to version {version!r}, and by the split that they "
                f"were given it should be about {expected:.0f}"
            )
    return None


def acknowledged(found: Object | None, parents: str, *, gateway: tuple[str, str], conditions: Sequence[str]) -> Ack:
    """Return what the controller says of a route (`parents`) or a policy (`ancestors`) of ours.

    Args:
        found: The object, with its status.
        parents: Where in the status the controllers' words are.
        gateway: Namespace and name of the Gateway.
        conditions: The types that have to be true.
    """
    if found is None:
        return Ack(False, "it is not there yet")
    kind, name = found["kind"], found["metadata"]["name"]
    said = []
    for parent in (found.get("status") or {}).get(parents) or []:
        reference = parent.get("parentRef") or parent.get("ancestorRef") or {}
        namespace = reference.get("namespace", found["metadata"]["namespace"])
        if (namespace, reference.get("name")) == gateway and parent.get("controllerName") == CONTROLLER:
            said.append({one["type"]: one for one in parent.get("conditions") or []})
    if not said:
        return Ack(False, f"Envoy Gateway has not said anything of {kind} {name} yet")
    for of_parent in said:
        for kind_of in conditions:
            condition = of_parent.get(kind_of)
            if condition is None or condition.get("observedGeneration", 0) < found["metadata"]["generation"]:
                return Ack(False, f"Envoy Gateway has not looked at the newest {kind} {name} yet")
            if condition["status"] != "True":
                why = f"Envoy Gateway says of {kind} {name}: {condition.get('reason')}: {condition.get('message')}"
                return Ack(False, why, refused=condition.get("reason") in REFUSALS)
    return Ack(True)


def needs_policy(endpoint: Endpoint) -> bool:
    """Whether callers have to show something before they are let in."""
    return endpoint.auth is not Auth.NONE


def changed_by_hand(found: Object | None) -> str | None:
    """Say who has changed our rules in a route; None if nobody has.

    Rules that are all gone are no change of that kind: they are written again.
    """
    if found is None or not routes.ours(found["spec"].get("rules") or []):
        return None
    noted = (found["metadata"].get("annotations") or {}).get(DIGEST)
    if noted is None or noted == routes.digest(found["spec"]["rules"]):
        return None
    name = f"{found['metadata']['namespace']}/{found['metadata']['name']}"
    writers = [
        entry
        for entry in found["metadata"].get("managedFields") or []
        if "f:spec" in (entry.get("fieldsV1") or {}) and not entry.get("subresource")
    ]
    # Times are whole seconds: within one, somebody else is the likelier one.
    newest = max(writers, key=lambda entry: (entry.get("time", ""), entry["manager"] != FIELD_MANAGER), default=None)
    who = f"{newest['manager']!r} at {newest.get('time')}" if newest else "somebody"
    return (
        f"the rules of HTTPRoute {name} whose names begin with {routes.PREFIX!r} are not as they were made: {who} has "
        f"changed the route last; put them back, or delete them all from the route: then they are made anew"
    )
