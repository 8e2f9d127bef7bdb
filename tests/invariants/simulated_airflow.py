"""DAG runs of the real task group: Airflow's trigger rules, retries, deferral and what people do, in simulated time."""

import asyncio
import copy
import importlib
import json
import uuid
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, Literal, cast

from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import DAG, BaseOperator, Context, TriggerRule
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskAwaitingInput, TaskDeferred

from controlled_rollout import (
    ControlledRollout,
    DeleteVersionOperator,
    PromoteToControlOperator,
    RollBackOperator,
    ShiftTrafficOperator,
)
from controlled_rollout.operators.base import FAILURE_KEY
from tests.invariants.simulated_clock import SimulatedClock, SimulatedLoop

__all__ = [
    "DAG_ID",
    "FOR_PEOPLE",
    "IN_TRIGGER",
    "DagRun",
    "Killed",
    "Options",
    "TaskInstance",
    "lone_task",
    "next_state",
    "task_group",
]

DAG_ID: Final = "weekly"
State = Literal["none", "success", "failed", "skipped", "upstream_failed", "up_for_retry", "deferred", "awaiting_input"]
# Whether the code that runs now is a trigger's.
IN_TRIGGER: Final[ContextVar[bool]] = ContextVar("IN_TRIGGER", default=False)
# What the names of tasks with `own_rollout=False` end with.
FOR_PEOPLE: Final = "_for_people"
FINISHED: Final = frozenset({"success", "failed", "skipped", "upstream_failed"})


class Killed(BaseException):
    """The process that runs a task, or the triggerer, is killed here."""


@dataclass(frozen=True)
class Options:
    """What the author of a DAG chooses."""

    steps: tuple[float, ...] = (10, 50)
    on_deadline: str = "hold"
    approval: bool = False
    pass_every_step: bool = False
    keep_treatment: bool = False
    on_conflict: str = "fail"
    more: tuple[tuple[str, Any], ...] = ()


@lru_cache(maxsize=1_000)
def task_group(options: Options, endpoint: str, version: str, arguments: tuple[tuple[str, Any], ...]) -> DAG:
    """Return a DAG with the real task group, as a DAG file makes it."""
    with DAG(DAG_ID, schedule=None) as dag:
        ControlledRollout(
            endpoint=endpoint,
            version=version,
            steps=options.steps,
            on_deadline=options.on_deadline,
            approval=options.approval,
            pass_every_step=options.pass_every_step,
            keep_treatment=options.keep_treatment,
            on_conflict=options.on_conflict,
            **dict((*arguments, *options.more)),
        )
    return dag


@lru_cache(maxsize=1_000)
def lone_task(step: str, endpoint: str, version: str, argument: Any) -> BaseOperator:
    """Return a task with `own_rollout=False`, in a DAG of its own, as DAGs that people trigger have them."""
    common: dict[str, Any] = {"endpoint": endpoint, "version": version, "own_rollout": False}
    with DAG("operate", schedule=None):
        name = f"{step}{FOR_PEOPLE}"
        if step == "shift":
            return ShiftTrafficOperator(task_id=name, percentile=argument, timeout="30 s", **common)
        if step == "promote":
            return PromoteToControlOperator(task_id=name, timeout="30 s", **common)
        if step == "roll_back":
            return RollBackOperator(task_id=name, to=argument, roll_back_timeout="30 s", **common)
        return DeleteVersionOperator(task_id=name, timeout="30 s", **common)


# Long because each trigger rule has its lines, as in Airflow.
def next_state(rule: str, upstream: Sequence[State]) -> State | Literal["run"] | None:
    """Return what becomes of a task whose upstream tasks are in these states: run it, skip it, fail it, or None: wait.

    As Airflow's scheduler decides, for the rules that a task group may use.
    """
    states = set(upstream)
    done = states <= FINISHED
    failed = "failed" in states or "upstream_failed" in states
    skipped, succeeded = "skipped" in states, "success" in states
    if rule == TriggerRule.ALWAYS:
        return "run"
    if rule == TriggerRule.ONE_FAILED:
        return "run" if failed else "skipped" if done else None
    if rule in (TriggerRule.ALL_DONE, TriggerRule.ALL_DONE_SETUP_SUCCESS):
        return "run" if done else None
    if rule == TriggerRule.ALL_DONE_MIN_ONE_SUCCESS:
        return ("run" if succeeded else "skipped" if not failed else "upstream_failed") if done else None
    if rule == TriggerRule.ALL_SUCCESS:
        if failed:
            return "upstream_failed"
        return "skipped" if skipped else "run" if done else None
    if rule == TriggerRule.NONE_FAILED:
        return "upstream_failed" if failed else "run" if done else None
    if rule == TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS:
        if failed:
            return "upstream_failed"
        return ("run" if succeeded or not upstream else "skipped") if done else None
    if rule == TriggerRule.ONE_SUCCESS:
        return "run" if succeeded else ("skipped" if not failed else "upstream_failed") if done else None
    if rule == TriggerRule.ONE_DONE:
        return "run" if succeeded or failed else "skipped" if done else None
    if rule == TriggerRule.NONE_SKIPPED:
        return "skipped" if skipped else "run" if done else None
    if rule == TriggerRule.ALL_FAILED:
        return "skipped" if skipped or succeeded else "run" if done else None
    raise NotImplementedError(rule)


@dataclass(eq=False)
class TaskInstance:
    """One task of one run, and what a task asks of its task instance.

    Attributes:
        state: Its state in Airflow.
        tries: How often it has been started.
        failure: What the last try raised.
        retry_at: When a task that is to be retried may start, in seconds of the clock.
        waiting: What it waits for while it is deferred, and the method that is called then.
        event: What the trigger, or a person, has answered.
    """

    run: "DagRun"
    operator: BaseOperator
    state: State = "none"
    tries: int = 0
    failure: BaseException | None = None
    retry_at: float = 0.0
    xcom: dict[str, Any] = field(default_factory=dict)
    trigger: Any = None
    method: str = ""
    event: dict[str, Any] | BaseException | None = None
    watcher: "asyncio.Task[None] | None" = None

    @property
    def dag_id(self) -> str:
        return self.run.dag_id

    @property
    def map_index(self) -> int:
        return self.run.map_index

    @property
    def run_id(self) -> str:
        return self.run.run_id

    @property
    def task_id(self) -> str:
        return self.operator.task_id

    @property
    def id(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, self.name))

    @property
    def name(self) -> str:
        """Its run and its name, for people."""
        return f"{self.run.name}/{self.task_id}"

    @property
    def try_number(self) -> int:
        return self.tries

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcom[key] = value

    def xcom_pull(self, task_ids: Any = None, key: str = "return_value", **_: Any) -> Any:
        def value(task_id: str) -> Any:
            found = self.run.tasks[task_id].xcom.get(key) if task_id in self.run.tasks else None
            return None if self.run.loses_answers and key != FAILURE_KEY else found

        return value(task_ids) if isinstance(task_ids, str) else [value(task_id) for task_id in task_ids]


class _Events(dict[Any, Any]):
    """Takes the events of assets."""

    def __missing__(self, key: Any) -> Any:
        return self

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Forget an event."""


@dataclass(eq=False)
class DagRun:
    """A run of the DAG.

    Attributes:
        run_id: Its name.
        version: What it rolls out.
        stopped: As what a person has marked the whole run: none of its tasks run any more; empty if nobody has.
        loses_answers: Whether tasks do not get what other tasks have returned, as with `do_xcom_push=False`.
        touched: Whether a person has set or cleared the state of a task.
        kills: How often one of its tasks was killed.
        approvals: When a person approved.
        rejected: Whether a person has rejected, or nobody answered in time.
        map_index: Which instance of a mapped group it is; -1 if the group is not mapped.
    """

    run_id: str
    version: str
    options: Options
    dag: DAG
    loop: SimulatedLoop
    clock: SimulatedClock
    started: datetime
    log: Callable[[str], None] = lambda line: None
    stopped: str = ""
    loses_answers: bool = False
    touched: bool = False
    kills: int = 0
    approvals: list[datetime] = field(default_factory=list)
    rejected: bool = False
    dag_id: str = DAG_ID
    map_index: int = -1
    tasks: dict[str, TaskInstance] = field(init=False)

    def __post_init__(self) -> None:
        self.tasks = {
            task.task_id: TaskInstance(self, cast("BaseOperator", task))
            for task in self.dag.topological_sort()  # type: ignore[no-untyped-call] # Airflow's
        }

    @property
    def owner(self) -> str:
        """The name under which it holds an endpoint."""
        return f"{self.dag_id}/{self.name}"

    @property
    def name(self) -> str:
        """The run's id, with the index of a mapped instance, as the product writes it."""
        return self.run_id if self.map_index < 0 else f"{self.run_id}[{self.map_index}]"

    @property
    def run_after(self) -> datetime:
        """When it was due."""
        return self.started

    @property
    def state(self) -> str:
        """What Airflow shows of the run: failed if a task without tasks after it has failed."""
        leaves = [task for task in self.tasks.values() if not task.operator.downstream_task_ids]
        failed = any(task.state in ("failed", "upstream_failed") for task in leaves)
        if self.stopped:
            return self.stopped
        return "failed" if failed else "success" if self.is_over else "running"

    @property
    def is_over(self) -> bool:
        """Whether no task will run any more."""
        return bool(self.stopped) or all(task.state in FINISHED for task in self.tasks.values())

    def task(self, name: str) -> TaskInstance:
        """Return a task by its name in the group."""
        return next(task for task_id, task in self.tasks.items() if task_id.split(".")[-1] == name)

    def runnable(self) -> list[TaskInstance]:
        """Settle the states that follow from the trigger rules; return the tasks that can run now."""
        if self.stopped:
            return []
        ready = []
        for task in self.tasks.values():  # in topological order
            if task.state in ("deferred", "awaiting_input"):
                if self._answer(task) is not None:
                    ready.append(task)
            elif task.state == "none" or (task.state == "up_for_retry" and task.retry_at <= self.clock.seconds):
                upstream = [self.tasks[task_id].state for task_id in task.operator.upstream_task_ids]
                decided = next_state(task.operator.trigger_rule, upstream) if upstream else "run"
                if decided == "run":
                    ready.append(task)
                elif decided is not None:
                    task.state = decided
                    self.log(f"{task.name}: {decided}")
        return ready

    def _answer(self, task: TaskInstance) -> object:
        """Return what a deferred task has been waiting for; None if it still waits."""
        if isinstance(task.trigger, DateTimeTrigger) and task.trigger.moment <= self.clock.now():
            return {}
        return task.event

    def execute(self, task: TaskInstance) -> None:
        """Run a task that can run: its start, or its continuation after a deferral."""
        operator = copy.copy(task.operator)
        outlets = _Events()
        given = {"ti": task, "task_instance": task, "dag_run": self, "outlet_events": outlets, "task": operator}
        context = cast("Context", given)
        resumed, event = task.state in ("deferred", "awaiting_input"), self._answer(task)
        task.event = task.trigger = None
        if not resumed:
            task.tries += 1
            task.xcom = {}
        try:
            if isinstance(event, BaseException):
                raise event
            method = getattr(operator, task.method if resumed else "execute")
            value = method(context, event) if resumed else method(context)
        except AirflowSkipException as skip:
            self._finish(task, "skipped", skip)
        except AirflowFailException as failure:
            self._finish(task, "failed", failure)
        except TaskDeferred as deferral:
            self._defer(task, deferral)
        except TaskAwaitingInput as question:
            task.method = question.method_name
            self._finish(task, "awaiting_input", question)
        except (Exception, Killed) as failure:
            self._finish(task, "up_for_retry" if task.tries <= (task.operator.retries or 0) else "failed", failure)
        else:
            task.xcom["return_value"] = value
            self._finish(task, "success", None)

    def _finish(self, task: TaskInstance, state: State, failure: BaseException | None) -> None:
        """Note a task's new state."""
        task.state, task.failure = state, failure
        task.retry_at = self.clock.seconds + task.operator.retry_delay.total_seconds()
        self.log(f"{task.name}: {state}" + (f" ({type(failure).__name__}: {str(failure)[:200]})" if failure else ""))

    def _defer(self, task: TaskInstance, deferral: TaskDeferred) -> None:
        """Give a deferred task's trigger to the triggerer."""
        task.method = deferral.method_name
        self._finish(task, "deferred", None)
        self.start_trigger(task, deferral.trigger)

    def start_trigger(self, task: TaskInstance, trigger: Any) -> None:
        """Start a trigger from what Airflow has stored of it."""
        class_path, arguments = trigger.serialize()
        module, _, name = class_path.rpartition(".")
        if isinstance(trigger, DateTimeTrigger):
            task.trigger = trigger
            return
        task.trigger = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))
        task.watcher = self.loop.create_task(self._wait_for(task, task.trigger), name=task.name)

    async def _wait_for(self, task: TaskInstance, trigger: Any) -> None:
        """Run a trigger until its event; after a kill the triggerer starts it again."""
        IN_TRIGGER.set(True)
        try:
            async for event in trigger.run():
                if task.trigger is trigger:
                    task.event = event.payload
                return
        except Killed:
            if task.trigger is trigger:
                self.start_trigger(task, trigger)
        except Exception as error:
            if task.trigger is trigger:
                task.event = error

    # What people do.

    def stop_trigger(self, task: TaskInstance) -> None:
        """End a task's trigger."""
        if task.watcher is not None:
            task.watcher.cancel()
        task.trigger = task.event = task.watcher = None

    def mark(self, task: TaskInstance, state: State) -> None:
        """Set a task's state without running it."""
        self.stop_trigger(task)
        self._finish(task, state, None)

    def clear(self, task: TaskInstance) -> None:
        """Clear a task and all tasks after it: they run again."""
        self.stopped = ""
        for task_id in [task.task_id, *task.operator.get_flat_relative_ids(upstream=False)]:
            cleared = self.tasks[task_id]
            self.stop_trigger(cleared)
            cleared.state, cleared.tries = "none", 0

    def stop(self, state: Literal["success", "failed"]) -> None:
        """Mark the whole run: what runs or waits gets the state, what has not begun is skipped."""
        for task in self.tasks.values():
            if task.state not in FINISHED:
                self.stop_trigger(task)
                task.state = state if task.state != "none" else "skipped"
        self.stopped = state
