"""Expectations about all rows together: evaluated once at a share, when everything else lets the rollout go on. Pure.

They count no rows, so there is no evidence that stays valid however often it is looked at: only one look is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from controlled_rollout.gate.model import Gate, Outcome, Verdict

__all__ = ["AggregateResult", "Aggregates", "with_aggregates"]


@dataclass(frozen=True, slots=True)
class AggregateResult:
    """What an expectation about all rows together found in the rows of both versions.

    Attributes:
        name: The expectation's.
        treatment, control: Whether that version's rows fulfil it; None if it could not be evaluated on them.
        treatment_found, control_found: What was found, or why it could not be evaluated.
    """

    name: str
    treatment: bool | None = None
    control: bool | None = None
    treatment_found: str = ""
    control_found: str = ""

    @property
    def sentence(self) -> str:
        """What was found, in a sentence."""
        return f"{self.name}: treatment {self.treatment_found}, control {self.control_found}"


@dataclass(frozen=True, slots=True)
class Aggregates:
    """The results at one share. Whatever comes later, they stay: nothing is evaluated twice.

    Attributes:
        shifted: When the share was set that they are about.
        since, until: When the requests arrived whose rows were evaluated.
        results: By expectation.
    """

    shifted: datetime
    since: datetime
    until: datetime
    results: tuple[AggregateResult, ...]

    @property
    def time(self) -> str:
        """The time of the rows in words."""
        return f"of the requests from {self.since:%Y-%m-%d %H:%M:%S} to {self.until:%H:%M:%S}"


def with_aggregates(verdict: Verdict, gate: Gate, aggregates: Aggregates | None) -> Verdict:
    """Return a verdict with what the expectations about all rows together say.

    An alarm stays one, and what cannot be seen stays unseen. That they were not evaluated yet, or are not fulfilled,
    keeps the rollout at its share; only an author who has said so (`on_aggregate="fail"`) has it rolled back.

    Args:
        verdict: What everything else says.
        gate: Which expectations there are, and what they lead to.
        aggregates: The results at the present share; None if they were not evaluated yet.
    """
    if not gate.aggregates or verdict.outcome not in (Outcome.PASS, Outcome.NOT_ENOUGH_EVIDENCE):
        return verdict
    if aggregates is None:
        number = len(gate.aggregates)
        expectations = "1 expectation" if number == 1 else f"{number} expectations"
        return _waiting_verdict(
            verdict, f"{expectations} about all rows together: evaluated once, when all else lets go on"
        )
    absolute = gate.expectations_against == "allowed"
    blind = [one for one in aggregates.results if one.treatment is None or (one.control is None and not absolute)]
    worse = [one for one in aggregates.results if one.treatment is False and (absolute or one.control is True)]
    both = [one for one in aggregates.results if one.treatment is False and one.control is False and not absolute]
    if worse:
        than = "not fulfilled" if absolute else "fulfilled by control and not by the treatment"
        sentence = f"{than}, {aggregates.time}: {_finding_sentences(worse)}"
        if gate.on_aggregate == "fail":
            return replace(verdict, outcome=Outcome.FAIL, reason=sentence)
        return _waiting_verdict(verdict, f"{sentence}; a person decides (on_aggregate)")
    if blind:
        sentence = f"expectations that could not be evaluated, {aggregates.time}: {_finding_sentences(blind)}"
        return replace(verdict, outcome=Outcome.CANNOT_SEE, reason=sentence)
    if both:
        reported = f"fulfilled by neither version, {aggregates.time}: {_finding_sentences(both)}"
        return replace(verdict, reason=f"{verdict.reason}; {reported}")
    return verdict


def _waiting_verdict(verdict: Verdict, why: str) -> Verdict:
    """Return the verdict of a rollout that does not go on, and why."""
    outcome = Outcome.NOT_ENOUGH_EVIDENCE
    return replace(verdict, outcome=outcome, reason=f"{why}; {verdict.reason}", waits=(*verdict.waits, why))


def _finding_sentences(results: Sequence[AggregateResult]) -> str:
    """Return what was found, a sentence for each expectation."""
    return "; ".join(one.sentence for one in results)
