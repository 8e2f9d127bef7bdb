"""Our rules in an endpoint's HTTPRoute, and everybody else's: pure functions on `spec.rules`.

The list of rules is atomic, so it cannot be shared by server-side apply: our rules are known by their names, all others
are kept as they are, and the whole list is patched under the resource version that it was read at.

The rule for unknown versions carries a mark in its name: the revision that all our rules were made from, and how far
they are on the way to its split. It has no backends, so that its name touches no cluster, and its counters have that
name: an Envoy that has them has taken the rules over. So every split has a name of its own, for example
`controlled-rollout-unknown-7-2-entering-5-one`: the third split of revision 7, in the phase `entering`; revision 5 was
the last that was wholly served, and version `one` takes what no other version has.

A place in the list is an identity. Envoy Gateway calls the cluster of a rule's backend by the places of both
(`…/rule/2/backend/1`): a rule or a backend that moved to another place would, for a moment, get the requests of the one
that was there before. So nothing ever moves: what goes leaves a hole, and what comes takes a hole or the end.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from controlled_rollout.cluster.api import Object
from controlled_rollout.cluster.kinds import HTTP_ROUTE_FILTER
from controlled_rollout.endpoint import VERSION_HEADER, Endpoint
from controlled_rollout.errors import EndpointError
from controlled_rollout.target.kubernetes.manifests import ROUTED_BY_HEADER, SERVICE_PORT
from controlled_rollout.target.kubernetes.names import endpoint_object, version_object
from controlled_rollout.target.kubernetes.phases import Phase, shares
from controlled_rollout.target.transition import Split

__all__ = [
    "PREFIX",
    "WEIGHTS",
    "Mark",
    "Served",
    "clusters",
    "digest",
    "is_weights",
    "mark_of",
    "merge",
    "ours",
    "rules",
    "served",
    "without_ours",
]

# Gateway API's own bound.
MOST_RULES: Final = 16
TIMEOUT_MARGIN_MS: Final = 1000

PREFIX: Final = "controlled-rollout-"
WEIGHTS: Final = "weights"
UNKNOWN: Final = "unknown"
FREE: Final = "free"
MARK_NAME: Final = re.compile(rf"{PREFIX}{UNKNOWN}-(\d+)-(\d+)-({'|'.join(Phase)})-(\d+)(?:-(.+))?")


@dataclass(frozen=True)
class Mark:
    """From what our rules were made, and how far they are on the way to the revision's split.

    Attributes:
        revision: The endpoint's revision.
        phase: The phase of the split.
        step: Counts the splits of this revision, so that no two have the same name.
        served_revision: The last revision whose whole split every Envoy served before; 0 for none.
        default: The version that takes what no other version has; None while nobody is let in.
    """

    revision: int
    phase: Phase = Phase.WHOLE
    step: int = 0
    served_revision: int = 0
    default: str | None = None

    @property
    def rule(self) -> str:
        """The name of the rule that carries it."""
        name = f"{PREFIX}{UNKNOWN}-{self.revision}-{self.step}-{self.phase}-{self.served_revision}"
        return f"{name}-{self.default}" if self.default else name

    def stat(self, namespace: str, route: str) -> str:
        """What Envoy calls the counters of that rule."""
        return f"{namespace}/{route}/{self.rule}"


@dataclass(frozen=True)
class Served:
    """What our rules say.

    Attributes:
        mark: From what they were made.
        weights: Parts of a million by version; those without any are in it too.
        reachable: The versions that can be reached by their name.
    """

    mark: Mark
    weights: Mapping[str, int] = field(default_factory=dict)
    reachable: frozenset[str] = frozenset()

    @property
    def split(self) -> Split:
        """The split that is served, without the minimal weights of versions that enter."""
        return Split(shares(self.weights, self.mark.phase), self.mark.default)


def rules(
    endpoint: Endpoint,
    current: Sequence[Object],
    *,
    weights: Mapping[str, int],
    reachable: Iterable[str],
    mark: Mark,
) -> dict[str, Object]:
    """Return our rules for an endpoint's revision, by key.

    Args:
        endpoint: The revision that is to be served.
        current: The route's present rules: backends keep their places.
        weights: Parts of a million by version; empty lets nobody in.
        reachable: The versions that callers can reach by name.
        mark: What the rule for unknown versions is to say.
    """
    made = {WEIGHTS: _weights_rule(endpoint, current, weights)}
    for version in sorted(reachable):
        made[f"version-{version}"] = _version_rule(endpoint, version)
    made[UNKNOWN] = {
        "name": mark.rule,
        "matches": [_match(endpoint.name, {"type": "RegularExpression", "value": ".+"})],
        "filters": [_answer(endpoint.name, UNKNOWN)],
    }
    return made


def merge(current: Sequence[Object], wanted: Mapping[str, Object]) -> list[Object]:
    """Return the route's rules with ours as `wanted` and all others, and all places, as they are.

    Raises:
        EndpointError: There would be more rules than a route may have.
    """
    merged: list[Object | None] = []
    missing = dict(wanted)
    for rule in current:
        key = _key(rule)
        merged.append(rule if key is None else missing.pop(key, None))
    for key in wanted:
        if key in missing:
            if None in merged:
                merged[merged.index(None)] = missing[key]
            else:
                merged.append(missing[key])
    while merged and merged[-1] is None:
        merged.pop()
    if len(merged) > MOST_RULES:
        others = sum(_key(rule) is None for rule in current)
        raise EndpointError(
            f"the HTTPRoute would have {len(merged)} rules, {others} of them not ours, and may have {MOST_RULES}: move "
            "the others to a route of their own"
        )
    return [rule if rule is not None else _free(place) for place, rule in enumerate(merged)]


def ours(current: Iterable[Object]) -> list[Object]:
    """Return our rules."""
    return [rule for rule in current if _key(rule) is not None]


def without_ours(current: Iterable[Object]) -> list[Object]:
    """Return everybody else's rules."""
    return [rule for rule in current if _key(rule) is None]


def served(current: Iterable[Object], versions: Mapping[str, str]) -> Served | None:
    """Return what our rules say, or None if there are none.

    Args:
        current: The route's rules.
        versions: The versions by the names of their Services.
    """
    found = {key: rule for rule in current if (key := _key(rule)) is not None}
    if WEIGHTS not in found or UNKNOWN not in found:
        return None
    mark = mark_of(found[UNKNOWN]["name"])
    weights: dict[str, int] = {}
    for backend in found[WEIGHTS].get("backendRefs") or []:
        # A free place repeats a backend, with no weight.
        if version := versions.get(backend["name"]):
            weights[version] = weights.get(version, 0) + backend.get("weight", 1)
    reachable = frozenset(version for version in versions.values() if f"version-{version}" in found)
    return Served(mark, weights, reachable) if mark else None


def mark_of(rule: str) -> Mark | None:
    """Return the mark in a rule's name, or None if that rule carries none."""
    match = MARK_NAME.fullmatch(rule)
    if match is None:
        return None
    revision, step, phase, served_revision, default = match.groups()
    return Mark(int(revision), Phase(phase), int(step), int(served_revision), default)


def digest(current: Iterable[Object]) -> str:
    """Return what tells our rules as we made them from rules that somebody has changed by hand."""
    text = json.dumps(ours(current), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def clusters(
    namespace: str, route: str, current: Sequence[Object], versions: Mapping[str, str], *, by_name: bool
) -> dict[str, str]:
    """Return the versions by what Envoy Gateway calls their clusters.

    Args:
        namespace: Of the route.
        route: Its name.
        current: Its rules.
        versions: The versions by the names of their Services.
        by_name: The clusters for callers who ask for a version; False for those that share the traffic.
    """
    found: dict[str, str] = {}
    for place, rule in enumerate(current):
        if _key(rule) is None or is_weights(rule) == by_name:
            continue
        for slot, backend in enumerate(rule.get("backendRefs") or []):
            if backend.get("weight", 1) > 0 and backend["name"] in versions:
                found[f"httproute/{namespace}/{route}/rule/{place}/backend/{slot}"] = versions[backend["name"]]
    return found


def is_weights(rule: Object) -> bool:
    """Whether it is our rule with the weights."""
    return bool(rule.get("name") == PREFIX + WEIGHTS)


def _key(rule: Object) -> str | None:
    """Return which of our rules it is; None for somebody else's."""
    name = rule.get("name", "")
    if not name.startswith(PREFIX):
        return None
    return UNKNOWN if mark_of(name) else name.removeprefix(PREFIX)


def _weights_rule(endpoint: Endpoint, current: Sequence[Object], weights: Mapping[str, int]) -> Object:
    rule = {"name": PREFIX + WEIGHTS, "matches": [_match(endpoint.name)]}
    if not weights:
        return {**rule, "filters": [_answer(endpoint.name, "closed")]}
    timeout_ms = max(version.scoring_timeout_ms for version in endpoint.versions.values()) + TIMEOUT_MARGIN_MS
    return {
        **rule,
        "filters": _on_the_way(WEIGHTS),
        "backendRefs": _backends(endpoint, current, weights),
        "timeouts": {"request": f"{timeout_ms}ms"},
    }


def _version_rule(endpoint: Endpoint, version: str) -> Object:
    timeout_ms = endpoint.versions[version].scoring_timeout_ms + TIMEOUT_MARGIN_MS
    return {
        "name": f"{PREFIX}version-{version}",
        "matches": [_match(endpoint.name, {"type": "Exact", "value": version})],
        "filters": _on_the_way("header"),
        "backendRefs": [_backend(endpoint.name, version, 1)],
        "timeouts": {"request": f"{timeout_ms}ms"},
    }


def _match(endpoint: str, header: Object | None = None) -> Object:
    match: Object = {"path": {"type": "PathPrefix", "value": f"/api/v1/service/{endpoint}"}}
    return {**match, "headers": [{"name": VERSION_HEADER, **header}]} if header else match


def _on_the_way(routed_by: str) -> list[Object]:
    return [
        {
            "type": "URLRewrite",
            "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
        },
        {
            "type": "RequestHeaderModifier",
            "requestHeaderModifier": {"set": [{"name": ROUTED_BY_HEADER, "value": routed_by}]},
        },
    ]


def _answer(endpoint: str, part: str) -> Object:
    return {
        "type": "ExtensionRef",
        "extensionRef": {
            "group": HTTP_ROUTE_FILTER.group,
            "kind": HTTP_ROUTE_FILTER.name,
            "name": endpoint_object(endpoint, part),
        },
    }


def _backends(endpoint: Endpoint, current: Sequence[Object], weights: Mapping[str, int]) -> list[Object]:
    services = {version_object(endpoint.name, version): version for version in weights}
    places: list[str | None] = []
    for rule in filter(is_weights, current):
        before = rule.get("backendRefs") or []
        shared = {backend["name"] for backend in before if backend.get("weight", 1) > 0}
        for backend in before:
            # A free place repeats, without a weight, a backend that has one elsewhere.
            free = backend.get("weight", 1) == 0 and backend["name"] in shared
            places.append(None if free else services.get(backend["name"]))
    for version in weights:
        if version not in places:
            if None in places:
                places[places.index(None)] = version
            else:
                places.append(version)
    while places and places[-1] is None:
        places.pop()
    biggest = max(weights, key=lambda version: weights[version])
    return [
        _backend(endpoint.name, version, weights[version]) if version else _backend(endpoint.name, biggest, 0)
        for version in places
    ]


def _backend(endpoint: str, version: str, weight: int) -> Object:
    said = {"set": [{"name": VERSION_HEADER, "value": version}]}
    return {
        "group": "",
        "kind": "Service",
        "name": version_object(endpoint, version),
        "port": SERVICE_PORT,
        "weight": weight,
        "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": said},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": said},
        ],
    }


def _free(place: int) -> Object:
    """Return a rule that keeps a place and matches nothing: no version has such a name."""
    return {
        "name": f"{PREFIX}{FREE}-{place}",
        "matches": [
            {
                "path": {"type": "Exact", "value": "/"},
                "headers": [{"name": VERSION_HEADER, "type": "Exact", "value": f"#{FREE}-{place}"}],
            }
        ],
    }
