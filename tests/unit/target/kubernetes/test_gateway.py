"""The conditions that the Gateway's controller sets on a route, and the listener that callers' keys are sent to."""

from typing import Any

import pytest

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.target.kubernetes.gateway import (
    CONTROLLER,
    acknowledgement,
    base_url,
    check_tls,
    chosen_listener,
    parent_reference,
    parent_references,
)
from controlled_rollout.workspace import Workspace

GATEWAY = ("gateway", "models")


def resource(kind: str, *conditions: tuple[str, str, str], generation: int = 4, name: str = "models") -> dict[str, Any]:
    parent = {
        "parentRef": {"namespace": "gateway", "name": name},
        "controllerName": CONTROLLER,
        "conditions": [
            {"type": of, "status": status, "reason": reason, "message": "m", "observedGeneration": 4}
            for of, status, reason in conditions
        ],
    }
    return {
        "kind": kind,
        "metadata": {"name": "digits", "namespace": "default", "generation": generation},
        "status": {"parents": [parent]},
    }


@pytest.mark.parametrize(
    ("route", "done", "refused"),
    [
        (None, False, False),
        (resource("HTTPRoute", ("Accepted", "True", "Accepted"), ("ResolvedRefs", "True", "R")), True, False),
        (resource("HTTPRoute", ("Accepted", "True", "Accepted")), False, False),
        (resource("HTTPRoute", ("Accepted", "True", "A"), ("ResolvedRefs", "True", "R"), generation=5), False, False),
        (resource("HTTPRoute", ("Accepted", "True", "A"), ("ResolvedRefs", "False", "BackendNotFound")), False, False),
        (resource("HTTPRoute", ("Accepted", "False", "NotAllowedByListeners")), False, True),
        (resource("HTTPRoute", ("Accepted", "True", "A"), ("ResolvedRefs", "True", "R"), name="other"), False, False),
    ],
)
def test_a_route_counts_when_the_gateway_has_taken_its_newest_generation(
    route: dict[str, Any] | None, done: bool, refused: bool
) -> None:
    acknowledged = acknowledgement(route, "parents", gateway=GATEWAY, conditions=("Accepted", "ResolvedRefs"))

    assert (acknowledged.done, acknowledged.refused) == (done, refused)
    assert acknowledged.done or acknowledged.reason


HTTP = {"name": "plain", "protocol": "HTTP", "port": 80}
HTTPS = {"name": "secure", "protocol": "HTTPS", "port": 443, "hostname": "models.example.com"}
OTHER_HTTPS = {"name": "inside", "protocol": "HTTPS", "port": 8443, "hostname": "models.internal"}


def gateway_with(*listeners: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {"listeners": list(listeners)}, "status": {"addresses": [{"value": "203.0.113.7"}]}}


def workspace(gateway: str = "gateway/models", **settings: str) -> Workspace:
    return Workspace.from_settings({"target": "kubernetes", "gateway": gateway, **settings})


@pytest.mark.parametrize(
    ("listeners", "setting", "chosen", "url"),
    [
        ([HTTP, HTTPS], "gateway/models", "secure", "https://models.example.com"),
        ([HTTPS, HTTP], "gateway/models", "secure", "https://models.example.com"),
        ([HTTP, HTTPS], "gateway/models/plain", "plain", "http://203.0.113.7"),
        ([HTTP, HTTPS, OTHER_HTTPS], "gateway/models/inside", "inside", "https://models.internal:8443"),
        ([HTTPS, OTHER_HTTPS], "gateway/models", None, "https://models.example.com"),
        ([HTTP], "gateway/models", None, "http://203.0.113.7"),
    ],
)
def test_keys_are_sent_to_https_unless_plain_http_is_all_there_is_or_is_named(
    listeners: list[dict[str, Any]], setting: str, chosen: str | None, url: str
) -> None:
    gateway = gateway_with(*listeners)

    assert chosen_listener(gateway, workspace(setting)) == chosen
    assert base_url(gateway, workspace(setting)) == url


def test_a_gateway_with_http_and_several_https_listeners_is_refused_until_one_is_named() -> None:
    with pytest.raises(WorkspaceError, match=r"plain http beside the https listeners inside, secure: name the one"):
        chosen_listener(gateway_with(HTTP, HTTPS, OTHER_HTTPS), workspace())


WITH_CERTIFICATE = {**HTTPS, "tls": {"mode": "Terminate", "certificateRefs": [{"name": "models-tls"}]}}


@pytest.mark.parametrize(
    ("listeners", "setting", "problem"),
    [
        (
            [HTTP],
            "gateway/models",
            r"Gateway 'gateway/models' has no https \(protocols: HTTP\): ask who runs the Gateway",
        ),
        ([], "gateway/models", r"has no https \(protocols: none\)"),
        ([HTTP, WITH_CERTIFICATE], "gateway/models/plain", r"the listener of Gateway .* has no https"),
        (
            [{**HTTPS, "tls": {}}],
            "gateway/models",
            r"listener 'secure' of Gateway 'gateway/models' names no certificate",
        ),
        ([{**WITH_CERTIFICATE, "tls": {"mode": "Passthrough"}}], "gateway/models", "names no certificate"),
    ],
)
def test_a_workspace_that_asks_for_tls_refuses_a_gateway_without_and_says_what_to_do(
    listeners: list[dict[str, Any]], setting: str, problem: str
) -> None:
    asking = Workspace.from_settings({"target": "kubernetes", "gateway": setting, "tls": True})

    with pytest.raises(WorkspaceError, match=problem):
        check_tls(gateway_with(*listeners), asking)
    check_tls(gateway_with(*listeners), workspace(setting))
    check_tls(gateway_with(HTTP, WITH_CERTIFICATE), workspace())


@pytest.mark.parametrize(
    ("endpoint_url", "url"),
    [
        ("http://models.example.com", "https://models.example.com"),
        ("https://front.example.com", "https://front.example.com"),
        ("http://127.0.0.1:31156", "http://127.0.0.1:31156"),
    ],
)
def test_a_setting_with_plain_http_to_another_machine_gives_way_to_https(endpoint_url: str, url: str) -> None:
    assert base_url(gateway_with(HTTP, HTTPS), workspace(endpoint_url=endpoint_url)) == url
    assert base_url(gateway_with(HTTP), workspace(endpoint_url=endpoint_url)) == endpoint_url


def test_a_route_leaves_plain_http_and_keeps_the_gateways_of_others() -> None:
    everywhere = parent_reference(workspace(), None)
    secure = parent_reference(workspace(), "secure")
    foreign = {"name": "theirs", "namespace": "elsewhere"}

    def route(*parents: dict[str, Any]) -> dict[str, Any]:
        return {"metadata": {"namespace": "models"}, "spec": {"parentRefs": list(parents)}}

    assert parent_references(None, secure) == [secure]
    assert parent_references(route(everywhere, foreign), secure) == [secure, foreign]
    assert parent_references(route(secure, foreign), secure) == [secure, foreign]
    assert parent_references(route(foreign), everywhere) == [everywhere, foreign]
    # Without a choice to make, what somebody has narrowed by hand stays so.
    assert parent_references(route(secure), everywhere) == [secure]
