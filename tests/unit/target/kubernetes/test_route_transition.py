"""The rules that a route should have next, on the way to the newest revision."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.kubernetes import route_rules
from controlled_rollout.target.kubernetes.names import version_object_name
from controlled_rollout.target.kubernetes.phases import Phase
from controlled_rollout.target.kubernetes.route_rules import ManagedRules, Mark
from controlled_rollout.target.kubernetes.route_transition import mark_of_same_split, next_rules
from controlled_rollout.target.transition import CLOSED, allowed_split

IMAGE = "registry.example/digits@sha256:" + "0" * 64


def endpoint(*names: str, revision: int = 1) -> Endpoint:
    made = Endpoint(name="digits", revision=revision)
    for name in names:
        made = made.create_version(name, image=IMAGE)
    return made


SERVICES = {version_object_name("digits", name): name for name in ("one", "two", "three")}
Rules = list[dict[str, Any]]


def read(rules: Rules) -> ManagedRules:
    managed = route_rules.read_rules(rules, SERVICES)
    assert managed is not None
    return managed


def after(
    wanted: Endpoint, current: Rules, *, ready: tuple[str, ...], proven: tuple[str, ...] | None = None, **options: Any
) -> Rules:
    """Return the rules after one more step; by default every Envoy has confirmed the step before."""
    present = route_rules.read_rules(current, SERVICES)
    proven = ready if proven is None else proven
    goal = allowed_split(
        wanted,
        served=present.split if present else CLOSED,
        ready=proven,
        live=proven,
        closed=options.pop("closed", False),
    )
    connected = {name for name, weight in present.weights.items() if weight} & set(ready) if present else set()
    envoys: dict[str, Any] = {"connected": connected, "confirmed": True, **options}
    return next_rules(wanted, current, goal, managed=present, available=ready, **envoys)


def settled(wanted: Endpoint, current: Rules, *, ready: tuple[str, ...]) -> tuple[Rules, list[ManagedRules]]:
    """Return the rules when nothing is left to do, and every split on the way."""
    way = []
    while (later := after(wanted, current, ready=ready)) != current:
        current = later
        way.append(read(later))
    return current, way


def test_first_version_gets_traffic_once_the_router_reaches_it() -> None:
    waiting = after(endpoint("one"), [], ready=("one",), proven=())
    assert (read(waiting).mark, read(waiting).weights) == (Mark(1, Phase.CLOSED), {})
    assert read(waiting).reachable == {"one"}  # so that the router can prove it

    done = after(endpoint("one"), waiting, ready=("one",))
    assert (read(done).mark, read(done).weights) == (Mark(1, step=1, default="one"), {"one": 1_000_000})


def test_no_requests_are_admitted_while_the_security_policy_is_not_in_force() -> None:
    rules = after(endpoint("one"), [], ready=("one",), closed=True)

    assert (read(rules).mark.phase, read(rules).weights) == (Phase.CLOSED, {})


def test_a_version_that_is_not_ready_gets_nothing_and_the_revision_before_is_still_the_one_that_is_served() -> None:
    before, _ = settled(endpoint("one"), [], ready=("one",))
    two = endpoint("one", "two", revision=2).shift("two", 50)

    [step] = settled(two, before, ready=("one",))[1]

    assert step.mark == Mark(2, Phase.PARTIAL, served_revision=1, default="one")
    assert step.weights == {"one": 1_000_000, "two": 0}
    assert step.reachable == {"one"}


def test_every_split_of_a_transition_has_its_own_mark() -> None:
    """Envoys keep the counters of rules that they have served: a mark that came again would be confirmed too early."""
    rules, way = settled(endpoint("one"), [], ready=("one",))
    three = endpoint("one", "two", "three", revision=2).shift("two", 20).shift("three", 30)
    for ready in (("one",), ("one", "two"), ("one", "two", "three")):
        rules, steps = settled(three, rules, ready=ready)
        way += steps

    assert [(step.mark.phase, {name: weight for name, weight in step.weights.items() if weight}) for step in way] == [
        (Phase.WHOLE, {"one": 1_000_000}),
        (Phase.PARTIAL, {"one": 1_000_000}),
        (Phase.ENTERING, {"one": 1_000_000, "two": 1}),
        (Phase.PARTIAL, {"one": 800_000, "two": 200_000}),
        (Phase.ENTERING, {"one": 800_000, "two": 200_000, "three": 1}),
        (Phase.WHOLE, {"one": 500_000, "two": 200_000, "three": 300_000}),
    ]
    assert len({step.mark.rule for step in way}) == len(way)
    assert [step.mark.served_revision for step in way] == [0, 1, 1, 1, 1, 1]


def test_every_step_waits_until_every_envoy_has_confirmed_the_one_before() -> None:
    before, _ = settled(endpoint("one", "two"), [], ready=("one", "two"))
    two = endpoint("one", "two", revision=2).promote("two")
    entering = after(two, before, ready=("one", "two"))
    assert after(two, entering, ready=("one", "two"), connected={"one"}) == entering

    leaving = after(two, entering, ready=("one", "two"))
    assert after(two, leaving, ready=("one", "two"), confirmed=False) == leaving


def test_a_promotion_names_its_default_when_it_is_served_and_not_before() -> None:
    before, _ = settled(endpoint("one", "two"), [], ready=("one", "two"))

    _, way = settled(endpoint("one", "two", revision=2).promote("two"), before, ready=("one", "two"))

    assert [(step.mark.phase, step.mark.default) for step in way] == [
        (Phase.ENTERING, "one"),
        (Phase.LEAVING, "two"),
        (Phase.WHOLE, "two"),
    ]


def test_a_version_that_fails_keeps_its_share_and_one_that_shrinks_needs_not_be_ready() -> None:
    two = endpoint("one", "two", revision=2).shift("two", 50)
    before, _ = settled(two, [], ready=("one", "two"))
    assert after(two, before, ready=("one",)) == before

    less = two.shift("two", 10).model_copy(update={"revision": 3})
    back = read(after(less, before, ready=()))
    assert (back.mark, back.weights) == (
        Mark(3, served_revision=2, default="one"),
        {"one": 900_000, "two": 100_000},
    )


def test_a_version_that_is_deleted_with_its_share_is_left_first() -> None:
    two = endpoint("one", "two", revision=2).shift("two", 50)
    before, _ = settled(two, [], ready=("one", "two"))
    one = two.delete_version("two", successor="one").model_copy(update={"revision": 3})

    _, way = settled(one, before, ready=("one", "two"))

    assert [(step.mark.phase, step.mark.revision, dict(step.weights)) for step in way] == [
        (Phase.LEAVING, 3, {"one": 1_000_000, "two": 1}),
        (Phase.WHOLE, 3, {"one": 1_000_000}),
    ]


@given(
    revision=st.integers(0, 10**6),
    phase=st.sampled_from(Phase),
    step=st.integers(0, 100),
    served_revision=st.integers(0, 10**6),
    default=st.none() | st.sampled_from(("one", "closed", "v-20260101-1", "a" * 32)),
)
def test_a_mark_is_read_back_from_its_rules_name(
    revision: int, phase: Phase, step: int, served_revision: int, default: str | None
) -> None:
    mark = Mark(revision, phase, step, served_revision, default)

    assert route_rules.mark_of(mark.rule) == mark


def test_the_same_split_under_another_mark_changes_only_a_name_and_stays_as_it_is() -> None:
    wanted = endpoint("one")
    rules, _ = settled(wanted, [], ready=("one",))
    mark = mark_of_same_split(read(rules).mark, confirmed=True)

    renamed = route_rules.rename_mark(rules, mark)

    assert mark.rule not in [rule["name"] for rule in rules]
    assert [{**rule, "name": ""} for rule in renamed] == [{**rule, "name": ""} for rule in rules]
    assert (read(renamed).mark, read(renamed).mark.served_revision) == (mark, 1)
    assert after(wanted, renamed, ready=("one",)) == renamed
