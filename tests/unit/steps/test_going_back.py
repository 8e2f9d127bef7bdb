"""A roll-back goes on trying: what ends it, how long it pauses, and what it says meanwhile."""

from collections.abc import Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controlled_rollout import steps
from controlled_rollout.cluster.api import ApiError
from controlled_rollout.errors import (
    AccessError,
    ConflictError,
    ControlledRolloutError,
    DeploymentError,
    EndpointError,
    NothingToDoError,
    RouterTimeoutError,
    TargetUnavailableError,
    WorkspaceError,
)
from controlled_rollout.steps import Change
from controlled_rollout.steps.going_back import try_until_done
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget

RUN = "weekly/run-2"
CHANGE = Change(who=f"{RUN}/task")
HOUR = timedelta(hours=1)
PASSING = [
    TargetUnavailableError("503 for GET /apis"),
    AccessError("401: the token is not valid"),
    AccessError("403: give this identity the Role"),
    ApiError("404", status=404, reason="NotFound"),
    WorkspaceError("the program that signs in failed"),
    RouterTimeoutError("the router still serves revision 3"),
    ValueError("an answer that nobody understands"),
]
FINAL = [
    ConflictError("another run holds it"),
    EndpointError("it is the control"),
    NothingToDoError("a person decides"),
    DeploymentError("somebody has edited the route"),
    TypeError("a fault of the software"),
]


class Clock:
    """A clock that a pause moves on, in place of waiting."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        module = "controlled_rollout.steps.going_back"
        patch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: self.now))
        patch.setattr(f"{module}.asyncio", SimpleNamespace(sleep=self.sleep))

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def attempt_that_fails(times: int, error: Exception) -> Callable[[timedelta], Any]:
    """Return an attempt that fails so often before it succeeds."""
    left = times

    async def attempt(limit: timedelta) -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise error
        return "done"

    return attempt


@pytest.mark.parametrize("error", PASSING, ids=lambda error: str(error)[:20])
async def test_what_may_pass_is_tried_again_with_a_line_for_each_try(clock: Clock, error: Exception) -> None:
    messages: list[str] = []

    assert await try_until_done(attempt_that_fails(8, error), timeout=HOUR, progress=messages.append) == "done"

    assert clock.pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert messages[0] == f"not rolled back yet, trying again in 1 s, for 1 h at most: {error}"
    assert len(messages) == 8


@pytest.mark.parametrize("error", FINAL, ids=lambda error: str(error)[:20])
async def test_what_would_come_again_ends_it_at_once(clock: Clock, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        await try_until_done(attempt_that_fails(1, error), timeout=HOUR, progress=lambda line: None)
    assert clock.pauses == []


async def test_the_last_try_is_when_the_time_is_over(clock: Clock) -> None:
    with pytest.raises(AccessError, match="401"):
        await try_until_done(attempt_that_fails(10_000, PASSING[1]), timeout=HOUR, progress=lambda line: None)
    assert sum(clock.pauses) == HOUR.total_seconds()

    clock.pauses.clear()
    with pytest.raises(AccessError, match="401"):
        await try_until_done(attempt_that_fails(1, PASSING[1]), timeout=timedelta(0), progress=lambda line: None)
    assert clock.pauses == []


class RefusingTarget(MemoryTarget):
    """A target that is not opened, or refuses its calls, until a clock says so."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.refuses_until = 0.0
        self.error: ControlledRolloutError = AccessError("403")
        self.at_opening = False

    @asynccontextmanager
    async def open(self, workspace: Workspace) -> Any:
        if self.at_opening:
            self._refuse()
        async with super().open(workspace) as target:
            yield target

    def _call(self, method: str) -> None:
        self._refuse()
        super()._call(method)

    def _refuse(self) -> None:
        if self._clock.now < self.refuses_until:
            raise self.error


@pytest.mark.parametrize("error", PASSING[:5], ids=lambda error: str(error)[:20])
@pytest.mark.parametrize("at_opening", [False, True])
async def test_a_treatment_is_rolled_back_half_a_minute_after_ten_bad_minutes_at_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, error: ControlledRolloutError, at_opening: bool
) -> None:
    target, workspace = RefusingTarget(clock), Workspace.local(tmp_path)
    monkeypatch.setattr(steps, "connect", target.open)
    for version in ("old", "new"):
        await steps.deploy(
            workspace, "digits", version, image="a@sha256:1", owner=RUN, change=CHANGE, progress=lambda line: None
        )
    await steps.shift(workspace, "digits", "new", percentile=50, change=CHANGE, progress=lambda line: None)
    target.refuses_until, target.error, target.at_opening = clock.now + 600, error, at_opening
    messages: list[str] = []

    rolled_back = await steps.roll_back(workspace, "digits", "new", change=CHANGE, owner=RUN, progress=messages.append)

    assert rolled_back is not None
    assert rolled_back.effective_traffic() == {"old": 100, "new": 0}
    assert clock.now - target.refuses_until <= 30
    assert sum(message.startswith("not rolled back yet") for message in messages) == len(clock.pauses)
