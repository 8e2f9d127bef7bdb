"""Counts as they come from a metric store."""

from dataclasses import dataclass
from datetime import datetime

from controlled_rollout.gate import Counts

__all__ = ["CountRow"]


@dataclass(frozen=True, slots=True)
class CountRow:
    """One version's counts in one bin; `before`: whether they lie before the rollout began."""

    start: datetime
    version: str
    before: bool
    counts: Counts
