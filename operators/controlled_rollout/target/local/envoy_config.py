"""Envoy's configuration but for its routes: bootstrap, listener and clusters as dictionaries. Pure.

The configuration is split so that a change touches as little as possible: the listener never changes, a new weight or
a new key changes only the routes, a replica that is added or removed changes only its cluster's assignment.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlled_rollout.endpoint import VERSION_HEADER
from controlled_rollout.target.local import envoy_bounds, envoy_overload, envoy_tls, envoy_tokens
from controlled_rollout.target.local.envoy_files import EnvoyFiles
from controlled_rollout.target.local.envoy_scheme import scheme_filters
from controlled_rollout.target.overload import SENT_HEADER

__all__ = [
    "API_KEY_AUTH",
    "ENVOY_TYPE",
    "HEADER_TO_METADATA",
    "ROUTES",
    "STAT_PREFIX",
    "TRACED_ROUTE",
    "ClusterSpec",
    "Json",
    "bootstrap_config",
    "cluster_config",
    "cluster_name",
    "cluster_names",
    "discovery_response",
    "large_bodies_listener_config",
    "listener_config",
    "load_assignment",
    "protobuf_duration",
]

Json = dict[str, Any]

# The name of the route configuration, and the prefix of the listener's counters.
ROUTES: Final = "endpoints"
STAT_PREFIX: Final = "router"
MAX_PAYLOAD_BYTES: Final = 100_000_000
REQUEST_TIMEOUT: Final = "60s"
TELEMETRY_CLUSTER: Final = "telemetry"
# The name of the routes whose requests become spans.
TRACED_ROUTE: Final = "traced"

# Shorter than the replicas' keep-alive: only the router closes idle connections, so that it never sends a request on a
# connection that its replica is closing.
UPSTREAM_IDLE_TIMEOUT_S: Final = 10
CONNECT_TIMEOUT_S: Final = 2
# A replica's own 504 comes first: it says whose time-out it was.
ANSWER_MARGIN_MS: Final = 500
# Far above what replicas queue: they refuse requests long before this.
MAX_OPEN_REQUESTS: Final = 4096

API_KEY_AUTH: Final = "envoy.filters.http.api_key_auth"
# Takes a cookie's value from a request, for the routes that say which.
HEADER_TO_METADATA: Final = "envoy.filters.http.header_to_metadata"
ENVOY_TYPE: Final = "type.googleapis.com/envoy."
# Request headers with which a caller could set time-outs and retries for itself.
_REMOVED_REQUEST_HEADERS: Final = (
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
    SENT_HEADER,
)


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """A cluster of one version's replicas.

    Attributes:
        name: Its name, one of `cluster_names`.
        timeout_ms: The longest that a replica takes to answer, in milliseconds: later the router answers 504 for it.
    """

    name: str
    timeout_ms: int


def cluster_name(endpoint: str, version: str, *, judged: bool = True) -> str:
    """Return the name of a version's Envoy cluster, `endpoint/version`; neither part can contain the separator.

    A version has two, of the same replicas, because the router counts requests by cluster.

    Args:
        endpoint: The endpoint's name.
        version: The version's name.
        judged: The cluster for what the gate judges: requests for a score that are split by weight. False for the
            others: sent to the version by name, or to another path.
    """
    return f"{endpoint}/{version}" + ("" if judged else "/not-judged")


def cluster_names(endpoint: str, version: str) -> tuple[str, str]:
    """Return the names of both clusters of a version."""
    return cluster_name(endpoint, version), cluster_name(endpoint, version, judged=False)


def discovery_response(version: str, resources: Iterable[Json]) -> Json:
    """Return the content of a discovery file; Envoy reports `version` once it has loaded the resources."""
    return {"version_info": version, "resources": list(resources)}


def _file_config_source(path: Path) -> Json:
    """Return Envoy's configuration source for a discovery file on disk."""
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3", "initial_fetch_timeout": "5s"}


# Start


def bootstrap_config(files: EnvoyFiles, *, telemetry_port: int | None) -> Json:
    """Return the configuration that Envoy starts with: where the discovery files are, and where spans are sent.

    Args:
        files: The router's files.
        telemetry_port: The telemetry store's port on 127.0.0.1; None sends no spans.
    """
    return {
        "node": {"id": "router", "cluster": "controlled-rollout"},
        "admin": {"address": {"pipe": {"path": str(files.admin_socket), "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": _file_config_source(files.listeners),
            "cds_config": _file_config_source(files.clusters),
        },
        "static_resources": {
            "listeners": [envoy_bounds.health_listener(files.health_socket)],
            "clusters": [
                envoy_bounds.large_bodies_cluster(),
                *([_telemetry_cluster(telemetry_port)] if telemetry_port else []),
            ],
        },
        "bootstrap_extensions": envoy_bounds.bootstrap_extensions(),
        "overload_manager": envoy_bounds.overload_manager(),
        "layered_runtime": {"layers": [{"name": "static", "static_layer": _RUNTIME}]},
        # Request times are added to the counters once per interval.
        "stats_flush_interval": "1s",
    }


# A thread that serves callers writes an upload of spans itself, 12 µs a span, before it sends the answer of the request
# that made it full: with 200 spans one answer in 200 came 2.4 ms late, which was the router's p99.
SPANS_PER_UPLOAD: Final = 32
# While the store is busy so many uploads wait, which is for the spans of seconds; while it is down they are dropped.
WAITING_UPLOADS: Final = 512

_RUNTIME: Final[Json] = {
    "tracing": {"opentelemetry": {"flush_interval_ms": 500, "min_flush_spans": SPANS_PER_UPLOAD}},
}


def _telemetry_cluster(port: int) -> Json:
    """Return the Envoy cluster that spans are sent to: the telemetry store on 127.0.0.1."""
    return {
        "name": TELEMETRY_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 4,
                    "max_pending_requests": WAITING_UPLOADS,
                    "max_requests": WAITING_UPLOADS,
                    "max_retries": 0,
                }
            ]
        },
        "typed_extension_protocol_options": _http_options(idle_timeout_s=4),
        "load_assignment": {
            "cluster_name": TELEMETRY_CLUSTER,
            "endpoints": [{"lb_endpoints": [_tcp_host("127.0.0.1", port)]}],
        },
    }


def _tcp_host(host: str, port: int) -> Json:
    """Return an Envoy endpoint with a TCP address."""
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}


def _http_options(*, idle_timeout_s: float, max_stream_ms: int | None = None) -> Json:
    """Return HTTP/1.1 options for connections to a cluster: the idle timeout and the longest request time."""
    common: Json = {"idle_timeout": f"{idle_timeout_s}s"}
    if max_stream_ms is not None:
        common["max_stream_duration"] = protobuf_duration(max_stream_ms)
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": ENVOY_TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
            "common_http_protocol_options": common,
            "explicit_http_config": {"http_protocol_options": {}},
        }
    }


def protobuf_duration(milliseconds: int) -> str:
    """Return a duration in protobuf's JSON form, such as `1.500s`."""
    return f"{milliseconds / 1000:.3f}s"


# Listener


def listener_config(
    files: EnvoyFiles, *, host: str, port: int, traced: bool, telemetry_token: str = "", tls: bool = False
) -> Json:
    """Return the listener that all endpoints share; it stays the same as long as the router runs.

    Args:
        files: The router's files.
        host: The address that callers reach.
        port: The port that callers reach.
        traced: Whether spans are sent to the telemetry store.
        telemetry_token: The bearer token that they bring.
        tls: Whether callers use https; plain http on the same port is refused.
    """
    connection_manager = _connection_manager(files, traced=traced, telemetry_token=telemetry_token) | {
        "use_remote_address": True,
        # A caller who has not sent the whole request by then is answered 408.
        "request_timeout": REQUEST_TIMEOUT,
        "request_headers_timeout": "10s",
        # As nginx does: ApacheBench and old probes speak HTTP/1.0, and may name no host.
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "localhost"},
        "http2_protocol_options": envoy_bounds.HTTP2_OPTIONS,
        "early_header_mutation_extensions": [
            _remove_request_headers(*_REMOVED_REQUEST_HEADERS, envoy_bounds.BUFFERED_HEADER)
        ],
    }
    chain = _filter_chain(connection_manager)
    certificate = _file_config_source(files.certificate)
    return {
        "@type": ENVOY_TYPE + "config.listener.v3.Listener",
        "name": "router",
        "address": {"socket_address": {"address": host, "port_value": port}},
        # Two routers must never share a port by accident.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        **envoy_bounds.raw_listener_filters(*([envoy_tls.inspector()] if tls else [])),
        "filter_chains": [envoy_tls.with_tls(chain, certificate), envoy_tls.plain_http_chain()] if tls else [chain],
    }


def large_bodies_listener_config(files: EnvoyFiles, *, traced: bool, telemetry_token: str = "") -> Json:
    """Return the listener inside of the router in which requests with large bodies wait, see `envoy_bounds`.

    Args:
        files: The router's files.
        traced: Whether spans are sent to the telemetry store.
        telemetry_token: The bearer token that they bring.
    """
    connection_manager = _connection_manager(files, traced=traced, telemetry_token=telemetry_token) | {
        "codec_type": "HTTP2",
        "http2_protocol_options": envoy_bounds.HTTP2_OPTIONS,
        # Its only caller is the router, which has taken the other headers off already.
        "use_remote_address": False,
        "skip_xff_append": True,
    }
    return {
        "@type": ENVOY_TYPE + "config.listener.v3.Listener",
        "name": envoy_bounds.LARGE_BODIES,
        "internal_listener": {},
        "filter_chains": [_filter_chain(connection_manager)],
    }


def _filter_chain(connection_manager: Json) -> Json:
    """Return the filter chain of a listener for HTTP."""
    return {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connection_manager}]}


def _connection_manager(files: EnvoyFiles, *, traced: bool, telemetry_token: str) -> Json:
    """Return what both listeners have in common: the routes, the filters and the spans."""
    connection_manager: Json = {
        "@type": ENVOY_TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": STAT_PREFIX,
        "rds": {"route_config_name": ROUTES, "config_source": _file_config_source(files.routes)},
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "server_header_transformation": "PASS_THROUGH",
        # Each request gets an id of its own, whatever its caller sends as `x-request-id`, as from Envoy Gateway: by it
        # rows are joined, and the requests of a share chosen. Which requests become spans is chosen by the tracer's
        # sampler, by the route's name.
        "request_id_extension": {
            "typed_config": {
                "@type": ENVOY_TYPE + "extensions.request_id.uuid.v3.UuidRequestIdConfig",
                "use_request_id_for_trace_sampling": False,
            }
        },
        "always_set_request_id_in_response": True,
        "stream_idle_timeout": "0s",
        "common_http_protocol_options": {"idle_timeout": "300s", "headers_with_underscores_action": "ALLOW"},
        "local_reply_config": _local_replies(),
        "http_filters": _http_filters(files),
    }
    if traced:
        connection_manager["tracing"] = _tracing(telemetry_token)
    return connection_manager


def _remove_request_headers(*headers: str) -> Json:
    """Return the extension that removes headers before anything else looks at a request."""
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": ENVOY_TYPE + "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [{"remove": header} for header in headers],
        },
    }


def _local_replies() -> Json:
    """Return the form of Envoy's own error responses, those of an overloaded version and of a wrong token included."""
    replies = envoy_overload.local_replies()
    return {**replies, "mappers": [*replies["mappers"], envoy_tokens.wrong_audience_reply()]}


def _http_filters(files: EnvoyFiles) -> list[Json]:
    """Return the HTTP filters in their order: read and check key or token, read a cookie, buffer the body, route."""
    return [
        *scheme_filters(),
        {
            "name": API_KEY_AUTH,
            # Without credentials here, a route without credentials of its own lets nobody in.
            "typed_config": {
                "@type": ENVOY_TYPE + "extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
                "key_sources": [{"header": "Authorization"}],
            },
        },
        *envoy_tokens.token_filters(files),
        {
            "name": HEADER_TO_METADATA,
            "typed_config": {"@type": ENVOY_TYPE + "extensions.filters.http.header_to_metadata.v3.Config"},
        },
        {
            "name": "envoy.filters.http.buffer",
            "typed_config": {
                "@type": ENVOY_TYPE + "extensions.filters.http.buffer.v3.Buffer",
                "max_request_bytes": MAX_PAYLOAD_BYTES,
            },
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": ENVOY_TYPE + "extensions.filters.http.router.v3.Router",
                "suppress_envoy_headers": True,
            },
        },
    ]


def _tracing(token: str) -> Json:
    """Return the tracing settings: one span per request, whatever the caller's trace header says about sampling."""
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
                "@type": ENVOY_TYPE + "config.trace.v3.OpenTelemetryConfig",
                "service_name": "controlled-rollout-router",
                "http_service": {
                    "http_uri": {
                        "uri": "http://telemetry.invalid/v1/traces",
                        "cluster": TELEMETRY_CLUSTER,
                        "timeout": "2s",
                    },
                    "request_headers_to_add": [{"header": {"key": "Authorization", "value": f"Bearer {token}"}}],
                },
                "sampler": {
                    "name": "envoy.tracers.opentelemetry.samplers.cel",
                    "typed_config": {
                        "@type": ENVOY_TYPE + "extensions.tracers.opentelemetry.samplers.v3.CELSamplerConfig",
                        "expression": {"parsed_expr": {"expr": _is_route(TRACED_ROUTE)}},
                    },
                },
            },
        },
    }


def _is_route(name: str) -> Json:
    """Return `xds.route_name == name` in the form in which Envoy takes an expression of CEL."""
    route_name = {"select_expr": {"operand": {"id": 1, "ident_expr": {"name": "xds"}}, "field": "route_name"}}
    constant = {"const_expr": {"string_value": name}}
    return {"id": 2, "call_expr": {"function": "_==_", "args": [{"id": 3, **route_name}, {"id": 4, **constant}]}}


# Clusters


def cluster_config(files: EnvoyFiles, spec: ClusterSpec) -> Json:
    """Return the Envoy cluster of a version; a separate file lists its replicas, see `load_assignment`."""
    return {
        "@type": ENVOY_TYPE + "config.cluster.v3.Cluster",
        "name": spec.name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _file_config_source(files.assignment(spec.name))},
        "load_balancing_policy": envoy_overload.LEAST_REQUEST,
        "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": MAX_OPEN_REQUESTS,
                    "max_pending_requests": MAX_OPEN_REQUESTS,
                    "max_requests": MAX_OPEN_REQUESTS,
                    "retry_budget": {"budget_percent": {"value": 20}, "min_retry_concurrency": 10},
                }
            ]
        },
        "typed_extension_protocol_options": _http_options(
            idle_timeout_s=UPSTREAM_IDLE_TIMEOUT_S, max_stream_ms=spec.timeout_ms + ANSWER_MARGIN_MS
        ),
    }


def load_assignment(cluster: str, sockets: Sequence[Path]) -> Json:
    """Return the Envoy resource that lists the unix sockets of a cluster's replicas that may get requests."""
    return {
        "@type": ENVOY_TYPE + "config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(path)}}}} for path in sockets]}],
    }
