"""What all claims share: their thresholds, and a claim together with the bin that established it."""

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from controlled_rollout.gate.model import Claim, Gate
from controlled_rollout.gate.restarts import AlarmEvidence

__all__ = ["ClaimResult", "alarm_from", "alarm_threshold", "pass_from"]

# exp() of more is more than a float can hold: infinite.
LARGEST_EXPONENT: Final = 709.0


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """A claim, and when it was established.

    Attributes:
        claim: The claim.
        established_at: The index of the bin after which its e-value reached the threshold; None if it never did, and
            for pass claims, whose order does not matter.
    """

    claim: Claim
    established_at: int | None = None

    def later(self, n_bins: int) -> "ClaimResult":
        """Return the result with the bin index counted from `n_bins` bins earlier (those left out as warm-up)."""
        return self if self.established_at is None else replace(self, established_at=self.established_at + n_bins)


def alarm_threshold(gate: Gate, metric: str, *, latency: bool) -> float:
    """Return the e-value at which a metric's alarm is reached: 1 / alpha, with alpha split over metrics and treatments.

    The author's metrics have their part from the beginning, whether bins carry them yet or not: a threshold that moved
    when one appears would take back what was established.

    Args:
        gate: The shares.
        metric: Which metric.
        latency: Whether latency is judged.
    """
    metrics = ["errors", *(["latency"] if latency else [])] if gate.judges_traffic else []
    metrics += [*gate.means, *gate.events]
    metrics += [name for name, category in gate.categories.items() if category.on_difference == "fail"]
    metrics += ["expectations"] if gate.expectation_names else []
    total = sum(gate.weights.get(name, 1.0) for name in metrics)
    return gate.treatments * total / (gate.alpha * gate.weights.get(metric, 1.0))


def pass_from(name: str, gate: Gate, peak: float, reached: bool, detail: str, needed: int | None = None) -> ClaimResult:
    """Return a claim that has to be reached for a pass.

    Args:
        name: What is claimed.
        gate: Its `beta` is the threshold.
        peak: The log of the most evidence for it after any bin.
        reached: Whether it is established.
        detail: The numbers behind it in words.
        needed: How many more treatment requests it needs; None if that is not known.
    """
    return ClaimResult(Claim(name, "pass", _e_value(peak), 1 / gate.beta, reached, needed, detail))


def alarm_from(
    name: str, kind: Literal["alarm", "split"], evidence: AlarmEvidence, threshold: float, detail: str
) -> ClaimResult:
    """Return a claim that fails the treatment, or says that the split is wrong, with the bin that established it.

    Args:
        name: What is claimed.
        kind: Its kind.
        evidence: The evidence for it.
        threshold: Its threshold, not as a log.
        detail: The numbers behind it in words.
    """
    reached = evidence.reached_at is not None
    peak, present = _e_value(evidence.peak), _e_value(evidence.now)
    return ClaimResult(Claim(name, kind, peak, threshold, reached, None, detail, present), evidence.reached_at)


def _e_value(log_value: float) -> float:
    """Return the number of which this is the log; infinite where a float cannot hold it."""
    return math.exp(log_value) if log_value < LARGEST_EXPONENT else math.inf
