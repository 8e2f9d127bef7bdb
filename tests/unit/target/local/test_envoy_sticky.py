"""The routes of a sticky endpoint: Envoy's clusters in the order of the ranges, the hash, the tag with the key."""

from typing import Any

import pytest

from controlled_rollout.sticky import StickyKey, UserRange
from controlled_rollout.target.local import envoy_routes
from controlled_rollout.target.local.envoy_routes import EndpointRoute, VersionRoute
from controlled_rollout.target.local.envoy_sticky import StickyRoute

RANGES = tuple(
    UserRange(version=version, width=width)
    for version, width in (("two", 200_000), ("one", 300_000), ("three", 100_000), ("one", 400_000))
)
VERSIONS = (
    VersionRoute("one", 700_000, 1000),
    VersionRoute("two", 200_000, 1000),
    VersionRoute("three", 100_000, 1000),
)


def routes(key: str | None, *, traced: bool = True) -> list[dict[str, Any]]:
    """Return the two routes that split by weight: of judged requests, and of others."""
    sticky = StickyRoute(StickyKey.parse(key), RANGES) if key else None
    endpoint = EndpointRoute("digits", VERSIONS, ("k1",), traced, sticky=sticky)
    found: list[dict[str, Any]] = envoy_routes.route_configuration([endpoint])["virtual_hosts"][0]["routes"]
    return [route for route in found if "weighted_clusters" in route.get("route", {})]


@pytest.mark.parametrize("key", ["header:x-user", "cookie:session"])
def test_clusters_are_in_the_order_of_the_ranges_and_chosen_by_the_hash(key: str) -> None:
    """A version with several ranges is there several times, for requests to other paths as well."""
    judged, others = routes(key)
    for route, end in ((judged, ""), (others, "/not-judged")):
        weighted = route["route"]["weighted_clusters"]
        assert weighted["use_hash_policy"] is True
        assert [(one["name"], one["weight"]) for one in weighted["clusters"]] == [
            (f"digits/{one.version}{end}", one.width) for one in RANGES
        ]
    kind, _, name = key.partition(":")
    named = {"header": {"header_name": name}} if kind == "header" else {"cookie": {"name": name}}
    assert judged["route"]["hash_policy"] == [named]


def test_only_spans_of_judged_requests_have_the_key_and_none_where_nothing_is_traced() -> None:
    """Of what nobody judges nobody needs to know who sent it."""
    judged, others = routes("header:x-user")
    assert {"tag": "sticky_key", "request_header": {"name": "x-user"}} in judged["tracing"]["custom_tags"]
    assert "custom_tags" not in others["tracing"]
    assert all("custom_tags" not in route["tracing"] for route in routes("header:x-user", traced=False))


def test_without_a_key_the_split_is_drawn() -> None:
    """An endpoint that is not sticky has one cluster for each version, and no hash."""
    judged, _ = routes(None)
    assert [one["weight"] for one in judged["route"]["weighted_clusters"]["clusters"]] == [700_000, 200_000, 100_000]
    assert "use_hash_policy" not in judged["route"]["weighted_clusters"]
    assert "hash_policy" not in judged["route"]
