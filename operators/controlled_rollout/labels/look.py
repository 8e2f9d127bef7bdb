"""A look at labels as a step: what is compared is in the endpoint's history, and the look goes into the record."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from controlled_rollout import record
from controlled_rollout.collection_settings import Collection
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError, EndpointError, RecordUnavailableError
from controlled_rollout.evaluation.conclusion import verdict_without_record
from controlled_rollout.evaluation.splits import splits_since
from controlled_rollout.evidence import Evidence, EvidenceWindow
from controlled_rollout.gate import cannot_see
from controlled_rollout.labels.judgement import LabelCounts, LabelLook, check_time, judge_labels
from controlled_rollout.labels.settings import Labels
from controlled_rollout.labels.source import LabelSource
from controlled_rollout.record import Decision, LookInput, LookSettings
from controlled_rollout.record.bin_delta import BinFingerprints
from controlled_rollout.record.tail import series_name
from controlled_rollout.target.history import shared_traffic
from controlled_rollout.target.protocol import Revision, Target
from controlled_rollout.workspace import Workspace

__all__ = ["look_at_labels"]


async def look_at_labels(
    workspace: Workspace,
    target: Target,
    endpoint: str,
    version: str,
    *,
    labels: Labels,
    source: LabelSource,
    who: str,
    control: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    now: datetime | None = None,
) -> LabelLook:
    """Judge a version by labels against the control that it shared the traffic with, and append the look to the record.

    A source, a storage or a record that cannot be read or written gives the outcome `cannot_see`; an alarm stays one
    without the record.

    Args:
        workspace: Where the collected data and the record are.
        target: Where the endpoint is: the workspace's target, open.
        endpoint: The endpoint's name.
        version: The version that is judged.
        labels: What labels are compared with, and what the version has to show.
        source: Where labels come from.
        who: Who looks, for the record.
        control: The version that is compared with; None for the control beside which the version last had traffic.
        since: The requests that are judged arrived from then on; None for when both had traffic first.
        until: They arrived before; None for when one of the two had no traffic any more.
        now: The time of the look; None for the present.

    Raises:
        ArgumentError: The time is none, or a function of the author's cannot be imported.
        ConflictError: The version never had traffic beside a control, or one of the two did not keep its predictions
            as they are.
        EndpointError: There is no such version, or the endpoint is sticky.
    """
    now = now or datetime.now(UTC)
    history = await target.history(endpoint)
    document = history[-1].endpoint if history else await target.endpoint(endpoint)
    _check_judged_by_request(document, version)
    check_time(since, until)
    control, since, until = _control_and_time(history, version, control, since, until)
    if until is None:
        unseen = (
            f"versions {control!r} and {version!r} both still have traffic: their labels can be judged once one of the "
            "two has none any more, or give until"
        )
        return LabelLook(cannot_see(unseen), (), LabelCounts(), since, now, now, unseen)
    for name in (control, version):
        _check_kept(history, name, labels, until)
    splits = splits_since(history, since, control=control, treatment=version)
    judged = partial(
        judge_labels, workspace, endpoint, control=control, treatment=version, labels=labels, source=source, now=now
    )
    look = await asyncio.to_thread(judged, since=since, until=until, splits=splits)
    decision = Decision.about(document, version, step="judge_labels", who=who, time=now)
    recorded = _look_input(endpoint, version, control, labels, source, look)
    return await asyncio.to_thread(_append_to_record, workspace, recorded, decision, look, history)


def _check_judged_by_request(endpoint: Endpoint, version: str) -> None:
    """Raise EndpointError if an endpoint has no such version, or is sticky: a user's requests are not independent."""
    endpoint.version(version)
    if endpoint.sticky is not None:
        raise EndpointError(
            f"endpoint {endpoint.name!r} is sticky by {endpoint.sticky}: labels are judged by request, and requests of "
            "one user are not independent; compare them outside of the gate"
        )


def _look_input(
    endpoint: str, version: str, control: str, labels: Labels, source: LabelSource, look: LabelLook
) -> LookInput:
    """Return what the record keeps of a look: what a replay judges again."""
    settings = LookSettings(
        endpoint=endpoint,
        treatment=version,
        control=control,
        started=look.since,
        window=EvidenceWindow(bin_width=labels.bin_width, allowed_lag=labels.allowed_lag),
        gate=labels.gate(),
        queries=(
            f"labels: {source.description}; answers: {', '.join(labels.columns)}, {look.since.isoformat()} to "
            f"{look.until.isoformat()}",
        ),
    )
    return LookInput(settings, Evidence(look.bins, (), (), look.arrived_until, settings.queries, unseen=look.unseen))


def _append_to_record(
    workspace: Workspace, recorded: LookInput, decision: Decision, look: LabelLook, history: Sequence[Revision]
) -> LabelLook:
    """Append a look to the record; return it with what its verdict counts if it cannot be recorded."""
    try:
        if changed := _changed_since_before(workspace, recorded):
            look = replace(look, verdict=replace(look.verdict, reason=f"{look.verdict.reason}; {changed}"))
        decided = decision.with_verdict(look.verdict)
        record.append_look(workspace, recorded, lambda _: decided, history=history)
    except RecordUnavailableError as error:
        return replace(look, verdict=verdict_without_record(look.verdict, str(error)))
    return look


def _changed_since_before(workspace: Workspace, look: LookInput) -> str:
    """Return a sentence if bins of an earlier look are others now; empty if they are the same.

    That is so if labels were added with an earlier arrival, or collected data of judged requests was deleted.
    """
    if look.evidence.unseen:
        return ""
    name = series_name(look.settings)
    for decision in record.read_newest_first(workspace, look.settings.endpoint, look.settings.treatment):
        if decision.step != "judge_labels" or (before := decision.look_evidence()) is None or before.unseen:
            continue
        if before.series == name:
            then = [bin_ for bin_ in look.evidence.bins if bin_.start < before.until]
            if BinFingerprints().delta_to(then).digest == before.bins.digest:
                return ""
            return (
                f"what had arrived by {before.until:%Y-%m-%d %H:%M} is no longer what the look at "
                f"{decision.time:%Y-%m-%d %H:%M} judged: labels were added with an earlier arrival, or collected data "
                "was deleted; alpha holds for labels that are added as they arrive"
            )
    return ""


def _control_and_time(
    history: Sequence[Revision], version: str, control: str | None, since: datetime | None, until: datetime | None
) -> tuple[str, datetime, datetime | None]:
    """Return the control, and the time in which both versions had traffic; raise ConflictError if there is none.

    While both have traffic that time has no end: a time that grows from look to look would be another test each time.
    """
    if control is not None and since is not None and until is not None:
        return control, since, until
    shared = shared_traffic(history, version) if history else None
    if shared is None or (control is not None and shared.control != control):
        raise ConflictError(
            f"version {version!r} had no traffic beside {f'version {control!r}' if control else 'a control'} since it "
            "was created: there is nothing that its labels can be compared with; name control, since and until"
        )
    return shared.control, since or shared.since, until or shared.until


def _check_kept(history: Sequence[Revision], version: str, labels: Labels, until: datetime) -> None:
    """Raise ConflictError if a version did not keep what labels are compared with, or kept it masked or hashed."""
    revisions = [one for one in history if one.created <= until and version in one.endpoint.versions]
    if not revisions:
        return  # what was collected is in the storage all the same
    kept = revisions[-1].endpoint.versions[version].collected
    problem = "does not collect" if kept is None else _problem_of(kept, labels.columns)
    if problem:
        raise ConflictError(
            f"labels are compared with {', '.join(labels.columns)}, and version {version!r} {problem}: it cannot be "
            "judged by labels"
        )


def _problem_of(kept: Collection, columns: Sequence[str]) -> str:
    """Return what makes columns of no use; empty if they are kept as they are."""
    if kept.layout != "parquet":
        return f"collects in the layout {kept.layout!r}, of which only 'parquet' can be read"
    for column in columns:
        names = (column, column.partition(".")[2])
        for does, listed in (("masks", kept.mask), ("hashes", kept.hash)):
            if any(name in listed for name in names):
                return f"{does} {column}"
        if kept.keep is not None and not any(name in kept.keep for name in names):
            return f"does not keep {column}"
    return ""
