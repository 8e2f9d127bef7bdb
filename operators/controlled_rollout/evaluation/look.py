"""A look at the evidence: what is asked, what is concluded, and the line in the record that says so.

Looks carry nothing from one to the next: a task that was killed comes to the same verdict.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from controlled_rollout import record
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError, EvidenceUnavailableError
from controlled_rollout.evaluation.conclusion import conclude
from controlled_rollout.evidence import Evidence, EvidenceWindow, Question, Reading, SplitChange, evidence_source
from controlled_rollout.gate import Gate, Verdict, cannot_see, verdict_to_dict
from controlled_rollout.record import Decision, Seen
from controlled_rollout.target.protocol import EndpointStatus, ReplicaState, Revision, Target, VersionStatus
from controlled_rollout.workspace import Workspace

__all__ = ["Look", "check_owner", "created_at", "down_beside", "hold", "look", "settings_of", "splits_since"]

# Of how many gates this process remembers what their routers had counted before.
MOST_GATES: Final = 4_096
# A node that starts again takes its replicas along for less than that.
DOWN_FOR: Final = timedelta(minutes=2)
DEFAULT_WINDOW: Final = EvidenceWindow()


@dataclass(frozen=True)
class Look:
    """One look at the evidence.

    Attributes:
        verdict: What the gate concludes.
        started: When the rollout began: the treatment's creation.
        since_shift: How long the treatment has had its present share.
        requests_since_shift: Treatment requests counted since then.
        share: The treatment's effective per cent of the traffic.
    """

    verdict: Verdict
    started: datetime
    since_shift: timedelta
    requests_since_shift: int
    share: float


async def look(
    workspace: Workspace,
    target: Target,
    endpoint: str,
    version: str,
    *,
    gate: Gate,
    who: str,
    owner: str | None = None,
    window: EvidenceWindow = DEFAULT_WINDOW,
    now: datetime | None = None,
) -> Look:
    """Judge a treatment against control on everything seen since its rollout began, and append the look to the record.

    A store that cannot be read gives the outcome `cannot_see`, never an exception.

    Args:
        workspace: Where the evidence and the record are.
        target: Where the endpoint is: the workspace's target, open.
        endpoint: The endpoint's name.
        version: The treatment.
        gate: What the treatment has to show.
        who: Who looks, for the record.
        owner: The run that should hold the endpoint; None does not check.
        window: How the evidence is read.
        now: The time of the look; None for the present.

    Raises:
        ConflictError: `owner` no longer holds the endpoint, or there is no control to compare with.
        EndpointError: There is no such version.
    """
    now = now or datetime.now(UTC)
    history = await target.history(endpoint)
    found = history[-1].endpoint if history else await target.endpoint(endpoint)
    treatment = found.version(version)
    check_owner(found, version, owner)
    control = found.control
    if control is None or control.name == version:
        raise ConflictError(
            f"version {version!r} of endpoint {endpoint!r} has no control to be compared with: "
            + ("it is the control itself" if treatment.is_control else "mark one with is_control=True")
        )
    started = created_at(history, version)
    status = await target.status(endpoint)
    question = Question(
        endpoint=endpoint,
        control=control.name,
        treatment=version,
        started=started,
        now=now,
        window=window,
        splits=splits_since(history, started, control=control.name, treatment=version),
        gate=gate,
        clusters=status.clusters,
    )
    evidence: Evidence | None = None
    readings: tuple[Reading, ...] = ()
    down = down_beside(status, control=control.name, treatment=version, now=now)
    try:
        evidence = await evidence_source(workspace).read(question)
        counted = {name: one.requests for name, one in status.versions.items()}
        readings = _readings(workspace, question, Reading(now, counted), evidence.until)
        verdict = conclude(
            evidence,
            gate,
            control=control.name,
            treatment=version,
            window=window,
            router=readings,
            down=down,
        )
    except EvidenceUnavailableError as error:
        verdict = cannot_see(str(error))
    share = found.effective_traffic()[version]
    decision = Decision(
        time=now,
        endpoint=endpoint,
        version=version,
        step="look",
        who=who,
        why=verdict.reason,
        outcome=verdict.outcome.value,
        verdict=verdict_to_dict(verdict),
        share=share,
        revision=found.revision,
    )
    try:
        await asyncio.to_thread(_append, workspace, decision, question, evidence, readings, down)
    except OSError as error:
        # What nobody could replay decides nothing, and a full disk says nothing about the model.
        where = workspace.records or workspace.records_folder
        verdict = cannot_see(f"the look cannot be recorded in {where}: {error.strerror or error}")
    shifted = question.splits[-1].at if question.splits else started
    requests = sum(b.treatment.requests for b in evidence.bins if b.start >= shifted) if evidence else 0
    return Look(verdict, started, now - shifted, requests, share)


def _append(
    workspace: Workspace,
    decision: Decision,
    question: Question,
    evidence: Evidence | None,
    readings: tuple[Reading, ...],
    down: str,
) -> None:
    if evidence is None:
        record.append(workspace, decision)
        return
    seen = Seen(
        settings=settings_of(question, evidence.queries),
        bins=evidence.bins,
        baseline=evidence.baseline,
        until=evidence.until,
        thresholds_ms=evidence.thresholds_ms,
        lag=evidence.lag,
        router=readings,
        down=down,
    )
    record.append_look(workspace, decision, seen)


def down_beside(status: EndpointStatus, *, control: str, treatment: str, now: datetime) -> str:
    """Say that a treatment has had no ready replica for a while, beside a control that has; empty if it is not so.

    A router without a replica to send to answers by itself, and what it answers may not say whose share it was.

    Args:
        status: How the endpoint is.
        control: Control's name.
        treatment: The treatment's name.
        now: The time of the look.
    """
    one, other = status.versions.get(treatment), status.versions.get(control)
    if one is None or other is None or _has_ready(one) or not _has_ready(other):
        return ""
    lasts = one.down_since is not None and now - one.down_since >= DOWN_FOR
    if not (one.failed or lasts):
        return ""
    since = f" since {one.down_since:%H:%M:%S}" if one.down_since else ""
    return (
        f"version {treatment!r} has no ready replica{since} and cannot answer its share, and {control!r} has: "
        f"{one.cause or 'it does not say why'}"
    )


def _has_ready(version: VersionStatus) -> bool:
    return any(replica.state is ReplicaState.READY for replica in version.replicas)


def settings_of(question: Question, queries: Sequence[str]) -> dict[str, Any]:
    """Return what is the same for all looks of one gate on one rollout, as JSON: lengths of time in ISO 8601."""
    return {
        "control": question.control,
        "started": question.started.isoformat(),
        "window": question.window.model_dump(mode="json"),
        "gate": question.gate.model_dump(mode="json"),
        "queries": list(queries),
    }


_counted: OrderedDict[tuple[Any, ...], list[Reading]] = OrderedDict()


def _readings(workspace: Workspace, question: Question, now: Reading, until: datetime) -> tuple[Reading, ...]:
    """Return what the router had counted before, at two moments that the evidence reaches, and now.

    A process that has just begun has no such moments yet: then only the total can be compared.
    """
    key = (workspace.root, question.endpoint, question.treatment, question.started)
    known = _counted.pop(key, [])
    # As much as the store holds back, and five bins before that to compare.
    oldest = until - 5 * question.window.bin_width
    kept = [reading for reading in known if reading.at >= oldest]
    _counted[key] = [*kept, now]
    while len(_counted) > MOST_GATES:
        _counted.popitem(last=False)
    closed = [reading for reading in kept if reading.at <= until]
    return (closed[0], closed[-1], now) if len(closed) > 1 else (now,)


def hold(workspace: Workspace, endpoint: str, version: str, *, who: str, why: str) -> None:
    """Record that a rollout is held for a person to decide: nothing changes, nothing is rolled back by itself."""
    decision = Decision(time=datetime.now(UTC), endpoint=endpoint, version=version, step="hold", who=who, why=why)
    record.append(workspace, decision)


def created_at(history: Sequence[Revision], version: str) -> datetime:
    """Return when the version that the newest revision has was created: a name may have been used before."""
    created = history[-1].created
    for revision in reversed(history):
        if version not in revision.endpoint.versions:
            break
        created = revision.created
    return created


def splits_since(
    history: Sequence[Revision], started: datetime, *, control: str, treatment: str
) -> tuple[SplitChange, ...]:
    """Return when the treatment's part of control's and its own traffic changed, and to what, oldest first."""
    changes: list[SplitChange] = []
    for revision in history:
        traffic = revision.endpoint.effective_traffic()
        if revision.created < started or treatment not in traffic:
            continue
        both = traffic[treatment] + traffic.get(control, 0.0)
        share = traffic[treatment] / both if both > 0 else None
        if not changes or changes[-1].share != share:
            changes.append(SplitChange(revision.created, share))
    return tuple(changes)


def check_owner(found: Endpoint, version: str, owner: str | None) -> None:
    """Refuse to go on with a rollout that somebody else has ended or taken over."""
    if owner is None:
        return
    if found.rollout is None or (found.rollout.version, found.rollout.owner) != (version, owner):
        holder = f"{found.rollout.owner} holds it for {found.rollout.version!r}" if found.rollout else "nobody holds it"
        raise ConflictError(
            f"{owner} no longer holds endpoint {found.name!r} to roll out {version!r} ({holder}): "
            "somebody promoted it or rolled it back; its history says who"
        )
