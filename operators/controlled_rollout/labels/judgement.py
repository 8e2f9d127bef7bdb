"""One look at labels: the labels that have arrived so far -> the gate's verdict, from what is stored alone."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from controlled_rollout.duration import format_duration
from controlled_rollout.errors import ArgumentError, EvidenceUnavailableError, StorageError
from controlled_rollout.evidence import SplitChange
from controlled_rollout.evidence.bins import closed_until
from controlled_rollout.evidence.collected.completeness import SILENT, ReplicaState, incomplete
from controlled_rollout.evidence.collected.part_files import PartFiles
from controlled_rollout.gate import Bin, Outcome, Verdict, cannot_see, judge
from controlled_rollout.labels.bins import LabelBins, Requests, label_bins
from controlled_rollout.labels.joined import JoinCounts, joined
from controlled_rollout.labels.measures import Measures
from controlled_rollout.labels.periods import Period, periods_of
from controlled_rollout.labels.settings import LABELLED, Labels
from controlled_rollout.labels.source import LabelRow, LabelSource
from controlled_rollout.workspace import Workspace

__all__ = ["LabelCounts", "LabelLook", "check_time", "judge_labels", "verdict_of"]

LONGEST: Final = timedelta(days=366)
# So long after the requests what a replica has collected may still be shipped; then it counts as gone with its node.
LATEST: Final = timedelta(days=1)
# With so many labelled requests and not one right answer, predictions and labels are not the same kind of thing.
NONE_RIGHT: Final = 30


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """What a look has counted.

    Attributes:
        control, treatment: All answered requests of each version that may be compared, labelled or not.
        control_labelled, treatment_labelled: Those whose label was judged.
        waiting: Labelled requests whose bin is not complete yet.
        labels: What became of the labels that were read.
        problems: How many labels could not be used, by what is wrong with them.
    """

    control: int = 0
    treatment: int = 0
    control_labelled: int = 0
    treatment_labelled: int = 0
    waiting: int = 0
    labels: JoinCounts = field(default_factory=JoinCounts)
    problems: dict[str, int] = field(default_factory=dict)

    def shares(self) -> str:
        """Return how many of each version's requests are labelled, as text."""
        return (
            f"{_percent_text(self.treatment_labelled, self.treatment)} of the treatment's {self.treatment:,} requests "
            f"are labelled, {_percent_text(self.control_labelled, self.control)} of control's {self.control:,}"
        )

    def text(self) -> str:
        """Return the counts in a sentence; what is 0 is left out."""
        parts = [self.shares()]
        joined_counts = self.labels
        for number, what in (
            (self.waiting, "wait for others to be judged with them"),
            (joined_counts.unknown, "name no such request"),
            (joined_counts.early, "are older than their request and are not used"),
            (joined_counts.corrections, "correct an earlier one and are not used"),
            (joined_counts.repeated, "repeat an earlier one"),
            *((number, f"are not used: {problem}") for problem, number in sorted(self.problems.items())),
        ):
            if number:
                parts.append(f"{number:,} labels {what}")
        if joined_counts.shared_ids:
            parts.append(
                f"{joined_counts.shared_ids:,} requests have the correlation id of an earlier one, which counts"
            )
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class LabelLook:
    """One look at the labels that have arrived.

    Attributes:
        verdict: What the gate concludes.
        bins: The bins that it has judged: `judge(bins, labels.gate())` concludes the same again.
        counts: What was counted.
        since, until: The requests that are judged arrived in this time.
        arrived_until: The labels that are judged arrived before.
        unseen: Why nothing can be seen, in a sentence; empty if it can.
    """

    verdict: Verdict
    bins: tuple[Bin, ...]
    counts: LabelCounts
    since: datetime
    until: datetime
    arrived_until: datetime
    unseen: str = ""


def judge_labels(
    workspace: Workspace,
    endpoint: str,
    *,
    control: str,
    treatment: str,
    labels: Labels,
    source: LabelSource,
    since: datetime,
    until: datetime,
    splits: Sequence[SplitChange] = (),
    now: datetime | None = None,
) -> LabelLook:
    """Judge a treatment against control by the labels that have arrived for the requests of a time.

    Everything is read anew at each look, and a label counts by the time at which it arrived: looks may be as many as
    one likes, by whatever processes. What cannot be read is the outcome `cannot_see`.

    Args:
        workspace: Where the collected data is.
        endpoint: The endpoint's name.
        control: The version that is compared with.
        treatment: The version that is judged.
        labels: What labels are compared with, and what the treatment has to show.
        source: Where labels come from.
        since: The requests that are judged arrived from then on.
        until: They arrived before; it has to be over, because the versions are compared over all of these requests.
        splits: The splits that were set, oldest first; none: not known, and each UTC day is compared by itself.
        now: The time of the look; None for the present.

    Raises:
        ArgumentError: The time is none, or a function of the author's cannot be imported.
    """
    now = now or datetime.now(UTC)
    check_time(since, until)
    arrived_until = closed_until(now, allowed_lag=labels.allowed_lag, width=labels.bin_width)
    asked = _Question(workspace, endpoint, (control, treatment), labels, source, since, until, now, arrived_until)
    counts, bins, unseen = _read_arrived(asked, Measures(labels), periods_of(since, until, splits))
    verdict = verdict_of(tuple(bins), labels, counts, unseen)
    return LabelLook(verdict, tuple(bins), counts, since, until, arrived_until, unseen)


@dataclass(frozen=True, slots=True)
class _Question:
    """What one look asks; the attributes are those of `judge_labels` and `LabelLook`."""

    workspace: Workspace
    endpoint: str
    versions: tuple[str, str]
    labels: Labels
    source: LabelSource
    since: datetime
    until: datetime
    now: datetime
    arrived_until: datetime


def _read_arrived(
    asked: _Question, measures: Measures, periods: Sequence[Period]
) -> tuple[LabelCounts, list[Bin], str]:
    """Return what the labels that have arrived give: counts, bins, and why nothing can be seen, empty if it can."""
    since, until, labels = asked.since, asked.until, asked.labels
    if until > asked.now - labels.allowed_lag:
        problem = (
            f"the requests until {until:%Y-%m-%d %H:%M} are judged, and that is not over: look again after it, or "
            "judge a time that is over"
        )
        return LabelCounts(), [], problem
    if not periods:
        problem = (
            f"versions {asked.versions[0]!r} and {asked.versions[1]!r} had no traffic at the same time from "
            f"{since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M}: give a time in which both had"
        )
        return LabelCounts(), [], problem
    counts = LabelCounts()
    try:
        files = PartFiles.of(asked.workspace)
        for version in asked.versions:
            _check_complete(files, asked.endpoint, version, since=since, until=until, now=asked.now)
        rows = _arrived_labels(
            asked.source.read(since=since, until=asked.arrived_until, limit=labels.max_labels), asked
        )
        with joined(files, asked.endpoint, asked.versions, labels, rows, since=since, until=until) as join:
            totals = join.totals(periods)
            found = label_bins(join.requests(), labels, measures, periods, totals)
            counts = _counts(totals, found, join.counts())
        unseen = _why_not_judged(labels, counts, found, until=until, now=asked.now)
    except (EvidenceUnavailableError, StorageError) as error:
        return counts, [], str(error)
    return counts, found.bins, unseen


def _arrived_labels(rows: Iterable[LabelRow], asked: _Question) -> Iterator[LabelRow]:
    """Yield the labels that arrived in the time, whatever else a source has given.

    Raises:
        EvidenceUnavailableError: An arrival has no time zone.
    """
    for row in rows:
        if row.arrived.tzinfo is None:
            raise EvidenceUnavailableError(
                f"a label of {asked.source.description} has an arrival without a time zone: give one, such as UTC"
            )
        if asked.since <= row.arrived < asked.arrived_until:
            yield row


def verdict_of(bins: Sequence[Bin], labels: Labels, counts: LabelCounts, unseen: str = "") -> Verdict:
    """Return the verdict on bins of labelled requests. Pure.

    Args:
        bins: Complete bins.
        labels: What the treatment has to show.
        counts: What is said with it.
        unseen: Why nothing can be seen, in a sentence; empty if it can.
    """
    if unseen:
        return cannot_see(unseen)
    verdict = judge(bins, labels.gate())
    reason, claims = verdict.reason, list(verdict.claims)
    for number, claim in enumerate(claims):
        if claim.name.startswith(LABELLED) and claim.kind == "split":
            # The gate adds up what has no label yet at each bin: of all requests it is told better.
            reason = reason.replace(claim.detail, counts.shares())
            claims[number] = replace(claim, detail=counts.shares())
    if not bins and verdict.outcome is Outcome.NOT_ENOUGH_EVIDENCE:
        reason = "no label has arrived yet" if not counts.labels.read else "not enough labels to be judged yet"
    return replace(verdict, claims=tuple(claims), reason="; ".join((reason, counts.text())))


def check_time(since: datetime | None, until: datetime | None) -> None:
    """Raise ArgumentError if a time has no time zone, is empty, or longer than a year.

    Args:
        since: When it begins; None if that is not given.
        until: When it ends; None likewise.
    """
    for name, moment in (("since", since), ("until", until)):
        if moment is not None and moment.tzinfo is None:
            raise ArgumentError(f"{name} = {moment.isoformat()} has no time zone: give one, such as UTC")
    if since is not None and until is not None and not since < until <= since + LONGEST:
        raise ArgumentError(
            f"the requests from {since.isoformat()} to {until.isoformat()} cannot be judged: give a time of at most "
            f"{LONGEST.days} days, `since` before `until`"
        )


def _check_complete(
    files: PartFiles, endpoint: str, version: str, *, since: datetime, until: datetime, now: datetime
) -> None:
    """Raise EvidenceUnavailableError if some of what a version collected in the time is lost, or not in the storage."""
    states = list(files.states(endpoint, version, since=since - timedelta(hours=1)))
    problem = incomplete(
        version, [_state_until(one, until) for one in states], (), share=1.0, started=since, until=until, now=now
    )
    if problem:
        raise EvidenceUnavailableError(problem)
    silent = [
        one.replica for one in states if one.updated >= since and not one.final and one.shipped_until < until
        and now - one.updated > SILENT
    ]  # fmt: skip
    if silent and now - until <= LATEST:
        raise EvidenceUnavailableError(
            f"replica {silent[0]} of version {version!r} has not said that it shipped what it collected up to "
            f"{until:%Y-%m-%d %H:%M}, and is silent: check that its collector reaches the storage; "
            f"{format_duration(LATEST)} after that time it counts as lost"
        )


def _state_until(state: ReplicaState, until: datetime) -> ReplicaState:
    """Return a replica's state without what it has lost after a time: that says nothing of the requests before."""
    return replace(state, dropped=0, unreadable=0) if state.lost_at is not None and state.lost_at >= until else state


def _counts(totals: Sequence[Requests], bins: LabelBins, labels: JoinCounts) -> LabelCounts:
    """Return what a look has counted, of the periods in which both versions had requests."""
    compared = [total for total in totals if total.control and total.treatment]
    return LabelCounts(
        control=sum(total.control for total in compared),
        treatment=sum(total.treatment for total in compared),
        control_labelled=bins.labelled["control"],
        treatment_labelled=bins.labelled["treatment"],
        waiting=bins.waiting,
        labels=labels,
        problems=bins.problems,
    )


def _why_not_judged(labels: Labels, counts: LabelCounts, bins: LabelBins, *, until: datetime, now: datetime) -> str:
    """Return a sentence on why the labels that were read cannot be what is to be judged; empty if they can."""
    if not counts.control or not counts.treatment:
        return "no request of both versions was collected at a time at which both had traffic"
    found = counts.labels
    used = found.read - found.unknown - found.early
    if not used and now - until > labels.expected_within:
        if not found.read:
            return (
                f"not one label has arrived, and the requests are older than {labels.expected_within}: check that "
                "labels are written, or give a longer expected_within"
            )
        return (
            f"{found.read:,} labels were read, and none of them names one of the {counts.control + counts.treatment:,} "
            f"requests ({found.early:,} arrived before theirs): check that they have the correlation ids of requests"
        )
    if "accuracy" in labels.metrics:
        arms = (arm.categories.get("accuracy", {}) for bin_ in bins.bins for arm in (bin_.control, bin_.treatment))
        answers = sum(map(Counter, arms), Counter[str]())
        right, wrong = answers["no"], answers["yes"]
        if not right and wrong >= NONE_RIGHT:
            return (
                f"not one of {wrong:,} answers is right, of neither version: check that {labels.prediction} and the "
                "labels are the same kind of value"
            )
    return ""


def _percent_text(some: int, total: int) -> str:
    """Return a part as per cent."""
    return f"{100 * some / total:.3g} %" if total else "none"
