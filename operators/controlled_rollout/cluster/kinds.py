"""The kinds of objects that are read or written, their paths on the API server, and the label of our own objects."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "BACKEND_TRAFFIC_POLICY",
    "CLIENT_TRAFFIC_POLICY",
    "CONFIG_MAP",
    "CONTROLLER_REVISION",
    "DEPLOYMENT",
    "EVENT",
    "GATEWAY",
    "HORIZONTAL_POD_AUTOSCALER",
    "HTTP_ROUTE",
    "HTTP_ROUTE_FILTER",
    "LEASE",
    "MANAGED_BY",
    "NETWORK_POLICY",
    "POD",
    "POD_DISRUPTION_BUDGET",
    "SCALED_OBJECT",
    "SECRET",
    "SECURITY_POLICY",
    "SERVICE",
    "Kind",
]


@dataclass(frozen=True)
class Kind:
    """A kind of object and its path on the API server.

    Attributes:
        name: The kind, such as `Deployment`.
        version: The API version, such as `apps/v1`.
        plural: The name in paths, such as `deployments`.
    """

    name: str
    version: str
    plural: str

    @property
    def group(self) -> str:
        """The API group; empty for the core group."""
        return self.version.rpartition("/")[0]

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Return the API server's path of one object, or of the list of all objects in a namespace."""
        root = f"/apis/{self.version}" if "/" in self.version else f"/api/{self.version}"
        parts = [root, "namespaces", namespace, self.plural, name, subresource]
        return "/".join(part for part in parts if part)

    def path_of(self, given: Mapping[str, Any]) -> str:
        """Return the API server's path of an object of this kind that the API server has given."""
        return self.path(given["metadata"]["namespace"], given["metadata"]["name"])


CONFIG_MAP: Final = Kind("ConfigMap", "v1", "configmaps")
SECRET: Final = Kind("Secret", "v1", "secrets")
SERVICE: Final = Kind("Service", "v1", "services")
POD: Final = Kind("Pod", "v1", "pods")
EVENT: Final = Kind("Event", "v1", "events")
DEPLOYMENT: Final = Kind("Deployment", "apps/v1", "deployments")
CONTROLLER_REVISION: Final = Kind("ControllerRevision", "apps/v1", "controllerrevisions")
POD_DISRUPTION_BUDGET: Final = Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")
LEASE: Final = Kind("Lease", "coordination.k8s.io/v1", "leases")
HORIZONTAL_POD_AUTOSCALER: Final = Kind("HorizontalPodAutoscaler", "autoscaling/v2", "horizontalpodautoscalers")
# Of KEDA (https://keda.sh).
SCALED_OBJECT: Final = Kind("ScaledObject", "keda.sh/v1alpha1", "scaledobjects")
NETWORK_POLICY: Final = Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")
GATEWAY: Final = Kind("Gateway", "gateway.networking.k8s.io/v1", "gateways")
HTTP_ROUTE: Final = Kind("HTTPRoute", "gateway.networking.k8s.io/v1", "httproutes")
SECURITY_POLICY: Final = Kind("SecurityPolicy", "gateway.envoyproxy.io/v1alpha1", "securitypolicies")
CLIENT_TRAFFIC_POLICY: Final = Kind("ClientTrafficPolicy", "gateway.envoyproxy.io/v1alpha1", "clienttrafficpolicies")
BACKEND_TRAFFIC_POLICY: Final = Kind("BackendTrafficPolicy", "gateway.envoyproxy.io/v1alpha1", "backendtrafficpolicies")
HTTP_ROUTE_FILTER: Final = Kind("HTTPRouteFilter", "gateway.envoyproxy.io/v1alpha1", "httproutefilters")

MANAGED_BY: Final = {"app.kubernetes.io/managed-by": "controlled-rollout"}
