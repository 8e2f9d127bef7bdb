"""What to do next for an endpoint, from what the cluster says."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.kubernetes import route
from controlled_rollout.target.kubernetes.names import version_object
from controlled_rollout.target.kubernetes.route import Mark, Phase, Served
from controlled_rollout.target.kubernetes.route_transition import (
    CONTROLLER,
    DIGEST,
    acknowledged,
    changed_by_hand,
    desired,
    disagreement,
    next_weights,
)

IMAGE = "registry.example/digits@sha256:" + "0" * 64
GATEWAY = ("gateway", "models")


def endpoint(*names: str, revision: int = 1) -> Endpoint:
    made = Endpoint(name="digits", revision=revision)
    for name in names:
        made = made.create_version(name, image=IMAGE)
    return made


SERVICES = {version_object("digits", name): name for name in ("one", "two", "three")}
Rules = list[dict[str, Any]]


def served(rules: Rules) -> Served:
    found = route.served(rules, SERVICES)
    assert found is not None
    return found


def carry_on(
    wanted: Endpoint, current: Rules, *, ready: tuple[str, ...], proven: tuple[str, ...] | None = None, **others: Any
) -> Rules:
    """The route after one more step, with Envoys that are quick unless told otherwise."""
    present = route.served(current, SERVICES)
    live = {name for name, weight in present.weights.items() if weight} if present else set()
    seen: dict[str, Any] = {"live": live & set(ready), "confirmed": True, "closed": False, **others}
    proven = ready if proven is None else proven
    return route.merge(current, desired(wanted, current, serving=present, ready=ready, proven=proven, **seen))


def settled(wanted: Endpoint, current: Rules, *, ready: tuple[str, ...]) -> tuple[Rules, list[Served]]:
    """The route when there is nothing more to do, and every split on the way."""
    way = []
    while (after := carry_on(wanted, current, ready=ready)) != current:
        current = after
        way.append(served(after))
    return current, way


def test_the_first_version_is_let_in_when_the_router_sees_it() -> None:
    waiting = carry_on(endpoint("one"), [], ready=("one",), proven=())
    assert (served(waiting).mark, served(waiting).weights) == (Mark(1, Phase.CLOSED), {})
    assert served(waiting).reachable == {"one"}  # so that the router can prove it

    done = carry_on(endpoint("one"), waiting, ready=("one",))
    assert (served(done).mark, served(done).weights) == (Mark(1), {"one": 1_000_000})


def test_nobody_is_let_in_while_the_policy_is_not_in_force() -> None:
    found = carry_on(endpoint("one"), [], ready=("one",), closed=True)

    assert (served(found).mark.phase, served(found).weights) == (Phase.CLOSED, {})


def test_a_version_that_is_not_ready_gets_nothing_and_the_split_stays_word_for_word() -> None:
    before, _ = settled(endpoint("one"), [], ready=("one",))
    two = endpoint("one", "two", revision=2).shift("two", 50)

    found = carry_on(two, before, ready=("one",))

    assert found == before


def test_a_version_comes_and_goes_with_one_request_in_a_million() -> None:
    before, _ = settled(endpoint("one", "two"), [], ready=("one", "two"))
    all_to_two = endpoint("one", "two", revision=2).promote("two")

    _, way = settled(all_to_two, before, ready=("one", "two"))

    assert [(step.mark.phase, dict(step.weights)) for step in way] == [
        (Phase.ENTERING, {"one": 1_000_000, "two": 1}),
        (Phase.LEAVING, {"one": 1, "two": 1_000_000}),
        (Phase.WHOLE, {"one": 0, "two": 1_000_000}),
    ]


def test_no_step_is_taken_before_every_envoy_has_followed_the_one_before() -> None:
    before, _ = settled(endpoint("one", "two"), [], ready=("one", "two"))
    two = endpoint("one", "two", revision=2).promote("two")
    entering = carry_on(two, before, ready=("one", "two"))
    assert carry_on(two, entering, ready=("one", "two"), live={"one"}) == entering

    leaving = carry_on(two, entering, ready=("one", "two"))
    assert carry_on(two, leaving, ready=("one", "two"), confirmed=False) == leaving


def test_a_version_that_fails_keeps_its_share_and_one_that_shrinks_needs_not_be_ready() -> None:
    two = endpoint("one", "two", revision=2).shift("two", 50)
    before, _ = settled(two, [], ready=("one", "two"))
    assert carry_on(two, before, ready=("one",)) == before

    less = two.shift("two", 10).model_copy(update={"revision": 3})
    back = carry_on(less, before, ready=("one",))
    assert (served(back).mark, served(back).weights) == (Mark(3), {"one": 900_000, "two": 100_000})


def test_a_version_that_is_deleted_with_its_share_is_left_first() -> None:
    two = endpoint("one", "two", revision=2).shift("two", 50)
    before, _ = settled(two, [], ready=("one", "two"))
    one = two.delete_version("two", successor="one").model_copy(update={"revision": 3})

    _, way = settled(one, before, ready=("one", "two"))

    assert [(step.mark, dict(step.weights)) for step in way] == [
        (Mark(3, Phase.LEAVING), {"one": 1_000_000, "two": 1}),
        (Mark(3), {"one": 1_000_000}),
    ]


SPLITS = st.dictionaries(
    st.sampled_from(("one", "two", "three")), st.sampled_from((0, 1, 250_000, 1_000_000)), min_size=1
)


@given(before=SPLITS, wanted=SPLITS)
def test_every_way_ends_and_no_share_jumps_from_or_to_nothing(before: dict[str, int], wanted: dict[str, int]) -> None:
    if not any(wanted.values()) or not any(before.values()):
        return
    phase, left = Phase.WHOLE, False
    for _ in range(4):
        after, next_phase = next_weights(
            before, wanted, phase=phase, live={n for n, w in before.items() if w}, left=left
        )
        for name in {*before, *after}:
            some, next_some = before.get(name, 0), after.get(name, 0)
            assert some or next_some <= 1 or not any(before.values())
            assert next_some or some <= 1
        left = next_phase is Phase.LEAVING
        before, phase = after, next_phase
    assert (phase, before) == (Phase.WHOLE, wanted)


def test_counters_that_contradict_the_split_are_noticed_and_chance_is_not() -> None:
    split = {"one": 900_000, "two": 100_000}

    assert disagreement(split, {}) is None
    assert disagreement(split, {"one": 2, "two": 1}) is None
    assert disagreement(split, {"one": 880, "two": 120}) is None
    assert disagreement(split, {"one": 1000, "two": 0}) == (
        "the Envoys have sent 1000 of 1000 requests to version 'one', and by the split that they were given it should "
        "be about 900"
    )
    assert disagreement({"one": 1_000_000}, {"one": 5}) is None


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
    rules, _ = settled(endpoint("one"), [], ready=("one",))
    note = route.digest(rules)
    by_hand = [{**rules[0], "timeouts": {"request": "1s"}}, *rules[1:]]

    assert changed_by_hand(None) is None
    assert changed_by_hand(in_cluster(rules, note)) is None
    assert changed_by_hand(in_cluster([], note)) is None
    assert "'kubectl-edit' at 2026-05-01T11:00:00Z" in (changed_by_hand(in_cluster(by_hand, note)) or "")
