"""A clock that only the simulation advances, for the package's modules and for an event loop."""

import asyncio
import heapq
import importlib
import pkgutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any, Final

import controlled_rollout

__all__ = ["START", "SimulatedClock", "SimulatedLoop", "moment", "seconds", "simulated_time"]

START: Final = datetime(2026, 3, 1, 12, tzinfo=UTC)
# Modules of these parts of the package do not take part in a simulated rollout.
NOT_SIMULATED: Final = ("cli", "cluster", "image", "telemetry_store", "target.kubernetes", "target.local", "checks")


def moment(seconds: float) -> datetime:
    """Return the moment so many seconds after `START`."""
    return START + timedelta(seconds=seconds)


def seconds(moment: datetime) -> float:
    """Return a moment in seconds after `START`."""
    return (moment - START).total_seconds()


class SimulatedClock:
    """Seconds since `START`; time passes only when the event loop waits, or by `seconds += …`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        """Return the present moment."""
        return moment(self.seconds)


class _DatetimeType(type):
    """Makes every `datetime` an instance of the simulated class."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


class _SimulatedDatetime(datetime, metaclass=_DatetimeType):
    """Replaces the name `datetime` in the package's modules."""

    clock = SimulatedClock()

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        return cls.clock.now()


def _monotonic() -> float:
    return _SimulatedDatetime.clock.seconds


_SIMULATED_TIME: Final = SimpleNamespace(monotonic=_monotonic, time=_monotonic, perf_counter=time.perf_counter)


class SimulatedLoop(asyncio.BaseEventLoop):
    """An event loop in simulated time; calls that belong into a thread are made at once."""

    # What `asyncio.BaseEventLoop` keeps of its work.
    _ready: "deque[asyncio.Handle]"
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, clock: SimulatedClock) -> None:
        super().__init__()
        self._clock = clock

    def time(self) -> float:
        return self._clock.seconds

    def _run_once(self) -> None:
        """Run what is ready; if nothing is, advance the clock to the next timer: there are no files to wait for."""
        ready, timers = self._ready, self._scheduled
        if not ready:
            while timers and timers[0]._cancelled:
                heapq.heappop(timers)._scheduled = False  # type: ignore[attr-defined] # asyncio's
            if not timers:
                raise RuntimeError("the event loop waits for something that no simulated part will do")
            self._clock.seconds = max(self._clock.seconds, timers[0].when())
        while timers and timers[0].when() <= self._clock.seconds:
            timer = heapq.heappop(timers)
            timer._scheduled = False  # type: ignore[attr-defined] # asyncio's
            ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report what a task has raised that nobody awaits; not that a process was killed."""
        if isinstance(context.get("exception"), Exception):
            super().call_exception_handler(context)

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except BaseException as error:
            future.set_exception(error)
        return future


def _import_package() -> None:
    """Import all modules that take part: what is imported later would have the real clock."""
    prefix = f"{controlled_rollout.__name__}."
    for module in pkgutil.walk_packages(controlled_rollout.__path__, prefix):
        if not module.name.removeprefix(prefix).startswith(NOT_SIMULATED):
            importlib.import_module(module.name)


@contextmanager
def simulated_time() -> Iterator[Callable[[SimulatedClock], None]]:
    """Context manager: the package's modules read a simulated clock; yields the function that sets which one."""
    _import_package()
    patched: list[tuple[Any, str, Any]] = []
    for name, module in list(sys.modules.items()):
        if not name.startswith(controlled_rollout.__name__):
            continue
        for attribute, real, simulated in (("datetime", datetime, _SimulatedDatetime), ("time", time, _SIMULATED_TIME)):
            if module.__dict__.get(attribute) is real:
                setattr(module, attribute, simulated)
                patched.append((module, attribute, real))

    def use(clock: SimulatedClock) -> None:
        """Let all modules read this clock."""
        _SimulatedDatetime.clock = clock

    try:
        yield use
    finally:
        for module, attribute, real in patched:
            setattr(module, attribute, real)
