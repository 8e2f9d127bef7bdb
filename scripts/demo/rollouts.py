"""How often the demo rolls out, and what it waits for, so that it ends whatever a gate cannot decide."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.record import Decision
from scripts.demo.result import undecided_because
from scripts.demo.settings import RUN_IDS
from scripts.demo.view import Snapshot

__all__ = ["on_hold_because", "roll_out_until_decided", "waiting_for"]


class EndedRollout(Protocol):
    """What is known of a rollout that has ended."""

    @property
    def decisions(self) -> Sequence[Decision]:
        """The record of the endpoint, oldest first."""


async def roll_out_until_decided(
    roll_out: Callable[[str], Awaitable[EndedRollout]], say: Callable[[str], None]
) -> None:
    """Roll out, and anew, once, if the gate says that only a new rollout can come to a decision.

    Args:
        roll_out: Runs the rollout of a run's id to its end.
        say: Takes the line that it is rolled out anew, and why.
    """
    first, second = RUN_IDS
    ended = await roll_out(first)
    if reason := undecided_because(ended.decisions):
        say(f"rolled out anew, once, as the gate asked: {reason}")
        await roll_out(second)


def on_hold_because(endpoint: Endpoint | None, decisions: Sequence[Decision]) -> str:
    """Return why the endpoint's rollout is on hold; empty if it is not.

    Args:
        endpoint: The endpoint's newest revision; None before it is known.
        decisions: The record of the endpoint, oldest first.
    """
    if endpoint is None or endpoint.rollout is None or endpoint.rollout.held is None:
        return ""
    hold = next((decision for decision in reversed(decisions) if decision.step == "hold"), None)
    return " ".join(hold.reason.split()) if hold is not None else "the record has no reason yet"


def waiting_for(snapshot: Snapshot) -> str:
    """Return what a demo waits for that has not ended: the parts that are prepared, or the tasks with the newest look.

    Args:
        snapshot: What is known now.
    """
    preparing = [preparation.name for preparation in snapshot.preparations if preparation.seconds is None]
    if preparing:
        return " and ".join(preparing)
    tasks = [task.task for task in snapshot.tasks if task.state not in (None, "success", "skipped", "upstream_failed")]
    text = " and ".join(tasks) or "the run of the DAG"
    if snapshot.look is not None and any("gate" in task for task in tasks):
        text += f" (newest look: {' '.join(snapshot.look.reason.split())})"
    return text
