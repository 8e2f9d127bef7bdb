"""One endpoint, its callers, its stores and its DAG runs; every event that may happen to a rollout is a method."""

import asyncio
import importlib
import itertools
import json
import random
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast
from unittest import mock

from airflow.providers.standard.operators import hitl
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.triggers.base import BaseTrigger, TriggerEvent

from controlled_rollout import record, steps
from controlled_rollout.arguments import evidence_window
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ControlledRolloutError, EvidenceUnavailableError
from controlled_rollout.evaluation import conclusion, next_action
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evidence import Evidence, EvidenceQuery
from controlled_rollout.evidence.shared import SharedReader, read_shared
from controlled_rollout.gate import Bin, Gate, Outcome, Verdict, judge
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators import rollout_check
from controlled_rollout.operators.connectivity import CheckConnectivityOperator
from controlled_rollout.record import Decision, in_time, tail
from controlled_rollout.target.protocol import Change, Target
from controlled_rollout.triggers import rollout_question
from controlled_rollout.workspace import Workspace
from tests.invariants.simulated_airflow import DagRun, Killed, Options, TaskInstance, task_group
from tests.invariants.simulated_clock import START, SimulatedClock, SimulatedLoop, simulated_time
from tests.invariants.simulated_record import SimulatedRecord
from tests.invariants.simulated_target import SimulatedTarget
from tests.invariants.simulated_traffic import SimulatedMetricStore, SimulatedTraffic

__all__ = ["ENDPOINT", "GATE", "World", "simulated_surroundings"]

ENDPOINT: Final = "digits"
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
}
LOOK_S: Final = 10.0
GOOD: Final = 0.0
BROKEN: Final = 1.0

_current: "World | None" = None
_use_clock: "Callable[[SimulatedClock], None] | None" = None
_numbers = itertools.count()


def _world() -> "World":
    """Return the world whose code runs now."""
    assert _current is not None, "no simulated world is in use"
    return _current


class _SimulatedSource:
    """What `evidence_source` returns: the real reader on the simulated store."""

    async def read(self, query: EvidenceQuery) -> Evidence:
        world = _world()
        await world.interrupt("evidence")
        return await read_shared(world.reader, world.store, query)


class _Answer:
    """What Airflow's trigger for a person's answer does, in the world in use."""

    def __init__(self, ti_id: uuid.UUID, **question: Any) -> None:
        self._id = str(ti_id)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait until somebody has answered."""
        while (answer := _world().questions[self._id]) is None:
            await asyncio.sleep(LOOK_S / 2)
        yield TriggerEvent(answer)  # type: ignore[no-untyped-call] # Airflow's


class _Thread:
    """A thread whose work is done at once, or, while the record hangs, when that has an end."""

    def __init__(self, target: Callable[[], None], **_: Any) -> None:
        self._work = target

    def start(self) -> None:
        """Do the work."""
        world = _world()
        hangs = world.record.hangs_until - world.clock.seconds
        if hangs > 0:
            world.loop.call_later(hangs, self._work)
        else:
            self._work()


class _Quiet:
    """The log of all tasks and triggers."""

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda *message, **arguments: None


_get_template_env: Final = DAG.get_template_env


def _template_env(dag: DAG, *, force_sandboxed: bool = False) -> Any:
    """Return what renders a DAG's templates, which compiles each of them once: they are the same in all sequences."""
    environment = _get_template_env(dag, force_sandboxed=force_sandboxed)
    compile_once: Any = lru_cache(environment.from_string)
    environment.from_string = compile_once  # type: ignore[method-assign]
    return environment


_verdicts: dict[tuple[Any, ...], Verdict] = {}


def _remembered_judge(bins: tuple[Bin, ...], gate: Gate, *, baseline: tuple[Bin, ...] = ()) -> Verdict:
    """Judge as the gate does; equal evidence is judged once, because the gate is pure and its mathematics take long."""
    key = (gate.model_dump_json(), *map(_key, bins), None, *map(_key, baseline))
    if key not in _verdicts:
        if len(_verdicts) > 200_000:
            _verdicts.clear()
        _verdicts[key] = judge(bins, gate, baseline=baseline)
    return _verdicts[key]


def _noted_conclusion(look: record.LookInput) -> Verdict:
    """Conclude as a look does; note the looks that fail, as the record may be away."""
    verdict = conclusion.conclude(look)
    if verdict.outcome is Outcome.FAIL:
        _world().failed_looks.append((_world().clock.now(), look.settings.treatment))
    return verdict


def _key(bin_: Bin) -> tuple[Any, ...]:
    """Return everything that a bin says, as a value that can be a key."""
    sides = (bin_.control, bin_.treatment)
    return bin_.start, bin_.share, *((side.requests, side.errors, side.slow) for side in sides)


@contextmanager
def simulated_surroundings() -> Iterator[None]:
    """Context manager: the package's edges lead to the world in use, for as many worlds as are used one by one."""
    with ExitStack() as stack:
        use_clock = stack.enter_context(simulated_time())

        def patch(place: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(place, name, value))

        async def aget_workspace(self: WorkspaceHook) -> Workspace:
            return WORKSPACE

        async def no_check(*args: Any) -> None:
            """The connectivity checks have nothing to look at here."""

        async def no_forecast(*args: Any, **kwargs: Any) -> Any:
            raise EvidenceUnavailableError("not simulated")

        global _use_clock
        _use_clock = use_clock
        for module in ("steps", "target.connect"):
            patch(importlib.import_module(f"controlled_rollout.{module}"), "connect", lambda _: _world().target.open(_))
        patch(looks, "evidence_source", lambda workspace: _SimulatedSource())
        for place in (record, record.log):
            patch(place, "storage_of", lambda workspace, endpoint: _world().record)
        patch(next_action, "traceback", SimpleNamespace(format_exception=lambda error: [repr(error)]))
        patch(in_time, "threading", SimpleNamespace(Thread=_Thread))
        patch(conclusion, "judge", _remembered_judge)
        patch(looks, "conclude", _noted_conclusion)
        patch(WorkspaceHook, "get_workspace", lambda self: WORKSPACE)
        patch(WorkspaceHook, "aget_workspace", aget_workspace)
        patch(CheckConnectivityOperator, "check", no_check)
        patch(rollout_check, "read_control_traffic", no_forecast)
        for module in ("operators.base", "triggers.treatment_gate", "triggers.rollout_question"):
            patch(importlib.import_module(f"controlled_rollout.{module}"), "quieten_clients", lambda: None)
        patch(hitl, "upsert_hitl_detail", lambda ti_id, **_: _world().questions.update({ti_id: None}))
        patch(rollout_question, "HITLTrigger", _Answer)
        patch(rollout_question, "update_hitl_detail_response", lambda ti_id, **_: _world().answer(str(ti_id), "Reject"))
        patch(asyncio, "run", lambda coroutine: _world().loop.run_until_complete(coroutine))
        patch(ExecutorSafeguard, "test_mode", True)
        patch(DAG, "get_template_env", lru_cache(maxsize=1_000)(_template_env))
        for with_log in (BaseOperator, BaseTrigger):
            patch(with_log, "log", _Quiet())
        yield


@dataclass
class World:
    """Everything around one endpoint.

    Attributes:
        chance: Where choices come from that are not the caller's, such as the pause after a conflict.
        history: What has happened, for people.
        runs: The DAG runs, oldest first.
        kill_in: After how many writes and reads the running task is killed; None: it is not.
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
        checked, checked_decisions, checked_tasks: Which revisions, decisions and roll-backs the invariants have been
            checked for.
    """

    seed: int = 0
    first_version: bool = False
    log: Callable[[str], None] = lambda line: None
    clock: SimulatedClock = field(default_factory=SimulatedClock)
    runs: list[DagRun] = field(default_factory=list)
    kill_in: int | None = None
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
    known: dict[int, int] = field(default_factory=dict)
    checked: dict[int, int] = field(default_factory=dict)
    checked_decisions: int = 0
    checked_tasks: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        global _current
        _current = self
        assert _use_clock is not None, "use `simulated_surroundings`"
        _use_clock(self.clock)
        random.seed(self.seed)  # the pauses after a conflict
        self.loop = SimulatedLoop(self.clock)
        self.traffic = SimulatedTraffic(self.clock)
        self.target = SimulatedTarget(
            ENDPOINT, self.clock, self.traffic, before=self.interrupt, after=self.interrupt,
            stored=lambda revision: self.known.setdefault(id(revision), len(self.decisions)),
        )  # fmt: skip
        self.store = SimulatedMetricStore(self.clock, self.traffic, ENDPOINT)
        self.record = SimulatedRecord(
            f"simulated-{next(_numbers)}", self.clock, before=self.interrupt_now, after=self.interrupt_now,
            appended=lambda lines: self.decisions.extend(map(Decision.model_validate_json, lines.splitlines())),
        )  # fmt: skip
        self.reader = SharedReader(self.store, clock=self.clock.now)
        if not self.first_version:
            first = Endpoint(name=ENDPOINT).create_version(
                "first", is_control=True, is_default=True, image=image_of("first"), traffic_percentile=100
            )
            self.target.store(first, Change(who="somebody", why="set up"))
            self.pass_time(90)

    def close(self) -> None:
        """End what still runs."""
        for run in self.runs:
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
        self.target.advance()

    def start_run(self, version: str, options: Options) -> DagRun:
        """Start a DAG run that rolls a version out."""
        dag = task_group(options, ENDPOINT, version, (("image", image_of(version)), *_hashable(ARGUMENTS)))
        run = DagRun(
            f"run-{len(self.runs) + 1}", version, options, dag, self.loop, self.clock, self.clock.now(), log=self.log
        )
        self.runs.append(run)
        return run

    def runnable(self) -> list[TaskInstance]:
        """Return the tasks of all runs that can run now."""
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
        """Kill the running task if that is due."""
        if self.kill_in is not None and self.in_task:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.kill_in = None
                self.log(f"killed at: {call}")
                raise Killed

    def forget_memory(self) -> None:
        """Let all processes begin anew: nothing that they remember may decide."""
        self.reader = SharedReader(self.store, clock=self.clock.now)
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
            WORKSPACE, ENDPOINT, version, change=Change(who="Ada", why="by hand"), progress=lambda line: None,
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
            self.disturbed_at,
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
                WORKSPACE, cast("Target", self.target), ENDPOINT, version, gate=GATE, who="Ada", now=now,
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
