"""Runs a task's `execute` on a real local workspace, in a process that may be killed, without an Airflow around it."""

import multiprocessing
import os
import signal
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import tests.airflow_home  # noqa: F401 - before anything of Airflow

if TYPE_CHECKING:
    from airflow.sdk import Context

DAG_ID = "weekly"
CONNECTION = "AIRFLOW_CONN_CONTROLLED_ROLLOUT_DEFAULT"

# Imports Airflow once and forks from there: a child is at work after milliseconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "airflow.sdk.execution_time.context",
        "controlled_rollout.image",
        "controlled_rollout.steps",
        "controlled_rollout.target.local.client",
        "controlled_rollout.task_group",
    ]
)


@dataclass
class TaskInstance:
    """The attributes and XComs of a task instance, as far as tasks use them."""

    run_id: str
    task_id: str
    dag_id: str = DAG_ID
    pushed: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, task_ids: list[str], key: str) -> list[Any]:
        return [None for _ in task_ids]


def context(ti: TaskInstance) -> "Context":
    """Return the context that Airflow passes to `execute`, as far as the provider's tasks use it."""
    from airflow.sdk.execution_time.context import OutletEventAccessors

    content = {"ti": ti, "outlet_events": OutletEventAccessors(), "dag": SimpleNamespace(folder="/")}
    return cast("Context", content)


@dataclass(frozen=True)
class Task:
    """An operator and its arguments, in a form that can be sent to a child process."""

    operator: str
    task_id: str
    arguments: dict[str, Any]
    run_id: str = "run-1"

    def execute(self) -> Any:
        import controlled_rollout

        operator = getattr(controlled_rollout, self.operator)(task_id=self.task_id, **self.arguments)
        return operator.execute(context(TaskInstance(self.run_id, self.task_id)))


def run(task: Task, connection: str, *, kill_after_s: float | None = None) -> str:
    """Execute a task in a process of its own; return `done`, `killed`, or the error's class and text.

    Args:
        task: What to execute.
        connection: The workspace's connection, as Airflow reads it from the environment.
        kill_after_s: SIGKILL so many seconds after `execute` was called, unless it has ended.
    """
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=_child, args=(task, connection, sender))
    child.start()
    sender.close()
    try:
        assert receiver.recv() == "began"
        if kill_after_s is not None and not receiver.poll(kill_after_s):
            assert child.pid
            os.kill(child.pid, signal.SIGKILL)
        try:
            return str(receiver.recv())
        except EOFError:
            return "killed"
    finally:
        child.join()


def _child(task: Task, connection: str, pipe: Any) -> None:
    os.environ[CONNECTION] = connection
    pipe.send("began")
    try:
        task.execute()
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error}")
    else:
        pipe.send("done")
