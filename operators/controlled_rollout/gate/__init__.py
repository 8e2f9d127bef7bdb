"""Bins -> verdict: whether the treatment is as good as control. Pure mathematics (docs/gate.md)."""

from controlled_rollout.gate.judgement import cannot_see, judge
from controlled_rollout.gate.model import Bin, Claim, Counts, Gate, Outcome, Verdict
from controlled_rollout.gate.report import describe, verdict_from_dict, verdict_to_dict

__all__ = [
    "Bin",
    "Claim",
    "Counts",
    "Gate",
    "Outcome",
    "Verdict",
    "cannot_see",
    "describe",
    "judge",
    "verdict_from_dict",
    "verdict_to_dict",
]
