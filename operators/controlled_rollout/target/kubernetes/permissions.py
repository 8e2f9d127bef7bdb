"""What the target needs to be allowed, in one place: the shipped Role and the connectivity check are made from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = [
    "BUILDER",
    "ENVOY_NAMESPACE",
    "GATEWAY_CLASSES",
    "GATEWAY_NAMESPACE",
    "NAMESPACE",
    "Permission",
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
        why: For the reader of the Role.
    """

    group: str
    resource: str
    verbs: tuple[str, ...]
    why: str


# Where the endpoints live.
NAMESPACE: Final = (
    Permission("", "configmaps", ("create", "get", "patch", "delete"), "the object that owns all of an endpoint"),
    Permission("apps", "controllerrevisions", ("create", "list", "delete"), "the endpoint's revisions"),
    Permission("apps", "deployments", ("create", "list", "watch", "patch", "delete"), "the versions' replicas"),
    Permission("apps", "deployments/scale", ("patch",), "sized before traffic"),
    Permission("", "services", ("create", "list", "patch", "delete"), "the versions' addresses"),
    Permission("", "secrets", ("create", "get", "patch"), "the endpoints' keys"),
    Permission("", "pods", ("list", "watch"), "what keeps a version from being ready"),
    Permission("", "pods/log", ("get",), "a version's log"),
    Permission("", "events", ("list",), "the same, in Kubernetes' words; not needed"),
    Permission(
        "gateway.networking.k8s.io",
        "httproutes",
        ("create", "get", "list", "watch", "patch", "delete"),
        "the split of the traffic",
    ),
    Permission(
        "gateway.envoyproxy.io",
        "securitypolicies",
        ("create", "list", "watch", "patch", "delete"),
        "who may call",
    ),
    Permission("gateway.envoyproxy.io", "backendtrafficpolicies", ("create", "patch"), "time-outs, retries, telemetry"),
    Permission("gateway.envoyproxy.io", "httproutefilters", ("create", "patch"), "answers of the router itself"),
)

# Where the Gateway is.
GATEWAY_NAMESPACE: Final = (Permission("gateway.networking.k8s.io", "gateways", ("get",), "its address and its class"),)

# Where its Envoy pods run.
ENVOY_NAMESPACE: Final = (
    Permission("", "pods", ("list", "watch"), "the router's replicas"),
    Permission("", "pods/proxy", ("get",), "their counters: which split is served, how much load there is"),
)

# In the whole cluster; not needed, but then a Gateway of another controller is refused before anything is made.
GATEWAY_CLASSES: Final = (
    Permission("gateway.networking.k8s.io", "gatewayclasses", ("get",), "which controller serves a Gateway"),
)


# Where images are built by pods, if the workspace's builder is `kubernetes`.
BUILDER: Final = (
    Permission("", "pods", ("create", "get", "list", "delete"), "the pod that builds an environment image"),
    Permission("", "pods/log", ("get",), "its log is the task's"),
    Permission("", "secrets", ("create",), "the registries' users, for that pod alone"),
)


def builder_as_yaml(
    namespace: str = "models", service_account: str = "controlled-rollout", account_namespace: str | None = None
) -> str:
    """Return the Role that building by pods takes, and its binding.

    Args:
        namespace: Where such pods run.
        service_account: The ServiceAccount's name.
        account_namespace: Where the ServiceAccount lives; None for `namespace`.
    """
    account = f"{account_namespace or namespace}/{service_account}"
    return _role(f"{service_account}-builder", namespace, BUILDER, account)


def as_yaml(
    namespace: str = "models",
    gateway_namespace: str = "gateway",
    envoy_namespace: str = "envoy-gateway-system",
    service_account: str = "controlled-rollout",
) -> str:
    """Return the ServiceAccount, the Roles that it needs and nothing more, and their bindings.

    Args:
        namespace: Where the endpoints and the ServiceAccount live.
        gateway_namespace: Where the Gateway is.
        envoy_namespace: Where its Envoy pods run.
        service_account: The ServiceAccount's name.
    """
    account = f"{namespace}/{service_account}"
    return "---\n".join(
        [
            _ACCOUNT.format(name=service_account, namespace=namespace),
            _role(service_account, namespace, NAMESPACE, account),
            _role(f"{service_account}-{namespace}-gateway", gateway_namespace, GATEWAY_NAMESPACE, account),
            _role(f"{service_account}-{namespace}-envoy", envoy_namespace, ENVOY_NAMESPACE, account),
            _role(f"{service_account}-{namespace}", None, GATEWAY_CLASSES, account),
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
    verbs: [{verbs}]
"""


def _role(name: str, namespace: str | None, permissions: Sequence[Permission], account: str) -> str:
    account_namespace, account_name = account.split("/")
    rules = [
        _RULE.format(
            why=one.why, group=one.group, resource=one.resource, verbs=", ".join(f'"{verb}"' for verb in one.verbs)
        )
        for one in permissions
    ]
    return _ROLE.format(
        kind="Role" if namespace else "ClusterRole",
        name=name,
        where=f"  namespace: {namespace}\n" if namespace else "",
        rules="".join(rules),
        account=account_name,
        account_namespace=account_namespace,
    )
