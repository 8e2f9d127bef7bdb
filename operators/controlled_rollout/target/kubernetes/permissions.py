"""The permissions that the target needs: the shipped Role and the connectivity check are made from this one list."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from controlled_rollout.target.kubernetes.agent_lease import LEASE_NAME

__all__ = [
    "AGENT",
    "BUILDER",
    "CLUSTER",
    "ENVOY_NAMESPACE",
    "GATEWAY_NAMESPACE",
    "NAMESPACE",
    "Permission",
    "agent_as_yaml",
    "as_yaml",
    "builder_as_yaml",
]


@dataclass(frozen=True)
class Permission:
    """Verbs on one resource.

    Attributes:
        group: The API group; empty for the core.
        resource: In the plural, with its subresource if any.
        verbs: What is done with it.
        why: What it is needed for; a comment in the Role.
        name: The one object that it is for; empty for all. To create an object cannot be limited to a name.
    """

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str
    name: str = ""


# In the namespace of the endpoints.
NAMESPACE: Final = (
    Permission("", "configmaps", ("create", "get", "patch", "delete"), "the object that owns all of an endpoint"),
    Permission("apps", "controllerrevisions", ("create", "list", "delete"), "the endpoint's revisions"),
    Permission("apps", "deployments", ("create", "get", "list", "watch", "patch", "delete"), "the versions' replicas"),
    Permission("", "services", ("create", "get", "patch", "delete"), "the versions' addresses"),
    Permission(
        "policy", "poddisruptionbudgets", ("create", "get", "patch", "delete"), "replicas leave a node one by one"
    ),
    Permission("", "secrets", ("create", "get", "patch"), "the endpoints' keys, secrets of versions"),
    Permission(
        "", "pods", ("create", "get", "list", "watch", "delete"), "why a version is not ready; the pod of a check"
    ),
    Permission("", "pods/log", ("get",), "a version's log"),
    Permission("", "events", ("list",), "the same, in Kubernetes' words; not needed"),
    Permission("", "namespaces", ("get",), "whether it enforces Pod Security; not needed"),
    Permission(
        "gateway.networking.k8s.io",
        "httproutes",
        ("create", "get", "list", "watch", "patch", "delete"),
        "the split of the traffic",
    ),
    Permission(
        "gateway.envoyproxy.io",
        "securitypolicies",
        ("create", "get", "list", "watch", "patch", "delete"),
        "who may call",
    ),
    Permission(
        "gateway.envoyproxy.io",
        "backendtrafficpolicies",
        ("create", "get", "list", "patch"),
        "time-outs, retries, telemetry",
    ),
    Permission(
        "networking.k8s.io", "networkpolicies", ("create", "get", "patch"), "versions are called by the Gateway only"
    ),
    Permission("gateway.envoyproxy.io", "httproutefilters", ("create", "get", "patch"), "answers of the router itself"),
)

# In the namespace of the Gateway.
GATEWAY_NAMESPACE: Final = (
    Permission("gateway.networking.k8s.io", "gateways", ("get",), "its address and its class"),
    Permission("gateway.envoyproxy.io", "securitypolicies", ("list",), "whether it closes routes without a policy"),
    Permission(
        "gateway.envoyproxy.io", "clienttrafficpolicies", ("list",), "whether it takes our header off what callers send"
    ),
)

# In the namespace of its Envoy pods.
ENVOY_NAMESPACE: Final = (
    Permission("", "pods", ("list", "watch"), "the router's replicas"),
    Permission("", "pods/proxy", ("get",), "their counters: which split is served, how much load there is"),
)

# In the whole cluster. Optional: with it, a Gateway of another controller is refused before anything is created, and a
# route of another namespace that takes an endpoint's requests is seen.
CLUSTER: Final = (
    Permission("gateway.networking.k8s.io", "gatewayclasses", ("get",), "which controller serves a Gateway"),
    Permission("gateway.networking.k8s.io", "httproutes", ("list",), "whose rules come before an endpoint's"),
)


# In the namespace of the pods that build images, if the workspace's builder is `kubernetes`.
BUILDER: Final = (
    Permission("", "pods", ("create", "get", "list", "delete"), "the pod that builds an environment image"),
    Permission("", "pods/log", ("get",), "its log is the task's"),
    Permission("", "secrets", ("create",), "the registries' users, for that pod alone"),
)

# Of the agent, in each namespace of endpoints. It is at work where steps wait, and gives no new rights to anybody.
AGENT: Final = (
    Permission("coordination.k8s.io", "leases", ("create",), "one agent at a time is at work"),
    Permission("coordination.k8s.io", "leases", ("get", "patch"), "the same, for that one Lease", name=LEASE_NAME),
    Permission("apps", "deployments/scale", ("patch",), "replicas follow the load"),
    Permission("autoscaling", "horizontalpodautoscalers", ("list",), "whom the autoscaler leaves alone"),
    Permission("keda.sh", "scaledobjects", ("list",), "the same"),
    Permission("", "configmaps", ("list", "watch", "get", "patch"), "the object that owns all of an endpoint"),
    Permission("apps", "controllerrevisions", ("list", "watch", "create"), "the endpoint's revisions"),
    Permission("apps", "deployments", ("create", "get", "list", "watch", "patch", "delete"), "the versions' replicas"),
    Permission("", "services", ("create", "get", "patch", "delete"), "the versions' addresses"),
    Permission(
        "policy", "poddisruptionbudgets", ("create", "get", "patch", "delete"), "replicas leave a node one by one"
    ),
    Permission("", "secrets", ("create", "get", "patch"), "the endpoints' keys"),
    Permission("", "pods", ("list", "watch"), "what keeps a version from being ready"),
    Permission(
        "gateway.networking.k8s.io",
        "httproutes",
        ("create", "get", "list", "watch", "patch"),
        "the split of the traffic",
    ),
    Permission(
        "gateway.envoyproxy.io", "securitypolicies", ("create", "get", "list", "watch", "patch"), "who may call"
    ),
    Permission(
        "gateway.envoyproxy.io", "backendtrafficpolicies", ("create", "get", "list", "patch"), "time-outs, retries"
    ),
    Permission(
        "networking.k8s.io", "networkpolicies", ("create", "get", "patch"), "versions are called by the Gateway only"
    ),
    Permission("gateway.envoyproxy.io", "httproutefilters", ("create", "get", "patch"), "answers of the router itself"),
)

# Of the agent, in the namespace of the Gateway.
AGENT_GATEWAY: Final = (Permission("gateway.networking.k8s.io", "gateways", ("get",), "its address and its listeners"),)


def agent_as_yaml(
    namespace: str = "models",
    gateway_namespace: str = "gateway",
    envoy_namespace: str = "envoy-gateway-system",
    service_account: str = "controlled-rollout-agent",
    account_namespace: str | None = None,
) -> str:
    """Return as YAML the agent's ServiceAccount, its Roles for one namespace of endpoints, and their bindings.

    Args:
        namespace: The namespace of the endpoints.
        gateway_namespace: The namespace of the Gateway.
        envoy_namespace: The namespace of its Envoy pods.
        service_account: The ServiceAccount's name.
        account_namespace: The namespace of the ServiceAccount and of the agent's pods; None for `namespace`.
    """
    account_namespace = account_namespace or namespace
    account = f"{account_namespace}/{service_account}"
    return "---\n".join(
        [
            _ACCOUNT.format(name=service_account, namespace=account_namespace),
            _role_as_yaml(service_account, namespace, AGENT, account),
            _role_as_yaml(f"{service_account}-{namespace}-gateway", gateway_namespace, AGENT_GATEWAY, account),
            _role_as_yaml(f"{service_account}-{namespace}-envoy", envoy_namespace, ENVOY_NAMESPACE, account),
        ]
    )


def builder_as_yaml(
    namespace: str = "models", service_account: str = "controlled-rollout", account_namespace: str | None = None
) -> str:
    """Return as YAML the Role, and its RoleBinding, for building images in pods.

    Args:
        namespace: The namespace that such pods run in.
        service_account: The ServiceAccount's name.
        account_namespace: The ServiceAccount's namespace; None for `namespace`.
    """
    account = f"{account_namespace or namespace}/{service_account}"
    return _role_as_yaml(f"{service_account}-builder", namespace, BUILDER, account)


def as_yaml(
    namespace: str = "models",
    gateway_namespace: str = "gateway",
    envoy_namespace: str = "envoy-gateway-system",
    service_account: str = "controlled-rollout",
) -> str:
    """Return as YAML the ServiceAccount, the Roles that the target needs, and their bindings.

    Args:
        namespace: The namespace of the endpoints and of the ServiceAccount.
        gateway_namespace: The namespace of the Gateway.
        envoy_namespace: The namespace of its Envoy pods.
        service_account: The ServiceAccount's name.
    """
    account = f"{namespace}/{service_account}"
    return "---\n".join(
        [
            _ACCOUNT.format(name=service_account, namespace=namespace),
            _role_as_yaml(service_account, namespace, NAMESPACE, account),
            _role_as_yaml(f"{service_account}-{namespace}-gateway", gateway_namespace, GATEWAY_NAMESPACE, account),
            _role_as_yaml(f"{service_account}-{namespace}-envoy", envoy_namespace, ENVOY_NAMESPACE, account),
            _role_as_yaml(f"{service_account}-{namespace}", None, CLUSTER, account),
        ]
    )


_ACCOUNT: Final = """\
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {name}
  namespace: {namespace}
"""

_ROLE: Final = """\
apiVersion: rbac.authorization.k8s.io/v1
kind: {kind}
metadata:
  name: {name}
{where}rules:
{rules}---
apiVersion: rbac.authorization.k8s.io/v1
kind: {kind}Binding
metadata:
  name: {name}
{where}roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {kind}
  name: {name}
subjects:
  - kind: ServiceAccount
    name: {account}
    namespace: {account_namespace}
"""

_RULE: Final = """\
  # {why}
  - apiGroups: ["{group}"]
    resources: ["{resource}"]
{names}    verbs: [{verbs}]
"""


def _role_as_yaml(name: str, namespace: str | None, permissions: Sequence[Permission], account: str) -> str:
    """Return as YAML a Role and its binding to an account, or a ClusterRole if `namespace` is None."""
    account_namespace, account_name = account.split("/")
    rules = [
        _RULE.format(
            why=permission.why,
            group=permission.group,
            resource=permission.resource,
            names=f'    resourceNames: ["{permission.name}"]\n' if permission.name else "",
            verbs=", ".join(f'"{verb}"' for verb in permission.verbs),
        )
        for permission in permissions
    ]
    return _ROLE.format(
        kind="Role" if namespace else "ClusterRole",
        name=name,
        where=f"  namespace: {namespace}\n" if namespace else "",
        rules="".join(rules),
        account=account_name,
        account_namespace=account_namespace,
    )
