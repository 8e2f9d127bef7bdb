"""Sequences of random events, and what they have found."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.invariants.events import OPTIONS, VERSIONS, Event, apply, settle
from tests.invariants.random_events import random_event
from tests.invariants.world import World

__all__ = ["Failure", "random_sequence", "replay_sequence", "shrink"]

LENGTH = 24


@dataclass(frozen=True)
class Failure:
    """A sequence that breaks an invariant.

    Attributes:
        seed: The number from which the sequence was made.
        first_version: Whether the endpoint did not exist before.
        events: The sequence.
        error: What is wrong after it.
    """

    seed: int
    first_version: bool
    events: tuple[Event, ...]
    error: BaseException

    @property
    def kind(self) -> str:
        """The first word of what is wrong: equal for failures of one kind."""
        return f"{type(self.error).__name__}: {str(self.error).partition(':')[0]}"


def random_sequence(seed: int) -> Failure | None:
    """Run one sequence of random events; return it if an invariant is broken."""
    chance = random.Random(seed)
    first_version = chance.random() < 0.1
    world = World(seed=seed, first_version=first_version)
    events: list[Event] = []

    def happen(event: Event) -> None:
        """Note an event and let it happen."""
        events.append(event)
        apply(world, event)

    try:
        happen(("start_run", VERSIONS[0], chance.randrange(len(OPTIONS))))
        for _ in range(LENGTH):
            happen(random_event(world, chance))
        settle(world)
    except Exception as error:
        return Failure(seed, first_version, tuple(events), error)
    finally:
        world.close()
    return None


def replay_sequence(
    events: Sequence[Event], *, first_version: bool = False, seed: int = 0, log: Callable[[str], None] = lambda _: None
) -> World:
    """Run a given sequence of events and let it come to its end; raise if an invariant is broken."""
    world = World(seed=seed, first_version=first_version, log=log)
    try:
        for event in events:
            apply(world, event)
        settle(world)
    finally:
        world.close()
    return world


def shrink(failure: Failure) -> Failure:
    """Return a failure of the same kind with as few events as leaving out one after the other gives."""
    smallest = failure
    changed = True
    while changed:
        changed = False
        for index in reversed(range(len(smallest.events))):
            events = smallest.events[:index] + smallest.events[index + 1 :]
            try:
                replay_sequence(events, first_version=smallest.first_version, seed=smallest.seed)
            except Exception as error:
                shorter = Failure(smallest.seed, smallest.first_version, events, error)
                if shorter.kind == failure.kind:
                    smallest, changed = shorter, True
    return smallest
