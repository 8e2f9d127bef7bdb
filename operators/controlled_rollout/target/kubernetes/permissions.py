"""What the target needs to be allowed, in one place: the shipped Role and the connectivity check are made from it."""

from dataclasses import dataclass
from typing import Final

__all__ = ["ENVOY_NAMESPACE", "GATEWAY_NAMESPACE", "NAMESPACE", "Permission"]


@dataclass(frozen=True)
class Permission:
    """Verbs on one resource.

    Attributes:
        group: The API group; empty for the core.
        resource: In the plural, with its subresource if any.
        verbs: What is done with it.
        why: For the reader of the Role.
    """

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str


# Where the endpoints live.
NAMESPACE: Final = (
    Permission("", "configmaps", ("create", "patch", "delete", "get"), "the object that owns all of an endpoint"),
    Permission("apps", "controllerrevisions", ("create", "list", "delete"), "the endpoint's revisions"),
    Permission("apps", "deployments", ("create", "patch", "delete", "list", "watch"), "the versions' replicas"),
    Permission("apps", "deployments/scale", ("patch",), "sized before traffic"),
    Permission("", "services", ("create", "patch", "delete", "list"), "the versions' addresses"),
    Permission("", "secrets", ("create", "get", "patch"), "the endpoint's keys"),
    Permission("", "pods", ("list", "watch"), "what holds a version up"),
    Permission("", "pods/log", ("get",), "a version's log"),
    Permission("", "events", ("list",), "why a pod cannot start"),
    Permission(
        "gateway.networking.k8s.io",
        "httproutes",
        ("create", "get", "list", "patch", "delete", "watch"),
        "the split of the traffic",
    ),
    Permission(
        "gateway.envoyproxy.io",
        "securitypolicies",
        ("create", "get", "list", "patch", "delete", "watch"),
        "who may call",
    ),
    Permission(
        "gateway.envoyproxy.io",
        "backendtrafficpolicies",
        ("create", "patch", "get"),
        "time-outs, retries, telemetry",
    ),
    Permission("gateway.envoyproxy.io", "httproutefilters", ("create", "patch"), "answers of the router itself"),
)

# Where the Gateway is.
GATEWAY_NAMESPACE: Final = (
    Permission("gateway.networking.k8s.io", "gateways", ("get",), "its address, and whether it is programmed"),
)

# Where its Envoy pods run.
ENVOY_NAMESPACE: Final = (
    Permission("", "pods", ("list",), "the router's replicas"),
    Permission("", "pods/proxy", ("get",), "their counters: the split that is served, the load"),
)
