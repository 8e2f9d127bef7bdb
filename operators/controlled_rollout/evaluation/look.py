"""One look: question -> evidence -> verdict -> what to do next; this module asks, reads, judges and records.

Looks carry nothing from one to the next but what is in the record: a task that was killed comes to the same verdict.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from controlled_rollout import record
from controlled_rollout.collection_settings import Collection
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import PROGRAMMING_ERRORS, ConflictError
from controlled_rollout.evaluation.at_share import seen_at_share
from controlled_rollout.evaluation.conclusion import conclude, treatment_down, verdict_without_record
from controlled_rollout.evaluation.splits import compared_since, splits_since
from controlled_rollout.evidence import (
    Evidence,
    EvidenceQuery,
    EvidenceWindow,
    RouterCounts,
    evidence_source,
)
from controlled_rollout.gate import Gate, Outcome, Verdict, cannot_see, verdict_from_dict, verdict_to_dict
from controlled_rollout.record import Decision, LookInput, LookSettings
from controlled_rollout.record.in_time import within_time
from controlled_rollout.target.history import creation_of
from controlled_rollout.target.protocol import EndpointStatus, Revision, Target
from controlled_rollout.workspace import Workspace

__all__ = ["Look", "look"]

DEFAULT_WINDOW: Final = EvidenceWindow()


@dataclass(frozen=True)
class Look:
    """One look at the evidence.

    Attributes:
        verdict: What the gate concludes.
        started: When the rollout began: its evidence counts since then.
        since_shift: How long ago the treatment's present share was set.
        seen_at_share: For how long the evidence has seen the treatment at that share.
        requests_at_share: The treatment's requests that it has seen there.
        share: The treatment's effective per cent of the traffic.
        document: The endpoint that was looked at.
    """

    verdict: Verdict
    started: datetime
    since_shift: timedelta
    seen_at_share: timedelta
    requests_at_share: int
    share: float
    document: Endpoint


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
    """Judge a treatment against control on all evidence since its rollout began, and append the look to the record.

    A metric store or a record that cannot be reached or understood gives the outcome `cannot_see`, never an exception.
    To fail needs neither: a treatment that is down fails without the store, and an alarm is one without the record.

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
    document = history[-1].endpoint if history else await target.endpoint(endpoint)
    document.version(version)
    document.check_holder(version, owner)
    control = _control_of(document, version)
    share = document.effective_traffic()[version]
    status = await target.status(endpoint, inspect=False)
    query = _evidence_query(history, status, control=control, treatment=version, gate=gate, window=window, now=now)
    decision = Decision.about(document, version, step="look", who=who, time=now)
    down = treatment_down(status, control=control, treatment=version, now=now)
    counts = _router_counts(status, (control, version), now)
    if workspace.prometheus_url:
        # The evidence is these very counts, blurred by a scrape interval: there is nothing to compare them with.
        counts = replace(counts, routers={})
    evidence, verdict = await _judge_and_record(workspace, query, decision, counts, down, history)
    shifted = query.splits[-1].at if query.splits else query.started
    at_share = seen_at_share(evidence, query.splits, warm_up=gate.warm_up)
    return Look(
        verdict=verdict,
        started=query.started,
        since_shift=now - shifted,
        seen_at_share=at_share.seen,
        requests_at_share=at_share.requests,
        share=share,
        document=document,
    )


def _control_of(endpoint: Endpoint, version: str) -> str:
    """Return the name of the control that a version is compared with; raise ConflictError if there is none."""
    control = endpoint.control
    if control is None or control.name == version:
        raise ConflictError(
            f"version {version!r} of endpoint {endpoint.name!r} has no control to be compared with: "
            + ("it is the control itself" if control else "mark one with is_control=True")
        )
    return control.name


def _evidence_query(
    history: Sequence[Revision],
    status: EndpointStatus,
    *,
    control: str,
    treatment: str,
    gate: Gate,
    window: EvidenceWindow,
    now: datetime,
) -> EvidenceQuery:
    """Return the query for all evidence since the rollout began, with every split that was set since then.

    Neither it nor the baseline reaches behind the creation, or the present image, of the version that is control now.
    """
    started = compared_since(history, control=control, treatment=treatment)
    return EvidenceQuery(
        endpoint=status.name,
        control=control,
        treatment=treatment,
        started=started,
        now=now,
        window=window,
        splits=splits_since(history, started, control=control, treatment=treatment),
        gate=gate,
        clusters=status.clusters,
        baseline_from=creation_of(history, control).created,
        collected=_collections(history[-1].endpoint, (control, treatment)),
    )


def _collections(endpoint: Endpoint, versions: Iterable[str]) -> dict[str, Collection]:
    """Return what versions keep of their inputs and predictions; those that collect nothing are left out."""
    return {name: collected for name in versions if (collected := endpoint.version(name).collected) is not None}


def _router_counts(status: EndpointStatus, versions: Iterable[str], now: datetime) -> RouterCounts:
    """Return the requests that the router has counted for these versions at the time of the look."""
    known = {name: status.versions[name] for name in versions if name in status.versions}
    return RouterCounts(
        at=now,
        requests={name: version.requests for name, version in known.items()},
        unsent={name: version.unsent for name, version in known.items()},
        routers=status.routers,
        served=status.served_revision,
    )


async def _judge_and_record(
    workspace: Workspace,
    query: EvidenceQuery,
    decision: Decision,
    requests: RouterCounts,
    down: str,
    history: Sequence[Revision],
) -> tuple[Evidence | None, Verdict]:
    """Read and judge the evidence and append the decision; without store or record the look fails or cannot see."""
    evidence: Evidence | None = None
    try:
        evidence = await evidence_source(workspace).read(query)
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:  # whatever a store answers says nothing about the model
        unread = _without_evidence(decision, str(error) or type(error).__name__, down)
    record_name = record.storage_of(workspace, query.endpoint).name
    try:
        if evidence is None:
            await within_time(record_name, lambda: record.append(workspace, unread, history=history))
            return None, verdict_from_dict(unread.verdict or {})
        look_input = LookInput(_look_settings(query, evidence), evidence, (requests,), down, splits=tuple(query.splits))

        def decide(look: LookInput) -> Decision:
            """Judge the look as the record completes it; what it has of the splits is in its bins."""
            nonlocal evidence
            evidence = look.evidence
            return _with_verdict(decision, conclude(look))

        recorded = await within_time(
            record_name, lambda: record.append_look(workspace, look_input, decide, history=history)
        )
        return evidence, verdict_from_dict(recorded.verdict or {})
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:
        judged = await asyncio.to_thread(conclude, look_input) if evidence else None
        verdict = judged or verdict_from_dict(unread.verdict or {})
        return evidence, verdict_without_record(verdict, str(error) or type(error).__name__)


def _without_evidence(decision: Decision, problem: str, down: str) -> Decision:
    """Return the decision of a look that could not read the metric store: "cannot see", or fail if it is down."""
    if not down:
        return _with_verdict(decision, cannot_see(problem))
    verdict = replace(cannot_see(problem), outcome=Outcome.FAIL, reason=down)
    return _with_verdict(decision, verdict).model_copy(update={"evidence": {"down": down}})


def _with_verdict(decision: Decision, verdict: Verdict) -> Decision:
    """Return a copy of the decision with the verdict, its outcome and its reason."""
    return decision.model_copy(
        update={"why": verdict.reason, "outcome": verdict.outcome.value, "verdict": verdict_to_dict(verdict)}
    )


def _look_settings(query: EvidenceQuery, evidence: Evidence) -> LookSettings:
    """Return what is the same for all looks of this gate; the record stores it once per series."""
    return LookSettings(
        endpoint=query.endpoint,
        treatment=query.treatment,
        control=query.control,
        started=query.started,
        window=query.window,
        gate=query.gate,
        queries=evidence.queries,
    )
