"""Whether a process answers: asked again and again, each time with a deadline. That it exists is not enough."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

__all__ = ["LivenessCheck"]

LATE_S: Final = 1.0


class LivenessCheck:
    """Asks a process whether it answers, and says when it has to be replaced.

    Args:
        probe: Returns whether the process answers; it must return within a deadline of its own.
        start_s: How long the process may take until its first answer, in seconds.
        interval_s: The pause between two probes, in seconds.
        max_failures: The process has to be replaced after so many probes in a row without an answer.

    Attributes:
        is_answering: Whether the last probe was answered.
    """

    def __init__(
        self, probe: Callable[[], Awaitable[bool]], *, start_s: float, interval_s: float, max_failures: int
    ) -> None:
        self.is_answering = False
        self._probe = probe
        self._start_s = start_s
        self._interval_s = interval_s
        self._max_failures = max_failures

    async def watch(self, exited: "asyncio.Task[int]") -> str | None:
        """Probe a process until it ends by itself (None), or return why it has to be ended."""
        self.is_answering = False
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._start_s
        while not exited.done() and not self.is_answering:
            self.is_answering = await self._probe()
            if not self.is_answering and loop.time() > deadline:
                return f"did not answer within {self._start_s:g} s of its start"
            if not self.is_answering:
                await asyncio.wait([exited], timeout=min(0.1, self._interval_s))
        failures = 0
        while not exited.done():
            due = loop.time() + self._interval_s
            await asyncio.wait([exited], timeout=self._interval_s)
            if exited.done():
                break
            # On a machine so busy that this process itself is late, a probe without an answer says nothing.
            is_late = loop.time() - due > LATE_S
            self.is_answering = await self._probe() or is_late
            failures = 0 if self.is_answering else failures + 1
            if failures >= self._max_failures:
                return f"did not answer {failures} times in a row"
        self.is_answering = False
        return None
