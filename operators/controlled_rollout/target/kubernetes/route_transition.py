"""The rules that an endpoint's route should have next, on the way to a split. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from controlled_rollout.cluster.api import Object
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.kubernetes import route_rules
from controlled_rollout.target.kubernetes.phases import Phase, RouteState, next_weights
from controlled_rollout.target.kubernetes.route_rules import ManagedRules, Mark
from controlled_rollout.target.transition import Split

__all__ = ["mark_of_same_split", "next_rules"]


def next_rules(
    endpoint: Endpoint,
    current: Sequence[Object],
    goal: Split,
    *,
    managed: ManagedRules | None,
    available: Collection[str],
    connected: Collection[str],
    confirmed: bool,
) -> list[Object]:
    """Return all rules that the route should have next; those that are not ours stay as they are.

    A version can be reached by its name from the moment that it has a replica, as long as the endpoint has it.

    Args:
        endpoint: The newest revision.
        current: All present rules of the route.
        goal: The split that may be served.
        managed: What our rules among the present ones say; None if there are none.
        available: The versions that have a replica.
        connected: The versions of which every Envoy has a replica in the cluster that shares the traffic.
        confirmed: Every Envoy serves the present rules.

    Raises:
        EndpointError: There would be more rules than a route may have.
    """
    present = managed or ManagedRules(Mark(0, Phase.CLOSED))
    phase, weights = next_weights(
        RouteState(present.weights, present.mark.phase, confirmed, connected, goal, present.mark.default)
    )
    reachable = [name for name in endpoint.versions if name in available or name in present.reachable]
    mark = _next_mark(endpoint.revision, phase, weights, goal, present=present, confirmed=confirmed)
    rules = route_rules.build_rules(endpoint, current, weights=weights, reachable=reachable, mark=mark)
    return route_rules.merge_rules(current, rules)


def mark_of_same_split(present: Mark, *, confirmed: bool) -> Mark:
    """Return a mark for the present split that no rules have had before.

    An Envoy that has it has taken over all that was changed before it was written, also what is not in the rules.

    Args:
        present: The present mark.
        confirmed: Every Envoy serves the present rules.
    """
    return replace(present, step=present.step + 1, served_revision=_served_revision(present, confirmed=confirmed))


def _next_mark(
    revision: int, phase: Phase, weights: Mapping[str, int], goal: Split, *, present: ManagedRules, confirmed: bool
) -> Mark:
    """Return the present mark if split and revision stay the same, else one that no rules have had before."""
    mark = present.mark
    default = mark.default if phase is Phase.ENTERING else goal.default
    is_same_split = route_rules.positive_weights(weights) == route_rules.positive_weights(present.weights)
    if is_same_split and (mark.revision, mark.phase, mark.default) == (revision, phase, default):
        return mark
    step = mark.step + 1 if mark.revision == revision else 0
    if phase is Phase.CLOSED:
        return Mark(revision, phase, step)
    return Mark(revision, phase, step, _served_revision(mark, confirmed=confirmed), default)


def _served_revision(mark: Mark, *, confirmed: bool) -> int:
    """Return the last revision whose whole split every Envoy has served, up to the rules with a mark."""
    return mark.revision if confirmed and mark.phase is Phase.WHOLE else mark.served_revision
