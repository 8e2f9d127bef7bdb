"""One look: question -> evidence -> verdict -> what to do next; this module asks, reads, judges and records.

Looks carry nothing from one to the next but what is in the record: a task that was killed comes to the same verdict.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from controlled_rollout import record
from controlled_rollout.collection_settings import Collection
from controlled_rollout.duration import format_duration
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import (
    PROGRAMMING_ERRORS,
    ConflictError,
    ControlledRolloutError,
    EndpointError,
    EvidenceUnavailableError,
    StorageError,
)
from controlled_rollout.evaluation.at_share import seen_at_share
from controlled_rollout.evaluation.conclusion import conclude_but_aggregates, treatment_down, verdict_without_record
from controlled_rollout.evaluation.splits import compared_since, splits_since
from controlled_rollout.evidence import (
    Evidence,
    EvidenceQuery,
    EvidenceWindow,
    RouterCounts,
    evidence_source,
)
from controlled_rollout.gate import (
    Aggregates,
    Gate,
    Outcome,
    Verdict,
    cannot_see,
    verdict_from_dict,
    with_aggregates,
    wrong_unit,
)
from controlled_rollout.record import Decision, LookInput, LookSettings
from controlled_rollout.record.in_time import within_time
from controlled_rollout.rollout import OnSilence
from controlled_rollout.target.history import check_holder, creation_of
from controlled_rollout.target.protocol import EndpointStatus, Revision, Target
from controlled_rollout.workspace import Workspace

__all__ = ["Look", "NotEvaluated", "look"]

log = logging.getLogger(__name__)

DEFAULT_WINDOW: Final = EvidenceWindow()
# What expectations about all rows together have found, or why they could not be evaluated.
Evaluated: TypeAlias = tuple[Aggregates | None, str]
NOTHING_EVALUATED: Final[Evaluated] = (None, "")


@dataclass(frozen=True)
class NotEvaluated:
    """Expectations about all rows together that nobody has evaluated at the present share yet.

    Attributes:
        verdict: What all else says.
        query: What the look has asked.
        since, until: Between the beginning of the first bin at the share and the end of the newest closed one.
    """

    verdict: Verdict
    query: EvidenceQuery
    since: datetime
    until: datetime


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
        not_evaluated: The gate's expectations about all rows together, if they are still to be evaluated.
    """

    verdict: Verdict
    started: datetime
    since_shift: timedelta
    seen_at_share: timedelta
    requests_at_share: int
    share: float
    document: Endpoint
    not_evaluated: NotEvaluated | None = None


async def look(
    workspace: Workspace,
    target: Target,
    endpoint: str,
    version: str,
    *,
    gate: Gate,
    who: str,
    owner: str | None = None,
    gate_since: datetime | None = None,
    window: EvidenceWindow = DEFAULT_WINDOW,
    now: datetime | None = None,
    evaluate: NotEvaluated | None = None,
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
        gate_since: Since when the gate waits whose look it is; None for the look of somebody else.
        window: How the evidence is read.
        now: The time of the look; None for the present.
        evaluate: What an earlier look has left to be evaluated; None evaluates nothing.

    Raises:
        ConflictError: `owner` no longer holds the endpoint, or there is no control to compare with.
        EndpointError: There is no such version, or the gate counts requests where users have to be counted.
    """
    evaluated = await _evaluate_aggregates(workspace, evaluate) if evaluate is not None else NOTHING_EVALUATED
    now = now or datetime.now(UTC)
    history = await target.history(endpoint)
    document = history[-1].endpoint if history else await target.endpoint(endpoint)
    document.version(version)
    await _note_look(target, history, version, owner)
    control = _control_of(document, version, gate)
    status = await target.status(endpoint, inspect=False)
    query = _evidence_query(history, status, control=control, treatment=version, gate=gate, window=window, now=now)
    decision = Decision.about(document, version, step="look", who=who, time=now, gate_since=gate_since)
    down = treatment_down(status, control=control, treatment=version, now=now)
    counts = _router_counts(status, (control, version), now, are_scraped=bool(workspace.prometheus_url))
    evidence, verdict, else_says = await _judge_and_record(workspace, query, decision, counts, down, history, evaluated)
    at_share = seen_at_share(evidence, query.splits, warm_up=gate.warm_up)
    return Look(
        verdict=verdict,
        started=query.started,
        since_shift=now - (query.splits[-1].at if query.splits else query.started),
        seen_at_share=at_share.seen,
        requests_at_share=at_share.requests,
        share=document.effective_traffic()[version],
        document=document,
        not_evaluated=_not_evaluated(query, evidence, at_share.since, else_says),
    )


async def _note_look(target: Target, history: Sequence[Revision], version: str, owner: str | None) -> None:
    """Write down that somebody looks at the treatment of the rollout that is under way; a look goes on without it.

    Raises:
        ConflictError: `owner` no longer holds the endpoint.
    """
    check_holder(history, version, owner)
    document = history[-1].endpoint
    if document.rollout is None or document.rollout.version != version:
        return
    try:
        await target.note_look(document.name, version)
    except ControlledRolloutError as error:
        consequence = (
            f"; if none can be for {format_duration(document.rollout.silence)}, the treatment is taken back"
            if document.rollout.on_silence is OnSilence.ROLL_BACK
            else ""
        )
        log.warning("the look note of %s could not be written: %s%s", version, error, consequence)


def _not_evaluated(
    query: EvidenceQuery, evidence: Evidence | None, since: datetime | None, else_says: Verdict | None
) -> NotEvaluated | None:
    """Return what is still to be evaluated at the present share; None if nothing is, or no bin of it was seen."""
    if evidence is None or since is None or else_says is None:
        return None
    return NotEvaluated(else_says, query, since, evidence.until)


async def _evaluate_aggregates(workspace: Workspace, wanted: NotEvaluated) -> Evaluated:
    """Return what expectations about all rows together find, or why they could not be evaluated now."""
    from controlled_rollout.evidence.collected.source import evaluate_aggregates

    try:
        return await evaluate_aggregates(workspace, wanted.query, since=wanted.since, until=wanted.until), ""
    except (EvidenceUnavailableError, StorageError) as error:
        return None, str(error)


def _control_of(endpoint: Endpoint, version: str, gate: Gate) -> str:
    """Return the name of the control that a version is compared with.

    Raises:
        ConflictError: There is none.
        EndpointError: The gate counts requests where users have to be counted, or the other way round.
    """
    if problem := wrong_unit(gate, endpoint.name, endpoint.sticky):
        raise EndpointError(problem)
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


def _router_counts(
    status: EndpointStatus, versions: Iterable[str], now: datetime, *, are_scraped: bool
) -> RouterCounts:
    """Return the requests that the router has counted for these versions at the time of the look."""
    known = {name: status.versions[name] for name in versions if name in status.versions}
    return RouterCounts(
        at=now,
        requests={name: version.requests for name, version in known.items()},
        unsent={name: version.unsent for name, version in known.items()},
        # Scraped, they are the evidence itself, blurred by a scrape interval: nothing to compare it with.
        routers={} if are_scraped else status.routers,
        served=status.served_revision,
    )


async def _judge_and_record(
    workspace: Workspace,
    query: EvidenceQuery,
    decision: Decision,
    requests: RouterCounts,
    down: str,
    history: Sequence[Revision],
    evaluated: Evaluated,
) -> tuple[Evidence | None, Verdict, Verdict | None]:
    """Read and judge the evidence and append the decision; without store or record the look fails or cannot see.

    Returns:
        The evidence; the verdict; and, if expectations about all rows together are still to be evaluated, what all
        else says.
    """
    evidence: Evidence | None = None
    aggregates, problem = evaluated
    else_says: Verdict | None = None
    try:
        evidence = await evidence_source(workspace).read(query)
        evidence = replace(evidence, aggregates=aggregates, unseen="; ".join(filter(None, (evidence.unseen, problem))))
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:  # whatever a store answers says nothing about the model
        unread = _without_evidence(decision, str(error) or type(error).__name__, down)
    record_name = record.storage_of(workspace, query.endpoint).name
    try:
        if evidence is None:
            await within_time(record_name, lambda: record.append(workspace, unread, history=history))
            return None, verdict_from_dict(unread.verdict or {}), None
        look_input = LookInput(_look_settings(query, evidence), evidence, (requests,), down, splits=tuple(query.splits))

        def decide(look: LookInput) -> Decision:
            """Judge the look as the record completes it; what it has of the splits is in its bins."""
            nonlocal evidence, else_says
            evidence = look.evidence
            verdict = conclude_but_aggregates(look)
            else_says = verdict if query.gate.aggregates and evidence.aggregates is None else None
            return decision.with_verdict(with_aggregates(verdict, query.gate, evidence.aggregates))

        recorded = await within_time(
            record_name, lambda: record.append_look(workspace, look_input, decide, history=history)
        )
        return evidence, verdict_from_dict(recorded.verdict or {}), else_says
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:
        # What is not in the record is evaluated again: it decides nothing yet.
        judged = await asyncio.to_thread(conclude_but_aggregates, look_input) if evidence else None
        verdict = judged or verdict_from_dict(unread.verdict or {})
        return evidence, verdict_without_record(verdict, str(error) or type(error).__name__), None


def _without_evidence(decision: Decision, problem: str, down: str) -> Decision:
    """Return the decision of a look that could not read the metric store: "cannot see", or fail if it is down."""
    if not down:
        return decision.with_verdict(cannot_see(problem))
    verdict = replace(cannot_see(problem), outcome=Outcome.FAIL, reason=down)
    return decision.with_verdict(verdict).model_copy(update={"evidence": {"down": down}})


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
