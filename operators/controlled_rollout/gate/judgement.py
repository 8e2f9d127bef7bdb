"""From bins to a verdict.

Nothing is kept between looks: every look recomputes everything from all closed bins. "Ever reached" is answered bin by
bin, so the same bins give the same verdict however many looks there were (docs/gate.md).
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from controlled_rollout.gate.model import Bin, Claim, Gate, Outcome, Verdict

if TYPE_CHECKING:
    from controlled_rollout.gate.assessment import Assessment
    from controlled_rollout.gate.claims import ClaimResult

__all__ = ["cannot_see", "judge"]


def judge(bins: Iterable[Bin], gate: Gate, *, baseline: Iterable[Bin] = ()) -> Verdict:
    """Return the gate's verdict on a treatment from all closed bins since the rollout began. Pure.

    Args:
        bins: In any order; every closed bin, each time.
        gate: What the treatment has to show.
        baseline: Bins from before the rollout; control's counts in them tell how much errors come in bursts.

    Returns:
        Pass, fail, not enough evidence, or split is wrong. (`cannot_see` is for callers whose evidence cannot be read.)

    Raises:
        EvidenceError: The counts are inconsistent: negative, more errors than requests, two bins at one time, ...
    """
    from controlled_rollout.gate.assessment import assess  # imports numpy

    return _verdict(assess(bins, gate, baseline))


def cannot_see(reason: str) -> Verdict:
    """Return the verdict "cannot see", for a look whose evidence was not read completely: neither pass nor fail.

    Args:
        reason: What could not be read, and why.
    """
    return Verdict(Outcome.CANNOT_SEE, reason=reason)


def _verdict(assessment: "Assessment") -> Verdict:
    """Return the verdict that follows from the claims: fail on an alarm, pass if every pass claim is reached."""
    alarms = [alarm for alarm in assessment.alarms if alarm.established_at is not None]
    splits = [split for split in assessment.splits if split.established_at is not None]
    first_alarm, first_split = _first_established(alarms), _first_established(splits)
    if first_split is not None and (first_alarm is None or first_split <= first_alarm):
        outcome = Outcome.SPLIT_IS_WRONG
        reason = "; ".join(_claim_text(split.claim) for split in splits)
        reason += ": the two versions cannot be compared, nothing is rolled back because of it"
    elif first_alarm is not None:
        outcome = Outcome.FAIL
        reason = "; ".join(_claim_text(alarm.claim) for alarm in alarms)
    elif all(result.claim.reached for result in assessment.passes) and not (assessment.no_step or assessment.no_pass):
        outcome = Outcome.PASS
        reason = "; ".join(_claim_text(result.claim) for result in assessment.passes)
    else:
        outcome = Outcome.NOT_ENOUGH_EVIDENCE
        needed = _needed_text([result.claim for result in assessment.passes if not result.claim.reached])
        reason = "; ".join([*assessment.no_step, *assessment.no_pass, *needed])
    return Verdict(
        outcome,
        tuple(result.claim for result in (*assessment.alarms, *assessment.splits, *assessment.passes)),
        "; ".join([reason, *assessment.notes]),
        assessment.control_requests,
        assessment.treatment_requests,
        assessment.no_step,
        assessment.no_pass,
        assessment.needs_new_rollout,
    )


def _first_established(results: Iterable["ClaimResult"]) -> int | None:
    """Return the earliest bin index at which one of the claims was reached; None if none was."""
    return min((result.established_at for result in results if result.established_at is not None), default=None)


def _claim_text(claim: Claim) -> str:
    """Return a claim as text: name, e-value, threshold and detail."""
    return f"{claim.name}: e-value {claim.e_value:.3g} of {claim.threshold:.3g} ({claim.detail})"


def _needed_text(claims: Sequence[Claim]) -> list[str]:
    """Return as texts how much evidence each pass claim still needs."""
    parts = []
    for claim in claims:
        needed = "more evidence" if claim.needed_requests is None else f"about {claim.needed_requests:,} more requests"
        parts.append(f"{claim.name!r} needs {needed} (e-value {claim.e_value:.3g} of {claim.threshold:.3g})")
    return parts
