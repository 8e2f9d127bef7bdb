"""The phases between two splits: the entry and exit conditions of each, and that every transition ends."""

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import WEIGHT_TOTAL
from controlled_rollout.target.kubernetes.phases import MINIMAL, Phase, RouteState, next_weights, shares
from controlled_rollout.target.transition import CLOSED, Split

ALL = WEIGHT_TOTAL
HALF = WEIGHT_TOTAL // 2


def state(
    weights: dict[str, int],
    goal: dict[str, int],
    phase: Phase = Phase.WHOLE,
    *,
    confirmed: bool = True,
    connected: tuple[str, ...] = (),
    complete: bool = True,
    default: str | None = None,
) -> RouteState:
    split = Split(goal, max(goal, key=lambda name: goal[name]), complete=complete) if goal else CLOSED
    return RouteState(weights, phase, confirmed, connected, split, default)


# Each state: what it is entered by, and what it is left by


def test_phase_closed_lasts_while_the_goal_is_closed() -> None:
    assert next_weights(state({"one": ALL}, {})) == (Phase.CLOSED, {})
    # Nothing is served, so there is no request to lose: no version has to enter with the minimal weight.
    assert next_weights(state({}, {"one": ALL}, Phase.CLOSED)) == (Phase.WHOLE, {"one": ALL})


def test_an_endpoint_without_versions_is_wholly_served() -> None:
    assert next_weights(RouteState({}, Phase.CLOSED, True, (), Split(complete=True))) == (Phase.WHOLE, {})


def test_entering_keeps_the_present_split_until_every_envoy_has_a_replica_of_the_new_version() -> None:
    goal = {"one": HALF, "two": HALF}
    entering = (Phase.ENTERING, {"one": ALL, "two": MINIMAL})

    assert next_weights(state({"one": ALL, "two": 0}, goal)) == entering
    now = state(entering[1], goal, Phase.ENTERING)
    assert next_weights(now) == entering
    assert next_weights(replace(now, connected=("two",), confirmed=False)) == entering
    assert next_weights(replace(now, connected=("two",))) == (Phase.WHOLE, goal)


def test_a_version_that_goes_down_does_so_while_another_one_enters() -> None:
    """A roll-back that begins while a third version enters: the served default takes what the second gives up."""
    present = {"one": 800_000, "two": 200_000, "three": MINIMAL}
    goal = {"one": 900_000, "two": 0, "three": 100_000}
    now = state(present, goal, Phase.ENTERING, confirmed=False, default="one")

    lowered = {"one": ALL - MINIMAL, "two": MINIMAL, "three": MINIMAL}
    assert next_weights(now) == (Phase.ENTERING, lowered)
    entered = replace(now, weights=lowered, confirmed=True, connected=("one", "two", "three"))
    assert next_weights(entered) == (Phase.WHOLE, goal)
    # Nobody takes what it gives up if the default has no share.
    assert next_weights(replace(now, default="four"))[1] == present


def test_leaving_serves_the_new_split_until_every_envoy_has_followed() -> None:
    goal = {"one": 0, "two": ALL}
    leaving = (Phase.LEAVING, {"one": MINIMAL, "two": ALL})

    assert next_weights(state({"one": HALF, "two": HALF}, goal)) == leaving
    now = state(leaving[1], goal, Phase.LEAVING, confirmed=False)
    assert next_weights(now) == leaving
    assert next_weights(replace(now, confirmed=True)) == (Phase.WHOLE, goal)


def test_partial_is_entered_while_a_version_is_not_ready_and_left_when_the_goal_changes() -> None:
    partial = state({"one": ALL}, {"one": ALL, "two": 0}, complete=False)

    assert next_weights(partial) == (Phase.PARTIAL, {"one": ALL, "two": 0})
    ready = state({"one": ALL, "two": 0}, {"one": HALF, "two": HALF}, Phase.PARTIAL)
    assert next_weights(ready) == (Phase.ENTERING, {"one": ALL, "two": MINIMAL})


def test_a_version_that_dies_while_it_enters_leaves_again() -> None:
    """Its share is not the goal any more, and it does not delay what else the revision asks for."""
    now = state({"one": ALL, "two": MINIMAL}, {"one": ALL, "two": 0}, Phase.ENTERING, complete=False)

    assert next_weights(replace(now, confirmed=False)) == (Phase.LEAVING, {"one": ALL, "two": MINIMAL})
    assert next_weights(now) == (Phase.PARTIAL, {"one": ALL, "two": 0})


def test_a_version_enters_and_leaves_with_one_request_in_a_million() -> None:
    assert way({"one": ALL}, {"one": 0, "two": ALL}) == [
        (Phase.ENTERING, {"one": ALL, "two": MINIMAL}),
        (Phase.LEAVING, {"one": MINIMAL, "two": ALL}),
        (Phase.WHOLE, {"one": 0, "two": ALL}),
    ]


def test_a_shift_between_versions_that_have_a_share_is_one_step() -> None:
    assert way({"one": HALF, "two": HALF}, {"one": ALL // 4, "two": 3 * ALL // 4}) == [
        (Phase.WHOLE, {"one": ALL // 4, "two": 3 * ALL // 4})
    ]


def test_minimal_weight_of_a_new_version_does_not_count_as_a_share() -> None:
    assert shares({"one": ALL, "two": MINIMAL}, Phase.ENTERING) == {"one": ALL}
    assert shares({"one": ALL - MINIMAL, "two": MINIMAL}, Phase.WHOLE) == {"one": ALL - MINIMAL, "two": MINIMAL}


def test_a_version_that_is_wanted_again_while_it_leaves_has_its_cluster_still() -> None:
    now = state({"one": MINIMAL, "two": ALL}, {"one": HALF, "two": HALF}, Phase.LEAVING, confirmed=False)

    assert next_weights(now) == (Phase.WHOLE, {"one": HALF, "two": HALF})


# What holds for every way


def way(
    weights: dict[str, int], goal: dict[str, int], phase: Phase = Phase.WHOLE, default: str | None = None
) -> list[tuple[Phase, dict[str, int]]]:
    """Return all splits on the way to a goal, with Envoys that confirm each of them."""
    steps: list[tuple[Phase, dict[str, int]]] = []
    for _ in range(10):
        connected = tuple(name for name, weight in weights.items() if weight)
        now = state(weights, goal, phase, connected=connected, default=default)
        if next_weights(now) == (phase, weights):
            return steps
        phase, weights = next_weights(now)
        steps.append((phase, weights))
    raise AssertionError(f"it does not come to an end: {steps}")


@st.composite
def splits(draw: st.DrawFn) -> dict[str, int]:
    names = draw(st.lists(st.sampled_from(("one", "two", "three")), min_size=1, unique=True))
    weights = {name: draw(st.sampled_from((0, MINIMAL, ALL // 4))) for name in names[1:]}
    return {names[0]: ALL - sum(weights.values()), **weights}


PHASES = st.sampled_from(sorted(set(Phase) - {Phase.CLOSED}))


DEFAULTS = st.none() | st.sampled_from(("one", "two", "three"))


@given(before=splits(), phase=PHASES, goal=splits(), default=DEFAULTS)
def test_every_transition_ends_at_its_goal_and_no_share_jumps_from_or_to_zero(
    before: dict[str, int], phase: Phase, goal: dict[str, int], default: str | None
) -> None:
    steps = [(phase, before), *way(before, goal, phase, default)]

    assert steps[-1] == (Phase.WHOLE, goal)
    assert len(steps) <= 4
    for (_, earlier), (_, later) in itertools.pairwise(steps):
        for name in {*earlier, *later}:
            assert earlier.get(name, 0) or later.get(name, 0) <= MINIMAL
            assert later.get(name, 0) or earlier.get(name, 0) <= MINIMAL


@given(before=splits(), phase=PHASES, goal=splits(), confirmed=st.booleans(), complete=st.booleans(), default=DEFAULTS)
def test_exactly_one_state_is_next_and_it_does_not_change_by_itself(
    before: dict[str, int], phase: Phase, goal: dict[str, int], confirmed: bool, complete: bool, default: str | None
) -> None:
    now = state(before, goal, phase, confirmed=confirmed, complete=complete, default=default)
    next_phase, weights = next_weights(now)

    after = replace(now, phase=next_phase, weights=weights, confirmed=False)
    assert next_weights(after) == (next_phase, weights)
