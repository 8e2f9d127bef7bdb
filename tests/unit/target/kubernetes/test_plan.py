"""What to do next for an endpoint, from what the cluster says."""

from typing import Any

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.kubernetes import route
from controlled_rollout.target.kubernetes.names import version_object
from controlled_rollout.target.kubernetes.plan import (
    CONTROLLER,
    DIGEST,
    Desired,
    acknowledged,
    changed_by_hand,
    desired,
)

IMAGE = "registry.example/digits@sha256:" + "0" * 64
GATEWAY = ("gateway", "models")


def endpoint(*names: str, revision: int = 1) -> Endpoint:
    made = Endpoint(name="digits", revision=revision)
    for name in names:
        made = made.create_version(name, image=IMAGE)
    return made


def weights(found: Desired | list[dict[str, Any]]) -> tuple[int, dict[str, int]]:
    rules = list(found.rules.values()) if isinstance(found, Desired) else found
    names = {version_object("digits", name): name for name in ("one", "two", "three")}
    said = route.served(rules, names)
    assert said is not None
    return said.revision, dict(said.weights)


def plan(
    wanted: Endpoint, current: list[dict[str, Any]], *, ready: tuple[str, ...], proven: tuple[str, ...] | None = None
) -> Desired:
    names = {version_object("digits", name): name for name in ("one", "two", "three")}
    return desired(
        wanted,
        current,
        serving=route.served(current, names),
        ready=ready,
        proven=ready if proven is None else proven,
        closed=False,
    )


def test_the_first_version_is_let_in_when_the_router_sees_it() -> None:
    waiting = plan(endpoint("one"), [], ready=("one",), proven=())
    assert (waiting.complete, weights(waiting)) == (False, (0, {}))
    assert "version-one" in waiting.rules  # reachable, so that the router can prove it

    done = plan(endpoint("one"), route.merge([], waiting.rules), ready=("one",))
    assert (done.complete, weights(done)) == (True, (1, {"one": 1_000_000}))


def test_nobody_is_let_in_while_the_policy_is_not_in_force() -> None:
    found = desired(endpoint("one"), [], serving=None, ready=["one"], proven=["one"], closed=True)

    assert (found.complete, weights(found)) == (False, (0, {}))


def test_a_version_that_is_not_ready_gets_nothing_and_the_split_stays_word_for_word() -> None:
    before = route.merge([], plan(endpoint("one"), [], ready=("one",)).rules)
    two = endpoint("one", "two", revision=2).shift("two", 50)

    found = plan(two, before, ready=("one",))

    assert not found.complete
    assert found.rules[route.WEIGHTS] == before[0]
    assert "version-two" not in found.rules


def test_a_version_that_fails_keeps_its_share_and_one_that_shrinks_needs_not_be_ready() -> None:
    two = endpoint("one", "two", revision=2).shift("two", 50)
    before = route.merge([], plan(two, [], ready=("one", "two")).rules)

    same = plan(two, before, ready=("one",))
    assert weights(same) == (2, {"one": 500_000, "two": 500_000})

    less = two.shift("two", 10).model_copy(update={"revision": 3})
    back = plan(less, before, ready=("one",))
    assert (back.complete, weights(back)) == (True, (3, {"one": 900_000, "two": 100_000}))


def said(kind: str, *conditions: tuple[str, str, str], generation: int = 4, name: str = "models") -> dict[str, Any]:
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
    ("found", "done", "refused"),
    [
        (None, False, False),
        (said("HTTPRoute", ("Accepted", "True", "Accepted"), ("ResolvedRefs", "True", "R")), True, False),
        (said("HTTPRoute", ("Accepted", "True", "Accepted")), False, False),
        (said("HTTPRoute", ("Accepted", "True", "A"), ("ResolvedRefs", "True", "R"), generation=5), False, False),
        (said("HTTPRoute", ("Accepted", "True", "A"), ("ResolvedRefs", "False", "BackendNotFound")), False, False),
        (said("HTTPRoute", ("Accepted", "False", "NotAllowedByListeners")), False, True),
        (said("HTTPRoute", ("Accepted", "True", "A"), ("ResolvedRefs", "True", "R"), name="other"), False, False),
    ],
)
def test_a_route_counts_when_the_gateway_has_taken_its_newest_generation(
    found: dict[str, Any] | None, done: bool, refused: bool
) -> None:
    ack = acknowledged(found, "parents", gateway=GATEWAY, conditions=("Accepted", "ResolvedRefs"))

    assert (ack.done, ack.refused) == (done, refused)
    assert ack.done or ack.why


def in_cluster(rules: list[dict[str, Any]], note: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "digits",
            "namespace": "default",
            "annotations": {DIGEST: note},
            "managedFields": [
                {"manager": "controlled-rollout", "time": "2026-05-01T10:00:00Z", "fieldsV1": {"f:spec": {}}},
                {"manager": "kubectl-edit", "time": "2026-05-01T11:00:00Z", "fieldsV1": {"f:spec": {}}},
            ],
        },
        "spec": {"rules": rules},
    }


def test_a_change_by_hand_is_noticed_and_names_who_made_it() -> None:
    rules = route.merge([], plan(endpoint("one"), [], ready=("one",)).rules)
    note = route.digest(rules)
    by_hand = [{**rules[0], "timeouts": {"request": "1s"}}, *rules[1:]]

    assert changed_by_hand(None) is None
    assert changed_by_hand(in_cluster(rules, note)) is None
    assert changed_by_hand(in_cluster([], note)) is None
    assert "'kubectl-edit' at 2026-05-01T11:00:00Z" in (changed_by_hand(in_cluster(by_hand, note)) or "")
