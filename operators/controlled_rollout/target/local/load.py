"""How much each version has to do now: the router's counters, looked at once a second and kept for the last ten."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.sizing import Load
from controlled_rollout.target.counters import Counters, loads

__all__ = ["LoadMeter"]

LOOK_S: Final = 1.0
WINDOW_S: Final = 10.0

Look = Callable[[], Awaitable[Mapping[str, Counters] | None]]


class LoadMeter:
    """Knows the load of the last seconds at once, because it looks all the time.

    Args:
        look: Returns the router's counters by cluster, or None while it does not answer.
        clock: Returns seconds.
    """

    def __init__(self, look: Look, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._look = look
        self._clock = clock
        self._looks: deque[tuple[float, Mapping[str, Counters]]] = deque()
        self._began = clock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._began = self._clock()
        self._task = asyncio.create_task(self._keep_looking(), name="load meter")

    async def stop(self) -> None:
        """Stop looking."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def loads(self) -> dict[str, Load]:
        """Return the load of every cluster over the last seconds; empty before there are two looks to compare.

        Raises:
            TargetUnavailableError: The router has not answered for so long that its load is not known.
        """
        self._forget()
        if not self._looks and self._clock() - self._began > WINDOW_S:
            raise TargetUnavailableError(
                f"the router has not answered for {WINDOW_S:g} s, and its load is not known: "
                "look into router.log in the workspace's logs folder"
            )
        if len(self._looks) < 2:
            return {}
        (began, before), (ended, after) = self._looks[0], self._looks[-1]
        return loads(before, after, ended - began)

    async def look(self) -> None:
        """Look once."""
        if (counters := await self._look()) is not None:
            self._looks.append((self._clock(), counters))
        self._forget()

    async def _keep_looking(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    def _forget(self) -> None:
        """Let go of looks that are too old; the newest of a router that has died says nothing of now either."""
        oldest = self._clock() - WINDOW_S - LOOK_S / 2
        while self._looks and self._looks[0][0] < oldest:
            self._looks.popleft()
