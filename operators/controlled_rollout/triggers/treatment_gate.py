"""The gate's trigger: looks at the evidence in the triggerer until there is a decision."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, Final

from airflow.triggers.base import BaseTrigger, TriggerEvent

from controlled_rollout.evaluation.next_action import (
    GateTerms,
    LookResult,
    NextAction,
    decide_after_error,
    take_look,
)
from controlled_rollout.hooks.workspace import WorkspaceHook, quieten_clients

__all__ = ["TreatmentGateTrigger", "look_from_triggerer"]

# A little more than the least interval of a worker's heartbeat, [workers] min_heartbeat_interval.
FIRST_LOOK_AFTER_S: Final = 6.0
# How long Airflow and its secrets backend may take to give a connection.
CONNECTION_TIMEOUT_S: Final = 60.0


class TreatmentGateTrigger(BaseTrigger):
    """Looks at the evidence at intervals; fires once there is a decision. After a restart it begins again.

    Args:
        conn_id: The connection that describes the workspace.
        terms: `GateTerms` as JSON.
    """

    def __init__(self, conn_id: str, terms: dict[str, Any]) -> None:
        """Store the arguments that `serialize` returns."""
        super().__init__()  # type: ignore[no-untyped-call] # Airflow's
        self.conn_id = conn_id
        self.terms = terms

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments from which a triggerer creates this trigger again."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {"conn_id": self.conn_id, "terms": self.terms}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at the evidence at intervals until there is a decision, then yield the decision as the only event."""
        quieten_clients()
        terms = GateTerms.model_validate(self.terms)
        # Not at once: if the event came before the executor notices the deferral, the task would look dead.
        await asyncio.sleep(min(terms.interval.total_seconds(), FIRST_LOOK_AFTER_S))
        while True:
            result = await look_from_triggerer(self.conn_id, terms, lambda message: self.log.info("%s", message))
            if result.action is not NextAction.WAIT:
                yield TriggerEvent({**result.to_event(), "terms": self.terms})  # type: ignore[no-untyped-call] # Airflow's
                return
            await asyncio.sleep(terms.interval.total_seconds())


async def look_from_triggerer(conn_id: str, terms: GateTerms, log: Callable[[str], None]) -> LookResult:
    """Take a look in the workspace of a connection; one that cannot be read now only makes the gate wait."""
    try:
        workspace = await asyncio.wait_for(WorkspaceHook(conn_id).aget_workspace(), CONNECTION_TIMEOUT_S)
    except Exception as error:  # a secrets backend that is away says nothing about the model
        log(f"the connection {conn_id!r} cannot be read: {str(error) or type(error).__name__}")
        return decide_after_error(terms, error, now=datetime.now(UTC))
    return await take_look(workspace, terms, log)
