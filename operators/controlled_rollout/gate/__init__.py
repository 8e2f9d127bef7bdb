"""Bins -> verdict: whether the treatment is as good as control. Pure mathematics (docs/gate.md)."""

from controlled_rollout.gate.model import Bin, Claim, Counts, Gate, Outcome, Verdict

__all__ = ["Bin", "Claim", "Counts", "Gate", "Outcome", "Verdict"]
