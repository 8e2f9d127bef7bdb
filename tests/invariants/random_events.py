"""Which event happens next, and to what, by chance."""

import random
from collections.abc import Callable
from typing import Any, Final

from tests.invariants.events import OPTIONS, VERSIONS, Event
from tests.invariants.simulated_target import NEVER
from tests.invariants.world import World

__all__ = ["CHOICES", "random_event"]

_DURATIONS: Final = (5.0, 25.0, 90.0, 400.0)


def random_event(world: World, chance: random.Random) -> Event:
    """Return an event by chance: time passes at least half of the time."""
    if chance.random() < 0.5:
        return ("tick", chance.choice((1, 1, 1, 2, 3)))
    if world.neighbour is not None and chance.random() < 0.3:
        return ("elsewhere", *chance.choice(CHOICES)(world.neighbour, chance))
    return chance.choice(CHOICES)(world, chance)


def _seconds(chance: random.Random) -> float:
    return chance.choice(_DURATIONS)


def _version(chance: random.Random) -> str:
    return chance.choice(("two", "two", "two", "three", "first"))


def _name(world: World, chance: random.Random) -> tuple[int, str]:
    """Return a run's number and the name of one of its tasks."""
    run: int = chance.randrange(max(1, len(world.runs)))
    names = [task.rpartition(".")[2] for task in world.runs[run].tasks] if world.runs else ["promote"]
    gates = [name for name in names if name.startswith("gate_")]
    return run, chance.choice(gates if gates and chance.random() < 0.4 else names)


_COMMANDS: Final[tuple[tuple[Any, ...], ...]] = (
    ("shift", "two", 30), ("shift", "two", 0), ("shift", "three", 20), ("promote", "two"), ("promote", "first"),
    ("roll_back", "two"), ("roll_back", "two", "first"), ("retire", "two"), ("retire", "first"),
    ("deploy", "three"), ("roll_back", "three"), ("promote", "three"),
)  # fmt: skip
# Those that are tasks too.
_TASKS: Final = tuple(command for command in _COMMANDS if command[0] != "deploy")
CHOICES: Final[tuple[Callable[[World, random.Random], Event], ...]] = (
    lambda w, c: ("errors", _version(c), c.choice((0.0, 0.0, 1.0, 1.0, 0.5))),
    lambda w, c: ("errors", "two", c.choice((0.0, 1.0, 1.0, 0.5))),
    lambda w, c: ("errors", "two", c.choice((0.0, 1.0, 1.0, 0.5))),
    lambda w, c: ("quiet", c.random() < 0.5),
    lambda w, c: ("target_away", _seconds(c)),
    lambda w, c: ("target_refuses", _seconds(c)),
    lambda w, c: ("answers_lost", c.choice((1, 2))),
    lambda w, c: ("serving_lag", c.choice((0.0, 3.0, 30.0))),
    lambda w, c: ("starting", c.choice((2.0, 20.0, NEVER))),
    lambda w, c: ("down", _version(c)),
    lambda w, c: ("up", _version(c)),
    lambda w, c: ("store_away", _seconds(c)),
    lambda w, c: ("store_nonsense", _seconds(c)),
    lambda w, c: ("rows_late", _seconds(c)),
    lambda w, c: ("rows_lost", _version(c)),
    lambda w, c: ("rows_back",),
    lambda w, c: ("rows_forged", _version(c), c.choice((20, 400)), c.choice((0, 20))),
    lambda w, c: ("rows_doubled", _version(c)),
    lambda w, c: ("record_away", _seconds(c)),
    lambda w, c: ("record_full", _seconds(c)),
    lambda w, c: ("record_hangs", _seconds(c)),
    lambda w, c: ("record_conflicts", c.choice((1, 3))),
    lambda w, c: ("record_answers_lost", 1),
    lambda w, c: ("record_part",),
    lambda w, c: ("record_cut",),
    lambda w, c: ("kill", c.randrange(12)),
    lambda w, c: ("kill", c.randrange(12)),
    lambda w, c: ("restart",),
    lambda w, c: ("restart_in_look", c.randrange(6)),
    lambda w, c: ("airflow_gone", c.choice((25.0, 90.0, 200.0))),
    lambda w, c: ("airflow_gone", c.choice((25.0, 90.0, 200.0))),
    lambda w, c: ("agent_gone", c.choice((0.0, 20.0, 90.0))),
    lambda w, c: ("scheduler_busy", c.choice((10.0, 30.0))),
    lambda w, c: ("mark", *_name(w, c), c.choice(("success", "failed", "skipped"))),
    lambda w, c: ("clear", *_name(w, c)),
    lambda w, c: ("mark", c.randrange(2), "promote", c.choice(("success", "failed"))),
    lambda w, c: ("stop_run", c.randrange(2), c.choice(("success", "failed"))),
    lambda w, c: ("answers_missing", c.randrange(2)),
    lambda w, c: ("answer", c.choice(("Approve", "Reject", ""))),
    lambda w, c: ("command", *c.choice(_COMMANDS)),
    lambda w, c: ("command_meanwhile", c.randrange(8), *c.choice(_COMMANDS)),
    lambda w, c: ("task_for_people", c.choice((None, 0, 0, 1)), *c.choice(_TASKS)),
    lambda w, c: ("made_anew", c.choice(("two", "three"))),
    lambda w, c: ("endpoint_deleted",),
    lambda w, c: ("start_run", c.choice(VERSIONS), c.randrange(len(OPTIONS))),
    lambda w, c: ("start_mapped_run", c.choice(VERSIONS), c.randrange(len(OPTIONS))),
    lambda w, c: ("another_endpoint", c.choice(VERSIONS), c.randrange(len(OPTIONS))),
)
