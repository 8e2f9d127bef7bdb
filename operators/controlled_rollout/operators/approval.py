"""The approval as a task: asks a person, with the evidence, when the gate could not decide or before the promotion."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk.exceptions import AirflowSkipException

from controlled_rollout.evaluation.next_action import GateTerms, NextAction, take_look
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.base import EngineCalls, task_of
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["ApproveRolloutOperator", "question_text", "user_name"]

SUBJECT: Final = "Go on with version {version} of endpoint {endpoint}?"


class ApproveRolloutOperator(EngineCalls, ApprovalOperator):
    """Asks a person whether a rollout goes on, with the gate's evidence as the question's text.

    Skipped when the gate before it has decided, unless `always`. After *Approve* the gate looks once more, and the task
    fails if a claim has alarmed in the meantime; after *Reject* it fails without retries, and the roll-back follows.
    The record keeps question, answer and the person's name.

    Args:
        endpoint: The endpoint's name.
        version: The treatment.
        gate_task_id: The `TreatmentGateSensor` whose evidence is shown.
        always: Whether to ask even when the gate has passed.
        conn_id: The connection of the workspace; without the default one, the local workspace.
        **kwargs: What `ApprovalOperator` takes: `assigned_users`, `response_timeout`, `notifiers`, …
    """

    template_fields = (*ApprovalOperator.template_fields, "endpoint", "version", "conn_id")
    ui_color = "#e3dcf5"

    def __init__(
        self,
        *,
        endpoint: str,
        version: str,
        gate_task_id: str,
        always: bool = False,
        conn_id: str = WorkspaceHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        """Store the arguments, and set the default subject of the question."""
        super().__init__(**{"subject": SUBJECT.format(version=version, endpoint=endpoint), **kwargs})
        self.endpoint = endpoint
        self.version = version
        self.gate_task_id = gate_task_id
        self.always = always
        self.conn_id = conn_id

    def execute(self, context: "Context") -> None:
        """Skip the task if the gate has decided; otherwise record the question and defer until it is answered."""
        result = self._gate_result(context)
        if not (self.always or result.get("asks")):
            raise AirflowSkipException(f"the gate has decided: {result.get('reason', '')}")
        if not self.body:
            self.body = question_text(result)
        self._append_decision(context, "ask", task_of(context), str(result.get("reason", "")))
        super().execute(context)

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> Any:
        """Return who approved, after another look at the evidence; raise if the person rejected or nobody answered."""
        if "error" in event:
            self.fail(context, f"nobody answered: {event.get('error_type')}: {event['error']}")
        answer = super(ApprovalOperator, self).execute_complete(context=context, event=event)
        who = user_name(answer.get("responded_by_user"))
        if answer["chosen_options"] != [self.APPROVE]:
            self._append_decision(context, "reject", who, f"{who} answered {self.REJECT}")
            self.fail(context, f"{who} rejected version {self.version!r} of endpoint {self.endpoint!r}")
        self._look_again(context)
        self._append_decision(context, "approve", who, f"{who} answered {self.APPROVE}")
        return {"approved_by": who}

    def _gate_result(self, context: "Context") -> Mapping[str, Any]:
        """Return what the gate task pushed to XCom: outcome, reason, table and terms; empty if it pushed nothing."""
        result = context["ti"].xcom_pull(task_ids=self.gate_task_id)
        return result if isinstance(result, Mapping) else {}

    def _look_again(self, context: "Context") -> None:
        """Look at the evidence once more after an approval; raise if a claim has alarmed in the meantime."""
        terms = self._gate_result(context).get("terms")
        if not terms:
            return
        terms_now = GateTerms.model_validate({**terms, "who": task_of(context), "waiting_since": datetime.now(UTC)})
        result = self.run_in_workspace(context, lambda workspace: take_look(workspace, terms_now, self.log_progress))
        if result.action in (NextAction.FAIL, NextAction.CONFLICT):
            self.fail(context, f"{result.action.value}: {result.reason}\n{result.table}")

    def _append_decision(self, context: "Context", step: Any, who: str, why: str) -> None:
        """Append a question or an answer to the endpoint's record."""
        from controlled_rollout import record

        decision = record.Decision(
            time=datetime.now(UTC), endpoint=self.endpoint, version=self.version, step=step, who=who, why=why
        )

        async def append(workspace: Workspace) -> None:
            """Append the decision; a coroutine, as `run_in_workspace` requires one."""
            record.append(workspace, decision)

        self.run_in_workspace(context, append)

    def fail(self, context: "Context", reason: str) -> NoReturn:
        """Raise AirflowFailException: a retry would ask the person again."""
        super().fail(context, reason)


def question_text(result: Mapping[str, Any]) -> str:
    """Return the Markdown text of the question to the person: why it is asked, and the gate's evidence."""
    reason = str(result.get("reason") or "The gate has not looked.")
    table = str(result.get("table") or "")
    evidence = f"\n\n```\n{table}\n```" if table else ""
    return (
        f"{reason}{evidence}\n\n**Approve** goes on with the rollout, unless a claim has alarmed in the meantime. "
        "**Reject** rolls the version back."
    )


def user_name(user: Any) -> str:
    """Return the name of the user who answered, from Airflow's answer; for the record."""
    if isinstance(user, Mapping):
        return str(user.get("name") or user.get("id") or "somebody")
    return str(getattr(user, "name", None) or getattr(user, "id", None) or user or "somebody")
