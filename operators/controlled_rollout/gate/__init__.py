"""Bins -> verdict: whether the treatment is as good as control. Pure mathematics (docs/gate.md)."""

from controlled_rollout.gate.aggregates import AggregateResult, Aggregates, with_aggregates
from controlled_rollout.gate.judgement import cannot_see, judge
from controlled_rollout.gate.model import (
    Bin,
    Category,
    Claim,
    Counts,
    Event,
    Gate,
    MaxLatency,
    Mean,
    Moments,
    Outcome,
    UserCounts,
    Verdict,
)
from controlled_rollout.gate.report import describe, verdict_from_dict, verdict_to_dict
from controlled_rollout.gate.step_power import Power, power
from controlled_rollout.gate.users import wrong_unit

__all__ = [
    "AggregateResult",
    "Aggregates",
    "Bin",
    "Category",
    "Claim",
    "Counts",
    "Event",
    "Gate",
    "MaxLatency",
    "Mean",
    "Moments",
    "Outcome",
    "Power",
    "UserCounts",
    "Verdict",
    "cannot_see",
    "describe",
    "judge",
    "power",
    "verdict_from_dict",
    "verdict_to_dict",
    "with_aggregates",
    "wrong_unit",
]
