"""What a Gateway does for a sticky endpoint, and what is refused because it cannot do it."""

from typing import Any, cast

import pytest

from controlled_rollout.cluster.api import Api
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import EndpointError, WorkspaceError
from controlled_rollout.target.kubernetes.manifests import root_config_map, traffic_policy
from controlled_rollout.target.kubernetes.sticky_split import check_gateway_splits_by_key, check_sticky

OWNER = {**root_config_map("digits", "models"), "metadata": {"name": "digits", "uid": "1"}}


def endpoint(*percentiles: float, sticky: str | None = "header:X-User") -> Endpoint:
    """Return an endpoint with a control and treatments of these percentiles."""
    result = Endpoint(name="digits", sticky=sticky).create_version("one", image="i", is_control=True)
    for number, percentile in enumerate(percentiles):
        result = result.create_version(f"version-{number}", image="i", traffic_percentile=percentile)
    return result


def test_the_policy_of_a_sticky_endpoint_splits_by_the_header_and_tags_it() -> None:
    """Envoy Gateway takes the hash for the weighted backends as well as for their replicas."""
    spec = traffic_policy(endpoint(), namespace="models", owner=OWNER)["spec"]
    assert spec["loadBalancer"] == {
        "type": "ConsistentHash",
        "consistentHash": {"type": "Header", "header": {"name": "x-user"}},
    }
    tag = spec["telemetry"]["tracing"]["customTags"]["sticky_key"]
    assert tag == {"type": "RequestHeader", "requestHeader": {"name": "x-user"}}


def test_the_policy_of_another_endpoint_has_neither() -> None:
    """Without `sticky` nothing of a caller is tagged."""
    spec = traffic_policy(endpoint(sticky=None), namespace="models", owner=OWNER)["spec"]
    assert spec["loadBalancer"] == {"type": "LeastRequest"}
    assert "sticky_key" not in spec["telemetry"]["tracing"]["customTags"]


def test_a_cookie_is_refused() -> None:
    """Its value cannot be told apart from all other cookies in telemetry."""
    with pytest.raises(EndpointError, match="use a header on Kubernetes"):
        check_sticky(endpoint(sticky="cookie:session"))


def test_a_third_version_with_traffic_is_refused_but_for_an_endpoint_that_is_not_sticky() -> None:
    """Backends keep their positions, so that callers of one treatment would move to another."""
    check_sticky(endpoint(5.0))
    check_sticky(endpoint(5.0, 0.0))
    check_sticky(endpoint(5.0, 5.0, sticky=None))
    with pytest.raises(EndpointError, match="at most 2 versions of a sticky endpoint"):
        check_sticky(endpoint(5.0, 5.0))


class OpenApi:
    """The API server's description of Envoy Gateway's kinds."""

    server = "https://cluster.example"

    def __init__(self, tracing: dict[str, Any] | None) -> None:
        self._tracing = tracing

    async def find(self, path: str) -> dict[str, Any] | None:
        """Return the description of the policies, if there is one."""
        assert path == "/openapi/v3/apis/gateway.envoyproxy.io/v1alpha1"
        if self._tracing is None:
            return None
        spec = {"telemetry": {"properties": {"tracing": {"properties": self._tracing}}}}
        policy = {"properties": {"spec": {"properties": spec}}}
        return {"components": {"schemas": {"io.envoyproxy.gateway.v1alpha1.BackendTrafficPolicy": policy}}}


async def test_a_gateway_that_splits_by_key_is_accepted() -> None:
    """Its policies have what Envoy Gateway 1.9 has added."""
    await check_gateway_splits_by_key(cast(Api, OpenApi({"clientSamplingFraction": {}})), endpoint())


@pytest.mark.parametrize("tracing", [{"samplingFraction": {}}, {}, None])
async def test_an_older_gateway_is_refused_for_a_sticky_endpoint_only(tracing: dict[str, Any] | None) -> None:
    """It would split at random, and nobody would notice."""
    api = cast(Api, OpenApi(tracing))
    await check_gateway_splits_by_key(api, endpoint(sticky=None))
    with pytest.raises(WorkspaceError, match=r"older than 1\.9"):
        await check_gateway_splits_by_key(api, endpoint())
