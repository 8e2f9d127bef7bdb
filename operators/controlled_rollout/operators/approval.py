"""The approval as a task: asks a person, with the evidence, when the gate could not decide or before the promotion."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import exceptions
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred

from controlled_rollout.errors import AccessError, ArgumentError, ControlledRolloutError
from controlled_rollout.evaluation.next_action import GateTerms, LookResult, NextAction, take_look
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.links.task_links import LINKS
from controlled_rollout.operators.base import TEMPORARY_ERRORS, EngineCalls, task_of
from controlled_rollout.operators.gate_before import Gate, terms_of_alarms
from controlled_rollout.triggers.rollout_question import RolloutQuestionTrigger
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.steps.question import Question

__all__ = ["ApproveRolloutOperator", "question_text", "user_name"]

SUBJECT: Final = "Go on with version {version} of endpoint {endpoint}?"
# What the standard provider raises once the question is in Airflow's database: the first from Airflow 3.3 on.
QUESTION_IS_OPEN: Final = (getattr(exceptions, "TaskAwaitingInput", TaskDeferred), TaskDeferred)


class ApproveRolloutOperator(EngineCalls, ApprovalOperator):
    """Asks a person whether a rollout goes on, with the gate's evidence as the question's text.

    Skipped when the gate before it has decided, unless `always`. While the person thinks, the triggerer goes on looking
    at the evidence as the gate did: an alarm withdraws the question and fails the task. After *Approve* there is one
    more look. After *Reject*, and without an answer in time, the task fails without retries, and the roll-back follows.
    The record keeps question, answer and the person's name.

    The task waits as a deferred one. Airflow takes an answer without a triggerer too, but only a triggerer looks.

    Args:
        endpoint: The endpoint's name.
        version: The treatment.
        gate_task_id: The `TreatmentGateSensor` with whose arguments the looks go on.
        always: Whether to ask even when the gate has passed.
        conn_id: The connection of the workspace; without the default one, the local workspace.
        **kwargs: What `ApprovalOperator` takes: `assigned_users`, `response_timeout`, `notifiers`, … but neither
            `defaults` (what nobody has approved is not approved) nor `execution_timeout` (see `response_timeout`).
    """

    template_fields = (*ApprovalOperator.template_fields, "endpoint", "version", "conn_id")
    operator_extra_links = LINKS
    ui_color = "#e3dcf5"
    # A target that refuses for a while says nothing about the model: the question is asked again.
    temporary_errors = (*TEMPORARY_ERRORS, AccessError)

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
        """Store the arguments; raise ValueError for a default answer, and for a limit of time that would be one."""
        for name, reason in (
            ("defaults", "nobody's answer is no approval"),
            ("execution_timeout", "response_timeout says how long a person may take"),
        ):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}={kwargs[name]!r} was given to an approval: {reason}; leave it out")
        # The subject by default is made when the arguments are rendered: in a mapped group they are not texts before.
        # None given here keeps away that of the DAG's default_args: time that has passed says nothing about the model.
        super().__init__(**{"subject": "", **kwargs, "defaults": None, "execution_timeout": None})
        self.endpoint = endpoint
        self.version = version
        self.gate_task_id = gate_task_id
        self.always = always
        self.conn_id = conn_id

    def execute(self, context: "Context") -> None:
        """Skip the task if the gate has decided; otherwise record the question and defer until it is answered."""
        terms = self.run_in_workspace(context, lambda _: self._terms_of_looks(context))
        question = self._build_question(context, terms)
        if question.decided and not self.always:
            raise AirflowSkipException(f"the gate has decided: {question.decided}")
        self._note_decision(context, "ask", task_of(context), question.reason)
        self._ask_people(context, terms, self.body or question_text(question))

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> Any:
        """Return who approved, after another look at the evidence; raise if the person rejected or nobody answered."""
        if "look" in event:
            self._stop_after_look(context, LookResult.from_event(event["look"]))
        if "error" in event:
            self.fail(context, f"nobody answered: {event.get('error_type')}: {event['error']}")
        answer = super(ApprovalOperator, self).execute_complete(context=context, event=event)
        who = user_name(answer.get("responded_by_user"))
        if answer["chosen_options"] != [self.APPROVE]:
            self._note_decision(context, "reject", who, f"{who} answered {self.REJECT}")
            self.fail(context, f"{who} rejected version {self.version!r} of endpoint {self.endpoint!r}")

        async def look_once(workspace: Workspace) -> LookResult:
            """Look at the evidence once, as the gate does."""
            return await take_look(workspace, await self._terms_of_looks(context), self.log_progress)

        result = self.run_in_workspace(context, look_once)
        if result.action is not NextAction.WAIT:
            self._stop_after_look(context, result)
        try:
            self._append_decision(context, "approve", who, f"{who} answered {self.APPROVE}")
        except ControlledRolloutError as error:  # only what is recorded permits the rollout to go on
            self.log.warning("the approval cannot be recorded: %s", error)
            terms = self.run_in_workspace(context, lambda _: self._terms_of_looks(context))
            self._ask_people(
                context, terms, f"{who} has approved, and it cannot be recorded ({error}). Please approve again."
            )
        return {"approved_by": who}

    def _ask_people(self, context: "Context", terms: GateTerms, body: str) -> NoReturn:
        """Store the question in Airflow's database, tell people, and defer until it is answered or withdrawn."""
        self.subject = self.subject or SUBJECT.format(version=self.version, endpoint=self.endpoint)
        self.body = body
        try:
            super().execute(context)
        except QUESTION_IS_OPEN:
            self.defer(trigger=self._trigger(context, terms), method_name=self.execute_complete.__name__)
        raise AssertionError("the standard provider's operator waits for the answer")

    def _build_question(self, context: "Context", terms: GateTerms) -> "Question":
        """Return what to ask; if endpoint or record cannot be read, nobody knows whether the gate has decided: ask."""
        from controlled_rollout.steps.question import Question, read_question

        try:
            workspace = self.workspace()
            return asyncio.run(
                self._run_cancellable(read_question(workspace, self.endpoint, self.version, terms.owner))
            )
        except Exception as error:
            self.log.warning("the gate's decision cannot be read: %s", error)
            return Question("", f"The gate's decision cannot be read now: {error}")

    async def _terms_of_looks(self, context: "Context") -> GateTerms:
        """Return how to look while a person is asked: as the gate task does, from its arguments.

        Raises:
            ArgumentError: `gate_task_id` names no gate of this DAG.
        """
        gate = self.dag.task_dict.get(self.gate_task_id)
        if not isinstance(gate, Gate):
            raise ArgumentError(f"gate_task_id={self.gate_task_id!r}: the DAG has no TreatmentGateSensor of that name")
        return terms_of_alarms(gate, context)

    def _trigger(self, context: "Context", terms: GateTerms) -> RolloutQuestionTrigger:
        """Return the trigger that waits for the answer to the open question, and looks meanwhile."""
        deadline = datetime.now(UTC) + self.response_timeout if self.response_timeout else None
        question = {
            "ti_id": str(context["ti"].id),
            "options": self.options,
            "defaults": self.defaults,
            "params": self.serialized_params,
            "multiple": self.multiple,
            "timeout_datetime": deadline.isoformat() if deadline else None,
        }
        return RolloutQuestionTrigger(self.conn_id, terms.model_dump(mode="json"), question, withdrawn_as=self.REJECT)

    def _stop_after_look(self, context: "Context", result: LookResult) -> NoReturn:
        """Fail the task because of what a look has found; skip it if the version has become control by hand."""
        if result.action is NextAction.NOTHING_TO_COMPARE:
            raise AirflowSkipException(f"the question is withdrawn: {result.reason}")
        self._note_decision(context, "reject", task_of(context), f"the question is withdrawn: {result.reason}")
        self.fail(context, f"{result.action.value}: {result.reason}\n{result.table}")

    def _note_decision(self, context: "Context", step: Any, who: str, reason: str) -> None:
        """Append a decision that permits nothing to the record; an outage delays neither a question nor a roll-back."""
        try:
            self._append_decision(context, step, who, reason)
        except Exception as error:
            self.log.warning("%r is not in the record: %s", step, error)

    def _append_decision(self, context: "Context", step: Any, who: str, reason: str) -> None:
        """Append a question or an answer to the endpoint's record, about the rollout at its present share."""
        from controlled_rollout.evaluation.judgements import record_answer

        self.run_in_workspace(
            context,
            lambda workspace: record_answer(
                workspace, self.endpoint, self.version, step=step, who=who, reason=reason, progress=self.log_progress
            ),
        )

    def fail(self, context: "Context", reason: str) -> NoReturn:
        """Raise AirflowFailException: a retry would ask the person again."""
        super().fail(context, reason)


def question_text(question: "Question") -> str:
    """Return the Markdown text of the question to the person: why it is asked, and the gate's evidence."""
    evidence = f"\n\n```\n{question.table}\n```" if question.table else ""
    return (
        f"{question.reason}{evidence}\n\n**Approve** goes on with the rollout. **Reject** rolls the version back. "
        "Meanwhile the evidence is watched: if a claim alarms, this question is withdrawn and the version rolled back."
    )


def user_name(user: Any) -> str:
    """Return the name of the user who answered, from Airflow's answer; for the record."""
    if isinstance(user, Mapping):
        return str(user.get("name") or user.get("id") or "somebody")
    return str(getattr(user, "name", None) or getattr(user, "id", None) or user or "somebody")
