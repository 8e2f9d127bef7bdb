"""A treatment against its control over time, built line by line from the record and kept small."""

import json
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate import Verdict, verdict_from_dict
from controlled_rollout.record import Decision, LookSettings
from controlled_rollout.record.summary import step_label
from controlled_rollout.view.count_series import CountSeries
from controlled_rollout.view.followed_record import FollowedLine
from controlled_rollout.view.models import OutcomeName

__all__ = ["LookPoint", "RolloutSeries", "StepLine"]

# Looks that a chart shows at least, if there are so many: at most twice as many. Of full parts not all looks are read.
LOOKS: Final = 100
EVERY_OLD_LOOK: Final = 8
NEWEST_LOOKS: Final = 50
# Steps that are kept, of all versions, before it is known which rollout they belong to.
STEPS: Final = 200
# Series of looks of one rollout whose bins are kept: each gate has one of its own.
SERIES: Final = 2
LOOK: Final = b'"step":"look"'
ADDED_BINS: Final = b'"add":['
NEXT_BIN: Final = re.compile(rb',(?=\{"start":)')
END_OF_BINS: Final = b'],"digest":'


@dataclass(frozen=True, slots=True)
class LookPoint:
    """What a chart shows of a look.

    Attributes:
        time: When.
        outcome: What it concluded.
        e_values: The most evidence so far, by claim.
    """

    time: datetime
    outcome: OutcomeName
    e_values: dict[str, float]


@dataclass(frozen=True, slots=True)
class LookLine:
    """A look of the list of looks; see `view.models.LookEntry`."""

    time: datetime
    outcome: OutcomeName
    reason: str
    share: float | None
    control_requests: int
    treatment_requests: int


@dataclass(frozen=True, slots=True)
class StepLine:
    """A step of a rollout: when, of which version, which in a word or two, who took it, and why."""

    time: datetime
    version: str
    label: str
    who: str
    reason: str


@dataclass
class RolloutSeries:
    """What is known of the newest rollout that a gate has looked at.

    Attributes:
        settings: The settings of its newest look; None before the first.
        thresholds_ms: Control's latency quantiles before the rollout.
        verdict: The newest look's.
        looked: When that was.
        look_count: How many looks were read.
        points: Looks for a chart: every so many of them.
        newest: The newest looks, oldest first.
        steps: The newest steps of all versions, oldest first.
    """

    settings: LookSettings | None = None
    thresholds_ms: tuple[float, ...] = ()
    verdict: Verdict | None = None
    looked: datetime | None = None
    look_count: int = 0
    points: list[LookPoint] = field(default_factory=list)
    newest: "deque[LookLine]" = field(default_factory=lambda: deque(maxlen=NEWEST_LOOKS))
    steps: "deque[StepLine]" = field(default_factory=lambda: deque(maxlen=STEPS))
    _every: int = 1
    _last_point: LookPoint | None = None
    _settings: dict[str, LookSettings] = field(default_factory=dict)
    _counts: dict[str, CountSeries] = field(default_factory=dict)
    _old_looks: int = 0

    def add(self, line: FollowedLine) -> None:
        """Add a line of the record; a damaged one changes nothing.

        Args:
            line: The line; they come oldest first.
        """
        is_look = LOOK in line.content
        if is_look and line.is_in_full_part:
            # The newest part has all the bins: of older looks a chart shows only a part of the e-values.
            self._old_looks += 1
            if self._old_looks % EVERY_OLD_LOOK != 1:
                self.look_count += 1
                return
        try:
            values, bins = _values_and_bins(line)
            decision = Decision.model_validate(values)
            if decision.step == "look":
                self._add_look(decision, bins)
        except (ValidationError, ValueError, LookupError, TypeError, RecursionError):  # a crash cut the line short
            return
        if decision.step != "look" and not (decision.step == "judge_labels" and self._is_repeated(decision)):
            line_of = StepLine(decision.time, decision.version, step_label(decision), decision.who, decision.reason)
            self.steps.append(line_of)

    @property
    def counts(self) -> CountSeries | None:
        """The bins of the newest series of looks; None before the first that could see."""
        return next(reversed(self._counts.values()), None)

    def chart_looks(self) -> Iterator[LookPoint]:
        """Yield the looks for a chart, oldest first, the newest one among them."""
        yield from self.points
        if self._last_point is not None and (not self.points or self.points[-1] is not self._last_point):
            yield self._last_point

    def _is_repeated(self, decision: Decision) -> bool:
        """Return whether a look at labels has the outcome of the one before it."""
        label = step_label(decision)
        former = [step.label for step in self.steps if step.version == decision.version]
        return next((one for one in reversed(former) if one.startswith("labels: ")), "") == label

    def _add_look(self, decision: Decision, bins: Mapping[str, Any] | None) -> None:
        """Add a look: its verdict and, if it could see, its bins."""
        try:
            evidence = decision.look_evidence()
        except ValidationError:
            evidence = None
        if evidence is not None:
            if evidence.settings is not None:
                self._begin_series(evidence.series, evidence.settings)
            if (settings := self._settings.get(evidence.series)) is not None:
                self.settings, self.thresholds_ms = settings, evidence.thresholds_ms
                self._apply_bins(evidence.series, settings, bins or evidence.bins.model_dump())
        if self.settings is not None and decision.version != self.settings.treatment:
            return
        try:
            verdict = verdict_from_dict(decision.verdict or {})
        except EvidenceError:
            return
        self.verdict, self.looked = verdict, decision.time
        outcome: OutcomeName = verdict.outcome.value
        self.newest.append(
            LookLine(
                decision.time,
                outcome,
                verdict.reason,
                decision.share,
                verdict.control_requests,
                verdict.treatment_requests,
            )
        )
        # Hundreds of looks have the same names.
        e_values = {sys.intern(claim.name): claim.e_value for claim in verdict.claims}
        self._last_point = LookPoint(decision.time, outcome, e_values)
        if self.look_count % self._every == 0:
            self.points.append(self._last_point)
            if len(self.points) > 2 * LOOKS:
                self.points, self._every = self.points[::2], 2 * self._every
        self.look_count += 1

    def _begin_series(self, series: str, settings: LookSettings) -> None:
        """Take note of the settings of a series of looks; those of another rollout begin anew."""
        present = self.settings
        if present is not None and (present.treatment, present.started) != (settings.treatment, settings.started):
            steps = self.steps
            fresh = RolloutSeries()
            self.__dict__.update(fresh.__dict__)
            self.steps = steps
        self._settings[series] = settings
        # Its first line in a part has all its bins.
        self._counts.pop(series, None)

    def _apply_bins(self, series: str, settings: LookSettings, bins: Mapping[str, Any]) -> None:
        """Apply a look's bins to its series, and make that the newest one."""
        width = settings.window.bin_width.total_seconds()
        counts = self._counts.pop(series, None) or CountSeries(width, len(settings.gate.latency_quantiles))
        counts.apply(bins["keep"], bins["add"])
        self._counts[series] = counts
        while len(self._counts) > SERIES:
            del self._counts[next(iter(self._counts))]


class _Pieces:
    """The pieces of a long line, read from mark to mark: quotes in texts are escaped, so no text has a mark in it."""

    def __init__(self, line: FollowedLine) -> None:
        self._pieces = line.pieces()
        self._piece = b""

    def before(self, mark: bytes) -> Iterator[bytes]:
        """Yield what is before the next mark, and go on behind it; raise ValueError if there is none."""
        while (found := self._piece.find(mark)) < 0:
            # The mark may begin at the end of this piece.
            end = max(0, len(self._piece) - len(mark) + 1)
            yield self._piece[:end]
            following = next(self._pieces, b"")
            if not following:
                raise ValueError(f"there is no {mark!r}")
            self._piece = self._piece[end:] + following
        yield self._piece[:found]
        self._piece = self._piece[found + len(mark) :]

    def skip(self, mark: bytes) -> None:
        """Go on behind the next mark."""
        for _ in self.before(mark):
            pass

    def rest(self) -> Iterator[bytes]:
        """Yield all that follows."""
        yield self._piece
        yield from self._pieces


def _values_and_bins(line: FollowedLine) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return a line's values, and of a long one its bins apart, which are read one after the other.

    Raises:
        ValueError: It is no JSON object.
    """
    if not line.rest:
        return json.loads(line.content), None
    pieces, kept = _Pieces(line), list[bytes]()
    for _ in ("the bins of the rollout", "those before it"):
        kept += [*pieces.before(ADDED_BINS), ADDED_BINS, END_OF_BINS]
        pieces.skip(END_OF_BINS)
    values = json.loads(b"".join((*kept, *pieces.rest())))
    return values, {"keep": values["evidence"]["bins"]["keep"], "add": _added_bins(line)}


def _added_bins(line: FollowedLine) -> Iterator[dict[str, Any]]:
    """Yield the bins of the rollout in a long line.

    Raises:
        ValueError: One of them is no JSON.
    """
    pieces, rest = _Pieces(line), b""
    pieces.skip(ADDED_BINS)
    for piece in pieces.before(END_OF_BINS):
        *bins, rest = NEXT_BIN.split(rest + piece)
        yield from map(json.loads, bins)
    if rest:
        yield json.loads(rest)
