"""The record: every step and every look at the evidence, appended, oldest first, for each endpoint."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import ValidationError

from controlled_rollout.evidence import Reading
from controlled_rollout.gate import Bin
from controlled_rollout.record import place
from controlled_rollout.record.decision import Counted, Decision, LookEvidence, Stretch
from controlled_rollout.record.place import Appender, OvertakenError, Part, place_of
from controlled_rollout.record.series import Followed, Series, follow, name_of
from controlled_rollout.workspace import Workspace

__all__ = ["Decision", "LookEvidence", "Seen", "Stretch", "append", "append_look", "last", "read", "read_part"]

# Of many writers at once each is overtaken a few times; more than this is no accident.
MOST_TRIES: Final = 50


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
        down: That the treatment was down, in a sentence; empty if it was not.
    """

    settings: dict[str, Any]
    bins: tuple[Bin, ...]
    baseline: tuple[Bin, ...]
    until: datetime
    thresholds_ms: tuple[float, ...] = ()
    lag: timedelta | None = None
    router: tuple[Reading, ...] = ()
    down: str = ""


def append(workspace: Workspace, decision: Decision) -> None:
    """Append one decision; it is kept for good when this returns.

    Raises:
        OSError: It cannot be kept.
    """
    line = decision.model_dump_json(exclude_none=True).encode()
    _append(workspace, decision.endpoint, lambda appender: (line, None))


def append_look(workspace: Workspace, decision: Decision, seen: Seen) -> None:
    """Append a look with what it saw: of the bins only those that the record does not have yet.

    Args:
        workspace: Where the record is.
        decision: The look, without its evidence.
        seen: What it saw.

    Raises:
        OSError: It cannot be kept.
    """
    from controlled_rollout import __version__

    name = name_of(seen.settings, decision.version)

    def line_after(appender: Appender) -> tuple[bytes, Followed]:
        followed = follow(appender)
        begins = name not in followed.series
        series = followed.series.setdefault(name, Series())
        evidence = LookEvidence(
            series=name,
            until=seen.until,
            thresholds_ms=seen.thresholds_ms,
            bins=series.bins.stretch_to(seen.bins),
            baseline=series.baseline.stretch_to(seen.baseline),
            lag_s=None if seen.lag is None else seen.lag.total_seconds(),
            router=tuple(Counted(at=one.at, requests=dict(one.requests)) for one in seen.router),
            down=seen.down,
            settings=seen.settings if begins else None,
            software=__version__ if begins else None,
        )
        values = evidence.model_dump(mode="json", exclude_none=True)
        return decision.model_copy(update={"evidence": values}).model_dump_json(exclude_none=True).encode(), followed

    _append(workspace, decision.endpoint, line_after)


def _append(
    workspace: Workspace, endpoint: str, line_after: Callable[[Appender], tuple[bytes, Followed | None]]
) -> None:
    """Append the line that follows from what the record holds; begin again if somebody else was faster."""
    where = place_of(workspace, endpoint)
    tried: tuple[str, int, bytes] | None = None
    for _ in range(MOST_TRIES):
        followed: Followed | None = None
        written = False
        try:
            with where.appending() as appender:
                if tried is not None and _has(appender, *tried):
                    return
                line, followed = line_after(appender)
                if appender.size and appender.size + len(line) >= place.MAX_PART_BYTES:
                    appender.retire()
                    continue
                tried = appender.identity, appender.size, line
                length = appender.write(line)
                written = True
            if followed is not None:
                followed.offset = length
            return
        except OvertakenError:
            continue
        finally:
            if followed is not None and not written:
                # What was not written must not count as written: the part is read anew next time.
                followed.identity = ""
    raise OSError(f"the record in {where.name} is being appended to by others all the time: nothing was appended")


def _has(appender: Appender, identity: str, offset: int, line: bytes) -> bool:
    """Whether a line stands where it was to be appended: its answer had got lost on the way."""
    return appender.identity == identity and appender.read_from(offset).startswith(line + b"\n")


def read(
    workspace: Workspace, endpoint: str, *, version: str | None = None, step: str | None = None
) -> Iterator[Decision]:
    """Yield the decisions about an endpoint (or about one version of it, or of one step), oldest first.

    A line that a crash cut short is passed over.
    """
    for part in place_of(workspace, endpoint).parts():
        for decision in read_part(part, step=step):
            if version is None or decision.version == version:
                yield decision


def read_part(part: Part, *, step: str | None = None) -> Iterator[Decision]:
    """Yield the decisions in one part of a record (or those of one step), oldest first; other lines are passed over."""
    wanted = b'"step":"%b"' % step.encode() if step else b""
    for line in part.lines():
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
    for part in reversed(place_of(workspace, endpoint).parts()):
        for line in reversed(list(part.lines())):
            if (decision := _decision(line)) is not None and decision.version == version:
                return decision
    return None
