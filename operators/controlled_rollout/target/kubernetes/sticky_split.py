"""What Envoy Gateway does for an endpoint whose callers stay with a version, and what it cannot do."""

from typing import Any, Final

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import BACKEND_TRAFFIC_POLICY
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import EndpointError, WorkspaceError
from controlled_rollout.sticky import StickyKey

__all__ = ["check_gateway_splits_by_key", "check_sticky", "key_tags", "load_balancer"]

# The tag of spans with the caller's key. The collector makes a hash of it (docs/aks/collector.yaml).
KEY_TAG: Final = "sticky_key"
# Envoy Gateway chooses among weighted backends by the key's hash since 1.9. Its policies have this field since then.
SINCE_1_9: Final = ("spec", "telemetry", "tracing", "clientSamplingFraction")
# With more versions the order of a rule's backends would have to change, and their positions are their identities.
MAX_WITH_TRAFFIC: Final = 2


def check_sticky(endpoint: Endpoint) -> None:
    """Raise EndpointError if a sticky endpoint asks for what a Gateway cannot do.

    Raises:
        EndpointError: Its key is a cookie, or more than two versions have traffic.
    """
    if endpoint.sticky is None:
        return
    if StickyKey.parse(endpoint.sticky).kind == "cookie":
        raise EndpointError(
            f"endpoint {endpoint.name!r} asks for sticky={endpoint.sticky!r}: Envoy Gateway has no way to tell "
            "telemetry of one cookie alone, so that the gate could not count callers; use a header on Kubernetes"
        )
    with_traffic = [name for name, weight in endpoint.weight_ppm().items() if weight]
    if len(with_traffic) > MAX_WITH_TRAFFIC:
        raise EndpointError(
            f"endpoint {endpoint.name!r} is sticky and would send traffic to {', '.join(with_traffic)}: on Kubernetes "
            f"at most {MAX_WITH_TRAFFIC} versions of a sticky endpoint may have traffic, because callers of one "
            "treatment would move to another; set the traffic of one treatment to 0 first"
        )


async def check_gateway_splits_by_key(api: Api, endpoint: Endpoint) -> None:
    """Raise WorkspaceError if the cluster's Envoy Gateway would split a sticky endpoint's traffic at random.

    Raises:
        WorkspaceError: It is older than 1.9.
    """
    if endpoint.sticky is None:
        return
    document = await api.find(f"/openapi/v3/apis/{BACKEND_TRAFFIC_POLICY.version}")
    schemas = ((document or {}).get("components") or {}).get("schemas") or {}
    policies = [schema for name, schema in schemas.items() if name.endswith(f".{BACKEND_TRAFFIC_POLICY.name}")]
    if not any(_has_field(policy) for policy in policies):
        raise WorkspaceError(
            f"endpoint {endpoint.name!r} asks for sticky={endpoint.sticky!r}, and the Envoy Gateway of {api.server} is "
            "older than 1.9, which would split the traffic at random all the same: update it, or leave sticky out"
        )


def _has_field(schema: Object) -> bool:
    """Return whether the schema of a policy has the field that Envoy Gateway 1.9 has added."""
    found: Any = schema
    for name in SINCE_1_9:
        found = (found.get("properties") or {}).get(name)
        if found is None:
            return False
    return True


def load_balancer(endpoint: Endpoint) -> Object:
    """Return how a policy chooses a replica, and the version of a sticky endpoint: by the caller's key, if it is one.

    Otherwise the replica with the fewest requests answers.
    """
    if endpoint.sticky is None:
        return {"type": "LeastRequest"}
    name = StickyKey.parse(endpoint.sticky).name
    return {"type": "ConsistentHash", "consistentHash": {"type": "Header", "header": {"name": name}}}


def key_tags(endpoint: Endpoint) -> Object:
    """Return the tag of an endpoint's spans that has the caller's key; none if it is not sticky."""
    if endpoint.sticky is None:
        return {}
    name = StickyKey.parse(endpoint.sticky).name
    return {KEY_TAG: {"type": "RequestHeader", "requestHeader": {"name": name}}}
