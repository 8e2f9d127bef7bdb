"""What to do next for an endpoint, and how far things are: pure decisions from what the cluster says."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from controlled_rollout.cluster.api import FIELD_MANAGER, Object
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.target.kubernetes import route as routes
from controlled_rollout.target.kubernetes.names import version_object
from controlled_rollout.target.kubernetes.route import Mark, Phase, Served

__all__ = [
    "CONTROLLER",
    "DIGEST",
    "Ack",
    "acknowledged",
    "changed_by_hand",
    "desired",
    "disagreement",
    "needs_policy",
    "next_weights",
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


def desired(
    endpoint: Endpoint,
    current: Sequence[Object],
    *,
    serving: Served | None,
    ready: Collection[str],
    proven: Collection[str],
    live: Collection[str],
    confirmed: bool,
    closed: bool,
) -> dict[str, Object]:
    """Return the rules that the route should have now, by key, while not everything may be ready.

    A version can be reached by its name from the moment that it is ready, and gets a share, or a bigger one, only once
    the router itself sees it ready: until then the split stays as it is. What it has it keeps, whatever happens to its
    replicas: a version that fails must be seen to fail.

    Args:
        endpoint: The newest revision.
        current: The route's present rules.
        serving: What ours among them say; None if there are none.
        ready: The versions whose Deployments are ready.
        proven: The versions that every Envoy sees ready in full size, where they are reached by name.
        live: The versions that every Envoy has a replica for, where the traffic is shared.
        confirmed: Every Envoy serves the present rules.
        closed: Nobody may be let in yet: the policy that asks callers for their keys is not in force.
    """
    before = serving.weights if serving else {}
    known = serving.reachable if serving else frozenset()
    reachable = [name for name in endpoint.versions if name in ready or name in known]
    wanted = endpoint.weights()
    may_move = not closed and all(weight <= before.get(name, 0) or name in proven for name, weight in wanted.items())
    if not may_move and before and not closed and serving is not None:
        # The present split stays, word for word, and so does its mark.
        made = routes.rules(endpoint, current, weights={}, reachable=reachable)
        present = {routes.WEIGHTS: routes.is_weights, routes.UNKNOWN: _carries_mark}
        return made | {key: next(rule for rule in current if is_it(rule)) for key, is_it in present.items()}
    if not may_move:
        return routes.rules(endpoint, current, weights={}, reachable=reachable, phase=Phase.CLOSED)
    phase = serving.mark.phase if serving else Phase.CLOSED
    left = confirmed and serving is not None and serving.mark == Mark(endpoint.revision, Phase.LEAVING)
    weights, phase = next_weights(before, wanted, phase=phase, live=live, left=left)
    return routes.rules(endpoint, current, weights=weights, reachable=reachable, phase=phase)


def next_weights(
    before: Mapping[str, int], wanted: Mapping[str, int], *, phase: Phase, live: Collection[str], left: bool
) -> tuple[dict[str, int], Phase]:
    """Return the split to serve next on the way from one to another, and how far that is; see `Phase`.

    Args:
        before: The present parts of a million by version, those of versions that are deleted too; empty while nobody
            is let in.
        wanted: Those to come to.
        phase: How far the present split is on its way.
        live: The versions that every Envoy has a replica for, where the traffic is shared.
        left: Every Envoy serves the split in which those who lose their share have next to nothing.
    """
    there = {name for name, weight in before.items() if weight > (1 if phase is Phase.ENTERING else 0)}
    entering = [name for name, weight in wanted.items() if weight and name not in there and name not in live]
    if entering and there:
        return {**dict.fromkeys(wanted, 0), **before, **dict.fromkeys(entering, 1)}, Phase.ENTERING
    leaving = [name for name, weight in before.items() if weight and not wanted.get(name)]
    if leaving and not left:
        return {**wanted, **dict.fromkeys(leaving, 1)}, Phase.LEAVING
    return dict(wanted), Phase.WHOLE


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


def _carries_mark(rule: Object) -> bool:
    return routes.mark_of(rule.get("name", "")) is not None


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
