"""The course of a rollout out of its record: its bins, looks and steps over time. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controlled_rollout.errors import ControlledRolloutError, EvidenceError
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Bin, Counts, Gate, Verdict, verdict_from_dict
from controlled_rollout.record.decision import Decision
from controlled_rollout.record.replay import Replayed, replay

__all__ = ["Course", "Event", "LookAt", "Span", "course_of", "spans_of"]


@dataclass(frozen=True, slots=True)
class LookAt:
    """One look: when, what it concluded, and how far its evidence reached (None where it saw nothing)."""

    time: datetime
    until: datetime | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Event:
    """A step of the rollout, in a word or two, and who took it."""

    time: datetime
    label: str
    who: str
    why: str


@dataclass(frozen=True, slots=True)
class Course:
    """A rollout as its record tells it.

    Attributes:
        endpoint, version, control: Whose.
        started: When the treatment was created.
        bin_width: The length of a bin.
        gate: What the treatment had to show.
        thresholds_ms: Control's latency quantiles before the rollout.
        bins: What the last look that could see has seen.
        looks: All looks, oldest first.
        events: The steps, oldest first.
    """

    endpoint: str
    version: str
    control: str
    started: datetime
    bin_width: timedelta
    gate: Gate
    thresholds_ms: tuple[float, ...]
    bins: tuple[Bin, ...]
    looks: tuple[LookAt, ...]
    events: tuple[Event, ...]

    @property
    def end(self) -> str:
        """How it ended, or that it goes on."""
        words = {"promote": "promoted", "roll back": "rolled back", "hold": "on hold", "ask": "a person is asked"}
        ends = [words[event.label] for event in self.events if event.label in words]
        return ends[-1] if ends else "under way"

    @property
    def slow_index(self) -> int | None:
        """Which of the gate's latency quantiles is shown: the one nearest to p95; None where latency is not judged."""
        if not self.thresholds_ms:
            return None
        quantiles = self.gate.latency_quantiles
        return min(range(len(quantiles)), key=lambda index: abs(quantiles[index] - 0.95))


def course_of(decisions: Iterable[Decision], *, version: str | None = None) -> Course:
    """Return the course of a version's last rollout.

    Args:
        decisions: The record, oldest first.
        version: Which version; None for the one that was looked at last.

    Raises:
        ControlledRolloutError: There is no look at it that could see anything.
    """
    everything = list(decisions)
    looks = [one for one in replay(everything, judged=False) if version in (None, one.decision.version)]
    seen = [one for one in looks if one.evidence is not None]
    if not seen:
        of = f"version {version!r}" if version else "any version"
        raise ControlledRolloutError(
            f"the record holds no look at {of} that could read the metric store: there is nothing to draw"
        )
    last = seen[-1]
    settings, evidence = last.settings, last.evidence
    started = datetime.fromisoformat(settings["started"])
    name = last.decision.version
    assert evidence is not None  # noqa: S101 - of those that were seen
    return Course(
        endpoint=last.decision.endpoint,
        version=name,
        control=settings["control"],
        started=started,
        bin_width=EvidenceWindow.model_validate(settings["window"]).bin_width,
        gate=Gate.model_validate(settings["gate"]),
        thresholds_ms=evidence.thresholds_ms,
        bins=evidence.bins,
        looks=_looks_of(looks, name, started),
        events=_events_of(everything, name, started),
    )


def _looks_of(looks: Sequence[Replayed], version: str, started: datetime) -> tuple[LookAt, ...]:
    return tuple(
        LookAt(one.decision.time, one.evidence.until if one.evidence else None, verdict)
        for one in looks
        if one.decision.version == version
        and one.decision.time >= started
        and (verdict := _verdict(one.decision.verdict)) is not None
    )


def _verdict(values: Mapping[str, Any] | None) -> Verdict | None:
    try:
        return verdict_from_dict(values or {})
    except EvidenceError:
        return None


def _events_of(decisions: Sequence[Decision], version: str, started: datetime) -> tuple[Event, ...]:
    # The record says that a version was rolled out a moment after it was created.
    return tuple(
        Event(one.time, _label(one), one.who, one.why)
        for one in decisions
        if one.version == version and one.step != "look" and one.time >= started
    )


def _label(decision: Decision) -> str:
    if decision.step == "shift" and decision.share is not None:
        return f"{decision.share:g} %"
    return decision.step.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Span:
    """Several bins together.

    Attributes:
        start: When the first of them begins.
        length: From there to the end of the last.
        control, treatment: Their counts.
        share: The set share of the last of them that has one.
    """

    start: datetime
    length: timedelta
    control: Counts
    treatment: Counts
    share: float | None


def spans_of(course: Course, *, most: int) -> list[Span]:
    """Return the rollout's bins, put together to at most so many spans of the same length."""
    if not course.bins:
        return []
    first = course.bins[0].start
    number = (course.bins[-1].start - first) // course.bin_width + 1
    length = course.bin_width * -(-number // most)
    groups: dict[int, list[Bin]] = {}
    for one in course.bins:
        groups.setdefault((one.start - first) // length, []).append(one)
    return [
        Span(
            first + place * length,
            length,
            _sum([one.control for one in bins]),
            _sum([one.treatment for one in bins]),
            next((one.share for one in reversed(bins) if one.share is not None), None),
        )
        for place, bins in sorted(groups.items())
    ]


def _sum(counts: Sequence[Counts]) -> Counts:
    slow = tuple(map(sum, zip(*(one.slow for one in counts), strict=True)))
    return Counts(sum(one.requests for one in counts), sum(one.errors for one in counts), slow)
