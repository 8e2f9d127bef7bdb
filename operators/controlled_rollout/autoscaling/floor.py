"""The number of replicas that somebody has just set, below which the autoscaler does not go for a while."""

import math
from dataclasses import dataclass
from typing import Final, Self

__all__ = ["FLOOR_S", "Floor"]

# A shift sizes a version, waits until its replicas are ready (310 s by default), and only then moves the traffic.
FLOOR_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Floor:
    """The fewest replicas until a moment: what a shift's sizing, or a person, has set.

    Attributes:
        replicas: The number of replicas.
        until: The moment in seconds since 1970.
    """

    replicas: int
    until: float

    @classmethod
    def for_shift(cls, replicas: int, now: float, before: Self | None = None) -> Self:
        """Return the floor of a number of replicas that is set at `now`.

        Args:
            replicas: The number.
            now: The time in seconds since 1970.
            before: A floor that is to be kept if it is higher and has not ended; None for none.
        """
        return cls(max(replicas, before.at(now) if before else 0), now + FLOOR_S)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the floor that `str(floor)` has written; None for any other text."""
        replicas, _, until = text.partition(" until ")
        if not (replicas.isascii() and replicas.isdigit() and len(replicas) < 10):
            return None
        try:
            moment = float(until)
        except ValueError:
            return None
        return cls(int(replicas), moment) if math.isfinite(moment) else None

    def __str__(self) -> str:
        """Return a text for an annotation or a file."""
        return f"{self.replicas} until {self.until!r}"

    def at(self, now: float) -> int:
        """Return the fewest replicas at a moment: 0 once the floor has ended.

        One that ends much later than any that can have been set by then is of a clock that was wrong: it does not hold.
        """
        return self.replicas if now < self.until <= now + 2 * FLOOR_S else 0
