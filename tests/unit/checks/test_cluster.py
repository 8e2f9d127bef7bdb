"""The checks of a cluster, from its answers. On a real cluster: tests/cluster."""

from datetime import datetime
from typing import Any

import pytest

from controlled_rollout.checks.cluster import (
    NEEDED_KINDS,
    actions_text,
    callers_faults,
    clock_difference,
    closes_by_default,
    gateway_fault,
    not_granted,
    not_served,
    pod_security_warning,
)
from controlled_rollout.target.kubernetes.permissions import NAMESPACE, Permission
from controlled_rollout.workspace import Workspace


def rule(*verbs: str, groups: tuple[str, ...] = ("",), resources: tuple[str, ...], **more: object) -> dict[str, object]:
    return {"verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources), **more}


PODS = (Permission("", "pods", ("list", "watch"), ""), Permission("", "pods/log", ("get",), ""))


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ([], ["list pods", "watch pods", "get pods/log"]),
        ([rule("list", resources=("pods",)), rule("watch", resources=("pods", "pods/log"))], ["get pods/log"]),
        ([rule("*", resources=("pods",))], ["get pods/log"]),
        ([rule("*", resources=("*/log",))], ["list pods", "watch pods"]),
        ([rule("*", groups=("*",), resources=("*",))], []),
        ([rule("*", groups=("apps",), resources=("*",))], ["list pods", "watch pods", "get pods/log"]),
        ([rule("*", resources=("*",), resourceNames=["mine"])], ["list pods", "watch pods", "get pods/log"]),
        ([{"verbs": ["*"], "resources": ["*"]}], ["list pods", "watch pods", "get pods/log"]),
    ],
)
def test_rules_grant_their_verbs_but_nothing_for_single_objects(rules: list[dict[str, Any]], left: list[str]) -> None:
    assert [f"{verb} {resource}" for verb, _, resource in not_granted(PODS, rules)] == left


def test_rules_of_the_role_grant_all_needed_permissions() -> None:
    rules = [
        rule(*permission.verbs, groups=(permission.group,), resources=(permission.resource,))
        for permission in NAMESPACE
    ]
    assert not_granted(NAMESPACE, rules) == []
    assert {action[2] for action in not_granted(NAMESPACE, rules[1:])} == {NAMESPACE[0].resource}


def test_missing_permissions_are_listed_by_resource() -> None:
    needed = (Permission("apps", "deployments/scale", ("patch",), ""), *PODS)
    assert actions_text(not_granted(needed, [])) == "patch deployments/scale.apps; list, watch pods; get pods/log"


def test_a_cluster_knows_a_kind_only_in_the_version_that_is_asked_for() -> None:
    groups = {kind.version: {"resources": [{"name": kind.plural} for kind in NEEDED_KINDS]} for kind in NEEDED_KINDS}
    assert not_served(groups) == []
    assert not_served({**groups, NEEDED_KINDS[0].version: None}) == [
        kind for kind in NEEDED_KINDS if "networking" in kind.group
    ]
    assert not_served({}) == list(NEEDED_KINDS)


def gateway(
    *, programmed: str = "True", listener: str = "True", takes_from: str | None = "All", name: str = "https"
) -> dict[str, object]:
    def conditions(status: str) -> list[dict[str, str]]:
        condition = {"type": "Programmed", "status": status, "reason": "Pending", "message": "no address yet"}
        return [condition] if status else []

    allowed = {"namespaces": {"from": takes_from}} if takes_from else {}
    return {
        "spec": {"listeners": [{"name": name, "allowedRoutes": allowed}]},
        "status": {
            "conditions": conditions(programmed),
            "listeners": [{"name": name, "conditions": conditions(listener)}],
        },
    }


@pytest.mark.parametrize(
    ("gateway_object", "setting", "fault"),
    [
        (gateway(), "infra/shared", None),
        (gateway(), "infra/shared/https", None),
        (gateway(takes_from=None), "models/shared", None),
        (gateway(takes_from="Selector"), "infra/shared", None),
        (gateway(takes_from=None), "infra/shared", "takes routes from its own namespace only"),
        (gateway(takes_from="Same"), "infra/shared/https", "takes routes from its own namespace only"),
        (gateway(), "infra/shared/http", "has no listener 'http'"),
        (gateway(programmed=""), "infra/shared", "no controller has programmed it yet"),
        (gateway(programmed="False"), "infra/shared", "not programmed (Pending: no address yet)"),
        (gateway(listener="False"), "infra/shared", "listener 'https': it is not programmed (Pending"),
        ({"spec": {}}, "infra/shared", "no controller"),
        ({"spec": {}, "status": gateway()["status"]}, "infra/shared", "has no listeners"),
    ],
)
def test_gateway_that_would_not_serve_the_routes_is_reported(
    gateway_object: dict[str, Any], setting: str, fault: str | None
) -> None:
    workspace = Workspace(target="kubernetes", namespace="models", gateway=setting)
    message = gateway_fault(gateway_object, workspace)
    assert message is None if fault is None else fault in str(message)


@pytest.mark.parametrize(
    ("authorization", "target", "closes"),
    [
        ({"defaultAction": "Deny"}, {"kind": "Gateway", "name": "models"}, True),
        ({}, {"kind": "Gateway", "name": "models"}, True),
        ({"defaultAction": "Allow"}, {"kind": "Gateway", "name": "models"}, False),
        ({"rules": [{"action": "Allow"}]}, {"kind": "Gateway", "name": "models"}, False),
        (None, {"kind": "Gateway", "name": "models"}, False),
        ({"defaultAction": "Deny"}, {"kind": "Gateway", "name": "another"}, False),
        ({"defaultAction": "Deny"}, {"kind": "HTTPRoute", "name": "models"}, False),
        ({"defaultAction": "Deny"}, {"kind": "Gateway", "name": "models", "sectionName": "http"}, False),
    ],
)
def test_a_gateway_closes_by_default_only_by_a_policy_of_its_own_that_refuses_everybody(
    authorization: dict[str, Any] | None, target: dict[str, str], closes: bool
) -> None:
    spec = {"targetRefs": [target], **({} if authorization is None else {"authorization": authorization})}

    assert closes_by_default({"spec": spec}, "models") is closes


@pytest.mark.parametrize(
    ("level", "found"), [(None, "no level"), ("baseline", "baseline"), ("privileged", "privileged")]
)
def test_a_namespace_that_takes_any_pod_is_a_warning(level: str | None, found: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": level} if level else None
    warning = pod_security_warning({"metadata": {"name": "models", "labels": labels}})
    assert warning == f"; it enforces {found} of Pod Security, and 'restricted' is enough: see docs/aks.md, step 4"


def test_a_namespace_that_enforces_restricted_is_no_warning() -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    assert pod_security_warning({"metadata": {"name": "models", "labels": labels}}) == ""


REMOVING: dict[str, Any] = {"earlyRequestHeaders": {"remove": ["X-Controlled-Rollout-Routed-By"]}}
SHIPPED: dict[str, Any] = {
    "targetRefs": [{"kind": "Gateway", "name": "models"}],
    "timeout": {"http": {"requestReceivedTimeout": "60s"}},
    "headers": {**REMOVING, "requestID": "Generate"},
}
OF_HTTPS: dict[str, Any] = {"targetRefs": [{"kind": "Gateway", "name": "models", "sectionName": "https"}]}
HEADER, SLOW = "callers without a key could claim to be evidence", "slow uploads are never ended"
OLD = "set its tls.minVersion to 1.2"
IDS = "a caller who repeats one merges the rows of its requests, and one who chooses them chooses what is collected"


@pytest.mark.parametrize(
    ("specs", "faults"),
    [
        pytest.param([SHIPPED], [], id="the shipped policy"),
        pytest.param([], [HEADER, SLOW], id="no policy"),
        pytest.param([{**SHIPPED, "targetRefs": [{"kind": "Gateway", "name": "other"}]}], [HEADER, SLOW], id="another"),
        pytest.param([{**SHIPPED, "timeout": {"http": {"requestReceivedTimeout": "0s"}}}], [SLOW], id="no end"),
        pytest.param([{**SHIPPED, "headers": {"earlyRequestHeaders": {"remove": ["x"]}}}], [HEADER], id="other header"),
        pytest.param([{**SHIPPED, "headers": {**REMOVING, "requestID": "Preserve"}}], [IDS], id="callers' ids"),
        pytest.param([{**SHIPPED, "headers": {**REMOVING, "preserveXRequestID": True}}], [IDS], id="the old setting"),
        pytest.param([SHIPPED, OF_HTTPS], [HEADER, SLOW], id="the listener's own policy takes its place"),
        pytest.param([{**SHIPPED, "tls": {"minVersion": "1.1"}}], [OLD], id="TLS 1.1"),
        pytest.param([{**SHIPPED, "tls": {"minVersion": "1.3"}}], [], id="TLS 1.3 only"),
        pytest.param([{**SHIPPED, "tls": {"minVersion": "Auto"}}], [], id="Envoy Gateway's own least version"),
        pytest.param([{**SHIPPED, **OF_HTTPS}], [], id="a policy for the listener alone"),
    ],
)
def test_a_gateway_without_the_shipped_client_policy_is_warned_of(
    specs: list[dict[str, Any]], faults: list[str]
) -> None:
    found = callers_faults([{"spec": spec} for spec in specs], "models", ["https"])

    assert [sentence.rpartition(": ")[2] for sentence in found] == faults


@pytest.mark.parametrize(
    ("server", "difference"),
    [("12:00:10", 0.0), ("12:00:09", 0.5), ("12:00:11", 0.0), ("12:00:18", 6.0), ("12:00:03", 6.5)],
)
def test_clocks_differ_by_what_the_servers_whole_seconds_prove(server: str, difference: float) -> None:
    day = "2026-03-01T{}+00:00"
    before, after = (datetime.fromisoformat(day.format(time)) for time in ("12:00:10.500", "12:00:12.000"))
    assert clock_difference(before, datetime.fromisoformat(day.format(server)), after) == difference
