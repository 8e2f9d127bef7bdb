"""What all tasks share: the workspace of their connection, their name in the history, and how they call the engine."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from airflow.sdk import BaseOperator, TaskGroup, TriggerRule
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from controlled_rollout.errors import (
    AccessError,
    ConflictError,
    ControlledRolloutError,
    DeploymentError,
    EndpointError,
    EndpointNotFoundError,
    EvidenceUnavailableError,
    ModelStoreUnavailableError,
    NothingToDoError,
    RecordUnavailableError,
    RegistryUnavailableError,
    ScanUnavailableError,
    StorageError,
    TargetUnavailableError,
    WorkspaceError,
)
from controlled_rollout.hooks.registry_users import registry_users
from controlled_rollout.hooks.workspace import WorkspaceHook, quieten_clients
from controlled_rollout.links.task_links import LINKS, push_links
from controlled_rollout.version_name import RunLike, version_of_run
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.image import Credentials
    from controlled_rollout.target.protocol import Change

__all__ = ["FAILURE_KEY", "EngineCalls", "RolloutOperator", "change_of", "rule_after_skips", "run_of", "task_of"]

Result = TypeVar("Result")

# The XCom key under which a failed task leaves its reason in one line; the roll-back that follows gives it as its own.
FAILURE_KEY = "failure"
# Arguments that are text whatever they look like: `render_template_as_native_obj` would make a number of the version
# "1234" or of the reason "0815".
TEXT_FIELDS: Final = frozenset(
    {
        "conn_id", "endpoint", "version", "replaced_by", "to", "reason", "image", "auth", "sticky", "mlflow_alias",
        "mlflow_model", "on_conflict", "on_deadline", "on_silence",
    }
)  # fmt: skip
# These errors may be gone at the next try. All others would come again: a retry would only delay the roll-back.
TEMPORARY_ERRORS: Final = (
    TargetUnavailableError,
    EvidenceUnavailableError,
    ModelStoreUnavailableError,
    RecordUnavailableError,
    RegistryUnavailableError,
    ScanUnavailableError,
    StorageError,
)
# What a roll-back or the deletion of a version failed for may be gone as well at the next try.
TEMPORARY_WHEN_GOING_BACK = (*TEMPORARY_ERRORS, AccessError, DeploymentError, WorkspaceError)


def run_of(context: "Context") -> str:
    """Return `dag_id/run_id` of the Airflow task: the name under which its DAG run owns a rollout.

    A task of a mapped group has its index after that, as `dag_id/run_id[0]`: two instances of one run with the same
    endpoint are two rollouts, of which one holds it and the other finds it held. So do the tasks of two groups of one
    DAG that roll out the same version on the same endpoint: they have their group's name there.
    """
    ti = context["ti"]
    index = getattr(ti, "map_index", -1)
    label = getattr(context.get("task"), "rollout_label", "")
    parts = [*([label] if label else []), *([str(index)] if isinstance(index, int) and index >= 0 else [])]
    return f"{ti.dag_id}/{ti.run_id}" + (f"[{' '.join(parts)}]" if parts else "")


def task_of(context: "Context") -> str:
    """Return `dag_id/run_id/task_id` of the Airflow task: the author of a change in the endpoint's history."""
    return f"{run_of(context)}/{context['ti'].task_id}"


def change_of(context: "Context", reason: Any) -> "Change":
    """Return the author (the Airflow task) and the reason of a change; an empty reason gets a default."""
    from controlled_rollout.target.protocol import Change

    return Change(who=task_of(context), reason=str(reason or ""))


class EngineCalls:
    """Runs the engine's coroutines in a task. A worker may be killed during a call; the retry makes the call again."""

    conn_id: str
    log: Any
    # The name of the task's group, if another group of the DAG rolls out the same version on the same endpoint.
    rollout_label: str = ""
    temporary_errors: tuple[type[ControlledRolloutError], ...] = TEMPORARY_ERRORS
    # Whether the task's links are pushed before its work: a roll-back waits for nothing.
    links_first = True
    _renders_text = False
    _has_links = False
    _call: "tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None" = None

    def _do_render_template_fields(
        self, parent: Any, template_fields: Iterable[str], context: "Context", jinja_env: Any, seen_oids: set[int]
    ) -> None:
        """Render the templates as Airflow does, but text as text, also in a DAG with native rendering."""
        render = super()._do_render_template_fields  # type: ignore[misc] # Airflow's operator is the next base
        texts = [name for name in template_fields if parent is self and name in TEXT_FIELDS]
        render(parent, [name for name in template_fields if name not in texts], context, jinja_env, seen_oids)
        dag = self.get_dag()  # type: ignore[attr-defined] # Airflow's operator is the next base
        self._renders_text = True
        try:
            render(parent, texts, context, dag.get_template_env(force_sandboxed=True) if dag else jinja_env, seen_oids)
        finally:
            self._renders_text = False

    def _render(self, template: Any, context: "Context", dag: Any = None) -> Any:
        """Render one template: as text while the text fields are rendered, else as Airflow does."""
        if self._renders_text:
            return template.render(context)
        return super()._render(template, context, dag)  # type: ignore[misc] # Airflow's operator is the next base

    def workspace(self) -> Workspace:
        """Return the workspace of the task's connection."""
        return WorkspaceHook(self.conn_id).get_workspace()

    @staticmethod
    def version_of_run(dag_run: RunLike) -> str:
        """Return the version name of a DAG run, for templates: `{{ task.version_of_run(dag_run) }}`."""
        return version_of_run(dag_run)

    def log_progress(self, message: str) -> None:
        """Write a progress message of a rollout step into the Airflow task's log."""
        self.log.info("%s", message)

    def run_in_workspace(self, context: "Context", step: Callable[[Workspace], Coroutine[Any, Any, Result]]) -> Result:
        """Run a coroutine on the connection's workspace until it finishes; map its errors to Airflow's exceptions.

        Raises:
            AirflowFailException: It failed and would fail again: the task is not retried.
            AirflowSkipException: There was nothing to do.
            ControlledRolloutError: It failed for a reason that may be gone at the next try.
        """
        quieten_clients()
        try:
            workspace = self.workspace()
            if self.links_first:
                self.push_links(context, workspace)
            return asyncio.run(self._run_cancellable(step(workspace)))
        except NothingToDoError as error:
            raise AirflowSkipException(str(error)) from error
        except ControlledRolloutError as error:
            push_failure(context, str(error))
            if isinstance(error, self.temporary_errors):
                raise
            raise AirflowFailException(str(error)) from error

    def push_links(self, context: "Context", workspace: Workspace | None) -> None:
        """Push where the buttons of a task lead that works on an endpoint, once in its process."""
        if self._has_links or LINKS[0] not in getattr(self, "operator_extra_links", ()):
            return
        self._has_links = True
        push_links(
            context,
            workspace,
            conn_id=self.conn_id,
            endpoint=str(getattr(self, "endpoint", "")),
            version=str(getattr(self, "version", None) or ""),
            log=self.log,
        )

    def run_with_registry_users(
        self,
        context: "Context",
        step: "Callable[[Workspace, dict[str, Credentials]], Coroutine[Any, Any, Result]]",
    ) -> Result:
        """Like `run_in_workspace`, but also pass the step the credentials of the workspace's registries, by host.

        Raises:
            AirflowFailException: It failed and would fail again: the task is not retried.
            ControlledRolloutError: It failed for a reason that may be gone at the next try.
        """
        # The connections are read before the event loop runs, because that blocks.
        return self.run_in_workspace(
            context, lambda workspace: step(workspace, registry_users(workspace, WorkspaceHook.get_connection))
        )

    def fail(self, context: "Context", reason: str) -> NoReturn:
        """Raise AirflowFailException: fail the Airflow task without retries, with the reason in XCom."""
        push_failure(context, reason)
        raise AirflowFailException(reason) from None

    async def _run_cancellable(self, step: Coroutine[Any, Any, Result]) -> Result:
        """Await a coroutine and remember its asyncio task meanwhile, so that `on_kill` can cancel it."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has a task
        self._call = (asyncio.get_running_loop(), task)
        try:
            return await step
        finally:
            self._call = None

    def on_kill(self) -> None:
        """Cancel the running coroutine. The endpoint keeps its state; a retry of the Airflow task continues there."""
        if self._call is not None:
            loop, task = self._call
            loop.call_soon_threadsafe(task.cancel)


class RolloutOperator(EngineCalls, BaseOperator):
    """A task that works on one endpoint of one workspace.

    Args:
        endpoint: The endpoint's name.
        own_rollout: Whether the task belongs to a rollout of this DAG run, and fails once somebody else has ended that
            rollout or taken it over. False is for DAGs that people trigger: they may act on any rollout; on one of this
            very run only as the record permits.
        conn_id: The connection of the workspace; without the default one, the local workspace.
        **kwargs: What every operator takes.
    """

    template_fields: Sequence[str] = ("conn_id", "endpoint")
    operator_extra_links = LINKS

    def __init__(
        self,
        *,
        endpoint: str,
        own_rollout: bool = True,
        conn_id: str = WorkspaceHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        """Store the arguments; Airflow renders their templates before `execute`."""
        super().__init__(**kwargs)
        self.endpoint = endpoint
        self.own_rollout = own_rollout
        self.conn_id = conn_id

    def execute(self, context: "Context") -> Any:
        """Run the operator's `step` in the connection's workspace, and return its result."""
        return self.run_in_workspace(context, lambda workspace: self.step(context, workspace))

    async def step(self, context: "Context", workspace: Workspace) -> Any:
        """Change the endpoint; every operator implements it so that a retry after a killed worker is safe."""
        raise NotImplementedError

    def required_owner(self, context: "Context") -> str | None:
        """Return the DAG run that must own the endpoint's rollout; None to accept any owner."""
        return run_of(context) if self.own_rollout else None

    @asynccontextmanager
    async def skipped_without_rollout(self, context: "Context", workspace: Workspace) -> AsyncIterator[None]:
        """Context manager: skip a task that may run after skipped ones if its run has rolled nothing out there.

        Raises:
            NothingToDoError: The step was refused, and the run has never held the endpoint.
        """
        try:
            yield
        except (ConflictError, EndpointError, EndpointNotFoundError) as error:
            from controlled_rollout import steps

            owner = self.required_owner(context)
            if self.trigger_rule != TriggerRule.NONE_FAILED or owner is None:
                raise
            if await steps.has_held(workspace, self.endpoint, owner, self.log_progress):
                raise
            raise NothingToDoError(
                f"{owner} has no rollout on endpoint {self.endpoint!r}, because an earlier task was skipped"
            ) from error


def push_failure(context: "Context", reason: str) -> None:
    """Push the first line of a failure's reason to XCom, where `RollBackOperator` reads it."""
    context["ti"].xcom_push(key=FAILURE_KEY, value=reason.partition("\n")[0])


def rule_after_skips(group: TaskGroup) -> TriggerRule:
    """Return the trigger rule of a task that goes on after tasks that were skipped, but not if all of them were.

    In a group that is mapped over another task's result, Airflow takes a rule that one success satisfies for all
    instances together until it knows how many there are: one that fails would stop the others, and roll them back.
    There the task itself skips, see `RolloutOperator.skipped_without_rollout`.
    """
    mapped = any(True for _ in group.iter_mapped_task_groups())
    return TriggerRule.NONE_FAILED if mapped else TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS
