"""Envoy's routes: who is let in to an endpoint, and which version answers. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from controlled_rollout.endpoint import ROUTED_BY_HEADER, VERSION_HEADER
from controlled_rollout.target.local import envoy_overload
from controlled_rollout.target.local.envoy_bounds import (
    BUFFERED_HEADER,
    LARGE_BODIES,
    is_buffered_header,
    large_body_headers,
    unbuffered,
)
from controlled_rollout.target.local.envoy_config import (
    API_KEY_AUTH,
    ENVOY_TYPE,
    ROUTES,
    TRACED_ROUTE,
    Json,
    cluster_name,
    protobuf_duration,
)
from controlled_rollout.target.local.envoy_sticky import StickyRoute, cookie_settings, hash_policy, key_tags
from controlled_rollout.target.local.envoy_tokens import TokenRoute, reason_tag
from controlled_rollout.target.local.envoy_tokens import route_configuration as token_settings
from controlled_rollout.target.overload import SEND_AGAIN_HEADER

__all__ = ["EndpointRoute", "VersionRoute", "route_configuration"]

# A replica enforces its scoring timeout; the cluster's timeout and the route's, which has time for a request that is
# sent again, are longer and only safeguards.
ROUTE_TIMEOUT_MARGIN_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class VersionRoute:
    """The routes to one version.

    Attributes:
        name: The version's name.
        weight: Its share of the traffic in parts per million; 0 for a version that callers reach only by its name.
        timeout_ms: The longest that a replica takes to answer, in milliseconds.
    """

    name: str
    weight: int
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class EndpointRoute:
    """The routes of one endpoint.

    Attributes:
        name: The endpoint's name.
        versions: The versions that can be reached. Their weights add up to a million, or there are none.
        keys: The keys that are accepted; None only for an endpoint that needs none, because callers have tokens or
            because its `auth` is `none`.
        traced: Whether spans of its requests are sent to the telemetry store.
        closed: Whether every request is answered 503, because the endpoint's files cannot be read.
        sticky: The key and the ranges by which callers stay with a version; None splits at random.
        token: The tokens that are accepted; None for an endpoint whose callers have none.
    """

    name: str
    versions: tuple[VersionRoute, ...]
    keys: tuple[str, ...] | None = field(repr=False)
    traced: bool = True
    closed: bool = False
    sticky: StickyRoute | None = None
    token: TokenRoute | None = None


def route_configuration(endpoints: Iterable[EndpointRoute]) -> Json:
    """Return Envoy's route configuration for all endpoints, with their weights and keys."""
    return {
        "@type": ENVOY_TYPE + "config.route.v3.RouteConfiguration",
        "name": ROUTES,
        "virtual_hosts": [
            {
                "name": ROUTES,
                "domains": ["*"],
                "routes": [
                    _direct_response({"path": "/healthz"}, 200, "ok"),
                    *(route for endpoint in endpoints for route in _endpoint_routes(endpoint)),
                    _direct_response({"prefix": "/"}, 404, "there is no such endpoint here"),
                ],
            }
        ],
        "response_headers_to_remove": ["server"],
        "validate_clusters": False,
    }


def _direct_response(match: Json, status: int, text: str) -> Json:
    """Return a route that Envoy answers itself with `status` and `text`; it needs no key and sends no span."""
    return {
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": text}},
        "tracing": _tracing_disabled(),
        "typed_per_filter_config": {API_KEY_AUTH: _auth_disabled()},
    }


def _tracing_disabled() -> Json:
    """Return tracing settings that send no span."""
    no_request = {"numerator": 0}
    return {"client_sampling": no_request, "random_sampling": no_request, "overall_sampling": no_request}


def _auth_disabled() -> Json:
    """Return the filter setting that lets requests in without a key."""
    return {"@type": ENVOY_TYPE + "config.route.v3.FilterConfig", "disabled": True}


def _endpoint_routes(endpoint: EndpointRoute) -> list[Json]:
    """Return an endpoint's routes: one per version by header, 404 for unknown versions, then the weighted split."""
    prefix = f"/api/v1/service/{endpoint.name}/"
    if endpoint.closed:
        return [_direct_response({"prefix": prefix}, 503, f"endpoint {endpoint.name} is closed")]
    auth = _authentication(endpoint)
    names = ", ".join(version.name for version in endpoint.versions) or "none"
    by_name = [
        {
            "match": {"prefix": prefix, "headers": [_version_header_match(version.name)]},
            "route": _route_action([version], {"cluster": cluster_name(endpoint.name, version.name, judged=False)}),
            **_version_headers(version.name, "header"),
            "request_headers_to_remove": _removed_headers(endpoint),
            **_tracing_settings(endpoint, "header"),
            "typed_per_filter_config": auth,
        }
        for version in endpoint.versions
    ]
    unknown = {
        "match": {"prefix": prefix, "headers": [{"name": VERSION_HEADER, "present_match": True}]},
        "direct_response": {
            "status": 404,
            "body": {"inline_string": f"endpoint {endpoint.name} has no version of that name: it has {names}"},
        },
        "tracing": _tracing_disabled(),
        "typed_per_filter_config": auth,
    }
    is_options = {"name": ":method", "string_match": {"exact": "OPTIONS"}}
    scores = {"path": f"{prefix}score", "headers": [{**is_options, "invert_match": True}]}
    return [
        *_large_body_routes(endpoint, prefix),
        *by_name,
        unknown,
        _weighted_route(endpoint, scores, auth, judged=True),
        _weighted_route(endpoint, {"prefix": prefix}, auth, judged=False),
    ]


def _large_body_routes(endpoint: EndpointRoute, prefix: str) -> list[Json]:
    """Return the routes that send an endpoint's large requests through the listener inside of the router.

    They come back with a header, and take one of the other routes then.
    """
    return [
        {
            "match": {"prefix": prefix, "headers": headers},
            "route": {"cluster": LARGE_BODIES, "timeout": "0s", "idle_timeout": "0s"},
            "request_headers_to_add": [is_buffered_header()],
            "tracing": _tracing_disabled(),
            # The key or the token is asked for again where it comes out.
            "typed_per_filter_config": {**_authentication(endpoint, hide=False), **unbuffered()},
        }
        for headers in large_body_headers()
    ]


def _weighted_route(endpoint: EndpointRoute, match: Json, auth: Json, *, judged: bool) -> Json:
    """Return a route that splits an endpoint's requests by weight; it answers 503 if no version has a weight.

    Args:
        endpoint: The endpoint.
        match: Which requests.
        auth: The settings of the filters for keys and tokens.
        judged: Whether the requests are evidence about the version that gets them.
    """
    weighted = [version for version in endpoint.versions if version.weight]
    route: Json = {
        "match": match,
        "request_headers_to_remove": _removed_headers(endpoint),
        **(_tracing_settings(endpoint, "weights") if judged else {"tracing": _tracing_disabled()}),
        "typed_per_filter_config": auth,
    }
    if not weighted:
        body = {"inline_string": f"endpoint {endpoint.name} has no version that is ready yet"}
        headers = envoy_overload.refusal_headers("no-replica")
        return {**route, "direct_response": {"status": 503, "body": body}, "response_headers_to_add": headers}
    sticky = endpoint.sticky
    # Envoy goes through them in their order: with a hash, that is the order of its ranges.
    shares = (
        [(one.version, one.width) for one in sticky.ranges]
        if sticky
        else [(version.name, version.weight) for version in weighted]
    )
    clusters = [
        {
            "name": cluster_name(endpoint.name, version, judged=judged),
            "weight": weight,
            **_version_headers(version, "weights" if judged else "other path"),
        }
        for version, weight in shares
    ]
    target: Json = {"weighted_clusters": {"clusters": clusters}}
    if sticky:
        target["weighted_clusters"]["use_hash_policy"] = True
        target["hash_policy"] = hash_policy(sticky.key)
        route["typed_per_filter_config"] = {**auth, **cookie_settings(sticky.key)}
    return {**route, "route": _route_action(weighted, target, rewrite="/score" if judged else "/")}


def _removed_headers(endpoint: EndpointRoute) -> list[str]:
    """Return the headers that no version gets: the router's own, and a caller's token."""
    return [BUFFERED_HEADER, *(["authorization"] if endpoint.token else [])]


def _authentication(endpoint: EndpointRoute, *, hide: bool = True) -> Json:
    """Return the settings of the filters for keys and tokens: the endpoint's keys, its tokens, or neither.

    Args:
        endpoint: The endpoint.
        hide: Whether the key is taken off the request.
    """
    if endpoint.token is not None:
        return {API_KEY_AUTH: _auth_disabled(), **token_settings(endpoint.name, endpoint.token)}
    if endpoint.keys is None:
        return {API_KEY_AUTH: _auth_disabled()}
    return {
        API_KEY_AUTH: {
            "@type": ENVOY_TYPE + "extensions.filters.http.api_key_auth.v3.ApiKeyAuthPerRoute",
            "credentials": [{"key": key, "client": f"key-{number}"} for number, key in enumerate(endpoint.keys, 1)],
            "key_sources": [{"header": "Authorization"}],
            "forwarding": {"hide_credentials": hide},
        }
    }


def _version_header_match(version: str) -> Json:
    """Return the match for requests that name `version` in the version header."""
    return {"name": VERSION_HEADER, "string_match": {"exact": version}}


def _version_headers(version: str, routed_by: str) -> Json:
    """Return settings that set the version header on request and response, and on the request how it was routed."""
    overwrite = {"append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    header = {"header": {"key": VERSION_HEADER, "value": version}, **overwrite}
    routed = {"header": {"key": ROUTED_BY_HEADER, "value": routed_by}, **overwrite}
    return {
        "request_headers_to_add": [header, routed, envoy_overload.sent_header()],
        "response_headers_to_add": [header],
        "response_headers_to_remove": [SEND_AGAIN_HEADER],
    }


def _route_action(versions: Sequence[VersionRoute], target: Mapping[str, Any], *, rewrite: str = "/") -> Json:
    """Return Envoy's route action to `target`, with the versions' timeout and safe retries.

    Args:
        versions: The versions that may get a request.
        target: The cluster, or the clusters with their weights.
        rewrite: What the version gets instead of the part of the path that the route matches.
    """
    return {
        **target,
        "prefix_rewrite": rewrite,
        "timeout": protobuf_duration(max(version.timeout_ms for version in versions) + ROUTE_TIMEOUT_MARGIN_MS),
        "idle_timeout": "0s",
        "retry_policy": envoy_overload.retry_policy(),
    }


def _tracing_settings(endpoint: EndpointRoute, routed_by: str) -> Json:
    """Return a route's tracing settings: every request, tagged with the endpoint and how it was routed; or none."""
    if not endpoint.traced:
        return {"tracing": _tracing_disabled()}
    all_requests = {"numerator": 100}
    settings = {
        "client_sampling": all_requests,
        "random_sampling": all_requests,
        "overall_sampling": all_requests,
        "custom_tags": [
            {"tag": "endpoint", "literal": {"value": endpoint.name}},
            {"tag": "routed_by", "literal": {"value": routed_by}},
            *(key_tags(endpoint.sticky.key) if endpoint.sticky and routed_by == "weights" else ()),
            *envoy_overload.tags(),
            *([reason_tag()] if endpoint.token else []),
        ],
    }
    return {"name": TRACED_ROUTE, "tracing": settings}
