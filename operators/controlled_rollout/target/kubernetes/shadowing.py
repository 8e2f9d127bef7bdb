"""Rules of others that take an endpoint's requests before its own rules do.

All HTTPRoutes of a Gateway share its paths. Envoy Gateway sorts their matches: an exact path before a regular
expression before a prefix, a longer path before a shorter one, then by the number of headers and of query parameters;
of equal ones the older route comes first, then the one whose namespace and name come first. A host name of its own
gives a route all requests to that host, whatever the path: those routes do not see each other.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import HTTP_ROUTE
from controlled_rollout.errors import AccessError
from controlled_rollout.target.kubernetes.gateway import find_gateway
from controlled_rollout.target.kubernetes.names import route_name
from controlled_rollout.target.kubernetes.route_rules import managed_rules
from controlled_rollout.workspace import Workspace

__all__ = ["Shadow", "find_shadows", "shadows"]

# What is sent to an endpoint, after its prefix: scoring first.
PATHS: Final = ("/score", "", "/", "/swagger.json")
EXACT, REGEX, PREFIX = "Exact", "RegularExpression", "PathPrefix"
SAME, HIDES, APART = "same", "hides", "apart"
PRECEDENCE: Final = {PREFIX: 0, REGEX: 1, EXACT: 2}
# All HTTPRoutes of the cluster.
ALL_ROUTES: Final = f"/apis/{HTTP_ROUTE.version}/{HTTP_ROUTE.plural}"


@dataclass(frozen=True)
class Shadow:
    """A rule of others that takes requests to an endpoint before the endpoint's own rules.

    Attributes:
        sentence: Which rule, and which requests.
        takes_all: Whether it takes all scoring requests: then what our rules say does not matter to callers.
    """

    sentence: str
    takes_all: bool


async def find_shadows(api: Api, workspace: Workspace, endpoint: str) -> list[Shadow]:
    """Read all HTTPRoutes of the cluster; return the rules among them that take an endpoint's requests.

    Without the permission for that, only those of the endpoint's namespace are looked at, and a sentence says so.
    """
    unseen: list[Shadow] = []
    try:
        routes = await api.items(ALL_ROUTES)
    except AccessError:
        routes = await api.items(HTTP_ROUTE.path(workspace.namespace))
        sentence = (
            "whether a route of another namespace takes its requests is not known: the ClusterRole of docs/aks.md"
        )
        unseen.append(Shadow(f"{sentence} lets this identity list HTTPRoutes", takes_all=False))
    name = (workspace.namespace, route_name(endpoint))
    host = urlsplit(workspace.endpoint_url).hostname if workspace.endpoint_url else None
    gateway = await find_gateway(api, workspace)
    listeners = [one["hostname"] for one in gateway["spec"].get("listeners") or [] if one.get("hostname")]
    found = shadows(endpoint, name, routes, gateway=workspace.gateway_name, listeners=listeners, host=host)
    return [*found, *unseen]


def shadows(
    endpoint: str,
    name: tuple[str, str],
    routes: Sequence[Object],
    *,
    gateway: tuple[str, str],
    listeners: Sequence[str],
    host: str | None,
) -> list[Shadow]:
    """Return what takes requests to an endpoint before its own rules do: rules of others, or host names. Pure.

    Args:
        endpoint: The endpoint's name.
        name: Namespace and name of its route.
        routes: All HTTPRoutes, its own included.
        gateway: Namespace and name of the Gateway.
        listeners: The host names of the Gateway's listeners.
        host: The host that callers ask for, if it is known.
    """
    own = next((route for route in routes if _name(route) == name), None)
    base = f"/api/v1/service/{endpoint}"
    found: list[Shadow] = list(_other_host_problem(own, host))
    for route in routes:
        if not _is_attached(route, gateway):
            continue
        relation = SAME if route is own else _host_relation(route, own, listeners, host)
        if relation == HIDES:
            what = f"takes all requests to {host}, because it names that host: give our HTTPRoute the same `hostnames`"
            found.append(Shadow(f"HTTPRoute {'/'.join(_name(route))} {what}", takes_all=True))
        if relation != SAME:
            continue
        for position, match in _foreign_matches(route, is_own=route is own):
            paths = [base + path for path in PATHS if _match_takes_path(match, base + path)]
            comes_first = _key(match) > (PRECEDENCE[PREFIX], len(base), 0, 0)
            if _key(match) == (PRECEDENCE[PREFIX], len(base), 0, 0):
                comes_first = _is_first(route, position, own, base)
            if paths and comes_first:
                found.append(_shadow_of_match(route, match, paths, base))
    return list(dict.fromkeys(found))


def _other_host_problem(own: Object | None, host: str | None) -> Iterator[Shadow]:
    """Yield that an endpoint's own route is for other hosts than the one that callers ask for: they get 404 then."""
    names = own["spec"].get("hostnames") if own else None
    if own and names and host is not None and not any(_names_host(name, host) for name in names):
        sentence = (
            f"HTTPRoute {'/'.join(_name(own))} is for requests to {', '.join(names)} only, and callers ask for {host}: "
            "take its `hostnames` out, or add that host"
        )
        yield Shadow(sentence, takes_all=True)


def _shadow_of_match(route: Object, match: Object, paths: Sequence[str], base: str) -> Shadow:
    """Return the shadow of one match on the paths that it takes."""
    conditions = [part for part in ("method", "headers", "queryParams") if match.get(part)]
    some = f", those with its {' and '.join(conditions)}" if conditions else ""
    takes_all = base + PATHS[0] in paths and not {"headers", "queryParams"} & set(conditions)
    path = _path(match)
    sentence = (
        f"HTTPRoute {'/'.join(_name(route))} takes requests to {paths[0]}{some} before our rules do, by its "
        f"{path['type']} {path['value']!r}: take that out, or give it another path"
    )
    return Shadow(sentence, takes_all)


def _foreign_matches(route: Object, *, is_own: bool) -> Iterator[tuple[int, Object]]:
    """Yield the matches of a route's rules with the rules' positions; of an endpoint's own route only others' rules."""
    rules = route["spec"].get("rules") or [{}]
    for position, rule in enumerate(rules):
        if not (is_own and managed_rules([rule])):
            for match in rule.get("matches") or [{}]:
                yield position, match


def _is_attached(route: Object, gateway: tuple[str, str]) -> bool:
    """Return whether a route is attached to the Gateway and not refused by it."""
    namespace, _ = _name(route)

    def is_ours(reference: Object) -> bool:
        """Return whether a reference names the Gateway."""
        kind = reference.get("kind", "Gateway")
        return kind == "Gateway" and (reference.get("namespace", namespace), reference.get("name")) == gateway

    if not any(map(is_ours, route["spec"].get("parentRefs") or [])) or "deletionTimestamp" in route["metadata"]:
        return False
    parents = [one for one in (route.get("status") or {}).get("parents") or [] if is_ours(one.get("parentRef") or {})]
    accepted = [
        condition["status"]
        for parent in parents
        for condition in parent.get("conditions") or []
        if condition["type"] == "Accepted"
    ]
    # One that the Gateway has not looked at yet will count soon.
    return not accepted or "True" in accepted


def _host_relation(route: Object, own: Object | None, listeners: Iterable[str], host: str | None) -> str:
    """Return how the host names of another route relate to ours.

    Returns:
        `same`: the rules of both are tried for the same requests; `hides`: its name is nearer to the callers' host, so
        that only its rules are tried; `apart`: its rules are not tried for our requests.
    """
    theirs, ours = (list((one or {"spec": {}})["spec"].get("hostnames") or listeners) for one in (route, own))
    if host is None:
        return SAME if not theirs or set(theirs) & set(ours) else APART
    nearest, our_nearest = (
        max((_host_match_rank(one, host) for one in names), default=(0, 0)) for names in (theirs, ours)
    )
    if nearest == our_nearest:
        return SAME
    return HIDES if nearest > our_nearest else APART


def _host_match_rank(pattern: str, host: str) -> tuple[int, int]:
    """Return how near a host name, which may begin with `*.`, is to a host; (0, 0) if it is not that host's."""
    if not _names_host(pattern, host):
        return (0, 0)
    return (1 if pattern.startswith("*.") else 2, len(pattern))


def _names_host(pattern: str, host: str) -> bool:
    """Return whether a host name, which may begin with `*.`, is that of a host."""
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _match_takes_path(match: Object, path: str) -> bool:
    """Return whether a match takes a path."""
    kind, value = _path(match)["type"], _path(match)["value"]
    if kind == EXACT:
        return bool(path == value)
    if kind == REGEX:
        try:
            # Python reads POSIX classes, which Envoy knows, as something else.
            return "[[:" in value or re.fullmatch(value, path) is not None
        except re.error:
            return True  # Envoy's own syntax: rather one warning too many
    prefix = str(value).rstrip("/")
    return path == prefix or path.startswith(f"{prefix}/")


def _key(match: Object) -> tuple[int, int, int, int]:
    """Return by what Envoy Gateway sorts a match; the greatest comes first."""
    path = _path(match)
    return (
        PRECEDENCE.get(path["type"], 0),
        0 if path["value"] == "/" else len(path["value"]),
        len(match.get("headers") or []),
        len(match.get("queryParams") or []),
    )


def _path(match: Object) -> dict[str, Any]:
    """Return the path of a match, with the defaults of the Gateway API."""
    path = match.get("path") or {}
    return {"type": path.get("type", PREFIX), "value": path.get("value", "/")}


def _is_first(route: Object, position: int, own: Object | None, base: str) -> bool:
    """Return whether a rule that matches just what ours does comes before ours: of the older route, or further up."""
    if own is None:
        return True
    if route is own:
        rules = own["spec"].get("rules") or []
        ours = [place for place, rule in enumerate(rules) if managed_rules([rule]) and _has_path(rule, base)]
        return bool(ours) and position < min(ours)
    return _tie_break_key(route) < _tie_break_key(own)


def _has_path(rule: Object, path: str) -> bool:
    """Return whether a rule matches a path prefix with no header."""
    return any(_path(match)["value"] == path and not match.get("headers") for match in rule.get("matches") or [])


def _tie_break_key(route: Object) -> tuple[str, str, str]:
    """Return by what equal rules of two routes are sorted."""
    return (str(route["metadata"].get("creationTimestamp", "")), *_name(route))


def _name(route: Object) -> tuple[str, str]:
    """Return a route's namespace and name."""
    return route["metadata"]["namespace"], route["metadata"]["name"]
