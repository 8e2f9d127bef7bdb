"""Polls Airflow and the endpoint for the live view; a part that does not answer is shown as it last was."""

import asyncio
import graphlib
from typing import Any

import httpx  # noqa: TID253 - a program of its own, that no DAG imports

from controlled_rollout import record
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.record import Decision
from controlled_rollout.target.connect import connect
from controlled_rollout.workspace import Workspace
from scripts.demo.airflow import Airflow, TaskState

__all__ = ["RolloutWatcher", "in_order"]

ENDED = ("success", "failed")


class RolloutWatcher:
    """Follows one run of a DAG and one endpoint.

    Args:
        airflow: The Airflow of the run.
        workspace: The workspace of the endpoint.
        dag_id: The DAG.
        run_id: The run.
        endpoint: The endpoint's name.
    """

    def __init__(self, airflow: Airflow, workspace: Workspace, *, dag_id: str, run_id: str, endpoint: str) -> None:
        self._airflow = airflow
        self._workspace = workspace
        self._dag_id = dag_id
        self._run_id = run_id
        self._name = endpoint
        self._order: list[str] = []
        self.run_state = "queued"
        self.tasks: tuple[TaskState, ...] = ()
        self.endpoint: Endpoint | None = None
        self.decisions: list[Decision] = []

    @property
    def ended(self) -> bool:
        """Whether the run has ended."""
        return self.run_state in ENDED

    @property
    def look(self) -> Decision | None:
        """The newest look, as the record holds it; None before the first."""
        return next((decision for decision in reversed(self.decisions) if decision.step == "look"), None)

    async def refresh(self) -> None:
        """Read the run, the endpoint and its record once."""
        await asyncio.gather(self._refresh_run(), self.refresh_endpoint())

    async def refresh_endpoint(self) -> None:
        """Read the endpoint and its record once."""
        try:
            async with connect(self._workspace) as target:
                self.endpoint = await target.endpoint(self._name)
        except ControlledRolloutError:
            return
        self.decisions = await asyncio.to_thread(lambda: list(record.read(self._workspace, self._name)))

    async def _refresh_run(self) -> None:
        try:
            if not self._order:
                self._order = in_order(await self._airflow.task_graph(self._dag_id))
            tasks = {task.task: task for task in await self._airflow.tasks(self._dag_id, self._run_id)}
            # The state of the run is read last, so that a run that has ended is shown with its tasks ended.
            self.tasks = tuple(tasks[name] for name in self._order if name in tasks)
            self.run_state = await self._airflow.run_state(self._dag_id, self._run_id)
        except (httpx.TransportError, httpx.HTTPStatusError):
            return


def in_order(graph: dict[str, Any]) -> list[str]:
    """Return the tasks of a DAG, each after those that it waits for.

    Args:
        graph: By task: the tasks directly downstream of it.
    """
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter(dict.fromkeys(graph, ()))
    for name, downstream in graph.items():
        for later in downstream:
            sorter.add(later, name)
    return list(sorter.static_order())
