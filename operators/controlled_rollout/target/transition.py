"""Which version may have which share of the traffic now: one pure decision, for every target.

A new revision says how the traffic is to be split. Until all its versions are ready, the router serves the nearest
split that sends no additional request to a version that is not ready. A target calls `allowed_split` whenever a
version's readiness, the revision or what the router serves has changed, and makes the router serve the result.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from controlled_rollout.endpoint import WEIGHT_TOTAL, Endpoint

__all__ = ["CLOSED", "Split", "allowed_split", "sends_more"]


@dataclass(frozen=True, slots=True)
class Split:
    """How the requests of one endpoint are shared among its versions.

    Attributes:
        weights: Parts of a million by version. They add up to a million, or there are none: then the router itself
            answers every request with 503.
        default: The version that takes what no other version has; None if there are no weights.
        waits_for: The versions that have to become ready before they get their share of the revision.
        complete: Whether this is the split that the revision asks for.
        revision: The revision that it was decided for.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    default: str | None = None
    waits_for: tuple[str, ...] = ()
    complete: bool = False
    revision: int = 0

    @property
    def waiting_for(self) -> str | None:
        """A sentence for people on what keeps the split from being complete; None if no version does."""
        if not self.waits_for:
            return None
        versions = ", ".join(map(repr, self.waits_for))
        unready = f"version {versions} is" if len(self.waits_for) == 1 else f"versions {versions} are"
        meanwhile = "all requests are answered 503"
        if self.default:
            meanwhile = f"{self.default!r} serves the rest of the traffic"
            if self.default in self.waits_for and not self.weights[self.default]:
                meanwhile = "the other versions keep their traffic"
        return f"{unready} not ready: {meanwhile} meanwhile"


CLOSED: Final = Split()


def allowed_split(
    endpoint: Endpoint, *, served: Split, ready: Collection[str], live: Collection[str], closed: bool = False
) -> Split:
    """Return the split that may be served now: the nearest to the newest revision's that the versions allow.

    | version                                   | its share                                                         |
    |-------------------------------------------|-------------------------------------------------------------------|
    | ready                                     | what the revision asks for                                        |
    | not ready, and its share grows            | what it has: a version without a share gets none                  |
    | not ready, and its share stays or shrinks | what the revision asks for: a failing version must be seen to     |
    |                                           | fail, and going back must never wait                              |
    | deleted                                   | none, unless it is the default that is served until its successor |
    |                                           | is ready                                                          |
    | the default                               | the rest, whatever becomes of its replicas                        |
    | the default, without share and replica    | none: the versions that are to get less keep what it cannot take  |

    A new default replaces the served one when it is ready, or needs no more than it has, or has a replica while the
    served one has none. Until then the served default takes the rest, also of a revision that has deleted it. While no
    split is served, the endpoint stays closed until the default has a replica.

    Args:
        endpoint: The newest revision.
        served: The split that the router serves now, deleted versions included; `CLOSED` if it serves none.
        ready: The versions of which every replica answers the router.
        live: The versions of which at least one replica answers the router.
        closed: Whether the endpoint has to be closed, because the router does not check callers' keys yet.
    """
    wanted = endpoint.weight_ppm()
    if endpoint.default is None:
        return Split(complete=True, revision=endpoint.revision)
    if closed:
        return Split(revision=endpoint.revision)
    # What each version may have if it is not the default.
    allowed = {
        name: weight if name in ready else min(weight, served.weights.get(name, 0)) for name, weight in wanted.items()
    }
    default = _default_to_serve(endpoint.default.name, allowed, served=served, ready=ready, live=live)
    if default is None:
        waits_for = tuple(name for name, weight in wanted.items() if weight and name not in ready)
        return Split(waits_for=waits_for, revision=endpoint.revision)
    rest = _remaining_weight(default, allowed)
    if rest and default not in live and served.weights and not served.weights.get(default):
        allowed, rest = _kept_by_others(default, allowed, served=served, rest=rest), 0
    # An order that does not depend on what was served before.
    weights = {name: rest if name == default else weight for name, weight in allowed.items()} | {default: rest}
    waits_for = tuple(name for name, weight in wanted.items() if weights[name] < weight)
    return Split(weights, default, waits_for, complete=not waits_for, revision=endpoint.revision)


def _kept_by_others(default: str, allowed: Mapping[str, int], *, served: Split, rest: int) -> dict[str, int]:
    """Return the others' shares while the default can take nothing: who is to get less keeps what it would have got."""
    kept = dict(allowed)
    for name, had in served.weights.items():
        more = min(rest, max(0, had - kept.get(name, 0))) if name != default else 0
        if more:
            kept[name] = kept.get(name, 0) + more
            rest -= more
    return kept


def sends_more(before: Endpoint, after: Endpoint) -> bool:
    """Return whether a change takes a rollout forward: a version is new, becomes the default, or gets a bigger share.

    All else goes back to the default, or only takes away: that may never be refused.

    Args:
        before: The newest revision.
        after: The endpoint as it is to be.
    """
    weights, more = before.weight_ppm(), after.weight_ppm()
    grown = {name for name, weight in more.items() if weight > weights.get(name, 0)}
    default = before.default if before.default and before.default.name in after.versions else after.default
    if default is None:
        return False
    is_replaced = after.default is not None and after.default.name != default.name
    return is_replaced or bool(grown - {default.name}) or bool(set(after.versions) - set(before.versions))


def _default_to_serve(
    new: str, allowed: Mapping[str, int], *, served: Split, ready: Collection[str], live: Collection[str]
) -> str | None:
    """Return the version that gets the remaining traffic; None if the endpoint stays closed."""
    may_replace = (
        new == served.default
        or new in ready
        or _remaining_weight(new, allowed) <= served.weights.get(new, 0)
        or (new in live and served.default not in live)
    )
    return new if may_replace else served.default


def _remaining_weight(default: str, allowed: Mapping[str, int]) -> int:
    """Return the parts of a million that the default gets: what the other versions do not have."""
    return WEIGHT_TOTAL - sum(weight for name, weight in allowed.items() if name != default)
