"""Outages of the target in the middle of a step: the supervisor is killed, and started again."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from controlled_rollout import steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.target import connect as connect_module
from controlled_rollout.target.connect import connect
from controlled_rollout.target.local import supervisor
from controlled_rollout.target.protocol import Change, Target
from controlled_rollout.workspace import Workspace
from tests.local.local_target_lab import Lab, start

OWNER = "weekly/run-1"
CHANGE = Change(who=OWNER)


@pytest_asyncio.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = await asyncio.to_thread(start, tmp_path)
    try:
        for version in ("old", "new"):
            await steps.deploy(
                lab.workspace,
                "outage",
                version,
                image=await lab.image(version),
                owner=OWNER,
                change=CHANGE,
                progress=lambda line: None,
            )
        yield lab
    finally:
        assert await asyncio.to_thread(supervisor.stop_workspace, lab.workspace) == 0


class LosingTarget:
    """The real target, whose supervisor is killed before a change is sent, or before its answer is read."""

    def __init__(self, target: Target, lab: Lab, *, before: bool) -> None:
        self._target = target
        self._lab = lab
        self._before = before
        self._lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        if self._lost:
            return await self._target.apply(endpoint, change)
        self._lost = True
        if not self._before:
            await self._target.apply(endpoint, change)
        os.kill(self._lab.state.pid, signal.SIGKILL)
        return await self._target.apply(endpoint, change)


@pytest.mark.parametrize("before", [True, False])
async def test_restarted_supervisor_only_delays_a_shift(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    @asynccontextmanager
    async def connect_to_losing(workspace: Workspace) -> AsyncIterator[LosingTarget]:
        async with connect(workspace) as target:
            yield LosingTarget(target, lab, before=before)

    monkeypatch.setattr(steps, "connect", connect_to_losing)
    monkeypatch.setattr(connect_module, "connect", connect_to_losing)
    messages: list[str] = []
    noticed = asyncio.Event()

    def progress(line: str) -> None:
        messages.append(line)
        noticed.set()

    shift = asyncio.create_task(
        steps.shift(lab.workspace, "outage", "new", percentile=30, change=CHANGE, owner=OWNER, progress=progress)
    )
    await asyncio.wait_for(noticed.wait(), 30)
    assert await asyncio.to_thread(supervisor.start_workspace, lab.workspace, port=0, detach=True) == 0
    stored = await asyncio.wait_for(shift, 60)

    assert (
        len([line for line in messages if line.startswith("trying again: the supervisor of the local workspace")]) == 1
    )
    assert stored.effective_traffic() == {"old": 70, "new": 30}
    status = await lab.target.status("outage")
    assert (status.revision, status.served_revision) == (stored.revision, stored.revision)
    assert stored.revision == 3


async def test_supervisor_that_stays_down_fails_the_step_after_its_timeout(lab: Lab) -> None:
    os.kill(lab.state.pid, signal.SIGKILL)
    messages: list[str] = []

    with pytest.raises(TargetUnavailableError, match="controlled-rollout local up"):
        await steps.roll_back(
            lab.workspace, "outage", "new", change=CHANGE, timeout=timedelta(seconds=2), progress=messages.append
        )

    assert [line.partition(", ")[0] for line in messages] == ["not rolled back yet"] * len(messages)
    assert messages
    assert await asyncio.to_thread(supervisor.start_workspace, lab.workspace, port=0, detach=True) == 0
