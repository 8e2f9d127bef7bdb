"""The conditions that the Gateway's controller sets on a route."""

from typing import Any

import pytest

from controlled_rollout.target.kubernetes.gateway import CONTROLLER, acknowledgement

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
