"""Routes that nobody calls, so that every Envoy knows an endpoint's next key set before the endpoint uses it.

Envoy Gateway writes key sets into the listener, and the name of the one that is asked for into the route. A key set
that is new in both at once is missing in connections of before: their requests would be answered 403 until they are
closed. So two routes hold the present and the next key set all the time, and a rotation changes the endpoint's route
only. What connections of before have to be closed for is the next rotation: it waits for that.
"""

import asyncio
import hashlib
from datetime import datetime, timedelta
from typing import Final

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import HTTP_ROUTE, MANAGED_BY, SECURITY_POLICY
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.kubernetes import manifests
from controlled_rollout.target.kubernetes.names import endpoint_object_name, selector
from controlled_rollout.tokens import SigningKeys, key_set

__all__ = ["STANDBY_LABEL", "drains_for", "keep", "wait_until_known"]

# Not the endpoint's own label: by that its one route is found.
STANDBY_LABEL: Final = "controlled-rollout/standby"
# An Envoy closes the connections of a listener's former configuration within so long: 60 s (`drainTimeout` of the
# EnvoyProxy), and some for Envoy Gateway to write the new one.
DRAINED: Final = timedelta(seconds=75)


async def keep(api: Api, namespace: str, endpoint: Endpoint, keys: SigningKeys, parent: Object, owner: Object) -> None:
    """Make the two routes of an endpoint's key sets, and delete those of key sets that are gone.

    Args:
        api: The cluster.
        namespace: Where the endpoint is.
        endpoint: The endpoint.
        keys: Its signing keys.
        parent: The reference to the Gateway's listener.
        owner: The endpoint's root object.
    """
    labels = {**MANAGED_BY, STANDBY_LABEL: endpoint.name}
    wanted = {_name(endpoint.name, text): text for text in _key_sets(keys)}
    for kind in (SECURITY_POLICY, HTTP_ROUTE):
        found = {
            item["metadata"]["name"] for item in await api.items(kind.path(namespace), labelSelector=selector(labels))
        }
        for name in wanted.keys() - found:
            manifest = (
                manifests.standby_policy(endpoint, name, labels, wanted[name], namespace=namespace, owner=owner)
                if kind is SECURITY_POLICY
                else manifests.standby_route(endpoint.name, name, labels, parent, namespace=namespace, owner=owner)
            )
            await api.create(kind.path(namespace), manifest)
        for name in found - wanted.keys():
            await api.delete(kind.path(namespace, name))


async def wait_until_known(api: Api, namespace: str, endpoint: str, keys: SigningKeys) -> None:
    """Wait until no connection is left that was opened before Envoys knew an endpoint's next key set."""
    route = await api.find(HTTP_ROUTE.path(namespace, _name(endpoint, _key_sets(keys)[1])))
    await asyncio.sleep(drains_for(route, await api.server_time()).total_seconds())


def drains_for(route: Object | None, now: datetime) -> timedelta:
    """Return how long connections of before a key set's route may still be open; longest, without a route. Pure.

    Args:
        route: The route that holds the key set; None if there is none.
        now: The API server's time: by its clock the route was made, and this machine's may be minutes off.
    """
    if route is None:
        return DRAINED
    # Both times are whole seconds.
    left = datetime.fromisoformat(route["metadata"]["creationTimestamp"]) + DRAINED - now + timedelta(seconds=1)
    return min(max(left, timedelta(0)), DRAINED)


def _key_sets(keys: SigningKeys) -> tuple[str, str]:
    """Return the key set that is in use, and the one of after the next rotation."""
    return key_set(keys), key_set(keys.rotated())


def _name(endpoint: str, text: str) -> str:
    """Return the name of the route, and of the policy, that hold a key set."""
    return endpoint_object_name(endpoint, f"keys-{hashlib.sha256(text.encode()).hexdigest()[:12]}")
