"""The gate's trigger: sleeps, looks, reports."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from controlled_rollout.evaluation.decision import GateTerms, Next, take_look
from controlled_rollout.hooks.workspace import WorkspaceHook, quieten_clients

__all__ = ["TreatmentGateTrigger"]

# A little more than the least interval of a worker's heartbeat, [workers] min_heartbeat_interval.
FIRST_LOOK_AFTER_S = 6.0


class TreatmentGateTrigger(BaseTrigger):
    """Sleeps, looks, reports; fires once there is something to do. A restarted triggerer begins again.

    Args:
        conn_id: The connection that describes the workspace.
        terms: `GateTerms` as JSON.
    """

    def __init__(self, conn_id: str, terms: dict[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Airflow's
        self.conn_id = conn_id
        self.terms = terms

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what another process needs to go on."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {"conn_id": self.conn_id, "terms": self.terms}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is something to do."""
        quieten_clients()
        terms = GateTerms.model_validate(self.terms)
        workspace = await WorkspaceHook(self.conn_id).aget_workspace()
        # Not at once: an event that comes before the executor has noticed the deferral looks like a task that died.
        await asyncio.sleep(min(terms.interval.total_seconds(), FIRST_LOOK_AFTER_S))
        while True:
            answer = await take_look(workspace, terms, lambda sentence: self.log.info("%s", sentence))
            if answer.next is not Next.WAIT:
                yield TriggerEvent(answer.to_event())  # type: ignore[no-untyped-call] # Airflow's
                return
            await asyncio.sleep(terms.interval.total_seconds())
