"""A thread with an event loop, in which workspaces are read: what takes long there delays no request of Airflow's."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["BackgroundLoop"]

Result = TypeVar("Result")


class BackgroundLoop:
    """An event loop in a thread of its own, which begins at the first call. The process may end without it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    async def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine there and return its result."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._running_loop()))

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop; start its thread if it does not run."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="controlled-rollout-page", daemon=True).start()
            return self._loop
