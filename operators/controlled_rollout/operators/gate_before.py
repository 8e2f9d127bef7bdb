"""The gate before a task: how other tasks look as it does, and the last look before a share is raised."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from controlled_rollout.errors import ArgumentError, ControlledRolloutError, NotJudgedError
from controlled_rollout.evaluation.next_action import GateTerms, NextAction, take_look
from controlled_rollout.operators.base import EngineCalls, task_of
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

__all__ = ["Gate", "gate_before", "last_look", "terms_of_alarms"]


@runtime_checkable
class Gate(Protocol):
    """A task that looks at the evidence: a `TreatmentGateSensor`."""

    def prepare_for_execution(self) -> Any:
        """Return a copy of the task whose templates can be rendered."""
        ...

    def gate_terms(self, context: "Context") -> GateTerms:
        """Return how to look, from the task's arguments."""
        ...


def gate_before(task: "BaseOperator") -> Gate | None:
    """Return the gate directly before a task, or before the approval that is directly before it; None without one."""
    if not task.has_dag():  # type: ignore[no-untyped-call] # Airflow's
        return None
    tasks = cast("Mapping[str, Any]", task.dag.task_dict)
    for before in task.upstream_list:
        gate = tasks.get(getattr(before, "gate_task_id", before.task_id))
        if isinstance(gate, Gate):
            return gate
    return None


def terms_of_alarms(gate: Gate, context: "Context") -> GateTerms:
    """Return how to look for alarms as a gate does: by its arguments, rendered for this run, in this task's name.

    Raises:
        ArgumentError: An argument of the gate cannot be used.
    """
    rendered = gate.prepare_for_execution()
    rendered.render_template_fields(context)
    terms: GateTerms = rendered.gate_terms(context)
    return terms.model_copy(update={"who": task_of(context), "only_alarms": True})


async def last_look(
    task: EngineCalls,
    context: "Context",
    workspace: Workspace,
    *,
    endpoint: str,
    version: str,
    percentile: float | None = None,
) -> None:
    """Look once more before a share is raised, as the gate before the task does; raise if a claim has alarmed.

    Minutes may lie between the gate's decision and this task. A look that cannot see changes nothing: what permits the
    step is in the record. Nothing waits for a look that does not raise the share of the version that the gate judges.

    Args:
        task: The task that raises the share.
        context: Its context.
        workspace: Where endpoint, evidence and record are.
        endpoint: The endpoint's name.
        version: The version.
        percentile: Its per cent of the traffic after the task; None for a promotion.

    Raises:
        NotJudgedError: A claim has alarmed.
    """
    gate = gate_before(cast("BaseOperator", task))
    if gate is None:
        return
    try:
        terms = terms_of_alarms(gate, context)
    except ArgumentError as error:
        task.log_progress(f"no last look: {error}")
        return
    judged = (terms.endpoint, terms.version) == (endpoint, version)
    if not judged or not await _is_raised(workspace, endpoint, version, percentile):
        return
    result = await take_look(workspace, terms, task.log_progress)
    if result.action is NextAction.FAIL:
        raise NotJudgedError(f"the last look before this step: {result.reason}\n{result.table}")


async def _is_raised(workspace: Workspace, endpoint: str, version: str, percentile: float | None) -> bool:
    """Return whether a version has traffic and is to get more, or be promoted; False if the target does not answer."""
    from controlled_rollout.target.connect import connect

    try:
        async with connect(workspace) as target:
            present = (await target.endpoint(endpoint)).effective_traffic().get(version, 0.0)
    except ControlledRolloutError:  # the step itself says so
        return False
    return present > 0 and (percentile is None or percentile > present)
