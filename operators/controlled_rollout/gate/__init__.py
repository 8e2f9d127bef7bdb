"""Bins -> verdict: whether the treatment is as good as control. Pure mathematics (docs/gate.md)."""

from controlled_rollout.gate.judgement import cannot_see, judge
from controlled_rollout.gate.model import Bin, Category, Claim, Counts, Gate, Mean, Moments, Outcome, Power, Verdict
from controlled_rollout.gate.report import describe, verdict_from_dict, verdict_to_dict

__all__ = [
    "Bin",
    "Category",
    "Claim",
    "Counts",
    "Gate",
    "Mean",
    "Moments",
    "Outcome",
    "Power",
    "Verdict",
    "cannot_see",
    "describe",
    "judge",
    "verdict_from_dict",
    "verdict_to_dict",
]
