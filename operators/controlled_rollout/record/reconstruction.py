"""The looks of a record, each with its evidence put together again from the lines before it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from controlled_rollout.errors import EvidenceError
from controlled_rollout.evidence import Evidence
from controlled_rollout.gate import Aggregates, Bin
from controlled_rollout.record.bin_delta import BinFingerprints, bins_from_json
from controlled_rollout.record.decision import Decision, LookEvidence
from controlled_rollout.record.look_input import LookInput, LookSettings

__all__ = ["RecordedLook", "recorded_looks"]

# Looks at what callers saw, and at labels that came late.
LOOKS: Final = ("look", "judge_labels")


@dataclass(frozen=True, slots=True)
class RecordedLook:
    """One look of a record.

    Attributes:
        decision: The look as it was recorded.
        look: What its verdict rests on; None where it could not read the metric store, or the record is damaged.
        problem: What is missing or damaged in the record; empty if nothing is.
    """

    decision: Decision
    look: LookInput | None = None
    problem: str = ""


def recorded_looks(decisions: Iterable[Decision]) -> Iterator[RecordedLook]:
    """Yield the looks of one part of a record, each with its evidence rebuilt from the deltas of the lines before.

    Args:
        decisions: The part's decisions, oldest first; every part can be read by itself.
    """
    series: dict[str, _Series] = {}
    for decision in decisions:
        if decision.step not in LOOKS:
            continue
        try:
            evidence = decision.look_evidence()
        except ValidationError as error:
            yield RecordedLook(decision, problem=f"its evidence cannot be read ({error.error_count()} faults)")
            continue
        if evidence is None:
            down = (decision.evidence or {}).get("down")
            rests = decision.outcome == "cannot_see" or (decision.outcome == "fail" and down == decision.reason)
            yield RecordedLook(decision, problem="" if rests else "it holds no evidence that its outcome could rest on")
            continue
        if evidence.settings is not None:
            series[evidence.series] = _Series(evidence.settings)
        if evidence.series not in series:
            yield RecordedLook(decision, problem="the first look of its series, with the gate's settings, is missing")
            continue
        try:
            yield RecordedLook(decision, series[evidence.series].add(evidence))
        except EvidenceError as error:
            yield RecordedLook(decision, problem=str(error))


class _Series:
    """Puts the bins of one series together, look by look."""

    def __init__(self, settings: LookSettings) -> None:
        """Start a series without bins."""
        self._settings = settings
        self._bins: list[Bin] = []
        self._baseline: list[Bin] = []
        self._fingerprints = (BinFingerprints(), BinFingerprints())
        self._aggregates: Aggregates | None = None

    def add(self, recorded: LookEvidence) -> LookInput:
        """Apply the next look's delta to the bins, and return the look's full input.

        Raises:
            EvidenceError: A line is missing or was changed.
        """
        for bins, fingerprints, delta in (
            (self._bins, self._fingerprints[0], recorded.bins),
            (self._baseline, self._fingerprints[1], recorded.baseline),
        ):
            bins[delta.keep :] = bins_from_json(delta.add)
            fingerprints.apply(delta)
            if fingerprints.digest != delta.digest:
                raise EvidenceError("its bins are not those that were judged: a line is missing or was changed")
        self._aggregates = recorded.aggregates_after(self._aggregates)
        evidence = Evidence(
            bins=tuple(self._bins),
            baseline=tuple(self._baseline),
            thresholds_ms=recorded.thresholds_ms,
            until=recorded.until,
            queries=self._settings.queries,
            lag=recorded.lag,
            cuts=recorded.cuts,
            unseen=recorded.unseen,
            aggregates=self._aggregates,
        )
        return LookInput(
            self._settings,
            evidence,
            recorded.router,
            recorded.down,
            recorded.periods,
            served=recorded.served,
        )
