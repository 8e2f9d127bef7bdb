"""Which rules of others take an endpoint's requests before its own."""

from typing import Any

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.kubernetes import route_rules
from controlled_rollout.target.kubernetes.route_rules import Mark
from controlled_rollout.target.kubernetes.shadowing import Shadow, shadows

GATEWAY = ("gateway", "models")
BASE = "/api/v1/service/digits"
EARLY, LATE = "2026-11-28T09:00:00Z", "2026-11-28T10:00:00Z"
NOON = "2026-11-28T09:30:00Z"


def route(
    name: str, rules: list[dict[str, Any]], *, at: str = LATE, hosts: tuple[str, ...] = (), **more: Any
) -> dict[str, Any]:
    parent = {"kind": "Gateway", "namespace": GATEWAY[0], "name": GATEWAY[1]}
    namespace, _, short = name.partition("/")
    spec = {"parentRefs": [more.pop("parent", parent)], "rules": rules, **({"hostnames": list(hosts)} if hosts else {})}
    return {"metadata": {"namespace": namespace, "name": short, "creationTimestamp": at}, "spec": spec, **more}


def rule(kind: str, value: str, **more: Any) -> dict[str, Any]:
    return {"matches": [{"path": {"type": kind, "value": value}, **more}]}


def own_route(*before: dict[str, Any]) -> dict[str, Any]:
    endpoint = Endpoint(name="digits").create_version("one", image="a@sha256:1")
    ours = route_rules.build_rules(endpoint, [], weights={"one": 1_000_000}, reachable=["one"], mark=Mark(1))
    return route("models/digits", [*before, *route_rules.merge_rules([], ours)], at=NOON)


def shadows_beside(
    *routes: dict[str, Any],
    ours: dict[str, Any] | None = None,
    listeners: tuple[str, ...] = (),
    host: str | None = None,
) -> list[Shadow]:
    everything = [ours or own_route(), *routes]
    return shadows("digits", ("models", "digits"), everything, gateway=GATEWAY, listeners=listeners, host=host)


@pytest.mark.parametrize(
    "other",
    [
        rule("Exact", f"{BASE}/score"),
        rule("PathPrefix", f"{BASE}/score"),
        rule("RegularExpression", "/.*"),
        rule("RegularExpression", "/[[:alpha:]]+.*"),
        rule("Exact", f"{BASE}/score", method="POST"),
    ],
)
def test_a_rule_that_comes_before_ours_for_all_scoring_requests_takes_all(other: dict[str, Any]) -> None:
    [shadow] = shadows_beside(route("other/thief", [other]))

    assert shadow.takes_all
    assert f"HTTPRoute other/thief takes requests to {BASE}/score" in shadow.sentence


@pytest.mark.parametrize(
    "other",
    [
        rule("Exact", f"{BASE}/swagger.json"),
        rule("PathPrefix", BASE, headers=[{"name": "x-canary", "value": "1"}]),
    ],
)
def test_a_rule_that_takes_some_requests_is_said_and_takes_not_all(other: dict[str, Any]) -> None:
    [shadow] = shadows_beside(route("other/part", [other]))

    assert not shadow.takes_all


@pytest.mark.parametrize(
    "other",
    [
        rule("PathPrefix", "/"),
        rule("PathPrefix", "/api"),
        rule("Exact", "/api/v1/service/digits2/score"),
        rule("PathPrefix", "/api/v1/service/digits2"),
        rule("RegularExpression", "/api/v1/service/other.*"),
        {"filters": []},
    ],
)
def test_a_rule_that_comes_after_ours_or_matches_other_paths_takes_nothing(other: dict[str, Any]) -> None:
    assert shadows_beside(route("other/neighbour", [other], at=EARLY)) == []


def test_of_two_endpoints_of_one_name_the_one_whose_route_is_older_has_the_requests() -> None:
    same = [rule("PathPrefix", BASE)]

    assert [shadow.takes_all for shadow in shadows_beside(route("other/digits", same, at=EARLY))] == [True]
    assert shadows_beside(route("other/digits", same, at=LATE)) == []
    # In the same second the name decides, so that exactly one of the two is told that it lost.
    assert shadows_beside(route("a/digits", same, at=NOON)) != []
    assert shadows_beside(route("z/digits", same, at=NOON)) == []


def test_a_foreign_rule_in_our_own_route_counts_by_its_place() -> None:
    same = rule("PathPrefix", BASE)
    behind = own_route()
    behind["spec"]["rules"].append(same)

    assert [shadow.takes_all for shadow in shadows_beside(ours=own_route(same))] == [True]
    assert shadows_beside(ours=behind) == []


def test_routes_that_are_not_attached_to_the_gateway_take_nothing() -> None:
    rules = [rule("Exact", f"{BASE}/score")]
    parent = {"kind": "Gateway", "namespace": "gateway", "name": "another"}
    refused = {"parentRef": {"namespace": "gateway", "name": "models"}}
    conditions = [{"type": "Accepted", "status": "False"}]

    assert shadows_beside(route("other/thief", rules, parent=parent)) == []
    assert (
        shadows_beside(route("other/thief", rules, status={"parents": [{**refused, "conditions": conditions}]})) == []
    )


def test_a_route_that_names_the_callers_host_takes_all_its_requests_unless_ours_is_for_that_host_too() -> None:
    host = "models.example.com"
    other = route("other/shop", [rule("PathPrefix", "/shop")], hosts=(host,))

    assert [shadow.takes_all for shadow in shadows_beside(other, host=host)] == [True]
    assert [shadow.takes_all for shadow in shadows_beside(other, host=host, listeners=("*.example.com",))] == [True]
    assert shadows_beside(other, host=host, listeners=(host,)) == []
    assert shadows_beside(other, host="elsewhere.example.com") == []
    assert shadows_beside(
        route("other/thief", [rule("Exact", f"{BASE}/score")], hosts=(host,)), host=host, listeners=(host,)
    )


@pytest.mark.parametrize(
    ("hosts", "host", "is_excluded"),
    [
        ((), "models.example.com", False),
        (("models.example.com", "other.example.com"), "models.example.com", False),
        (("*.example.com",), "models.example.com", False),
        (("other.example.com",), None, False),
        (("other.example.com",), "models.example.com", True),
        (("*.example.org",), "127.0.0.1", True),
    ],
)
def test_a_route_of_ours_that_somebody_has_made_for_other_hosts_reaches_no_caller(
    hosts: tuple[str, ...], host: str | None, is_excluded: bool
) -> None:
    ours = own_route()
    ours["spec"]["hostnames"] = list(hosts)

    shadows = shadows_beside(ours=ours, host=host)

    assert [shadow.takes_all for shadow in shadows] == ([True] if is_excluded else [])
    assert not is_excluded or f"is for requests to {hosts[0]} only, and callers ask for {host}" in shadows[0].sentence
