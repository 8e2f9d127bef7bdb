"""One endpoint, its callers, its stores and its DAG runs; another endpoint may be beside it."""

import asyncio
import itertools
import json
import random
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

from controlled_rollout import steps
from controlled_rollout.arguments import evidence_window
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evidence.shared import SharedReader
from controlled_rollout.gate import Gate
from controlled_rollout.record import Decision, tail
from controlled_rollout.target.protocol import Change, Target
from controlled_rollout.workspace import Workspace
from tests.invariants.simulated_agent import IN_AGENT, SimulatedAgent
from tests.invariants.simulated_airflow import IN_TRIGGER, DagRun, Killed, Options, TaskInstance, lone_task, task_group
from tests.invariants.simulated_clock import START, SimulatedClock, SimulatedLoop
from tests.invariants.simulated_record import SimulatedRecord
from tests.invariants.simulated_target import SimulatedTarget, SimulatedTargets
from tests.invariants.simulated_traffic import SimulatedMetricStore, SimulatedTraffic

__all__ = ["ENDPOINT", "GATE", "LOOK_S", "WORKSPACE", "World", "image_of", "world_in_use", "world_of"]

ENDPOINT: Final = "digits"
NEIGHBOUR: Final = "letters"
WORKSPACE: Final = Workspace.local(Path("/nonexistent/simulated"))
# Little evidence is enough, so that a rollout is short: the statistics have tests of their own.
GATE: Final = Gate(latency_quantiles=(), pass_ratio=4.0, acceptable_error_rate=0.3)
ARGUMENTS: Final[dict[str, Any]] = {
    "gate": GATE,
    "bake": "20 s",
    "interval": "10 s",
    "bin_width": "10 s",
    "allowed_lag": "10 s",
    "baseline_length": "60 s",
    "decision_timeout": "2 min",
    "keep_warm": 0,
    "conflict_timeout": "60 s",
    "ready_timeout": "60 s",
    "silence": "60 s",
}
LOOK_S: Final = 10.0
GOOD: Final = 0.0
BROKEN: Final = 1.0

_current: "World | None" = None
# Sets the clock that the package reads; there is one within `simulated_surroundings`.
use_clock: "Callable[[SimulatedClock], None] | None" = None
_numbers = itertools.count()


def world_in_use() -> "World":
    """Return the world whose code runs now."""
    assert _current is not None, "no simulated world is in use"
    return _current


def world_of(endpoint: str) -> "World":
    """Return the world in use, or its neighbour, by its endpoint's name."""
    return next(world for world in world_in_use().both if world.endpoint == endpoint)


@dataclass
class World:
    """Everything around one endpoint.

    Attributes:
        endpoint: The endpoint's name.
        beside: The world whose clock, event loop, metric store and people this one shares; None for the first.
        neighbour: The world of another endpoint, beside this one; None if there is none.
        runs: The DAG runs, oldest first.
        kill_in: After how many writes and reads the running task is killed; None: it is not.
        restart_in: After how many reads and writes of looks the triggerer is killed and begins anew; None: it does not.
        meanwhile: Somebody's command that comes between two calls of a running task; None: nobody's.
        questions: The answers to the questions that were asked, by task instance; None while there is none.
        touched: Versions on which a person has taken a step by hand.
        disturbed: Versions whose replicas died, or the decision to let them go on was damaged.
        forged: Whether the metric store has had rows too many or too few.
        decisions: What was appended to the record, oldest first.
        failed_looks: When a look has failed, and at which version; also those that could not be recorded.
        broken_since: Since when a version answers nothing but errors.
        disturbed_at: When something last happened that delays a task or a look.
        known: By revision: how many decisions had been recorded when it was stored.
        airflow_until: Until when, in seconds of the clock, no process of Airflow runs.
        agent: What takes treatments back that nobody looks at; of the first world, for both.
        checked, checked_decisions, checked_tasks: Which revisions, decisions and roll-backs the invariants have been
            checked for.
    """

    seed: int = 0
    first_version: bool = False
    endpoint: str = ENDPOINT
    beside: "World | None" = None
    neighbour: "World | None" = None
    log: Callable[[str], None] = lambda line: None
    clock: SimulatedClock = field(default_factory=SimulatedClock)
    runs: list[DagRun] = field(default_factory=list)
    kill_in: int | None = None
    restart_in: int | None = None
    meanwhile: Callable[[], Coroutine[Any, Any, None]] | None = None
    meanwhile_in: int = 0
    in_task: bool = False
    questions: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    disturbed: set[str] = field(default_factory=set)
    forged: bool = False
    decisions: list[Decision] = field(default_factory=list)
    failed_looks: list[tuple[datetime, str]] = field(default_factory=list)
    broken_since: dict[str, float] = field(default_factory=dict)
    disturbed_at: float = 0.0
    airflow_until: float = 0.0
    known: dict[int, int] = field(default_factory=dict)
    checked: dict[int, int] = field(default_factory=dict)
    checked_decisions: int = 0
    checked_tasks: set[tuple[str, int]] = field(default_factory=set)

    loop: SimulatedLoop = field(init=False)
    agent: SimulatedAgent = field(init=False)

    def __post_init__(self) -> None:
        if self.beside is None:
            self._begin()
        else:
            self.clock, self.loop, self.questions = self.beside.clock, self.beside.loop, self.beside.questions
        self.traffic = SimulatedTraffic(self.clock)
        self.target = SimulatedTarget(
            self.endpoint, self.clock, self.traffic, before=self.interrupt, after=self.interrupt,
            stored=lambda revision: self.known.setdefault(id(revision), len(self.decisions)),
        )  # fmt: skip
        self.record = SimulatedRecord(
            f"simulated-{next(_numbers)}", self.clock, before=self.interrupt_now, after=self.interrupt_now,
            appended=lambda lines: self.decisions.extend(map(Decision.model_validate_json, lines.splitlines())),
        )  # fmt: skip
        if self.beside is None:
            self.store = SimulatedMetricStore(self.clock, {})
            self.reader = SharedReader(self.store, clock=self.clock.now)
            self.agent = SimulatedAgent(self, WORKSPACE)
        else:
            self.store, self.agent = self.beside.store, self.beside.agent
        self.store.traffic[self.endpoint] = self.traffic
        if not self.first_version:
            first = Endpoint(name=self.endpoint).create_version(
                "first", is_control=True, is_default=True, image=image_of("first"), traffic_percentile=100
            )
            self.target.store(first, Change(who="somebody", reason="set up"))
            self.pass_time(90)

    def _begin(self) -> None:
        """Become the world in use."""
        global _current
        _current = self
        assert use_clock is not None, "use `simulated_surroundings`"
        use_clock(self.clock)
        random.seed(self.seed)  # the pauses after a conflict
        self.loop = SimulatedLoop(self.clock)

    def add_neighbour(self) -> "World":
        """Let another endpoint be beside this one, in the same workspace."""
        self.neighbour = World(endpoint=NEIGHBOUR, beside=self, log=lambda line: self.log(f"{NEIGHBOUR}: {line}"))
        return self.neighbour

    @property
    def both(self) -> "list[World]":
        """This world and its neighbour, if there is one."""
        return [self, *([self.neighbour] if self.neighbour else [])]

    def open_targets(self) -> AbstractAsyncContextManager[Target]:
        """Open the target of the workspace, with the endpoints of both worlds."""
        if self.neighbour is None:
            return self.target.open()
        return SimulatedTargets({world.endpoint: world.target for world in self.both}).open()

    def close(self) -> None:
        """End what still runs."""
        for world in self.both:
            for run in world.runs:
                for task in run.tasks.values():
                    run.stop_trigger(task)
        unfinished = asyncio.all_tasks(self.loop)
        for waiting in unfinished:
            waiting.cancel()
        self.loop.run_until_complete(asyncio.wait([*unfinished, self.loop.create_task(asyncio.sleep(0))]))
        self.loop.close()

    # Time and tasks.

    def pass_time(self, seconds: float) -> None:
        """Let time pass: triggers look, versions start, callers call."""
        self.loop.run_until_complete(asyncio.sleep(seconds))
        for world in self.both:
            world.target.advance()

    def start_run(self, version: str, options: Options, *, mapped: int = -1) -> DagRun:
        """Start a DAG run that rolls a version out; or one instance of a mapped group, by its index in the last run."""
        dag = task_group(options, self.endpoint, version, (("image", image_of(version)), *_hashable(ARGUMENTS)))
        number = len({run.run_id for run in self.runs}) + (mapped <= 0)
        run_id = f"run-{number}" if self.beside is None else f"{self.endpoint}-run-{number}"
        run = DagRun(
            run_id, version, options, dag, self.loop, self.clock, self.clock.now(), log=self.log, map_index=mapped
        )
        self.runs.append(run)
        return run

    def run_for_people(self, run: DagRun | None, step: str, version: str, argument: Any) -> None:
        """Run a task with `own_rollout=False`: in a DAG that people trigger, or in a run that rolls versions out."""
        operator = lone_task(step, self.endpoint, version, argument)
        if run is None:
            run = DagRun(
                f"manual-{next(_numbers)}", version, Options(), operator.dag, self.loop, self.clock, self.clock.now(),
                log=self.log, dag_id=operator.dag.dag_id,
            )  # fmt: skip
        self.run_task(TaskInstance(run, operator))

    def runnable(self) -> list[TaskInstance]:
        """Return the tasks of all runs that can run now."""
        if self.clock.seconds < self.airflow_until:
            return []
        if self.airflow_until:
            self.airflow_until = 0.0
            self.restart()
        return [task for run in self.runs for task in run.runnable()]

    def run_task(self, task: TaskInstance) -> None:
        """Run one task; a kill or somebody's command that is due happens within it."""
        self.in_task = True
        try:
            task.run.execute(task)
        finally:
            self.in_task = False
            self.kill_in = None
        self.target.advance()

    def run_tasks(self, most: int = 100) -> int:
        """Run what can run, one after the other; return how many tasks were run."""
        for number in range(most):
            ready = self.runnable()
            if not ready:
                return number
            self.run_task(ready[0])
        return most

    async def interrupt(self, call: str) -> None:
        """Between two calls of a task: somebody's command, or the task's end."""
        if IN_AGENT.get():
            return
        if self.meanwhile is not None and self.in_task:
            self.meanwhile_in -= 1
            if self.meanwhile_in < 0:
                command, self.meanwhile = self.meanwhile, None
                self.in_task = False
                try:
                    await command()
                except (ControlledRolloutError, OSError) as error:
                    self.log(f"meanwhile: {error}")
                self.in_task = True
        self.interrupt_now(call)

    def interrupt_now(self, call: str) -> None:
        """Kill the running task, or the triggerer, if that is due."""
        if IN_AGENT.get():
            return
        if self.restart_in is not None and IN_TRIGGER.get():
            self.restart_in -= 1
            if self.restart_in < 0:
                self.restart_in = None
                self.log(f"triggerer killed at: {call}")
                self.restart()
                raise Killed
        if self.kill_in is not None and self.in_task:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.kill_in = None
                self.log(f"killed at: {call}")
                raise Killed

    def restart(self) -> None:
        """Let all processes begin anew, and all triggers with them."""
        world_in_use().forget_memory()
        for world in world_in_use().both:
            for run in world.runs if world.clock.seconds >= world.airflow_until else ():
                for task in run.tasks.values():
                    if task.state == "deferred" and task.event is None and task.trigger is not None:
                        trigger = task.trigger
                        run.stop_trigger(task)
                        run.start_trigger(task, trigger)

    def end_airflow(self, seconds: float) -> None:
        """End all processes of Airflow for so long: no task runs, and no trigger looks."""
        for world in world_in_use().both:
            world.airflow_until = max(world.airflow_until, world.clock.seconds + seconds)
            for run in world.runs:
                for task in run.tasks.values():
                    if task.watcher is not None:
                        task.watcher.cancel()
                        task.watcher = None

    def forget_memory(self) -> None:
        """Let all processes begin anew: nothing that they remember may decide."""
        world_in_use().reader = SharedReader(self.store, clock=self.clock.now)
        tail._tails.clear()

    # People.

    def command(self, step: Callable[..., Coroutine[Any, Any, Any]], version: str, **arguments: Any) -> str:
        """Take a step by hand; return the error that it ends with, or nothing."""
        try:
            self.loop.run_until_complete(self.by_hand(step, version, **arguments))
        except (ControlledRolloutError, OSError) as error:
            if step is steps.roll_back and isinstance(error, OSError):
                raise
            return str(error) or type(error).__name__
        finally:
            self.target.advance()
        return ""

    async def by_hand(self, step: Callable[..., Coroutine[Any, Any, Any]], version: str, **arguments: Any) -> None:
        """Take a step as a person does, for no run."""
        await step(
            WORKSPACE, self.endpoint, version, change=Change(who="Ada", reason="by hand"), progress=lambda line: None,
            timeout=timedelta(seconds=30), **arguments,
        )  # fmt: skip

    def answer(self, question: str, chosen: str) -> None:
        """Answer a question that is open; empty: nobody has in time."""
        if self.questions.get(question) is None:
            self.questions[question] = {"error": "late", "error_type": "timeout"} if not chosen else {
                "chosen_options": [chosen],
                "params_input": {},
                "responded_at": self.clock.now(),
                "responded_by_user": {"id": "1", "name": "Ada"},
            }  # fmt: skip

    def heal(self) -> None:
        """Let everything answer again, from now on."""
        self.target.advance()
        self.disturbed_at = self.clock.seconds
        self.airflow_until = min(self.airflow_until, self.clock.seconds)
        self.agent.come_back()
        self.target.unavailable_until = self.store.unavailable_until = self.store.nonsense_until = 0.0
        self.record.unavailable_until = self.record.full_until = self.record.hangs_until = 0.0
        self.record.conflicts = self.record.lost_answers = self.target.lost_answers = 0
        self.target.serving_lag_s = self.traffic.late_until = 0.0
        self.traffic.lost.clear()
        self.traffic.quiet = False
        for instance in self.target.instances.values():
            instance.down_since = None

    def clock_seconds(self, moment: datetime) -> float:
        """Return a moment in seconds of the clock."""
        return (moment - START).total_seconds()

    def calm_since(self) -> float:
        """Return since when target, metric store and record have answered, and telemetry has come in time."""
        return max(
            self.target.unavailable_until, self.store.unavailable_until, self.store.nonsense_until,
            self.record.unavailable_until, self.record.full_until, self.record.hangs_until, self.traffic.late_until,
            self.airflow_until, self.disturbed_at,
        )  # fmt: skip

    def is_asked(self, run: DagRun) -> bool:
        """Return whether a question of a run is open."""
        return any(
            task.state == "deferred" and task.id in self.questions and self.questions[task.id] is None
            for task in run.tasks.values()
        )

    def waits_for_person(self, run: DagRun) -> bool:
        """Return whether a run goes on only if a person says so: it asks, or is on hold."""
        rollout = self.newest.rollout if self.newest else None
        return self.is_asked(run) or (rollout is not None and rollout.owner == run.owner and rollout.held is not None)

    def verdict(self, version: str, now: datetime) -> str:
        """Take a look as a person does who knows the gate; return its outcome and e-values as text."""

        async def look() -> looks.Look:
            return await looks.look(
                WORKSPACE, cast("Target", self.target), self.endpoint, version, gate=GATE, who="Ada", now=now,
                window=evidence_window("10 s", "10 s", "60 s"),
            )  # fmt: skip

        verdict = self.loop.run_until_complete(look()).verdict
        return f"{verdict.outcome} {[(claim.name, claim.e_value) for claim in verdict.claims]}"

    def shared(self, run: DagRun) -> bool:
        """Return whether another run has the same version."""
        return any(other is not run and other.version == run.version for other in self.runs)

    @property
    def newest(self) -> Endpoint | None:
        """The endpoint as stored; None if there is none."""
        return self.target.newest


def image_of(version: str) -> str:
    """Return an image reference that is another for each version's name."""
    return f"local/digits@sha256:{version.encode().hex():0<64}"


def _hashable(arguments: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return arguments as a value that can be a key."""
    return tuple(
        (name, json.dumps(value.model_dump(mode="json", exclude_defaults=True)) if isinstance(value, Gate) else value)
        for name, value in arguments.items()
    )
