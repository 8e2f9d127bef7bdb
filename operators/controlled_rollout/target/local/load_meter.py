"""Measures the load of every version: reads the router's counters once a second and keeps the last ten seconds."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.polling import cancel
from controlled_rollout.sizing import Load
from controlled_rollout.target.counters import Counters, loads_between

__all__ = ["LoadMeter"]

log = logging.getLogger(__name__)

INTERVAL_S: Final = 1.0
WINDOW_S: Final = 10.0

ReadCounters = Callable[[], Awaitable[Mapping[str, Counters] | None]]
OnCounters = Callable[[Mapping[str, Counters] | None], None]


class LoadMeter:
    """Samples the router's counters all the time, so that the load of the last seconds is known at once.

    Args:
        read_counters: Returns the router's counters by cluster, or None while it does not answer.
        on_counters: Called with each reading, also with None.
        clock: Returns seconds.
    """

    def __init__(
        self,
        read_counters: ReadCounters,
        *,
        on_counters: OnCounters = lambda counters: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_counters = read_counters
        self._on_counters = on_counters
        self._clock = clock
        self._samples: deque[tuple[float, Mapping[str, Counters]]] = deque()
        self._started = clock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the asyncio task that reads the counters once a second."""
        self._started = self._clock()
        self._task = asyncio.create_task(self._keep_sampling(), name="load meter")

    async def stop(self) -> None:
        """Stop reading the counters."""
        await cancel(self._task)

    def loads(self) -> dict[str, Load]:
        """Return the load of every cluster over the last seconds; empty before there are two samples.

        Raises:
            TargetUnavailableError: The router has not answered for so long that its load is not known.
        """
        self._drop_old_samples()
        if not self._samples and self._clock() - self._started > WINDOW_S:
            raise TargetUnavailableError(
                f"the router has not answered for {WINDOW_S:g} s, and its load is not known: "
                "look into router.log in the workspace's logs folder"
            )
        if len(self._samples) < 2:
            return {}
        (first_time, before), (last_time, after) = self._samples[0], self._samples[-1]
        return loads_between(before, after, last_time - first_time)

    async def sample(self) -> None:
        """Read the router's counters once and keep them with their time; drop old samples."""
        counters = await self._read_counters()
        if counters is not None:
            self._samples.append((self._clock(), counters))
        self._on_counters(counters)
        self._drop_old_samples()

    async def _keep_sampling(self) -> None:
        """Read the counters once per `INTERVAL_S`, however long a reading takes, until cancelled."""
        while True:
            began = self._clock()
            try:
                await self.sample()
            except Exception:  # whatever it is: without samples no load is known, and nothing follows it
                log.exception("the router's counters could not be followed")
            await asyncio.sleep(max(0.0, began + INTERVAL_S - self._clock()))

    def _drop_old_samples(self) -> None:
        """Drop all samples older than the window, even the newest: a router that has ended has no load now."""
        oldest = self._clock() - WINDOW_S - INTERVAL_S / 2
        while self._samples and self._samples[0][0] < oldest:
            self._samples.popleft()
