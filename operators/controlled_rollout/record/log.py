"""Append decisions and looks to an endpoint's record, and read them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Final

from pydantic import ValidationError

from controlled_rollout.errors import RecordUnavailableError
from controlled_rollout.evidence.bins import with_served_shares
from controlled_rollout.record import storage
from controlled_rollout.record.blob_storage import BlobStorage
from controlled_rollout.record.decision import Decision, LookEvidence
from controlled_rollout.record.file_storage import FileStorage
from controlled_rollout.record.look_input import LookInput
from controlled_rollout.record.step_lines import StepMark, lines_with, missing_lines
from controlled_rollout.record.storage import AppendConflict, Appender, RecordPart, RecordStorage
from controlled_rollout.record.tail import LookSeries, TailState, read_step_marks, read_tail, series_name
from controlled_rollout.target.protocol import Revision
from controlled_rollout.version import check_name
from controlled_rollout.workspace import Workspace

__all__ = ["append", "append_look", "last", "read", "read_newest_first", "read_part", "storage_errors", "storage_of"]

# With many writers at once each meets a few conflicts; more than this is a fault.
MAX_TRIES: Final = 50


def storage_of(workspace: Workspace, endpoint: str) -> RecordStorage:
    """Return the storage of an endpoint's record: Azure Blob Storage, or files in the workspace's folder."""
    check_name(endpoint)
    if address := workspace.records_address:
        return BlobStorage(address, endpoint)
    return FileStorage(workspace.records_folder / f"{endpoint}.jsonl")


def append(workspace: Workspace, decision: Decision, *, history: Sequence[Revision] = ()) -> None:
    """Append one decision to the endpoint's record, after the steps that the record lacks; it is durable on return.

    A step is appended only once, however often its task was killed and called again.

    Args:
        workspace: Where the record is.
        decision: The decision.
        history: The endpoint's revisions, oldest first, from which missing lines are made; empty for none.

    Raises:
        RecordUnavailableError: It cannot be stored.
    """
    record = storage_of(workspace, decision.endpoint)

    def lines_after(appender: Appender) -> tuple[bytes, None]:
        """Return the decision's line, and those before it that the record lacks; empty if it has all of them."""
        recorded = _recorded_steps(record, appender, history) if history else ()
        return _decision_lines(lines_with(decision, history, recorded)), None

    _append_with_retries(record, lines_after)


def append_look(
    workspace: Workspace,
    look: LookInput,
    decide: Callable[[LookInput], Decision],
    *,
    history: Sequence[Revision] = (),
) -> Decision:
    """Complete a look with the earlier looks of its record, decide on it, and append decision and evidence.

    Of the bins only those are written that the record does not have yet.

    Args:
        workspace: Where the record is.
        look: What the look read; of the router's counts only those of the present.
        decide: Judges a look. It gets `look` with the router's counts of two earlier looks, as the record has them, and
            is called again if another writer appended meanwhile.
        history: The endpoint's revisions, oldest first: the steps that the record lacks are appended before the look.

    Returns:
        The decision that was appended.

    Raises:
        RecordUnavailableError: It cannot be stored.
    """
    name = series_name(look.settings)
    decision: Decision | None = None
    record = storage_of(workspace, look.settings.endpoint)

    def lines_after(appender: Appender) -> tuple[bytes, TailState]:
        """Return the look's line, after those that are missing, and the state of the record after it."""
        nonlocal decision
        tail = read_tail(appender)
        missing = missing_lines(history, tail.steps or _steps_of_full_parts(record)) if history else []
        tail.steps.extend(filter(None, map(StepMark.of, missing)))
        first = name not in tail.series
        width = look.settings.window.bin_width
        series = tail.series.setdefault(
            name, LookSeries(width) if tail.series else _series_of_full_parts(record, name, width)
        )
        until = look.evidence.until
        router = (*series.earlier_counts(until), *look.router)
        served = series.served_at(look.router)
        bins = with_served_shares(look.evidence.bins, look.splits, served, width=width)
        aggregates = series.aggregates_at(look.splits, look.evidence.aggregates)
        complete = replace(
            look,
            evidence=replace(look.evidence, bins=bins, aggregates=aggregates),
            router=router,
            periods=series.periods_until(until),
            served=served,
        )
        evidence = _evidence_delta(name, complete, series, first=first).model_dump(mode="json", exclude_none=True)
        decision = decide(complete).model_copy(update={"evidence": evidence})
        return _decision_lines([*missing, decision]), tail

    _append_with_retries(record, lines_after)
    assert decision is not None  # noqa: S101 - it was appended
    return decision


def _evidence_delta(name: str, look: LookInput, series: LookSeries, *, first: bool) -> LookEvidence:
    """Return the evidence of a look as stored in the record (a delta to the series), and update the series with it."""
    from controlled_rollout import __version__

    aggregates = look.evidence.aggregates
    stay = aggregates is not None and aggregates == series.aggregates and not first
    evidence = LookEvidence(
        series=name,
        until=look.evidence.until,
        thresholds_ms=look.evidence.thresholds_ms,
        bins=series.bins.delta_to(look.evidence.bins),
        baseline=series.baseline.delta_to(look.evidence.baseline),
        lag=look.evidence.lag,
        router=look.router,
        down=look.down,
        periods=look.periods,
        served=dict(look.served),
        cuts=dict(look.evidence.cuts),
        unseen=look.evidence.unseen,
        aggregates=None if stay else aggregates,
        aggregates_stay=stay or None,
        settings=look.settings if first else None,
        software=__version__ if first else None,
    )
    series.add_counts(look.router, look.evidence.until)
    series.aggregates = aggregates
    return evidence


def _decision_lines(decisions: Sequence[Decision]) -> bytes:
    """Return decisions as a line of JSON each, without the last line break."""
    return b"\n".join(decision.model_dump_json(exclude_none=True).encode() for decision in decisions)


def _recorded_steps(record: RecordStorage, appender: Appender, history: Sequence[Revision]) -> list[StepMark]:
    """Return the steps in the open part, or in the newest full part that has some."""
    return read_step_marks(appender.read_from(0).splitlines()) or _steps_of_full_parts(record)


def _steps_of_full_parts(record: RecordStorage) -> list[StepMark]:
    """Return the steps in the newest full part that has some."""
    for part in reversed(record.parts()):
        if marks := read_step_marks(part.lines()):
            return marks
    return []


def _series_of_full_parts(record: RecordStorage, name: str, bin_width: timedelta) -> LookSeries:
    """Return a series as it goes on in a new part: with what the router had counted and served before, without bins.

    So rows that were too many before stay so, shares that were known stay known, and nothing is evaluated twice.
    """
    wanted = b'"series":"%b"' % name.encode()
    series: LookSeries | None = None
    for part in reversed(record.parts()[-2:]):
        for line in reversed([line for line in part.lines() if wanted in line]):
            decision = _parse_decision(line)
            if decision is None or (evidence := decision.look_evidence()) is None:
                continue
            if series is None:
                series = LookSeries(bin_width, periods=evidence.periods, served=dict(evidence.served))
            series.aggregates = evidence.aggregates
            if not evidence.aggregates_stay:
                return series
    return series or LookSeries(bin_width)


def _append_with_retries(
    record: RecordStorage, lines_after: Callable[[Appender], tuple[bytes, TailState | None]]
) -> None:
    """Append the lines that `lines_after` builds; build them again and retry if another writer appended first."""
    tried: tuple[str, int, bytes] | None = None
    for _ in range(MAX_TRIES):
        tail: TailState | None = None
        written = False
        try:
            with storage_errors(record), record.appending() as appender:
                if tried is not None and _has_line(appender, *tried):
                    return
                line, tail = lines_after(appender)
                if not line:
                    return
                if appender.size and appender.size + len(line) >= storage.MAX_PART_BYTES:
                    appender.retire()
                    continue
                tried = appender.identity, appender.size, line
                length = appender.write(line)
                written = True
            if tail is not None:
                tail.has_appended(line, length)
            return
        except AppendConflict:
            continue
        finally:
            if tail is not None and not written:
                # It already holds the line that was not written: read the part again next time.
                tail.identity = ""
    raise RecordUnavailableError(
        f"the record in {record.name} was changed by other writers {MAX_TRIES} times in a row: nothing was appended"
    )


def _has_line(appender: Appender, identity: str, offset: int, line: bytes) -> bool:
    """Return whether the open part has a line at an offset: it was written although the answer was lost."""
    return appender.identity == identity and appender.read_from(offset).startswith(line + b"\n")


def read(
    workspace: Workspace, endpoint: str, *, version: str | None = None, step: str | None = None
) -> Iterator[Decision]:
    """Yield the decisions about an endpoint, oldest first; optionally only those about one version or of one step.

    A line that a crash cut short is skipped.

    Raises:
        RecordUnavailableError: It cannot be read.
    """
    record = storage_of(workspace, endpoint)
    with storage_errors(record):
        for part in record.parts():
            for decision in read_part(part, step=step):
                if version is None or decision.version == version:
                    yield decision


def read_part(part: RecordPart, *, step: str | None = None) -> Iterator[Decision]:
    """Yield the decisions in one part of a record, oldest first; damaged lines are skipped."""
    wanted = b'"step":"%b"' % step.encode() if step else b""
    for line in part.lines():
        # Most lines are looks: do not parse them when another step is wanted.
        if wanted in line and (decision := _parse_decision(line)) is not None and step in (None, decision.step):
            yield decision


def _parse_decision(line: bytes) -> Decision | None:
    """Return the decision that a line holds; None if the line is damaged."""
    try:
        return Decision.model_validate_json(line)
    except ValidationError:
        return None


def read_newest_first(workspace: Workspace, endpoint: str, version: str) -> Iterator[Decision]:
    """Yield the decisions about a version, newest first; lines that are damaged are skipped.

    Raises:
        RecordUnavailableError: It cannot be read.
    """
    record = storage_of(workspace, endpoint)
    with storage_errors(record):
        for part in reversed(record.parts()):
            for line in reversed(list(part.lines())):
                if (decision := _parse_decision(line)) is not None and decision.version == version:
                    yield decision


def last(workspace: Workspace, endpoint: str, version: str) -> Decision | None:
    """Return the newest decision about a version; None if the record has none.

    Raises:
        RecordUnavailableError: It cannot be read.
    """
    return next(read_newest_first(workspace, endpoint, version), None)


@contextmanager
def storage_errors(record: RecordStorage) -> Iterator[None]:
    """Context manager: turn an OSError of the record's storage into a RecordUnavailableError that names the record.

    Args:
        record: The record.
    """
    try:
        yield
    except OSError as error:
        raise RecordUnavailableError(
            f"the record in {record.name} cannot be read or appended to: {error.strerror or error}; make it available "
            "again, and free disk space if it is full"
        ) from error
