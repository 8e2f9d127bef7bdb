"""What is known of a new control: which version it has replaced, and what its promotion rests on."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout import record
from controlled_rollout.record import Decision
from controlled_rollout.record.in_time import within_time
from controlled_rollout.target.connect import connect
from controlled_rollout.target.history import promotion_of
from controlled_rollout.target.protocol import Revision
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from controlled_rollout.endpoint import Endpoint

__all__ = ["judgement_before", "new_control", "read_new_control"]

# What a promotion rests on: a gate that let it go on, or a person who approved it.
JUDGEMENTS: Final = ("go_on", "approve")
# After one of these an earlier judgement says nothing of the promotion, which then is a person's own decision.
NO_JUDGEMENT: Final = ("deploy", "shift", "roll_back", "hold", "ask", "reject")
# Looks come at an interval, and the judgement is the newest line but a few.
MOST_DECISIONS: Final = 500


def new_control(history: Sequence[Revision], newest_first: Iterable[Decision], version: str) -> dict[str, Any]:
    """Return the former control of a version, and the verdict that its promotion rests on, as JSON values. Pure.

    What was judged in an earlier rollout of the version is no part of it.

    Args:
        history: The endpoint's revisions, oldest first.
        newest_first: The record's decisions about the version, newest first.
        version: The version, which is control.
    """
    promotion = promotion_of(history, version)
    rollout = promotion.rollout if promotion else None
    present = (rollout.owner, rollout.started) if rollout else (None, None)
    judged = judgement_before(entry for entry in newest_first if (entry.run, entry.rollout) == present)
    verdict = None
    if judged is not None:
        verdict = {
            "outcome": judged.outcome or judged.step,
            "reason": judged.reason,
            "who": judged.who,
            "time": judged.time.isoformat(),
        }
    return {"former_control": promotion.former_control if promotion else None, "verdict": verdict}


def judgement_before(newest_first: Iterable[Decision]) -> Decision | None:
    """Return what the newest promotion rests on: the gate's or the person's word about the last share. Pure.

    Args:
        newest_first: The record's decisions about the version, newest first; read no further than is needed.

    Returns:
        The decision; None if a person has promoted without one, or for a first version.
    """
    promoted_by = None
    for decision in newest_first:
        if decision.step in JUDGEMENTS:
            return decision
        if decision.step == "promote":
            if promoted_by not in (None, decision.who):
                return None  # what is before it is about an earlier promotion: the version is control again
            promoted_by = decision.who
        if decision.step in NO_JUDGEMENT or (decision.step == "look" and decision.outcome == "fail"):
            return None
    return None


async def read_new_control(workspace: Workspace, endpoint: "Endpoint") -> dict[str, Any]:
    """Read history and record, and return `new_control` of an endpoint's control.

    Args:
        workspace: Where both are.
        endpoint: The endpoint, which has a control.

    Raises:
        TargetUnavailableError: The target does not answer.
        RecordUnavailableError: The record cannot be read.
    """
    assert endpoint.control is not None  # noqa: S101 - the caller has seen it
    version = endpoint.control.name
    async with connect(workspace) as target:
        history = await target.history(endpoint.name)
    newest_first = record.read_newest_first(workspace, endpoint.name, version)
    return await within_time(
        record.storage_of(workspace, endpoint.name).name,
        lambda: new_control(history, islice(newest_first, MOST_DECISIONS), version),
    )
