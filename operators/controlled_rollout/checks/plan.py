"""The plan: what a rollout will do, step by step, for a person to read before it happens."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from controlled_rollout.duration import format_duration

__all__ = ["RolloutPlan"]

WITHOUT_DECISION: Final = {
    "hold": "it holds, and a person decides",
    "roll_back": "it rolls back, or holds if the evidence could not be read",
    "ask": "it asks a person",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """The steps of a rollout; `str()` gives the text.

    Attributes:
        endpoint, version: What is rolled out, and where.
        steps: The treatment's per cent at each step.
        bake, min_requests: The least time, and the fewest treatment requests, at each step.
        pass_every_step: Whether every gate has to pass, not only the last.
        decision_timeout, on_deadline: The most time at each step, and what follows it.
        approval: Whether a person approves the promotion.
        keep_warm: How long the former control stays.
        keep_treatment: Whether a treatment that was rolled back stays.
    """

    endpoint: str
    version: str
    steps: Sequence[float]
    bake: timedelta
    min_requests: int
    pass_every_step: bool
    decision_timeout: timedelta
    on_deadline: Literal["hold", "roll_back", "ask"]
    approval: bool
    keep_warm: timedelta
    keep_treatment: bool

    def __str__(self) -> str:
        """Return the numbered steps of the rollout as text for a log."""
        promotion = len(self.steps) + 2
        lines = [
            f"Plan for version {self.version} of endpoint {self.endpoint}:",
            "  1. create it at 0 % and wait until it is ready (the first version of an endpoint gets all the traffic "
            f"at once, and steps 2 to {promotion - 1} are skipped)",
            *(f"  {number}. {self._shift_text(percentile)}" for number, percentile in enumerate(self.steps, start=2)),
            f"  {promotion}. {'when a person approves, ' if self.approval else ''}promote it to control with all the "
            "traffic",
            f"  {promotion + 1}. retire the former control after {format_duration(self.keep_warm)}",
            f"If a gate has no decision after {format_duration(self.decision_timeout)}, "
            f"{WITHOUT_DECISION[self.on_deadline]}. After a failure the version is rolled back at once and "
            f"{'kept at 0 %' if self.keep_treatment else 'retired'}.",
        ]
        return "\n".join(lines)

    def _shift_text(self, percentile: float) -> str:
        """Return the text of one step: shift traffic, and the condition to go on."""
        must_pass = self.pass_every_step or percentile == self.steps[-1]
        condition = "when the gate passes" if must_pass else "unless a claim alarms or nearly does"
        compared = " (compared with control's last requests: it gets none then)" if percentile >= 100 else ""
        return (
            f"shift {percentile:g} % of the traffic to it; go on after {format_duration(self.bake)} and "
            f"{max(1, self.min_requests)} requests of evidence, {condition}{compared}"
        )
