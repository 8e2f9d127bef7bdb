"""The clock of whoever watches all the time: it tells by how much it was set, so that what was counted stays right."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["WatchClock"]

# What a clock that is only made faster or slower gains between two readings is no jump.
LEAST_JUMP: Final = timedelta(seconds=1)


def _utc_now() -> datetime:
    """Return the time of the machine's clock."""
    return datetime.now(UTC)


def _running_s() -> float:
    """Return for how many seconds the machine has been running, without the time for which it was suspended."""
    return time.monotonic()


class WatchClock:
    """The machine's clock, and how far it has jumped since the last reading: it was set, or the machine was suspended.

    Args:
        now: The machine's clock.
        monotonic_s: Seconds that no setting of the clock changes, and that stand still while the machine is suspended.
    """

    def __init__(self, now: Callable[[], datetime] = _utc_now, monotonic_s: Callable[[], float] = _running_s) -> None:
        self._now = now
        self._monotonic_s = monotonic_s
        self._read = (now(), monotonic_s())

    def read(self) -> tuple[datetime, timedelta]:
        """Return the time, and how far the clock has jumped since the last reading; 0 if it has not."""
        (before, before_s), self._read = self._read, (self._now(), self._monotonic_s())
        now, now_s = self._read
        jump = now - before - timedelta(seconds=now_s - before_s)
        return now, jump if abs(jump) >= LEAST_JUMP else timedelta(0)
