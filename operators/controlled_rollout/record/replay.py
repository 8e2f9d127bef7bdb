"""A record replayed: every look's bins put together again, judged anew, and compared with what was concluded then."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from pydantic import ValidationError

from controlled_rollout.errors import EvidenceError
from controlled_rollout.evaluation.conclusion import conclude
from controlled_rollout.evidence import Evidence, EvidenceWindow, Reading
from controlled_rollout.gate import Bin, Gate, Verdict, verdict_from_dict
from controlled_rollout.record.decision import Decision, LookEvidence
from controlled_rollout.record.series import Marks, bins_from_json

__all__ = ["Replayed", "replay"]

# Two machines may round a long sum of logarithms differently in its last digits.
TOLERANCE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Replayed:
    """One look of a record, and what its bins say now.

    Attributes:
        decision: The look as it was recorded.
        settings: What is the same for its whole series; empty where the look saw nothing.
        evidence: What it saw, put together again; None where it saw nothing, or lines before it are missing.
        verdict: What follows from that now; None likewise.
        difference: What differs from the record, or why it cannot be said; empty when nothing does.
    """

    decision: Decision
    settings: Mapping[str, Any] = field(default_factory=dict)
    evidence: Evidence | None = None
    verdict: Verdict | None = None
    difference: str = ""


def replay(decisions: Iterable[Decision], *, judged: bool = True) -> Iterator[Replayed]:
    """Yield the looks among the decisions of a record, each with what its bins say now.

    Args:
        decisions: The record, oldest first. A record that was continued in another file is replayed file by file.
        judged: Whether to judge; False only puts the evidence together again.
    """
    series: dict[str, _Series] = {}
    for decision in decisions:
        if decision.step != "look":
            continue
        try:
            look = decision.look
        except ValidationError as error:
            yield Replayed(decision, difference=f"its evidence cannot be read ({error.error_count()} faults)")
            continue
        if look is None:
            blind = decision.outcome == "cannot_see"
            difference = "" if blind else "it holds no evidence that its outcome could rest on"
            yield Replayed(decision, difference=difference)
            continue
        if look.settings is not None:
            series[look.series] = _Series(look.settings)
        found = series.get(look.series)
        if found is None:
            yield Replayed(decision, difference="the first look of its series, with the gate's settings, is missing")
            continue
        yield found.replay(decision, look, judged=judged)


class _Series:
    """Puts the bins of one series together, look by look."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self._bins: list[Bin] = []
        self._baseline: list[Bin] = []
        self._marks = (Marks(), Marks())

    def replay(self, decision: Decision, look: LookEvidence, *, judged: bool) -> Replayed:
        try:
            for bins, marks, stretch in (
                (self._bins, self._marks[0], look.bins),
                (self._baseline, self._marks[1], look.baseline),
            ):
                bins[stretch.keep :] = bins_from_json(stretch.add)
                marks.follow(stretch)
                if marks.digest != stretch.digest:
                    raise EvidenceError("its bins are not those that were judged: a line is missing or changed")
            evidence = self._evidence(look)
            verdict = self._conclude(decision, look, evidence) if judged else None
        except (EvidenceError, ValidationError, KeyError, TypeError, ValueError) as error:
            return Replayed(decision, self.settings, difference=str(error) or repr(error))
        difference = _difference(decision, verdict) if verdict else ""
        return Replayed(decision, self.settings, evidence, verdict, difference)

    def _evidence(self, look: LookEvidence) -> Evidence:
        return Evidence(
            bins=tuple(self._bins),
            baseline=tuple(self._baseline),
            thresholds_ms=look.thresholds_ms,
            until=look.until,
            queries=tuple(self.settings.get("queries", ())),
            lag=None if look.lag_s is None else timedelta(seconds=look.lag_s),
        )

    def _conclude(self, decision: Decision, look: LookEvidence, evidence: Evidence) -> Verdict:
        return conclude(
            evidence,
            Gate.model_validate(self.settings["gate"]),
            control=self.settings["control"],
            treatment=decision.version,
            window=EvidenceWindow.model_validate(self.settings["window"]),
            router=tuple(Reading(one.at, one.requests) for one in look.router),
            down=look.down,
        )


def _difference(decision: Decision, now: Verdict) -> str:
    """Say in what a verdict differs from the recorded one; empty when in nothing that counts."""
    if decision.outcome != now.outcome.value:
        return f"outcome {decision.outcome}, now {now.outcome.value}"
    try:
        then = verdict_from_dict(decision.verdict or {})
    except EvidenceError as error:
        return str(error)
    if [claim.name for claim in then.claims] != [claim.name for claim in now.claims]:
        return f"claims {[claim.name for claim in then.claims]}, now {[claim.name for claim in now.claims]}"
    for old, new in zip(then.claims, now.claims, strict=True):
        same = math.isclose(old.e_value, new.e_value, rel_tol=TOLERANCE)
        if (old.reached, old.threshold) != (new.reached, new.threshold) or not same:
            return (
                f"{old.name!r} e-value {old.e_value!r} of {old.threshold!r} ({'' if old.reached else 'not '}reached), "
                f"now {new.e_value!r} of {new.threshold!r} ({'' if new.reached else 'not '}reached)"
            )
    counted = (then.control_requests, then.treatment_requests)
    again = (now.control_requests, now.treatment_requests)
    return "" if counted == again else f"requests {counted}, now {again}"
