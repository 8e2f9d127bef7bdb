"""How a rollout under way is going: its last looks, and whether a person is asked, from the record's newest lines."""

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from pydantic import ValidationError

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate import Verdict, verdict_from_dict
from controlled_rollout.record import Decision
from controlled_rollout.rollout import Rollout

__all__ = ["RecentLooks"]

# What ends a question: an answer, or that a step has gone on.
ENDS_QUESTION: Final = frozenset({"approve", "reject", "promote", "roll_back", "shift", "go_on"})
# Looks that the rate of requests is taken from.
LOOKS: Final = 20


@dataclass
class RecentLooks:
    """What is known of a rollout under way.

    Attributes:
        rollout: Which; None takes no line.
        verdict: The newest look's; None without one.
        looked: When that was; None without one.
        asked: Since when a person is asked; None if nobody is.
    """

    rollout: Rollout | None = None
    verdict: Verdict | None = None
    looked: datetime | None = None
    asked: datetime | None = None
    _counted: "deque[tuple[datetime, float | None, int]]" = field(default_factory=lambda: deque(maxlen=LOOKS))

    def add(self, line: bytes) -> None:
        """Add a line of the record; one of another rollout, or a damaged one, changes nothing.

        Args:
            line: The line; they come oldest first.
        """
        if self.rollout is None:
            return
        try:
            decision = Decision.model_validate_json(line)
        except ValidationError:  # a crash cut the line short
            return
        if decision.version != self.rollout.version or decision.time < self.rollout.started:
            return
        if decision.step == "ask":
            self.asked = decision.time
        elif decision.step in ENDS_QUESTION:
            self.asked = None
        elif decision.step == "look":
            self._add_look(decision)

    def _add_look(self, look: Decision) -> None:
        """Take note of a look's verdict, and of how many requests it has counted."""
        try:
            self.verdict = verdict_from_dict(look.verdict or {})
        except EvidenceError:
            return
        self.looked = look.time
        if self.verdict.treatment_requests:
            self._counted.append((look.time, look.share, self.verdict.treatment_requests))

    @property
    def requests_per_second(self) -> float | None:
        """The treatment's requests in a second between the last looks at its present share; None if not known."""
        at_share = [(time, requests) for time, share, requests in self._counted if share == self._counted[-1][1]]
        if len(at_share) < 2:
            return None
        (first, fewest), (last, most) = at_share[0], at_share[-1]
        seconds = (last - first) / timedelta(seconds=1)
        return (most - fewest) / seconds if seconds > 0 and most > fewest else None
