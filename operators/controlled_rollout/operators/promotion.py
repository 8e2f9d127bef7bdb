"""The tasks that end a rollout: promote the treatment to control, or roll it back."""

import asyncio
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowNotFoundException

from controlled_rollout.arguments import duration
from controlled_rollout.defaults import ROLL_BACK_TIMEOUT, SERVED_TIMEOUT
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.notifications.event import Event
from controlled_rollout.operators.base import (
    FAILURE_KEY,
    TEMPORARY_WHEN_GOING_BACK,
    RolloutOperator,
    change_of,
    run_of,
)
from controlled_rollout.operators.datasets import control_dataset, version_dataset
from controlled_rollout.operators.gate_before import last_look
from controlled_rollout.operators.lineage import EndpointLineage
from controlled_rollout.operators.new_control import NEW_CONTROL, NewControl, announce
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.endpoint import Endpoint

__all__ = ["PromoteToControlOperator", "RollBackOperator"]


class PromoteToControlOperator(EndpointLineage, RolloutOperator):
    """Makes a version default and control with all the traffic; the former control stays, ready, at 0 %.

    Updates the asset `controlled-rollout://<endpoint>/control`, with version, digest, verdict and former control in the
    event's `extra`; and moves the alias in MLflow's registry that the version was deployed with (`mlflow_alias`).

    A DAG run promotes its own treatment (`own_rollout`) only if the record says that its last gate has passed at the
    present share, or that a person has approved it; otherwise the task fails. It does not matter in which state the
    tasks before it are. It looks once more before that, as the gate before it does, and fails if a claim has alarmed. A
    version that is control already is as it should be. With `own_rollout=False` the task acts for a person, who
    may promote what other runs roll out; what its own run rolls out is promoted only as described above.

    Args:
        version: The version to promote.
        needs_approval: Whether a person has to have approved it, even after a pass.
        reason: The reason, for the history.
        timeout: How long the version may take to be ready, and the router to serve the new split.
        **kwargs: `endpoint`, `own_rollout`, `conn_id` (see `RolloutOperator`), and what every operator takes.
    """

    template_fields = (*RolloutOperator.template_fields, "version", "reason", "timeout")
    ui_color = "#d5f0d5"
    event_of_success = Event.PROMOTED
    lineage_step = "promote"
    trouble = ""

    def __init__(
        self,
        *,
        version: str,
        needs_approval: bool = False,
        reason: str = "",
        timeout: timedelta | float | str = SERVED_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        """Store the arguments, and declare the outlet; raise ValueError if an approval is needed and not looked for."""
        super().__init__(**{**kwargs, "outlets": [*kwargs.get("outlets", []), NEW_CONTROL]})
        if needs_approval and not self.own_rollout:
            raise ValueError(
                "needs_approval=True was given with own_rollout=False, which promotes as a person does, who approves "
                "by doing so: leave one of them out"
            )
        self.version = version
        self.needs_approval = needs_approval
        self.reason = reason
        self.timeout = timeout

    async def step(self, context: "Context", workspace: Workspace) -> dict[str, float]:
        """Promote the version, update the endpoint's asset, and return the per cent of the traffic of each version."""
        from controlled_rollout import steps

        look = partial(last_look, self, context, workspace, endpoint=self.endpoint, version=self.version)
        async with self.skipped_without_rollout(context, workspace):
            stored = await steps.promote(
                workspace,
                self.endpoint,
                self.version,
                change=change_of(context, self.reason),
                owner=self.required_owner(context),
                run=run_of(context),
                needs_approval=self.needs_approval,
                timeout=duration("timeout", self.timeout),
                look=look if self.own_rollout else None,
                progress=self.log_progress,
            )
        known = await announce(context, self.conn_id, workspace, stored, self.log)
        self.trouble = known.trouble
        self.changed(
            stored,
            self.version,
            inputs=[version_dataset(self.conn_id, stored.name, self.version, stored.versions[self.version].image)],
            outputs=[control_dataset(self.conn_id, stored)],
            formerControl=known.former_control,
            verdict=known.verdict,
            reason=self.reason or None,
        )
        return stored.effective_traffic()


class RollBackOperator(EndpointLineage, RolloutOperator):
    """Sets a treatment to 0 % at once and releases the endpoint; everything else stays as it is.

    As the last task of a rollout (`trigger_rule="one_failed"`) it is skipped, with the reason, when there is nothing
    of this run to roll back, when the rollout is on hold (a person decides), and when another run holds the endpoint.
    An endpoint that this run has created, and whose first version never became ready, is deleted: otherwise no later
    rollout would have a control.

    Args:
        version: The version to roll back.
        to: The version that takes all the traffic as the new control, for rolling back a version that is the control.
        to_former_control: Whether, without `to`, that is the control before it.
        reason: The reason, for the history. By default the reasons of the failed tasks before this one.
        roll_back_timeout: How long to go on trying while the target does not answer or refuses, or the router does not
            serve the new split. Whatever has failed until then fails the task, which Airflow may retry.
        **kwargs: `endpoint`, `own_rollout`, `conn_id` (see `RolloutOperator`), and what every operator takes.
    """

    template_fields = (*RolloutOperator.template_fields, "version", "to", "reason", "roll_back_timeout")
    ui_color = "#f8d6d6"
    temporary_errors = TEMPORARY_WHEN_GOING_BACK
    links_first = False
    event_of_success, event_of_failure = Event.ROLLED_BACK, Event.NOT_ROLLED_BACK
    lineage_step = "roll_back"
    change_reason = ""
    trouble = ""

    def __init__(
        self,
        *,
        version: str,
        to: str | None = None,
        to_former_control: bool = False,
        reason: str = "",
        roll_back_timeout: timedelta | float | str = ROLL_BACK_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        """Store the arguments, and declare the outlet `NEW_CONTROL`."""
        super().__init__(**{**kwargs, "outlets": [*kwargs.get("outlets", []), NEW_CONTROL]})
        self.version = version
        self.to = to
        self.to_former_control = to_former_control
        self.reason = reason
        self.roll_back_timeout = roll_back_timeout

    def execute(self, context: "Context") -> Any:
        """Roll the version back, then say where people may look."""
        try:
            return super().execute(context)
        finally:
            self.push_links(context, None)

    async def step(self, context: "Context", workspace: Workspace) -> dict[str, float] | None:
        """Roll the version back and return each version's per cent of the traffic; None if there is no such version."""
        from controlled_rollout import steps

        self.change_reason = self.reason or self._upstream_failure_reasons(context)
        stored = await steps.roll_back(
            workspace,
            self.endpoint,
            self.version,
            change=change_of(context, self.change_reason),
            to=self.to or None,
            to_former_control=self.to_former_control,
            owner=self.required_owner(context),
            timeout=duration("roll_back_timeout", self.roll_back_timeout),
            progress=self.log_progress,
        )
        if stored is None:
            return None
        known = None
        if (self.to or self.to_former_control) and stored.control is not None:
            known = await announce(context, self.conn_id, workspace, stored, self.log)
            self.trouble = known.trouble
        self._note_lineage(stored, known)
        return stored.effective_traffic()

    def _note_lineage(self, stored: "Endpoint", known: NewControl | None) -> None:
        """Remember for OpenLineage what the roll-back has made of the endpoint.

        Args:
            stored: The endpoint as stored.
            known: Of the control that it has gone back to; None if the control is as before.
        """
        version, control = stored.versions.get(self.version), stored.control
        before = (
            [version_dataset(self.conn_id, stored.name, self.version, version.image)] if version is not None else []
        )
        back = known is not None and control is not None
        self.changed(
            stored,
            self.version,
            inputs=[version_dataset(self.conn_id, stored.name, control.name, control.image)]
            if back and control
            else [],
            outputs=[control_dataset(self.conn_id, stored)] if back else before,
            formerControl=known.former_control if known is not None else None,
            reason=self.change_reason,
        )

    def _upstream_failure_reasons(self, context: "Context") -> str:
        """Return the reasons that failed upstream tasks pushed to XCom, joined into one text."""
        upstream = sorted(self.upstream_task_ids)
        try:
            reasons = context["ti"].xcom_pull(task_ids=upstream, key=FAILURE_KEY) if upstream else []
        except Exception as error:  # no reason is worth a treatment that keeps its traffic
            self.log_progress(f"the reasons of the failed tasks cannot be read: {error}")
            reasons = []
        return "; ".join(filter(None, reasons)) or f"roll back {self.version}: a task before it failed"

    def workspace(self) -> Workspace:
        """Return the workspace of the task's connection; try again for `roll_back_timeout` while it cannot be read."""
        from controlled_rollout.steps.going_back import may_pass, try_until_done

        async def read(_: timedelta) -> Workspace:
            """Read the connection once."""
            return super(RollBackOperator, self).workspace()

        def is_passing(error: Exception) -> bool:
            """Return whether the connection may be readable later: it is neither missing nor wrong."""
            return may_pass(error) and not isinstance(error, (AirflowNotFoundException, WorkspaceError))

        timeout = duration("roll_back_timeout", self.roll_back_timeout)
        reading = try_until_done(read, timeout=timeout, progress=self.log_progress, try_again_after=is_passing)
        return asyncio.run(reading)
