"""The phases by which a route comes from one split to another without losing a request: a table of states. Pure.

`transition.allowed_split` says which split may be served: the goal. Envoy Gateway cannot go there at once: it makes a
cluster only for a backend with a weight, and Envoy may follow a route before it has the cluster, or lose a cluster
before it has left the route. So a version enters and leaves with one request in a million, and no weight jumps from or
to 0 while somebody is served (docs/adr/0006).

The state is the first of this table whose entry condition holds; it is left when an earlier one's holds, or its own no
longer does.

| state    | entered when                       | weights on the route         | left when                      |
|----------|------------------------------------|------------------------------|--------------------------------|
| CLOSED   | the goal is no split at all        | none: the router answers 503 | the goal is a split            |
| ENTERING | a version is to get a share and    | the present ones, what goes  | every Envoy serves these rules |
|          | has none, while others are served  | down already down, the rest  | and has a replica of each      |
|          |                                    | to the served default; 1 for |                                |
|          |                                    | every version that enters    |                                |
| LEAVING  | a version is to lose all its share | the goal's, and 1 for every  | every Envoy serves these rules |
|          |                                    | version that leaves          |                                |
| PARTIAL  | a version has to become ready      | the goal's                   | the goal changes               |
|          | before it gets its new share       |                              |                                |
| WHOLE    | the goal is the revision's split   | the goal's                   | there is a new revision        |

A deleted version's workload is deleted in PARTIAL or WHOLE, once every Envoy serves these rules: only then no router
refers to it any more.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from controlled_rollout.target.transition import Split

__all__ = ["SETTLED", "Phase", "RouteState", "next_weights", "shares"]

# Parts of a million that a version has while it enters or leaves.
MINIMAL: Final = 1

Weights = Mapping[str, int]


class Phase(StrEnum):
    """How far a route is on its way to a split; see the table of the module."""

    CLOSED = "closed"
    ENTERING = "entering"
    LEAVING = "leaving"
    PARTIAL = "partial"
    WHOLE = "whole"


# The phases in which no version has the minimal weight only because it enters or leaves.
SETTLED: Final = frozenset({Phase.CLOSED, Phase.PARTIAL, Phase.WHOLE})


@dataclass(frozen=True)
class RouteState:
    """Everything that decides on the next phase.

    Attributes:
        weights: The present weights on the route, by version; empty while the endpoint is closed.
        phase: The present phase.
        confirmed: Every Envoy serves the present rules.
        connected: The versions of which every Envoy has a replica in the cluster that shares the traffic.
        goal: The split that may be served.
        default: The version that takes the rest on the route now; None for none.
    """

    weights: Weights
    phase: Phase
    confirmed: bool
    connected: Collection[str]
    goal: Split
    default: str | None = None

    @property
    def entering(self) -> list[str]:
        """The versions that are to get a share and have no more than the minimal weight now."""
        served = shares(self.weights, self.phase)
        if not served:
            return []  # nobody is served: there is no request to lose
        return [
            version
            for version, weight in self.goal.weights.items()
            if weight and version not in served and not (self.confirmed and version in self.connected)
        ]

    @property
    def leaving(self) -> list[str]:
        """The versions that are to lose their whole share and have more than the minimal weight on some Envoy."""
        return [
            version
            for version, weight in self.weights.items()
            if weight and not self.goal.weights.get(version) and not (self.confirmed and weight == MINIMAL)
        ]


class _State(NamedTuple):
    """A row of the table: the phase, its entry condition and its weights."""

    phase: Phase
    is_entered: Callable[[RouteState], bool]
    weights: Callable[[RouteState], Weights]


_STATES: Final = (
    _State(Phase.CLOSED, lambda now: not (now.goal.weights or now.goal.complete), lambda now: {}),
    _State(
        Phase.ENTERING,
        lambda now: bool(now.entering),
        lambda now: {
            **dict.fromkeys(now.goal.weights, 0),
            **_with_lowered_weights(now),
            **dict.fromkeys(now.entering, MINIMAL),
        },
    ),
    _State(
        Phase.LEAVING,
        lambda now: bool(now.leaving),
        lambda now: {**now.goal.weights, **dict.fromkeys(now.leaving, MINIMAL)},
    ),
    _State(Phase.PARTIAL, lambda now: not now.goal.complete, lambda now: now.goal.weights),
    _State(Phase.WHOLE, lambda now: now.goal.complete, lambda now: now.goal.weights),
)


def _with_lowered_weights(now: RouteState) -> dict[str, int]:
    """Return the present weights with what goes down at its goal already: a roll-back waits for no other version.

    The served default takes what that sets free. Without one that has a share, all stays as it is.
    """
    served = shares(now.weights, now.phase)
    if now.default is None or now.default not in served:
        return dict(now.weights)
    lowered = {
        version: max(MINIMAL, min(weight, now.goal.weights.get(version, 0)))
        for version, weight in served.items()
        if version != now.default
    }
    free = sum(served[version] - weight for version, weight in lowered.items())
    return {**now.weights, **lowered, now.default: served[now.default] + free}


def next_weights(now: RouteState) -> tuple[Phase, dict[str, int]]:
    """Return the phase that the route should be in next, which may be the present one, and the phase's weights."""
    state = next(state for state in _STATES if state.is_entered(now))
    return state.phase, dict(state.weights(now))


def shares(weights: Weights, phase: Phase) -> dict[str, int]:
    """Return the weights that are real shares, without the minimal weights of versions that enter."""
    least = MINIMAL + 1 if phase is Phase.ENTERING else 1
    return {version: weight for version, weight in weights.items() if weight >= least}
