"""The load of the last seconds, from samples of the router's counters."""

import asyncio
from contextlib import suppress

import pytest

from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.sizing import Load
from controlled_rollout.target.counters import Counters
from controlled_rollout.target.local import load_meter
from controlled_rollout.target.local.load_meter import WINDOW_S, LoadMeter
from tests.polling import until


class Router:
    """A router and its clock: so many requests a second, 5 ms each, except while it is down."""

    def __init__(self) -> None:
        self.now = 100.0
        self.requests = 0
        self.down = False
        self.meter = LoadMeter(self.read_counters, clock=lambda: self.now)

    async def read_counters(self) -> dict[str, Counters] | None:
        if self.down:
            return None
        return {"digits/one": Counters(self.requests, 0, 5.0 * self.requests, self.requests)}

    async def run(self, seconds: int, *, rate: int) -> None:
        for _ in range(seconds):
            await self.meter.sample()
            self.now += 1.0
            self.requests += rate
        await self.meter.sample()


async def test_the_load_is_that_of_the_last_seconds_and_not_of_the_time_before() -> None:
    router = Router()

    await router.run(60, rate=100)
    assert router.meter.loads() == {"digits/one": Load(requests_per_s=100.0, request_time_s=0.005)}
    await router.run(int(WINDOW_S) + 1, rate=20)

    assert router.meter.loads()["digits/one"].requests_per_s == pytest.approx(20.0)


async def test_load_needs_two_samples() -> None:
    router = Router()

    assert router.meter.loads() == {}
    await router.meter.sample()
    assert router.meter.loads() == {}


async def test_load_is_kept_while_the_router_is_down_briefly_and_then_unknown() -> None:
    router = Router()
    await router.run(20, rate=50)

    router.down = True
    await router.run(3, rate=0)
    assert router.meter.loads()["digits/one"].requests_per_s == pytest.approx(50.0)
    await router.run(int(WINDOW_S), rate=0)
    with pytest.raises(TargetUnavailableError, match="its load is not known"):
        router.meter.loads()

    router.down, router.requests = False, 0
    await router.run(5, rate=30)
    assert router.meter.loads()["digits/one"].requests_per_s == pytest.approx(30.0)


async def test_slow_reading_does_not_delay_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    now = 100.0

    async def pause(seconds: float) -> None:
        nonlocal now
        pauses.append(seconds)
        now += seconds
        if len(pauses) == 3:
            raise asyncio.CancelledError

    async def read_slowly() -> dict[str, Counters]:
        nonlocal now
        now += (0.0, 0.3, 1.5)[len(pauses)]
        return {}

    monkeypatch.setattr(asyncio, "sleep", pause)
    with suppress(asyncio.CancelledError):
        await LoadMeter(read_slowly, clock=lambda: now)._keep_sampling()

    assert pauses == pytest.approx([1.0, 0.7, 0.0])


async def test_samples_go_on_after_an_error_of_what_follows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_meter, "INTERVAL_S", 0.01)
    calls = 0

    def fail(_counters: object) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("injected: a version cannot be scaled")

    meter = LoadMeter(Router().read_counters, on_counters=fail)
    meter.start()
    await until(lambda: calls > 2, "it samples again and again", timeout_s=60)
    await meter.stop()
