"""The trigger of a question to a person: waits for the answer, and goes on looking at the evidence meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from copy import deepcopy
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from airflow.providers.standard.triggers.hitl import HITLTrigger
from airflow.sdk.execution_time.hitl import update_hitl_detail_response
from airflow.triggers.base import BaseTrigger, TriggerEvent

from controlled_rollout.evaluation.next_action import GateTerms, LookResult, NextAction
from controlled_rollout.hooks.workspace import quieten_clients
from controlled_rollout.triggers.treatment_gate import FIRST_LOOK_AFTER_S, look_from_triggerer

__all__ = ["RolloutQuestionTrigger"]

# How long to wait before Airflow's API is asked again that could not say whether there is an answer.
ANSWER_RETRY_S: Final = 10.0
# An alarm does not wait longer for Airflow's API to take the withdrawal.
WITHDRAWAL_TIMEOUT_S: Final = 30.0


class RolloutQuestionTrigger(BaseTrigger):
    """Fires with a person's answer, or with the look that ends the rollout: then the question is withdrawn first.

    After a restart of the triggerer it begins again; the question and its answer are in Airflow's database.

    Args:
        conn_id: The connection that describes the workspace.
        terms: `GateTerms` as JSON: how to look.
        question: `ti_id`, `options`, `defaults`, `params`, `multiple` and `timeout_datetime` of the question, as
            `HITLTrigger` takes them; the id and the time as text.
        withdrawn_as: The option that a question is answered with when it is withdrawn.
    """

    def __init__(self, conn_id: str, terms: dict[str, Any], question: dict[str, Any], withdrawn_as: str) -> None:
        """Store the arguments that `serialize` returns."""
        super().__init__()  # type: ignore[no-untyped-call] # Airflow's
        self.conn_id = conn_id
        self.terms = terms
        self.question = question
        self.withdrawn_as = withdrawn_as

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments from which a triggerer creates this trigger again."""
        arguments = {
            "conn_id": self.conn_id,
            "terms": self.terms,
            "question": self.question,
            "withdrawn_as": self.withdrawn_as,
        }
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the answer and look at intervals; yield whichever decides first, as the only event."""
        quieten_clients()
        terms = GateTerms.model_validate(self.terms)
        # Not at once: if the event came before the executor notices the deferral, the task would look dead.
        await asyncio.sleep(min(terms.interval.total_seconds(), FIRST_LOOK_AFTER_S))
        answer = asyncio.create_task(self._answer_event())
        end = asyncio.create_task(self._look_until_end(terms))
        try:
            await asyncio.wait({answer, end}, return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                await self._withdraw_question()
                event = TriggerEvent({"look": end.result().to_event()})  # type: ignore[no-untyped-call] # Airflow's
            else:
                event = answer.result()
        finally:
            answer.cancel()
            end.cancel()
        yield event

    async def _answer_event(self) -> TriggerEvent:
        """Return the standard provider's event for the answer, or for the end of the time to answer."""
        while True:
            question = deepcopy(self.question)
            deadline = question.pop("timeout_datetime")
            waiting = HITLTrigger(
                **{**question, "ti_id": UUID(question["ti_id"])},
                timeout_datetime=datetime.fromisoformat(deadline) if deadline else None,
            )
            try:
                return await anext(waiting.run())
            except Exception as error:  # Airflow's API server may be away: the looks go on
                self.log.warning("the answer cannot be read now: %s", error)
            await asyncio.sleep(ANSWER_RETRY_S)

    async def _look_until_end(self, terms: GateTerms) -> LookResult:
        """Look at intervals until a look ends the rollout, and return its result."""
        while True:
            result = await look_from_triggerer(self.conn_id, terms, lambda message: self.log.info("%s", message))
            if result.action is not NextAction.WAIT:
                return result
            await asyncio.sleep(terms.interval.total_seconds())

    async def _withdraw_question(self) -> None:
        """Answer the question, so that nobody can approve any more; an answer that came first stays."""
        try:
            withdrawal = asyncio.to_thread(
                update_hitl_detail_response,
                ti_id=UUID(self.question["ti_id"]),
                chosen_options=[self.withdrawn_as],
                params_input={},
            )
            await asyncio.wait_for(withdrawal, WITHDRAWAL_TIMEOUT_S)
        except Exception as error:  # the task fails all the same, and a failed task takes no answer
            self.log.warning("the question was not withdrawn: %s", error or type(error).__name__)
