"""From bins to a verdict: which claims are asked, what each has reached, and what follows.

Nothing is kept between looks: every look recomputes everything from all closed bins. "Ever reached" is answered bin by
bin, so the same bins give the same verdict however many looks there were (docs/gate.md).
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from controlled_rollout.gate.model import Bin, Claim, Gate, Outcome, Verdict

if TYPE_CHECKING:
    from controlled_rollout.gate.claims import Findings

__all__ = ["cannot_see", "judge"]


def judge(bins: Iterable[Bin], gate: Gate, *, baseline: Iterable[Bin] = ()) -> Verdict:
    """Judge a treatment against control on all closed bins since the rollout began.

    Args:
        bins: In any order; every closed bin, each time.
        gate: What the treatment has to show.
        baseline: Bins from before the rollout; control's counts in them tell how much errors come in bursts.

    Returns:
        Pass, fail, not enough evidence, or split is wrong. (`cannot_see` is for callers whose evidence cannot be read.)

    Raises:
        EvidenceError: The counts cannot be: negative, more errors than requests, two bins at one time, ...
    """
    from controlled_rollout.gate.claims import weigh  # numpy comes with it

    return _conclude(weigh(bins, gate, baseline))


def cannot_see(
    reason: str, *, claims: tuple[Claim, ...] = (), control_requests: int = 0, treatment_requests: int = 0
) -> Verdict:
    """Return the verdict of a look whose evidence could not be read, or only in part: never a pass, never a fail.

    Args:
        reason: What could not be read, and why.
        claims: What was known before, if it should be shown.
        control_requests: How many of control's requests were seen all the same.
        treatment_requests: Likewise the treatment's.
    """
    return Verdict(Outcome.CANNOT_SEE, claims, reason, control_requests, treatment_requests)


def _conclude(found: "Findings") -> Verdict:
    """Weigh the claims: an alarm fails unless the split was known to be wrong by then; passing needs every pass."""
    first_alarm = min((alarm.first for alarm in found.alarms if alarm.first is not None), default=None)
    first_split = min((split.first for split in found.splits if split.first is not None), default=None)
    if first_split is not None and (first_alarm is None or first_split <= first_alarm):
        outcome = Outcome.SPLIT_IS_WRONG
        reason = "; ".join(_sentence(split.claim) for split in found.splits if split.first is not None)
        reason += ": the comparison is not to be trusted, so nothing is rolled back for it"
    elif first_alarm is not None:
        outcome = Outcome.FAIL
        reason = "; ".join(_sentence(alarm.claim) for alarm in found.alarms if alarm.first is not None)
    elif all(finding.claim.reached for finding in found.passes):
        outcome = Outcome.PASS
        reason = "; ".join(_sentence(finding.claim) for finding in found.passes)
    else:
        outcome = Outcome.NOT_ENOUGH_EVIDENCE
        reason = _still_needed([finding.claim for finding in found.passes if not finding.claim.reached])
    return Verdict(
        outcome,
        tuple(finding.claim for finding in (*found.alarms, *found.splits, *found.passes)),
        "; ".join([reason, *found.notes]),
        found.control_requests,
        found.treatment_requests,
    )


def _sentence(claim: Claim) -> str:
    return f"{claim.name}: e-value {claim.e_value:.3g} of {claim.threshold:.3g} ({claim.detail})"


def _still_needed(claims: Sequence[Claim]) -> str:
    parts = []
    for claim in claims:
        needed = "more evidence" if claim.needed_requests is None else f"about {claim.needed_requests:,} more requests"
        parts.append(f"{claim.name!r} needs {needed} (e-value {claim.e_value:.3g} of {claim.threshold:.3g})")
    return "; ".join(parts)
