"""The lines of the record on which a rollout goes on, holds, or ends: a gate's decision, a person's answer.

A promotion, and a shift that gives a treatment more traffic, ask for them: see `steps/permission.py`.
"""

from datetime import timedelta
from typing import Literal

from controlled_rollout import record
from controlled_rollout.defaults import SERVED_TIMEOUT
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import EndpointNotFoundError, RecordUnavailableError, TargetUnavailableError
from controlled_rollout.gate import Verdict, verdict_to_dict
from controlled_rollout.record import Decision
from controlled_rollout.record.in_time import within_time
from controlled_rollout.target.waiting import Progress, retry_until_available
from controlled_rollout.workspace import Workspace

__all__ = ["record_answer", "record_confirmation", "record_going_on"]


async def record_going_on(workspace: Workspace, endpoint: Endpoint, version: str, verdict: Verdict, *, who: str) -> str:
    """Append to the record that a gate lets the rollout go on from its present share; return why that failed, or "".

    Args:
        workspace: Where the record is.
        endpoint: The endpoint as the look has seen it.
        version: The treatment.
        verdict: The verdict that lets it go on.
        who: The gate's task.
    """
    decision = Decision.about(
        endpoint, version, step="go_on", who=who, reason=verdict.reason, outcome=verdict.outcome.value
    )
    try:
        await _append(workspace, decision)
    except RecordUnavailableError as error:
        return f"it is not recorded that the rollout goes on: {error}"
    return ""


async def _append(workspace: Workspace, decision: Decision) -> None:
    """Append a decision to its endpoint's record in bounded time."""
    await within_time(record.storage_of(workspace, decision.endpoint).name, lambda: record.append(workspace, decision))


async def record_answer(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    step: Literal["hold", "ask", "approve", "reject"],
    who: str,
    reason: str,
    timeout: timedelta = SERVED_TIMEOUT,
    progress: Progress = print,
) -> None:
    """Append to the record that a rollout is on hold, that a person was asked about it, or what the person answered.

    The line says about which share, revision and rollout: an approval permits what follows only there. The others
    permit nothing: they are appended without them where the target does not answer, or has no such endpoint.

    Args:
        workspace: Where the endpoint and its record are.
        endpoint: The endpoint's name.
        version: The treatment.
        step: The hold, the question or the answer.
        who: Who asked or answered.
        reason: The question's reason, or the answer's.
        timeout: How long the target may take to answer, for an approval.
        progress: Called with a sentence if the target does not answer at first.

    Raises:
        RecordUnavailableError: It cannot be stored.
        TargetUnavailableError: The target did not answer in time, and it is an approval.
    """
    from controlled_rollout.target.connect import connect

    document = Endpoint(name=endpoint)
    wait = timeout if step == "approve" else timedelta(0)
    try:
        async with connect(workspace) as target:
            document = await retry_until_available(lambda: target.endpoint(endpoint), timeout=wait, progress=progress)
    except EndpointNotFoundError:
        pass
    except TargetUnavailableError:
        if step == "approve":
            raise
    await _append(workspace, Decision.about(document, version, step=step, who=who, reason=reason))


async def record_confirmation(
    workspace: Workspace, endpoint: str, version: str, verdict: Verdict, *, who: str, reason: str
) -> None:
    """Append to the record, once, that labels which came late have shown a version to be good enough.

    Args:
        workspace: Where the endpoint and its record are.
        endpoint: The endpoint's name.
        version: The version.
        verdict: What the labels have shown.
        who: The task that has judged.
        reason: The verdict's reason, with the numbers.

    Raises:
        RecordUnavailableError: It cannot be stored.
        TargetUnavailableError: The target does not answer.
    """
    from controlled_rollout.target.connect import connect

    async with connect(workspace) as target:
        document = await target.endpoint(endpoint)
    decision = Decision.about(
        document,
        version,
        step="confirm",
        who=who,
        reason=reason,
        outcome=verdict.outcome.value,
        verdict=verdict_to_dict(verdict),
    )

    def append_once() -> None:
        """Append the line, unless a try of this task that was killed has."""
        earlier = record.read_newest_first(workspace, endpoint, version)
        newest = next((one for one in earlier if one.step != "judge_labels"), None)
        if newest is None or (newest.step, newest.who) != (decision.step, decision.who):
            record.append(workspace, decision)

    await within_time(record.storage_of(workspace, endpoint).name, append_once)
