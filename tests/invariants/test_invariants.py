"""Whatever happens to a rollout, in any order: what `invariants.py` says holds.

`python -m tests.invariants` runs many more sequences; what it has found is at the end, each made short.
"""

import re
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.invariants.events import EVENTS, OPTIONS, VERSIONS, Event, apply, settle
from tests.invariants.random_events import CHOICES
from tests.invariants.sequences import random_sequence, replay_sequence
from tests.invariants.world import World

SEQUENCES = 160
FIRST_SEED = 1
DOCS = Path(__file__).parents[2] / "docs" / "what-can-decide.md"


@pytest.mark.parametrize("part", range(4))
def test_random_sequences_of_events_break_no_invariant(part: int) -> None:
    number = SEQUENCES // 4
    for seed in range(FIRST_SEED + part * number, FIRST_SEED + (part + 1) * number):
        failure = random_sequence(seed)
        assert failure is None, f"python -m tests.invariants --sequences 1 --seed {seed}: {failure.error}"


class Rollouts(RuleBasedStateMachine):
    """Hypothesis chooses the events, and makes a sequence that breaks an invariant short."""

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    @initialize(first_version=st.booleans(), options=st.integers(0, len(OPTIONS) - 1))
    def begin(self, first_version: bool, options: int) -> None:
        self.world = World(first_version=first_version)
        self.happen(("start_run", VERSIONS[0], options))

    @rule(times=st.integers(1, 3))
    def time_passes(self, times: int) -> None:
        self.happen(("tick", times))

    @rule(choice=st.sampled_from(CHOICES), chance=st.randoms(use_true_random=False))
    def something_happens(self, choice: object, chance: object) -> None:
        assert self.world is not None and callable(choice)
        self.happen(choice(self.world, chance))

    def happen(self, event: Event) -> None:
        assert self.world is not None
        apply(self.world, event)

    def teardown(self) -> None:
        if self.world is not None:
            try:
                settle(self.world)
            finally:
                self.world.close()


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


def test_the_docs_have_a_line_for_each_event() -> None:
    named = {name for name in re.findall(r"`([a-z_]+)`", DOCS.read_text()) if name in EVENTS}
    assert named == set(EVENTS)


# Found by `python -m tests.invariants`, with the invariant that was broken.
FOUND: dict[str, tuple[Event, ...]] = {
    "a gate that is marked permits no promotion": (
        ("start_run", "two", 5), ("tick", 1), ("mark", 0, "gate_50", "skipped"),
    ),
    "a share that a person has set to 0 is neither raised nor promoted": (
        ("start_run", "two", 3), ("tick", 3), ("command", "shift", "two", 0),
    ),
    "a full disk does not keep a roll-back by hand from its end": (
        ("start_run", "two", 6), ("tick", 1), ("record_full", 90.0), ("command", "roll_back", "two"),
    ),
    "a full disk for a while rolls no good version back": (
        ("start_run", "two", 1), ("record_full", 25.0), ("tick", 3),
    ),
    "what was seen at a share before the last change lets nothing go on": (
        ("start_run", "two", 2), ("tick", 5), ("clear", 0, "roll_out"),
    ),
    "a rollout that a person has ended is not retired by its run": (
        ("start_run", "two", 4), ("tick", 2), ("command", "roll_back", "two"),
    ),
    "the control that a person has put back is not retired": (
        ("start_run", "two", 4), ("tick", 3), ("command", "roll_back", "two", "first"),
    ),
    "nonsense that a store has answered is not remembered": (
        ("start_run", "two", 4), ("tick", 3), ("store_nonsense", 90.0), ("tick", 3),
    ),
    "a target that refuses while a person approves rolls nothing back": (
        ("start_run", "two", 3), ("tick", 5), ("target_refuses", 90.0), ("answer", "Approve"), ("tick", 1),
    ),
    "a target that is away for half an hour before a shift rolls nothing back": (
        ("start_run", "two", 0), ("tick", 3), ("scheduler_busy", 30.0), ("target_away", 2000.0), ("tick", 5),
    ),
    "an earlier run that is cleared replaces no newer model": (
        ("start_run", "two", 7), ("tick", 1), ("start_run", "three", 5), ("endpoint_deleted",), ("tick", 1),
        ("clear", 0, "roll_out"),
    ),
    "a task for people promotes what its own run has not rolled out": (
        ("start_run", "two", 1), ("tick", 1), ("start_run", "two", 7), ("task_for_people", 1, "promote", "two"),
    ),
    "a task for people promotes a control again, and ends the rollout beside it": (
        ("start_run", "two", 1), ("tick", 5), ("start_run", "four", 0), ("tick", 1),
        ("task_for_people", 0, "promote", "two"),
    ),
    "a damaged decision to go on permits nothing": (
        ("start_run", "two", 4), ("tick", 2), ("scheduler_busy", 30.0), ("record_cut",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("found", FOUND)
def test_what_was_found_stays_mended(found: str) -> None:
    replay_sequence(FOUND[found])
