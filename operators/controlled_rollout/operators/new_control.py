"""What follows a new control: the event of the endpoint's asset, and the alias in MLflow's registry."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import Asset, AssetAlias

from controlled_rollout.operators.base import task_of
from controlled_rollout.operators.datasets import control_uri
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.endpoint import Endpoint

__all__ = ["NEW_CONTROL", "NewControl", "announce", "control_asset"]

# Its events say that a version has become control of any endpoint; `control_asset` is the asset of one endpoint.
NEW_CONTROL: Final = AssetAlias("controlled-rollout-new-control")


@dataclass(frozen=True)
class NewControl:
    """What is known of a new control once it was announced.

    Attributes:
        trouble: What could not be done, in a sentence; empty if all was.
        former_control: The version that it has replaced, if that is known.
        verdict: What its promotion rests on, if that is known: outcome, reason, who, time.
    """

    trouble: str = ""
    former_control: str | None = None
    verdict: dict[str, Any] | None = None


def control_asset(endpoint: str, conn_id: str | None = None) -> Asset:
    """Return the asset that is updated when a version becomes control of an endpoint; a DAG can be scheduled on it.

    Args:
        endpoint: The endpoint's name.
        conn_id: The connection of its workspace, unless it is the default one; None for an endpoint of that name in
            whichever workspace.
    """
    return Asset(control_uri(endpoint, conn_id))


async def announce(context: "Context", conn_id: str, workspace: Workspace, stored: "Endpoint", log: Any) -> NewControl:
    """Add an event to the endpoint's asset, and let the alias in MLflow's registry follow; nothing of it fails a task.

    Args:
        context: The task's context.
        conn_id: The workspace's connection.
        workspace: Where the endpoint lives.
        stored: The endpoint, which has a control.
        log: The task's log.

    Returns:
        What is known of the control, and what could not be done.
    """
    from controlled_rollout.model_registry import follow_control, stale_alias
    from controlled_rollout.steps.new_control import read_new_control

    assert stored.control is not None  # noqa: S101 - a promotion has made one
    facts: dict[str, Any] = {}
    try:
        facts = await read_new_control(workspace, stored)
    except Exception as error:
        log.warning("the asset's event is without verdict and former control, which cannot be read now: %s", error)
    trouble = await asyncio.to_thread(follow_control, stored, lambda line: log.info("%s", line))
    if trouble:
        log.error("%s", trouble)
    elif trouble := stale_alias(stored, facts.get("former_control")):
        log.warning("%s", trouble)
    known: dict[str, Any] = {
        "endpoint": stored.name,
        "workspace": conn_id,
        "version": stored.control.name,
        "who": task_of(context),
        "digest": stored.control.image.rpartition("@")[2],
        **facts,
        **({"trouble": trouble} if trouble else {}),
    }
    for uri in dict.fromkeys((control_uri(stored.name, None), control_uri(stored.name, conn_id))):
        context["outlet_events"][NEW_CONTROL].add(Asset(uri), extra=known)
    return NewControl(trouble or "", facts.get("former_control"), facts.get("verdict"))
