"""The record: every step and every look at the evidence, appended to one file per endpoint, oldest first."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from controlled_rollout.evidence import Reading
from controlled_rollout.gate import Bin
from controlled_rollout.record.decision import Counted, Decision, LookEvidence, Stretch
from controlled_rollout.record.file import appending, files_of, record_file
from controlled_rollout.record.series import Series, follow, name_of
from controlled_rollout.workspace import Workspace

__all__ = ["Decision", "LookEvidence", "Seen", "Stretch", "append", "append_look", "last", "read", "read_file"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look saw, for the record.

    Attributes:
        settings: What is the same for all looks of one gate on one rollout, as JSON.
        bins: All closed bins since the rollout began.
        baseline: Control's bins before it.
        until: How far the evidence reaches.
        thresholds_ms: Control's latency quantiles before the rollout, in milliseconds.
        lag: How late telemetry has come; None where the store does not tell.
        router: What the router had counted, at the moments that the verdict rests on.
    """

    settings: dict[str, Any]
    bins: tuple[Bin, ...]
    baseline: tuple[Bin, ...]
    until: datetime
    thresholds_ms: tuple[float, ...] = ()
    lag: timedelta | None = None
    router: tuple[Reading, ...] = ()


def append(workspace: Workspace, decision: Decision) -> None:
    """Append one decision; it is on disk when this returns."""
    file = record_file(workspace, decision.endpoint)
    line = decision.model_dump_json(exclude_none=True).encode()
    with appending(file) as appender:
        if not appender.is_full(len(line)):
            appender.write(line)
            return
        appender.retire()
    append(workspace, decision)


def append_look(workspace: Workspace, decision: Decision, seen: Seen) -> None:
    """Append a look with what it saw: of the bins only those that the record does not have yet.

    Args:
        workspace: Where the record is.
        decision: The look, without its evidence.
        seen: What it saw.
    """
    from controlled_rollout import __version__

    name = name_of(seen.settings, decision.version)
    with appending(record_file(workspace, decision.endpoint)) as appender:
        followed = follow(appender)
        begins = name not in followed.series
        series = followed.series.setdefault(name, Series())
        try:
            evidence = LookEvidence(
                series=name,
                until=seen.until,
                thresholds_ms=seen.thresholds_ms,
                bins=series.bins.stretch_to(seen.bins),
                baseline=series.baseline.stretch_to(seen.baseline),
                lag_s=None if seen.lag is None else seen.lag.total_seconds(),
                router=tuple(Counted(at=one.at, requests=dict(one.requests)) for one in seen.router),
                settings=seen.settings if begins else None,
                software=__version__ if begins else None,
            )
            values = evidence.model_dump(mode="json", exclude_none=True)
            line = decision.model_copy(update={"evidence": values}).model_dump_json(exclude_none=True).encode()
            if not appender.is_full(len(line)):
                followed.offset = appender.write(line)
                return
        except BaseException:
            # What was not written must not count as written: the file is read anew next time.
            followed.inode = 0
            raise
        appender.retire()
    append_look(workspace, decision, seen)


def read(
    workspace: Workspace, endpoint: str, *, version: str | None = None, step: str | None = None
) -> Iterator[Decision]:
    """Yield the decisions about an endpoint (or about one version of it, or of one step), oldest first.

    A line that a crash cut short is passed over.
    """
    for file in files_of(record_file(workspace, endpoint)):
        for decision in read_file(file, step=step):
            if version is None or decision.version == version:
                yield decision


def read_file(file: Path, *, step: str | None = None) -> Iterator[Decision]:
    """Yield the decisions in one file of a record (or those of one step), oldest first; other lines are passed over."""
    wanted = b'"step":"%b"' % step.encode() if step else b""
    try:
        lines = file.open("rb")
    except FileNotFoundError:  # put aside and deleted in between
        return
    with lines:
        for line in lines:
            # Most lines are looks: who asks for something else need not take them apart.
            if wanted in line and (decision := _decision(line)) is not None and step in (None, decision.step):
                yield decision


def _decision(line: bytes) -> Decision | None:
    try:
        return Decision.model_validate_json(line)
    except ValidationError:
        return None


def last(workspace: Workspace, endpoint: str, version: str) -> Decision | None:
    """Return the newest decision about a version, or None."""
    for file in reversed(files_of(record_file(workspace, endpoint))):
        for line in reversed(file.read_bytes().splitlines()):
            if (decision := _decision(line)) is not None and decision.version == version:
                return decision
    return None
