"""Which version gets which share now: pure decisions, from what is wanted and what is ready."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from controlled_rollout.endpoint import Endpoint

__all__ = ["Split", "split"]


@dataclass(frozen=True, slots=True)
class Split:
    """What the router is to serve for one endpoint.

    Attributes:
        weights: Parts of a million by version; they add up to a million, or there are none.
        complete: Whether this is the split that the endpoint asks for.
    """

    weights: dict[str, int]
    complete: bool


def split(endpoint: Endpoint, *, proven: Collection[str], served: Mapping[str, int]) -> Split:
    """Return the split to serve while not every version may be ready yet.

    A version gets its share only once it has been ready in its full size; until then the default serves it. From then
    on it keeps its share whatever happens to its replicas: a version that fails must be seen to fail. While a new
    default is not ready, what is served stays as it is.

    Args:
        endpoint: What is wanted.
        proven: Versions that have been ready in full size.
        served: The weights that the router serves now, by version; empty if it serves nothing for this endpoint.
    """
    wanted = endpoint.weights()
    default = endpoint.default
    if default is None:
        return Split({}, complete=True)
    unproven = {name for name, weight in wanted.items() if weight and name not in proven}
    if not unproven:
        return Split(wanted, complete=True)
    if default.name not in proven:
        return Split(dict(served) or {default.name: sum(wanted.values())}, complete=False)
    held_back = sum(wanted[name] for name in unproven)
    weights = {name: 0 if name in unproven else weight for name, weight in wanted.items()}
    weights[default.name] += held_back
    return Split(weights, complete=False)
