"""The summary of a rollout from its record: its bins, looks and steps over time. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controlled_rollout.errors import ControlledRolloutError, EvidenceError
from controlled_rollout.gate import Bin, Counts, Gate, Moments, Verdict, verdict_from_dict
from controlled_rollout.record.decision import Decision
from controlled_rollout.record.reconstruction import RecordedLook, recorded_looks

__all__ = [
    "RolloutSummary",
    "Span",
    "SummaryLook",
    "SummaryStep",
    "end_of",
    "spans_of",
    "step_label",
    "summarize",
    "without_repetitions",
]

END_WORDS = {"promote": "promoted", "roll back": "rolled back", "hold": "on hold", "ask": "a person is asked"}


@dataclass(frozen=True, slots=True)
class SummaryLook:
    """One look: when, its verdict, and how far its evidence reached (None where it could not see)."""

    time: datetime
    until: datetime | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SummaryStep:
    """A step of the rollout: when, which (in a word or two), who took it, and why."""

    time: datetime
    label: str
    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class RolloutSummary:
    """What the record holds of one rollout.

    Attributes:
        endpoint, version, control: The endpoint, its treatment and its control.
        started: When the treatment was created.
        bin_width: The length of a bin.
        gate: What the treatment had to show.
        thresholds_ms: Control's latency quantiles before the rollout.
        bins: The bins of the last look that could see.
        looks: All looks, oldest first.
        steps: The steps, oldest first; of the looks at labels those whose outcome was a new one.
        by_labels: The last look at labels; None if there is none.
    """

    endpoint: str
    version: str
    control: str
    started: datetime
    bin_width: timedelta
    gate: Gate
    thresholds_ms: tuple[float, ...]
    bins: tuple[Bin, ...]
    looks: tuple[SummaryLook, ...]
    steps: tuple[SummaryStep, ...]
    by_labels: SummaryLook | None = None

    @property
    def end(self) -> str:
        """How the rollout ended, such as "promoted"; "under way" if it has not."""
        return end_of(step.label for step in self.steps)

    @property
    def shown_quantile(self) -> int | None:
        """The index of the gate's latency quantile nearest to p95; None if latency is not judged."""
        if not self.thresholds_ms:
            return None
        quantiles = self.gate.latency_quantiles
        return min(range(len(quantiles)), key=lambda index: abs(quantiles[index] - 0.95))


def end_of(labels: Iterable[str]) -> str:
    """Return how a rollout ended, such as "promoted"; "under way" if it has not.

    Args:
        labels: The labels of its steps, oldest first.
    """
    ends = [END_WORDS[label] for label in labels if label in END_WORDS]
    return ends[-1] if ends else "under way"


def summarize(decisions: Iterable[Decision], *, version: str | None = None) -> RolloutSummary:
    """Return the summary of a version's last rollout (None: of the last version) from the decisions of a record.

    Args:
        decisions: The record, oldest first.
        version: Which version; None for the one that was looked at last.

    Raises:
        ControlledRolloutError: The record has no look at it that could read the metric store.
    """
    all_decisions = list(decisions)
    # A look at labels counts other requests, of a rollout that may be over.
    looks = [
        look
        for look in recorded_looks(all_decisions)
        if look.decision.step == "look" and version in (None, look.decision.version)
    ]
    last = next((look for look in reversed(looks) if look.look is not None), None)
    if last is None or last.look is None:
        of = f"version {version!r}" if version else "any version"
        raise ControlledRolloutError(
            f"the record holds no look at {of} that could read the metric store: there is nothing to draw"
        )
    settings, evidence = last.look.settings, last.look.evidence
    return RolloutSummary(
        endpoint=last.decision.endpoint,
        version=settings.treatment,
        control=settings.control,
        started=settings.started,
        bin_width=settings.window.bin_width,
        gate=settings.gate,
        thresholds_ms=evidence.thresholds_ms,
        bins=evidence.bins,
        looks=_looks_since(looks, settings.treatment, settings.started),
        steps=_steps_since(all_decisions, settings.treatment, settings.started),
        by_labels=_last_by_labels(all_decisions, settings.treatment, settings.started),
    )


def _looks_since(looks: Sequence[RecordedLook], version: str, started: datetime) -> tuple[SummaryLook, ...]:
    """Return the looks at a version since its rollout began, with their verdicts."""
    return tuple(
        SummaryLook(recorded.decision.time, recorded.look.evidence.until if recorded.look else None, verdict)
        for recorded in looks
        if recorded.decision.version == version
        and recorded.decision.time >= started
        and (verdict := _read_verdict(recorded.decision.verdict)) is not None
    )


def _read_verdict(values: Mapping[str, Any] | None) -> Verdict | None:
    """Return a recorded verdict; None if it is missing or cannot be read."""
    try:
        return verdict_from_dict(values or {})
    except EvidenceError:
        return None


def _steps_since(decisions: Sequence[Decision], version: str, started: datetime) -> tuple[SummaryStep, ...]:
    """Return the steps other than looks that were taken on a version since its rollout began.

    Of the looks at labels, of which there may be one an hour for weeks, those are taken whose outcome was a new one.
    """
    # The record's line of a roll-out is a moment later than the version's creation.
    own = [one for one in decisions if one.version == version and one.step != "look" and one.time >= started]
    return tuple(SummaryStep(one.time, step_label(one), one.who, one.reason) for one in without_repetitions(own))


def without_repetitions(decisions: Iterable[Decision]) -> Iterator[Decision]:
    """Yield decisions without the looks at labels whose outcome was that of the look before.

    Args:
        decisions: The decisions, oldest first.
    """
    outcomes: dict[str, str | None] = {}
    for decision in decisions:
        if decision.step == "judge_labels":
            if outcomes.get(decision.version) == decision.outcome:
                continue
            outcomes[decision.version] = decision.outcome
        yield decision


def _last_by_labels(decisions: Sequence[Decision], version: str, started: datetime) -> SummaryLook | None:
    """Return the last look at labels of a version since its rollout began; None if there is none."""
    for decision in reversed(decisions):
        if decision.step == "judge_labels" and decision.version == version and decision.time >= started:
            verdict = _read_verdict(decision.verdict)
            return None if verdict is None else SummaryLook(decision.time, None, verdict)
    return None


def step_label(decision: Decision) -> str:
    """Return the short name of a step: `10 %` for a shift, `labels: pass` for a look at labels.

    Args:
        decision: The step's line of the record.
    """
    if decision.step == "shift" and decision.share is not None:
        return f"{decision.share:g} %"
    if decision.step == "judge_labels":
        return f"labels: {(decision.outcome or '').replace('_', ' ')}"
    return decision.step.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Span:
    """Several bins together.

    Attributes:
        start: When the first of them begins.
        length: From there to the end of the last.
        control, treatment: Their counts; of the author's metrics means without variances.
        share: The set share of the last of them that has one.
    """

    start: datetime
    length: timedelta
    control: Counts
    treatment: Counts
    share: float | None


def spans_of(summary: RolloutSummary, *, most: int) -> list[Span]:
    """Join neighbouring bins into at most `most` spans of the same duration."""
    if not summary.bins:
        return []
    first = summary.bins[0].start
    n_bins = (summary.bins[-1].start - first) // summary.bin_width + 1
    length = summary.bin_width * -(-n_bins // most)
    groups: dict[int, list[Bin]] = {}
    for bin_ in summary.bins:
        groups.setdefault((bin_.start - first) // length, []).append(bin_)
    return [
        Span(
            first + index * length,
            length,
            _sum_counts([bin_.control for bin_ in bins]),
            _sum_counts([bin_.treatment for bin_ in bins]),
            next((bin_.share for bin_ in reversed(bins) if bin_.share is not None), None),
        )
        for index, bins in sorted(groups.items())
    ]


def _sum_counts(counts: Sequence[Counts]) -> Counts:
    """Return the sum of several counts; of means the pooled ones, without their variances."""
    slow = tuple(map(sum, zip(*(part.slow for part in counts), strict=True)))
    means: dict[str, Moments] = {}
    categories: dict[str, Counter[str]] = {}
    for part in counts:
        for name, tally in part.categories.items():
            categories.setdefault(name, Counter()).update(tally)
        for name, moments in part.means.items():
            before = means.get(name, Moments(0))
            number = before.count + moments.count
            if number:
                mean = (before.count * before.mean + moments.count * moments.mean) / number
                means[name] = Moments(number, mean)
    requests, errors = sum(part.requests for part in counts), sum(part.errors for part in counts)
    overloaded = sum(part.overloaded for part in counts)
    return Counts(requests, errors, slow, means, categories, overloaded=overloaded)
