"""Bounds on what all callers together may cost the router: connections, memory and time. Pure.

A request waits in the router until its whole body has arrived. Small bodies are bounded in sum by the number of
connections. A large one passes through a listener inside of the router, over HTTP/2: for HTTP/2 alone Envoy knows how
much memory each request holds, and it resets the largest ones when memory runs short. So unfinished large bodies end
each other, and nobody else.
"""

from pathlib import Path
from typing import Any, Final

__all__ = [
    "BUFFERED_HEADER",
    "HTTP2_OPTIONS",
    "LARGE_BODIES",
    "bootstrap_extensions",
    "health_listener",
    "is_buffered_header",
    "large_bodies_cluster",
    "large_body_headers",
    "overload_manager",
    "raw_listener_filters",
    "unbuffered",
]

Json = dict[str, Any]

_TYPE: Final = "type.googleapis.com/envoy."
# The name of the listener inside of the router, and of the cluster that leads to it.
LARGE_BODIES: Final = "large-bodies"
# Says that a request came through that listener; callers cannot bring it.
BUFFERED_HEADER: Final = "x-controlled-rollout-large-body"
LARGE_BODY_BYTES: Final = 256 * 1024
MAX_CONNECTIONS: Final = 2_000
MAX_HEAP_BYTES: Final = 2**30
# The first requests that are reset hold 32 MiB or more each, the last ones 256 KiB.
SMALLEST_TRACKED_POWER_OF_TWO: Final = 18
# A connection that has not sent a byte by then is closed.
FIRST_BYTE_TIMEOUT: Final = "10s"
HTTP2_OPTIONS: Final[Json] = {
    "max_concurrent_streams": 100,
    "initial_stream_window_size": 2**20,
    "initial_connection_window_size": 16 * 2**20,
}


def overload_manager() -> Json:
    """Return what Envoy does when memory runs short: end the largest requests, then all that are new."""
    heap = "envoy.resource_monitors.fixed_heap"

    def action(name: str, trigger: Json) -> Json:
        """Return an action of the overload manager on the heap's fill level."""
        return {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": heap, **trigger}]}

    return {
        "refresh_interval": "0.1s",
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": SMALLEST_TRACKED_POWER_OF_TWO},
        "resource_monitors": [
            {
                "name": heap,
                "typed_config": {
                    "@type": _TYPE + "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": MAX_HEAP_BYTES,
                },
            },
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": {
                    "@type": _TYPE
                    + "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    "max_active_downstream_connections": MAX_CONNECTIONS,
                },
            },
        ],
        "actions": [
            action("reset_high_memory_stream", {"scaled": {"scaling_threshold": 0.5, "saturation_threshold": 0.9}}),
            action("shrink_heap", {"threshold": {"value": 0.4}}),
            action("stop_accepting_requests", {"threshold": {"value": 0.98}}),
        ],
    }


def bootstrap_extensions() -> list[Json]:
    """Return the extension that listeners inside of the router need."""
    return [
        {
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {"@type": _TYPE + "extensions.bootstrap.internal_listener.v3.InternalListener"},
        }
    ]


def large_bodies_cluster() -> Json:
    """Return the Envoy cluster of the listener inside of the router."""
    address = {"envoy_internal_address": {"server_listener_name": LARGE_BODIES}}
    return {
        "name": LARGE_BODIES,
        "connect_timeout": "1s",
        "circuit_breakers": {
            "thresholds": [{"max_requests": MAX_CONNECTIONS, "max_pending_requests": MAX_CONNECTIONS}]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": HTTP2_OPTIONS},
            }
        },
        "load_assignment": {
            "cluster_name": LARGE_BODIES,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def large_body_headers() -> list[list[Json]]:
    """Return the header matches of requests with a large body, or one of unknown length, that are not buffered yet."""
    not_yet = {"name": BUFFERED_HEADER, "present_match": True, "invert_match": True}
    large = {"name": "content-length", "range_match": {"start": LARGE_BODY_BYTES, "end": 2**62}}
    unknown = {"name": "transfer-encoding", "present_match": True}
    return [[not_yet, large], [not_yet, unknown]]


def is_buffered_header() -> Json:
    """Return the request header that a request gets on its way to the listener inside of the router."""
    return {
        "header": {"key": BUFFERED_HEADER, "value": "1"},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


def unbuffered() -> Json:
    """Return the settings of a route whose requests do not wait for their body."""
    return {
        "envoy.filters.http.buffer": {
            "@type": _TYPE + "extensions.filters.http.buffer.v3.BufferPerRoute",
            "disabled": True,
        }
    }


def raw_listener_filters(*first: Json) -> Json:
    """Return the settings of a listener that closes connections which bring nothing.

    Args:
        first: Listener filters that look at a connection before.
    """
    return {
        "listener_filters": [
            *first,
            {
                "name": "envoy.filters.listener.http_inspector",
                "typed_config": {"@type": _TYPE + "extensions.filters.listener.http_inspector.v3.HttpInspector"},
            },
        ],
        "listener_filters_timeout": FIRST_BYTE_TIMEOUT,
    }


def health_listener(socket: Path) -> Json:
    """Return a listener that answers health checks on a unix socket, however many callers there are."""
    manager = {
        "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "health",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "health",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": _TYPE + "extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    return {
        "name": "health",
        "address": {"pipe": {"path": str(socket), "mode": 0o600}},
        "bypass_overload_manager": True,
        "ignore_global_conn_limit": True,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
