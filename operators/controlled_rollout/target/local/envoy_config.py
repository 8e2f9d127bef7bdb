"""What Envoy is told: endpoints and versions as values in, Envoy's own configuration as dictionaries out. No I/O.

The configuration is split so that a change touches as little as it can: the listener never changes, a new weight or a
new key changes only the routes, a replica that comes or goes changes only its cluster's assignment.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from controlled_rollout.endpoint import VERSION_HEADER
from controlled_rollout.target.local.layout import Layout

__all__ = [
    "ROUTES",
    "ClusterSpec",
    "EndpointRoute",
    "VersionRoute",
    "assignment",
    "bootstrap",
    "cluster",
    "cluster_name",
    "discovery",
    "listener",
    "routes",
]

Json = dict[str, Any]

ROUTES: Final = "endpoints"
STAT_PREFIX: Final = "router"
PAYLOAD_LIMIT: Final = 100_000_000
TELEMETRY_CLUSTER: Final = "telemetry"

# Below the replicas' keep-alive, so that it is always the router that ends an idle connection: a request never meets
# a connection that its replica is just closing.
UPSTREAM_IDLE_S: Final = 10
CONNECT_TIMEOUT_S: Final = 2
# Generous, bounded: a replica refuses what it cannot queue long before this.
MAX_IN_FLIGHT: Final = 4096
# A version's own time-out is enforced per request by its cluster; the route's is only the fence behind it.
ROUTE_TIMEOUT_MARGIN_MS: Final = 1000

_AUTH: Final = "envoy.filters.http.api_key_auth"
_BUFFER: Final = "envoy.filters.http.buffer"
_TYPE: Final = "type.googleapis.com/envoy."
# What a caller could otherwise use to set time-outs and retries for itself.
_CALLERS_ENVOY_HEADERS: Final = (
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-max-retries",
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-decorator-operation",
    "x-envoy-force-trace",
    "x-envoy-attempt-count",
)


@dataclass(frozen=True, slots=True)
class VersionRoute:
    """A version as the router sees it.

    Attributes:
        name: The version's name.
        weight: Its part of a million; 0 for a version that is reached only by name.
        timeout_ms: After so long a request is answered 504.
    """

    name: str
    weight: int
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class EndpointRoute:
    """An endpoint as the router sees it.

    Attributes:
        name: The endpoint's name.
        versions: Those that can be reached; the weights add up to a million, or there are none.
        keys: The keys that open it; None only for an endpoint whose author asked for no authentication.
        traced: Whether its requests are reported to the telemetry store.
    """

    name: str
    versions: tuple[VersionRoute, ...]
    keys: tuple[str, ...] | None = field(repr=False)
    traced: bool = True


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """The replicas of one version, as far as Envoy has to know them before any of them runs."""

    endpoint: str
    version: str
    timeout_ms: int

    @property
    def name(self) -> str:
        """The cluster's name."""
        return cluster_name(self.endpoint, self.version)


def cluster_name(endpoint: str, version: str) -> str:
    """Return the name of a version's cluster; neither part can contain the separator."""
    return f"{endpoint}/{version}"


def discovery(version: str, resources: Iterable[Json]) -> Json:
    """Return a discovery response; Envoy reports `version` back once it has taken the resources over."""
    return {"version_info": version, "resources": list(resources)}


def _source(path: Path) -> Json:
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3", "initial_fetch_timeout": "5s"}


# Start


def bootstrap(layout: Layout, *, telemetry_port: int | None) -> Json:
    """Return what Envoy is started with: where the rest is found, and where spans go."""
    return {
        "node": {"id": "router", "cluster": "controlled-rollout"},
        "admin": {"address": {"pipe": {"path": str(layout.admin_socket), "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": _source(layout.listeners_file),
            "cds_config": _source(layout.clusters_file),
        },
        "static_resources": {"clusters": [_telemetry_cluster(telemetry_port)] if telemetry_port else []},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": _RUNTIME}]},
        # How late request times come to be counted.
        "stats_flush_interval": "1s",
    }


_RUNTIME: Final[Json] = {
    "tracing": {"opentelemetry": {"flush_interval_ms": 500, "min_flush_spans": 200}},
}


def _telemetry_cluster(port: int) -> Json:
    return {
        "name": TELEMETRY_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        # Spans are dropped, not hoarded, while the store is down.
        "circuit_breakers": {
            "thresholds": [{"max_connections": 4, "max_pending_requests": 64, "max_requests": 64, "max_retries": 0}]
        },
        "typed_extension_protocol_options": _http_options(idle_timeout_s=4),
        "load_assignment": {
            "cluster_name": TELEMETRY_CLUSTER,
            "endpoints": [{"lb_endpoints": [_tcp_host("127.0.0.1", port)]}],
        },
    }


def _tcp_host(host: str, port: int) -> Json:
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}


def _http_options(*, idle_timeout_s: float, max_stream_ms: int | None = None) -> Json:
    common: Json = {"idle_timeout": f"{idle_timeout_s}s"}
    if max_stream_ms is not None:
        common["max_stream_duration"] = _duration(max_stream_ms)
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
            "common_http_protocol_options": common,
            "explicit_http_config": {"http_protocol_options": {}},
        }
    }


def _duration(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.3f}s"


# Listener


def listener(layout: Layout, *, host: str, port: int, traced: bool) -> Json:
    """Return the one listener of all endpoints; nothing in it ever changes while the router runs."""
    connection_manager: Json = {
        "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": STAT_PREFIX,
        "rds": {"route_config_name": ROUTES, "config_source": _source(layout.routes_file)},
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "server_header_transformation": "PASS_THROUGH",
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_headers_timeout": "10s",
        "stream_idle_timeout": "0s",
        "request_timeout": "300s",
        "common_http_protocol_options": {"idle_timeout": "300s", "headers_with_underscores_action": "ALLOW"},
        "early_header_mutation_extensions": [_without_callers_envoy_headers()],
        "local_reply_config": _local_replies(),
        "http_filters": _http_filters(),
    }
    if traced:
        connection_manager["tracing"] = _tracing()
    return {
        "@type": _TYPE + "config.listener.v3.Listener",
        "name": "router",
        "address": {"socket_address": {"address": host, "port_value": port}},
        # Two routers must never share a port by accident.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        "filter_chains": [
            {
                "filters": [
                    {"name": "envoy.filters.network.http_connection_manager", "typed_config": connection_manager},
                ]
            }
        ],
    }


def _without_callers_envoy_headers() -> Json:
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": _TYPE + "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [{"remove": header} for header in _CALLERS_ENVOY_HEADERS],
        },
    }


def _local_replies() -> Json:
    """Return how the router's own answers look: JSON, and 504 where a version's own time-out ended a request."""
    return {
        "mappers": [
            {
                "filter": {"response_flag_filter": {"flags": ["UMSDR"]}},
                "status_code": 504,
                "body": {"inline_string": "the version did not answer within its scoring timeout"},
            }
        ],
        "body_format": {"json_format": {"status": "%RESPONSE_CODE%", "message": "%LOCAL_REPLY_BODY%"}},
    }


def _http_filters() -> list[Json]:
    return [
        {
            "name": _AUTH,
            # Without credentials of its own: a route that brings none is closed, never open by mistake.
            "typed_config": {
                "@type": _TYPE + "extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
                "key_sources": [{"header": "Authorization"}],
            },
        },
        {
            "name": _BUFFER,
            "typed_config": {
                "@type": _TYPE + "extensions.filters.http.buffer.v3.Buffer",
                "max_request_bytes": PAYLOAD_LIMIT,
            },
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": _TYPE + "extensions.filters.http.router.v3.Router",
                "suppress_envoy_headers": True,
            },
        },
    ]


def _tracing() -> Json:
    """Return one span per request, whatever the caller's own trace says about sampling."""
    return {
        "random_sampling": {"value": 100},
        "client_sampling": {"value": 100},
        "overall_sampling": {"value": 100},
        "spawn_upstream_span": False,
        "verbose": False,
        "custom_tags": [{"tag": "version", "request_header": {"name": VERSION_HEADER}}],
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": _TYPE + "config.trace.v3.OpenTelemetryConfig",
                "service_name": "controlled-rollout-router",
                "http_service": {
                    "http_uri": {
                        "uri": "http://telemetry.invalid/v1/traces",
                        "cluster": TELEMETRY_CLUSTER,
                        "timeout": "2s",
                    }
                },
                "sampler": {
                    "name": "envoy.tracers.opentelemetry.samplers.always_on",
                    "typed_config": {
                        "@type": _TYPE + "extensions.tracers.opentelemetry.samplers.v3.AlwaysOnSamplerConfig"
                    },
                },
            },
        },
    }


# Clusters


def cluster(layout: Layout, spec: ClusterSpec) -> Json:
    """Return a version's cluster; its replicas come and go in a file of their own."""
    return {
        "@type": _TYPE + "config.cluster.v3.Cluster",
        "name": spec.name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _source(layout.assignment_file(spec.name))},
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": MAX_IN_FLIGHT,
                    "max_pending_requests": MAX_IN_FLIGHT,
                    "max_requests": MAX_IN_FLIGHT,
                    "retry_budget": {"budget_percent": {"value": 20}, "min_retry_concurrency": 10},
                }
            ]
        },
        "typed_extension_protocol_options": _http_options(
            idle_timeout_s=UPSTREAM_IDLE_S, max_stream_ms=spec.timeout_ms
        ),
    }


def assignment(cluster: str, sockets: Sequence[Path]) -> Json:
    """Return the replicas of a cluster that may get requests."""
    return {
        "@type": _TYPE + "config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(path)}}}} for path in sockets]}],
    }


# Routes


def routes(endpoints: Iterable[EndpointRoute]) -> Json:
    """Return the routes of all endpoints, with their weights and keys."""
    return {
        "@type": _TYPE + "config.route.v3.RouteConfiguration",
        "name": ROUTES,
        "virtual_hosts": [
            {
                "name": ROUTES,
                "domains": ["*"],
                "routes": [
                    _answer({"path": "/healthz"}, 200, "ok"),
                    *(route for endpoint in endpoints for route in _endpoint_routes(endpoint)),
                    _answer({"prefix": "/"}, 404, "there is no such endpoint here"),
                ],
            }
        ],
        "response_headers_to_remove": ["server"],
        "validate_clusters": False,
    }


def _answer(match: Json, status: int, text: str) -> Json:
    """Return a route that the router answers itself, to anybody, untraced."""
    return {
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": text}},
        "tracing": _untraced(),
        "typed_per_filter_config": {_AUTH: _switched_off()},
    }


def _untraced() -> Json:
    none = {"numerator": 0}
    return {"client_sampling": none, "random_sampling": none, "overall_sampling": none}


def _switched_off() -> Json:
    return {"@type": _TYPE + "config.route.v3.FilterConfig", "disabled": True}


def _endpoint_routes(endpoint: EndpointRoute) -> list[Json]:
    prefix = f"/api/v1/service/{endpoint.name}/"
    auth = _auth(endpoint)
    names = ", ".join(version.name for version in endpoint.versions) or "none"
    by_name = [
        {
            "match": {"prefix": prefix, "headers": [_header_is(version.name)]},
            "route": _action([version], {"cluster": cluster_name(endpoint.name, version.name)}),
            **_version_headers(version.name),
            "tracing": _traced(endpoint, "header"),
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
        "tracing": _untraced(),
        "typed_per_filter_config": auth,
    }
    return [*by_name, unknown, _weighted(endpoint, prefix, auth)]


def _weighted(endpoint: EndpointRoute, prefix: str, auth: Json) -> Json:
    weighted = [version for version in endpoint.versions if version.weight]
    route: Json = {
        "match": {"prefix": prefix},
        "tracing": _traced(endpoint, "weights"),
        "typed_per_filter_config": auth,
    }
    if not weighted:
        body = {"inline_string": f"endpoint {endpoint.name} has no version that is ready yet"}
        return {**route, "direct_response": {"status": 503, "body": body}}
    clusters = [
        {
            "name": cluster_name(endpoint.name, version.name),
            "weight": version.weight,
            **_version_headers(version.name),
        }
        for version in weighted
    ]
    return {**route, "route": _action(weighted, {"weighted_clusters": {"clusters": clusters}})}


def _auth(endpoint: EndpointRoute) -> Json:
    if endpoint.keys is None:
        return {_AUTH: _switched_off()}
    return {
        _AUTH: {
            "@type": _TYPE + "extensions.filters.http.api_key_auth.v3.ApiKeyAuthPerRoute",
            "credentials": [{"key": key, "client": f"key-{number}"} for number, key in enumerate(endpoint.keys, 1)],
            "key_sources": [{"header": "Authorization"}],
            "forwarding": {"hide_credentials": True},
        }
    }


def _header_is(version: str) -> Json:
    return {"name": VERSION_HEADER, "string_match": {"exact": version}}


def _version_headers(version: str) -> Json:
    said = {
        "header": {"key": VERSION_HEADER, "value": version},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }
    return {"request_headers_to_add": [said], "response_headers_to_add": [said]}


def _action(versions: Sequence[VersionRoute], target: Mapping[str, Any]) -> Json:
    return {
        **target,
        "prefix_rewrite": "/",
        "timeout": _duration(max(version.timeout_ms for version in versions) + ROUTE_TIMEOUT_MARGIN_MS),
        "idle_timeout": "0s",
        # Only what certainly never reached a replica's code is sent again.
        "retry_policy": {
            "retry_on": "connect-failure,reset-before-request,refused-stream",
            "num_retries": 2,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": _TYPE + "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
                }
            ],
            "host_selection_retry_max_attempts": 5,
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.050s"},
        },
    }


def _traced(endpoint: EndpointRoute, routed_by: str) -> Json:
    if not endpoint.traced:
        return _untraced()
    every = {"numerator": 100}
    return {
        "client_sampling": every,
        "random_sampling": every,
        "overall_sampling": every,
        "custom_tags": [
            {"tag": "endpoint", "literal": {"value": endpoint.name}},
            {"tag": "routed_by", "literal": {"value": routed_by}},
        ],
    }
