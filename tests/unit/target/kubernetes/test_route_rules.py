"""The provider's rules in a route, and rules of others."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import EndpointError
from controlled_rollout.target.kubernetes import route_rules
from controlled_rollout.target.kubernetes.names import version_object_name
from controlled_rollout.target.kubernetes.phases import Phase

IMAGE = "registry.example/digits@sha256:" + "0" * 64


def endpoint(*names: str, revision: int = 1) -> Endpoint:
    made = Endpoint(name="digits", revision=revision)
    for name in names:
        made = made.create_version(name, image=IMAGE)
    return made


def foreign(name: str) -> dict[str, Any]:
    return {"name": name, "matches": [{"path": {"type": "PathPrefix", "value": f"/{name}"}}]}


def services(*names: str) -> dict[str, str]:
    return {version_object_name("digits", name): name for name in names}


def written(desired: Endpoint, current: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rules = route_rules.build_rules(
        desired,
        current,
        weights=desired.weight_ppm(),
        reachable=desired.versions,
        mark=route_rules.Mark(desired.revision),
    )
    return route_rules.merge_rules(current, rules)


@pytest.mark.parametrize(
    ("wait_ms", "scoring_ms", "written_as"),
    [
        (500, 60_000, "61500ms"),
        (500, 98_499, "99999ms"),
        (500, 98_500, "0h100s0ms"),
        (60_000, 120_001, "0h181s1ms"),
        (86_400_000, 86_400_000, "48h1s0ms"),
    ],
)
def test_a_long_timeout_is_written_as_the_gateway_api_takes_it(wait_ms: int, scoring_ms: int, written_as: str) -> None:
    settings: dict[str, Any] = {"max_request_wait_time": wait_ms, "scoring_timeout_ms": scoring_ms}
    one = Endpoint(name="digits", revision=1).create_version("one", image=IMAGE, **settings)

    timeouts = {rule["timeouts"]["request"] for rule in written(one, []) if "timeouts" in rule}

    assert timeouts == {written_as}
    assert re.fullmatch("([0-9]{1,5}(h|m|s|ms)){1,4}", written_as)


def test_a_route_says_again_what_it_was_made_from() -> None:
    two = endpoint("one", "two", revision=7).shift("two", 10)

    state = route_rules.read_rules(written(two, []), services("one", "two"))

    assert state is not None
    assert (state.mark, dict(state.weights)) == (route_rules.Mark(7), {"one": 900_000, "two": 100_000})
    assert state.reachable == {"one", "two"}


def test_route_without_weights_admits_no_requests() -> None:
    made = route_rules.build_rules(
        endpoint("one"), [], weights={}, reachable=[], mark=route_rules.Mark(1, Phase.CLOSED)
    )

    assert not any("backendRefs" in rule for rule in made.values())
    assert route_rules.read_rules(made.values(), {}) == route_rules.ManagedRules(route_rules.Mark(1, Phase.CLOSED))


def test_new_revision_is_marked_by_a_rule_without_backends() -> None:
    before = written(endpoint("one", "two", revision=7), [])
    after = written(endpoint("one", "two", revision=8), before)

    [changed] = [rule for rule in after if rule not in before]
    assert "backendRefs" not in changed
    assert route_rules.mark_of(changed["name"]) == route_rules.Mark(8)


def test_every_response_names_its_version() -> None:
    [weights, by_name, *_] = written(endpoint("one"), [])

    for rule in (weights, by_name):
        [backend] = rule["backendRefs"]
        assert [list(kind.values())[1]["set"] for kind in backend["filters"]] == [
            [{"name": "azureml-model-deployment", "value": "one"}]
        ] * 2


def test_a_version_that_goes_leaves_its_place_free() -> None:
    three = written(endpoint("one", "two", "three"), [])
    two = written(endpoint("one", "two", "three").delete_version("two"), three)

    def backends(rules: list[dict[str, Any]]) -> list[str]:
        return [backend["name"] for backend in rules[0]["backendRefs"]]

    names = [version_object_name("digits", name) for name in ("one", "two", "three")]
    assert backends(three) == names
    assert backends(two) == [names[0], names[0], names[2]]
    assert two[0]["backendRefs"][1]["weight"] == 0
    assert [rule["name"] for rule in two].index("controlled-rollout-version-three") == [
        rule["name"] for rule in three
    ].index("controlled-rollout-version-three")


def test_a_new_version_takes_the_free_place() -> None:
    before = written(endpoint("one", "two", "three"), [])
    without = written(endpoint("one", "two", "three").delete_version("two"), before)
    again = endpoint("one", "two", "three").delete_version("two").create_version("four", image=IMAGE)

    after = written(again, without)

    assert [backend["name"] for backend in after[0]["backendRefs"]][1] == version_object_name("digits", "four")
    assert len(after) == len(before)


def test_a_route_with_too_many_rules_is_refused_and_names_the_others() -> None:
    current = [foreign(f"other-{number}") for number in range(14)]

    with pytest.raises(EndpointError, match=r"17 rules, 14 of them not managed by controlled-rollout, and may have 16"):
        written(endpoint("one"), current)


def test_edit_by_hand_changes_the_digest_and_a_foreign_rule_does_not() -> None:
    rules = written(endpoint("one", "two"), [])
    by_hand = [{**rules[0], "timeouts": {"request": "1s"}}, *rules[1:]]

    assert route_rules.rules_digest(by_hand) != route_rules.rules_digest(rules)
    assert route_rules.rules_digest([foreign("theirs"), *rules]) == route_rules.rules_digest(rules)


def in_cluster(rules: list[dict[str, Any]], note: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "digits",
            "namespace": "default",
            "annotations": {route_rules.DIGEST: note},
            "managedFields": [
                {"manager": "controlled-rollout", "time": "2026-05-01T10:00:00Z", "fieldsV1": {"f:spec": {}}},
                {"manager": "kubectl-edit", "time": "2026-05-01T11:00:00Z", "fieldsV1": {"f:spec": {}}},
            ],
        },
        "spec": {"rules": rules},
    }


def test_a_change_by_hand_is_noticed_and_names_who_made_it() -> None:
    rules = written(endpoint("one"), [])
    note = route_rules.rules_digest(rules)
    by_hand = [{**rules[0], "timeouts": {"request": "1s"}}, *rules[1:]]

    assert route_rules.hand_edit(None) is None
    assert route_rules.hand_edit(in_cluster(rules, note)) is None
    assert route_rules.hand_edit(in_cluster([], note)) is None
    assert "'kubectl-edit' at 2026-05-01T11:00:00Z" in (route_rules.hand_edit(in_cluster(by_hand, note)) or "")


NAMES = ("one", "two", "three", "four", "five", "six")
STEP = st.one_of(
    st.tuples(st.just("versions"), st.sets(st.sampled_from(NAMES), min_size=1)),
    st.tuples(st.just("foreign"), st.integers(0, 3)),
)


@given(st.lists(STEP, max_size=12))
def test_no_rule_and_no_backend_ever_moves(steps: list[tuple[str, Any]]) -> None:
    current: list[dict[str, Any]] = []
    positions: dict[str, int] = {}
    for kind, value in steps:
        if kind == "foreign":
            if foreign(f"other-{value}") not in current:
                current = [*current, foreign(f"other-{value}")]
        else:
            desired = endpoint(*sorted(value, key=NAMES.index))
            backends_before = {
                backend["name"]: slot
                for rule in current
                if route_rules.is_weights_rule(rule)
                for slot, backend in enumerate(rule["backendRefs"])
                if backend["weight"]
            }
            current = written(desired, current)
            for slot, backend in enumerate(
                current[0]["backendRefs"] if route_rules.is_weights_rule(current[0]) else []
            ):
                if backend["weight"] and backend["name"] in backends_before:
                    assert backends_before[backend["name"]] == slot
            assert route_rules.foreign_rules(current) == [rule for rule in current if rule["name"].startswith("other")]
        positions_now = {rule["name"]: position for position, rule in enumerate(current) if "empty" not in rule["name"]}
        assert all(positions_now[name] == position for name, position in positions.items() if name in positions_now)
        positions = positions_now
        assert len({rule["name"] for rule in current}) == len(current)


def test_rules_that_somebody_has_moved_by_putting_others_before_them_are_said_until_the_next_change() -> None:
    foreign = {"name": "foreign", "matches": [{"path": {"type": "PathPrefix", "value": "/foreign"}}]}
    ours = [{"name": "controlled-rollout-weights"}, {"name": route_rules.Mark(1).rule}]

    def moved(rules: list[dict[str, Any]], *, written: list[dict[str, Any]]) -> str | None:
        metadata = {"namespace": "models", "name": "digits", "annotations": route_rules.annotations(written)}
        return route_rules.moved_rules({"metadata": metadata, "spec": {"rules": rules}})

    assert moved(ours, written=ours) is None
    assert moved([*ours, foreign], written=ours) is None
    assert "moved from positions 0, 1 to 1, 2" in (moved([foreign, *ours], written=ours) or "")
    assert moved([foreign, *ours], written=[foreign, *ours]) is None
