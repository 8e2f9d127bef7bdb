"""What a person is asked about a rollout: whether its gate has decided, and the evidence, from endpoint and record."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controlled_rollout import record
from controlled_rollout.gate import describe, verdict_from_dict
from controlled_rollout.record import Decision
from controlled_rollout.record.in_time import within_time
from controlled_rollout.steps.permission import going_on
from controlled_rollout.target.connect import connect
from controlled_rollout.target.protocol import Revision
from controlled_rollout.workspace import Workspace

__all__ = ["Question", "question_about", "read_question"]


@dataclass(frozen=True)
class Question:
    """What a person is asked.

    Attributes:
        decided: Why the gate has let the rollout go on by itself; empty if it has not, or nobody knows.
        reason: What the newest look has found, in a sentence.
        table: Its claims as lines of text; empty without a look.
    """

    decided: str
    reason: str
    table: str = ""


def question_about(
    history: Sequence[Revision], newest_first: Iterable[Decision], version: str, owner: str | None
) -> Question:
    """Return what to ask about a version at its present share. Pure.

    Args:
        history: The endpoint's revisions, oldest first.
        newest_first: The record's decisions about the version, newest first; read once, and no further than is needed.
        version: The version.
        owner: The run whose rollout it is; None for whichever holds the endpoint.
    """
    endpoint = history[-1].endpoint
    rollout = endpoint.rollout
    share = f"{endpoint.effective_traffic().get(version, 0.0):g} %"
    of_rollout: list[Decision] = []
    for decision in newest_first:
        # Only looks are in the order of time: lines of steps may have been added later.
        if rollout is not None and decision.step == "look" and decision.time < rollout.started:
            break
        of_rollout.append(decision)
    fact = going_on(history, of_rollout, version, owner)
    if endpoint.control is not None and endpoint.control.name == version:
        decided = f"version {version!r} is the control already"
    else:
        decided = f"{fact.outcome}: {fact.reason}" if fact is not None else ""
    look = next((decision for decision in of_rollout if decision.step == "look" and decision.verdict), None)
    if look is None:
        return Question(decided, f"The gate has not looked at version {version!r} at {share} in this rollout.")
    outcome = (look.outcome or "").replace("_", " ")
    reason = f"At {share}, the look of {look.time:%Y-%m-%d %H:%M:%S %Z} found: {outcome}: {look.reason}."
    return Question(decided, reason, describe(verdict_from_dict(look.verdict or {})))


async def read_question(workspace: Workspace, endpoint: str, version: str, owner: str | None) -> Question:
    """Read endpoint and record, and return what to ask about a version.

    Args:
        workspace: Where both are.
        endpoint: The endpoint's name.
        version: The version.
        owner: The run whose rollout it is; None for whichever holds the endpoint.

    Raises:
        TargetUnavailableError: The target does not answer.
        RecordUnavailableError: The record cannot be read.
        EndpointNotFoundError: There is no such endpoint.
    """
    async with connect(workspace) as target:
        history = await target.history(endpoint)
    return await within_time(
        record.storage_of(workspace, endpoint).name,
        lambda: question_about(history, record.read_newest_first(workspace, endpoint, version), version, owner),
    )
