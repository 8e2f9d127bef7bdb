"""The rules that we manage in an endpoint's HTTPRoute, beside everybody else's: pure functions on `spec.rules`.

The list of rules is atomic, so server-side apply cannot share it. Our rules are known by their names, all others are
kept as they are, and the whole list is patched with the resource version that it was read at.

The rule for unknown versions carries a mark in its name: the revision that all our rules were made from, and how far
they are on the way to its split. It has no backends, so its name touches no cluster, and its counters have that name:
an Envoy that has them has taken the rules over. So every split has a name of its own, for example
`controlled-rollout-unknown-7-2-entering-5-one`: the third split of revision 7, in the phase `entering`; revision 5 was
the last that was wholly served, and version `one` takes what no other version has.

A position in the list is an identity. Envoy Gateway names the cluster of a rule's backend by the positions of both
(`…/rule/2/backend/1`): a rule or a backend that moved would for a moment receive the requests of the one that was at
its new position before. So positions never change: what is removed leaves an empty position, and what is added takes an
empty position or the end.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from controlled_rollout.cluster.api import FIELD_MANAGER, Object
from controlled_rollout.cluster.kinds import HTTP_ROUTE_FILTER
from controlled_rollout.endpoint import ROUTED_BY_HEADER, VERSION_HEADER, Auth, Endpoint
from controlled_rollout.errors import EndpointError
from controlled_rollout.target.kubernetes import overload
from controlled_rollout.target.kubernetes.manifests import SERVICE_PORT
from controlled_rollout.target.kubernetes.names import endpoint_object_name, version_object_name
from controlled_rollout.target.kubernetes.phases import Phase, shares
from controlled_rollout.target.overload import SEND_AGAIN_HEADER
from controlled_rollout.target.transition import Split

__all__ = [
    "DIGEST",
    "POSITIONS",
    "ManagedRules",
    "Mark",
    "annotations",
    "build_rules",
    "foreign_rules",
    "hand_edit",
    "is_weights_rule",
    "is_written_by_us",
    "managed_rules",
    "mark_of",
    "merge_rules",
    "moved_rules",
    "positive_weights",
    "read_rules",
    "rename_mark",
    "rules_digest",
    "versions_by_cluster",
]

# The Gateway API's limit.
MAX_RULES: Final = 16
TIMEOUT_MARGIN_MS: Final = 1000

PREFIX: Final = "controlled-rollout-"
WEIGHTS: Final = "weights"
UNKNOWN: Final = "unknown"
EMPTY: Final = "empty"
MARK_NAME: Final = re.compile(rf"{PREFIX}{UNKNOWN}-(\d+)-(\d+)-({'|'.join(Phase)})-(\d+)(?:-(.+))?")
# The annotations of a route with the digest of our rules as we wrote them, and with their positions.
DIGEST: Final = "controlled-rollout/rules-digest"
POSITIONS: Final = "controlled-rollout/rules-positions"


@dataclass(frozen=True)
class Mark:
    """The revision that our rules were made from, and how far they are on the way to its split.

    Attributes:
        revision: The endpoint's revision.
        phase: The phase of the split.
        step: Counts the splits of this revision, so that no two have the same name.
        served_revision: The last revision whose whole split every Envoy served before; 0 for none.
        default: The version that takes what no other version has; None while the endpoint is closed.
    """

    revision: int
    phase: Phase = Phase.WHOLE
    step: int = 0
    served_revision: int = 0
    default: str | None = None

    @property
    def rule(self) -> str:
        """The name of the rule that carries the mark."""
        name = f"{PREFIX}{UNKNOWN}-{self.revision}-{self.step}-{self.phase}-{self.served_revision}"
        return f"{name}-{self.default}" if self.default else name

    def stat(self, namespace: str, route: str) -> str:
        """Return the name under which Envoy counts the requests of the rule with the mark."""
        return f"{namespace}/{route}/{self.rule}"


@dataclass(frozen=True)
class ManagedRules:
    """What our rules in a route say.

    Attributes:
        mark: What they were made from.
        weights: Parts of a million by version, 0 included.
        reachable: The versions that callers can reach by name.
    """

    mark: Mark
    weights: Mapping[str, int] = field(default_factory=dict)
    reachable: frozenset[str] = frozenset()

    @property
    def split(self) -> Split:
        """The split without the minimal weights of versions that enter."""
        return Split(shares(self.weights, self.mark.phase), self.mark.default)


def build_rules(
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
        current: The route's present rules: backends keep their positions.
        weights: Parts of a million by version; empty closes the endpoint.
        reachable: The versions that callers can reach by name.
        mark: The mark for the rule for unknown versions.
    """
    rules = {WEIGHTS: _weights_rule(endpoint, current, weights)}
    for version in sorted(reachable):
        rules[f"version-{version}"] = _version_rule(endpoint, version)
    rules[UNKNOWN] = {
        "name": mark.rule,
        "matches": [_endpoint_match(endpoint.name, {"type": "RegularExpression", "value": ".+"})],
        "filters": [_direct_response_filter(endpoint.name, UNKNOWN)],
    }
    return rules


def merge_rules(current: Sequence[Object], wanted: Mapping[str, Object]) -> list[Object]:
    """Return the route's rules with ours replaced by `wanted`; other rules and all positions stay as they are.

    Raises:
        EndpointError: There would be more rules than a route may have.
    """
    merged: list[Object | None] = []
    missing = dict(wanted)
    for rule in current:
        key = _rule_key(rule)
        merged.append(rule if key is None else missing.pop(key, None))
    for key in wanted:
        if key in missing:
            if None in merged:
                merged[merged.index(None)] = missing[key]
            else:
                merged.append(missing[key])
    while merged and merged[-1] is None:
        merged.pop()
    if len(merged) > MAX_RULES:
        foreign = len(foreign_rules(current))
        raise EndpointError(
            f"the HTTPRoute would have {len(merged)} rules, {foreign} of them not managed by controlled-rollout, and "
            f"may have {MAX_RULES}: move those {foreign} to another route"
        )
    return [rule if rule is not None else _empty_rule(position) for position, rule in enumerate(merged)]


def managed_rules(current: Iterable[Object]) -> list[Object]:
    """Return the rules of a route that we manage."""
    return [rule for rule in current if _rule_key(rule) is not None]


def foreign_rules(current: Iterable[Object]) -> list[Object]:
    """Return the rules of a route that others have written."""
    return [rule for rule in current if _rule_key(rule) is None]


def read_rules(current: Iterable[Object], versions: Mapping[str, str]) -> ManagedRules | None:
    """Return the weights and the mark that our rules hold; None if the route has none of our rules.

    Args:
        current: The route's rules.
        versions: The versions by the names of their Services.
    """
    rules = {key: rule for rule in current if (key := _rule_key(rule)) is not None}
    if WEIGHTS not in rules or UNKNOWN not in rules:
        return None
    mark = mark_of(rules[UNKNOWN]["name"])
    weights: dict[str, int] = {}
    for backend in rules[WEIGHTS].get("backendRefs") or []:
        # An empty position repeats a backend, with no weight.
        if version := versions.get(backend["name"]):
            weights[version] = weights.get(version, 0) + backend.get("weight", 1)
    reachable = frozenset(version for version in versions.values() if f"version-{version}" in rules)
    return ManagedRules(mark, weights, reachable) if mark else None


def positive_weights(weights: Mapping[str, int]) -> dict[str, int]:
    """Return only the weights above 0."""
    return {version: weight for version, weight in weights.items() if weight}


def mark_of(rule: str) -> Mark | None:
    """Return the mark in a rule's name, or None if that rule carries none."""
    match = MARK_NAME.fullmatch(rule)
    if match is None:
        return None
    revision, step, phase, served_revision, default = match.groups()
    return Mark(int(revision), Phase(phase), int(step), int(served_revision), default)


def rename_mark(current: Iterable[Object], mark: Mark) -> list[Object]:
    """Return the rules of a route with another mark; all else stays as it is."""
    return [{**rule, "name": mark.rule} if _rule_key(rule) == UNKNOWN else rule for rule in current]


def rules_digest(current: Iterable[Object]) -> str:
    """Return a digest of our rules, by which edited rules are recognised."""
    text = json.dumps(managed_rules(current), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def hand_edit(route: Object | None) -> str | None:
    """Return a sentence on who has edited our rules in a route; None if they are as we wrote them.

    Rules that are all gone are no edit: they are written again.
    """
    if route is None or not managed_rules(route["spec"].get("rules") or []):
        return None
    written = (route["metadata"].get("annotations") or {}).get(DIGEST)
    if written is None or written == rules_digest(route["spec"]["rules"]):
        return None
    name = f"{route['metadata']['namespace']}/{route['metadata']['name']}"
    writers = [
        entry
        for entry in route["metadata"].get("managedFields") or []
        if "f:spec" in (entry.get("fieldsV1") or {}) and not entry.get("subresource")
    ]
    # Times are whole seconds: within the same second, somebody else is the likelier writer.
    newest = max(writers, key=lambda entry: (entry.get("time", ""), entry["manager"] != FIELD_MANAGER), default=None)
    writer = f"{newest['manager']!r} at {newest.get('time')}" if newest else "an unknown manager"
    return (
        f"the rules of HTTPRoute {name} whose names begin with {PREFIX!r} are not as controlled-rollout wrote them: "
        f"{writer} has changed the route last; restore them, or delete them all from the route: then they are written "
        "again"
    )


def moved_rules(route: Object | None) -> str | None:
    """Return a sentence if somebody has moved our rules by putting others before them; None if nobody has.

    They are left there: to move them back would cost requests again.
    """
    if route is None:
        return None
    written = (route["metadata"].get("annotations") or {}).get(POSITIONS)
    now = _positions(route["spec"].get("rules") or [])
    if written is None or written == now:
        return None
    name = f"{route['metadata']['namespace']}/{route['metadata']['name']}"
    return (
        f"our rules in HTTPRoute {name} were moved from positions {written} to {now}, which costs requests: put other "
        "rules behind ours, or into a route of their own; ours stay where they are now"
    )


def is_written_by_us(route: Object) -> bool:
    """Return whether a route has rules of ours, whatever has become of its labels."""
    written = route["metadata"].get("annotations") or {}
    return DIGEST in written and bool(managed_rules(route["spec"].get("rules") or []))


def annotations(rules: Sequence[Object]) -> dict[str, str]:
    """Return the annotations of a route with these rules, by which edits of ours are recognised."""
    return {DIGEST: rules_digest(rules), POSITIONS: _positions(rules)}


def _positions(rules: Sequence[Object]) -> str:
    """Return the positions of our rules as text, such as `0, 1, 3`."""
    return ", ".join(str(position) for position, rule in enumerate(rules) if _rule_key(rule) is not None)


def versions_by_cluster(
    namespace: str, route: str, current: Sequence[Object], versions: Mapping[str, str], *, by_name: bool
) -> dict[str, str]:
    """Return the versions of a route by the names of their clusters in Envoy.

    Args:
        namespace: Of the route.
        route: Its name.
        current: Its rules.
        versions: The versions by the names of their Services.
        by_name: The clusters for callers who ask for a version; False for those that share the traffic.
    """
    names: dict[str, str] = {}
    for position, rule in enumerate(current):
        if _rule_key(rule) is None or is_weights_rule(rule) == by_name:
            continue
        for slot, backend in enumerate(rule.get("backendRefs") or []):
            if backend.get("weight", 1) > 0 and backend["name"] in versions:
                names[f"httproute/{namespace}/{route}/rule/{position}/backend/{slot}"] = versions[backend["name"]]
    return names


def is_weights_rule(rule: Object) -> bool:
    """Return whether a rule is ours and holds the weights."""
    return bool(rule.get("name") == PREFIX + WEIGHTS)


def _rule_key(rule: Object) -> str | None:
    """Return the key of one of our rules, such as `weights` or `version-NAME`; None for a foreign rule."""
    name = rule.get("name", "")
    if not name.startswith(PREFIX):
        return None
    return UNKNOWN if mark_of(name) else name.removeprefix(PREFIX)


def _weights_rule(endpoint: Endpoint, current: Sequence[Object], weights: Mapping[str, int]) -> Object:
    """Return the rule that splits the traffic by weight, or that answers 503 if there are no weights."""
    rule = {"name": PREFIX + WEIGHTS, "matches": [_endpoint_match(endpoint.name)]}
    if not weights:
        return {**rule, "filters": [_direct_response_filter(endpoint.name, "closed")]}
    timeout_ms = max(version.longest_answer_ms for version in endpoint.versions.values()) + TIMEOUT_MARGIN_MS
    return {
        **rule,
        "filters": _request_filters(endpoint, WEIGHTS),
        "backendRefs": _weighted_backends(endpoint, current, weights),
        "timeouts": {"request": _duration(timeout_ms)},
    }


def _duration(milliseconds: int) -> str:
    """Return a time as the Gateway API writes it: of each unit at most five digits."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{milliseconds}ms" if milliseconds < 100_000 else f"{seconds // 3600}h{seconds % 3600}s{rest}ms"


def _version_rule(endpoint: Endpoint, version: str) -> Object:
    """Return the rule for callers who name `version` in the version header."""
    timeout_ms = endpoint.versions[version].longest_answer_ms + TIMEOUT_MARGIN_MS
    return {
        "name": f"{PREFIX}version-{version}",
        "matches": [_endpoint_match(endpoint.name, {"type": "Exact", "value": version})],
        "filters": _request_filters(endpoint, "header"),
        "backendRefs": [_version_backend(endpoint.name, version, 1)],
        "timeouts": {"request": _duration(timeout_ms)},
    }


def _endpoint_match(endpoint: str, header: Object | None = None) -> Object:
    """Return the match for an endpoint's path and, if given, for the version header."""
    match: Object = {"path": {"type": "PathPrefix", "value": f"/api/v1/service/{endpoint}"}}
    return {**match, "headers": [{"name": VERSION_HEADER, **header}]} if header else match


def _request_filters(endpoint: Endpoint, routed_by: str) -> list[Object]:
    """Return the filters that strip the path prefix and a token, and record in a header how the request was routed."""
    headers: Object = {"set": [{"name": ROUTED_BY_HEADER, "value": routed_by}, *overload.request_headers()]}
    if endpoint.auth is Auth.TOKEN:
        # Envoy Gateway hides keys, and passes tokens on.
        headers["remove"] = ["Authorization"]
    return [
        {
            "type": "URLRewrite",
            "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
        },
        {
            "type": "RequestHeaderModifier",
            "requestHeaderModifier": headers,
        },
    ]


def _direct_response_filter(endpoint: str, part: str) -> Object:
    """Return the filter that makes the router answer itself, by the name of its HTTPRouteFilter."""
    return {
        "type": "ExtensionRef",
        "extensionRef": {
            "group": HTTP_ROUTE_FILTER.group,
            "kind": HTTP_ROUTE_FILTER.name,
            "name": endpoint_object_name(endpoint, part),
        },
    }


def _weighted_backends(endpoint: Endpoint, current: Sequence[Object], weights: Mapping[str, int]) -> list[Object]:
    """Return the weighted backends; a version keeps its position, and free positions are used first."""
    services = {version_object_name(endpoint.name, version): version for version in weights}
    positions: list[str | None] = []
    for rule in filter(is_weights_rule, current):
        backends = rule.get("backendRefs") or []
        weighted = {backend["name"] for backend in backends if backend.get("weight", 1) > 0}
        for backend in backends:
            # An empty position repeats, without a weight, a backend that has one elsewhere.
            is_empty = backend.get("weight", 1) == 0 and backend["name"] in weighted
            positions.append(None if is_empty else services.get(backend["name"]))
    for version in weights:
        if version not in positions:
            if None in positions:
                positions[positions.index(None)] = version
            else:
                positions.append(version)
    while positions and positions[-1] is None:
        positions.pop()
    largest = max(weights, key=lambda version: weights[version])
    return [
        _version_backend(endpoint.name, version, weights[version])
        if version
        else _version_backend(endpoint.name, largest, 0)
        for version in positions
    ]


def _version_backend(endpoint: str, version: str, weight: int) -> Object:
    """Return one backend: a version's Service with its weight, and filters that set the version header."""
    version_header = {"set": [{"name": VERSION_HEADER, "value": version}]}
    return {
        "group": "",
        "kind": "Service",
        "name": version_object_name(endpoint, version),
        "port": SERVICE_PORT,
        "weight": weight,
        "filters": [
            {"type": "RequestHeaderModifier", "requestHeaderModifier": version_header},
            {
                "type": "ResponseHeaderModifier",
                "responseHeaderModifier": {**version_header, "remove": [SEND_AGAIN_HEADER]},
            },
        ],
    }


def _empty_rule(position: int) -> Object:
    """Return a rule that keeps a position free and matches no request."""
    return {
        "name": f"{PREFIX}{EMPTY}-{position}",
        "matches": [
            {
                "path": {"type": "Exact", "value": "/"},
                "headers": [{"name": VERSION_HEADER, "type": "Exact", "value": f"#{EMPTY}-{position}"}],
            }
        ],
    }
