"""What every task of a rollout has in common: its workspace, its name in the history, and how it calls the engine."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from controlled_rollout.errors import (
    ControlledRolloutError,
    EvidenceUnavailableError,
    RegistryUnavailableError,
    ScanUnavailableError,
    TargetUnavailableError,
)
from controlled_rollout.hooks.workspace import WorkspaceHook, quieten_clients
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["FAILURE_KEY", "RolloutOperator", "StepCalls", "run_of", "task_of"]

Result = TypeVar("Result")

# Under this XCom key a failing task leaves its cause in one line, for the history of the roll-back that follows.
FAILURE_KEY = "failure"
# Whatever else goes wrong on purpose will go wrong again: trying it again only delays the roll-back.
WORTH_ANOTHER_TRY = (
    TargetUnavailableError,
    EvidenceUnavailableError,
    RegistryUnavailableError,
    ScanUnavailableError,
)


def run_of(context: "Context") -> str:
    """Return `dag/run`: who holds an endpoint during a rollout."""
    ti = context["ti"]
    return f"{ti.dag_id}/{ti.run_id}"


def task_of(context: "Context") -> str:
    """Return `dag/run/task`: who changes something, for the history."""
    return f"{run_of(context)}/{context['ti'].task_id}"


class StepCalls:
    """Calls the engine's coroutines from a worker: every call may be killed, and called again by a retry."""

    conn_id: str
    log: Any
    _call: "tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None" = None

    def workspace(self) -> Workspace:
        """Return the workspace of the task's connection."""
        return WorkspaceHook(self.conn_id).get_workspace()

    def say(self, sentence: str) -> None:
        """Write what the engine reports into the task's log."""
        self.log.info("%s", sentence)

    def call(self, context: "Context", step: Callable[[Workspace], Coroutine[Any, Any, Result]]) -> Result:
        """Run one step of the engine on the task's workspace, to its end.

        Raises:
            AirflowFailException: The step failed and would fail again: the task is not retried.
        """
        quieten_clients()
        try:
            return asyncio.run(self._cancellable(step(self.workspace())))
        except ControlledRolloutError as error:
            if isinstance(error, WORTH_ANOTHER_TRY):
                leave_cause(context, str(error))
                raise
            self.fail(context, str(error))

    def fail(self, context: "Context", reason: str) -> NoReturn:
        """Fail the task without retries, and leave the reason's first line for the roll-back."""
        leave_cause(context, reason)
        raise AirflowFailException(reason) from None  # our errors say everything: the log need not say it twice

    async def _cancellable(self, step: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has a task
        self._call = (asyncio.get_running_loop(), task)
        try:
            return await step
        finally:
            self._call = None

    def on_kill(self) -> None:
        """Stop waiting. What was begun is stored with the endpoint; the task carries on there when it runs again."""
        if self._call is not None:
            loop, task = self._call
            loop.call_soon_threadsafe(task.cancel)


class RolloutOperator(StepCalls, BaseOperator):
    """A task that works on one endpoint of one workspace.

    Args:
        endpoint: The endpoint's name.
        own_rollout: True for a step of a rollout that this very DAG run has begun: it is refused once somebody else
            has ended or taken over that rollout. False works on whatever is there, for DAGs that people trigger.
        conn_id: The connection that describes the workspace; missing, it is the local one.
        **kwargs: What every operator takes.
    """

    template_fields: Sequence[str] = ("conn_id", "endpoint")

    def __init__(
        self,
        *,
        endpoint: str,
        own_rollout: bool = True,
        conn_id: str = WorkspaceHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.endpoint = endpoint
        self.own_rollout = own_rollout
        self.conn_id = conn_id

    def execute(self, context: "Context") -> Any:
        """Run the task's step."""
        return self.call(context, lambda workspace: self.step(context, workspace))

    async def step(self, context: "Context", workspace: Workspace) -> Any:
        """Do what the task is for. May be killed anywhere and called again."""
        raise NotImplementedError

    def holder(self, context: "Context") -> str | None:
        """Return the run that must hold the endpoint, or None where anybody's rollout will do."""
        return run_of(context) if self.own_rollout else None


def leave_cause(context: "Context", reason: str) -> None:
    """Push the first line of a failure's reason; what follows it may be a container's log."""
    context["ti"].xcom_push(key=FAILURE_KEY, value=reason.partition("\n")[0])
