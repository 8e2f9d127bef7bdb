"""One agent at a time: who holds the Lease works, and who cannot renew it stops before another one can have it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from controlled_rollout.agent import leadership as module
from controlled_rollout.agent.fence import fenced
from controlled_rollout.agent.leadership import Leadership
from controlled_rollout.cluster.api import Api
from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.target import silence
from controlled_rollout.target.kubernetes import agent_lease
from controlled_rollout.workspace import Workspace
from tests.polling import until

LONG_S = 60


class Cluster:
    """The Lease of a cluster in memory, which all agents of a test see."""

    lease: dict[str, Any] | None = None


class ApiOfOne:
    """The connection of one agent, which can be cut."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.is_cut = False
        self.unanswered = 0

    def _check(self) -> None:
        if self.is_cut:
            raise TargetUnavailableError("cut off")

    async def find(self, _path: str) -> dict[str, Any] | None:
        self._check()
        if self.unanswered:
            self.unanswered -= 1
            await asyncio.Event().wait()
        return self.cluster.lease

    async def create(self, _path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        self._check()
        if self.cluster.lease is not None:
            return None
        self.cluster.lease = body
        return body

    async def merge_if_unchanged(
        self, _path: str, current: dict[str, Any], body: dict[str, Any]
    ) -> dict[str, Any] | None:
        self._check()
        if self.cluster.lease is not current:
            return None
        self.cluster.lease = {**current, "spec": {**current["spec"], **body["spec"]}}
        return self.cluster.lease


class Agent:
    """An agent of a test, which counts how often it began to work."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.api = ApiOfOne(cluster)
        self.leadership = Leadership(cast(Api, self.api), "models", name)
        self.begun = self.ended = 0
        self.watched_since: datetime | None = None
        self.fails = False
        self.task: asyncio.Task[None] | None = None

    async def work(self, watched_since: datetime) -> None:
        self.begun += 1
        self.watched_since = watched_since
        try:
            if self.fails:
                self.fails = False
                raise RuntimeError("injected: the work fails once")
            await asyncio.Event().wait()
        finally:
            self.ended += 1

    @property
    def is_working(self) -> bool:
        return self.begun > self.ended

    def start(self) -> None:
        self.task = asyncio.create_task(self.leadership.run(self.work))

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let an agent retry, give up and be succeeded within moments."""
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    monkeypatch.setattr(module, "RENEW_DEADLINE_S", 1.0)
    monkeypatch.setattr(module, "TRY_S", 0.5)
    monkeypatch.setattr(module, "FAILED_PAUSE_S", 0.02)
    monkeypatch.setattr(agent_lease, "DURATION_S", 3)
    yield


@asynccontextmanager
async def two_agents() -> AsyncIterator[tuple[Agent, Agent]]:
    """Run two agents of one cluster, of which the first is at work."""
    cluster = Cluster()
    first, second = Agent(cluster, "first"), Agent(cluster, "second")
    first.start()
    try:
        await until(lambda: first.is_working, "the first agent works", timeout_s=LONG_S)
        second.start()
        yield first, second
    finally:
        await first.stop()
        await second.stop()


async def test_an_agent_that_is_cut_off_stops_its_work_before_the_other_one_begins() -> None:
    async with two_agents() as (first, second):
        first.api.is_cut = True
        await until(lambda: second.is_working, "the second agent works", timeout_s=LONG_S)

        assert not first.is_working
        assert not first.leadership.may_act()
        first.api.is_cut = False
        await asyncio.sleep(0.1)
        assert not first.is_working, "who was succeeded waits"


async def test_an_agent_whose_renewal_is_not_answered_once_tries_again_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # So long that a busy machine does not lose the Lease: one try takes its part of it, and no more.
    monkeypatch.setattr(module, "RENEW_DEADLINE_S", 6.0)
    monkeypatch.setattr(module, "TRY_S", 0.1)
    monkeypatch.setattr(agent_lease, "DURATION_S", 20)
    async with two_agents() as (first, second):
        first.api.unanswered = 1
        await until(lambda: not first.api.unanswered, "a renewal waits for its answer", timeout_s=LONG_S)
        before = first.leadership._held_until_s
        await until(lambda: first.leadership._held_until_s > before, "the Lease is renewed again", timeout_s=LONG_S)

        assert (first.begun, first.is_working, second.begun) == (1, True, 0)


async def test_an_agent_that_ends_gives_its_lease_up_so_that_the_other_one_need_not_wait() -> None:
    async with two_agents() as (first, second):
        await first.stop()
        released = first.api.cluster.lease
        await until(lambda: second.is_working, "the second agent works", timeout_s=LONG_S)

    assert released is not None
    assert released["spec"]["holderIdentity"] == ""


@pytest.mark.parametrize("gap_s", [60.0, 0.0], ids=["at once", "after a gap"])
async def test_an_agent_that_takes_over_goes_on_since_when_it_has_seen_the_other_one_at_work(
    monkeypatch: pytest.MonkeyPatch, gap_s: float
) -> None:
    async with two_agents() as (first, second):

        def has_seen() -> bool:
            watched = second.leadership._watched
            return watched is not None and watched.checked > watched.begun

        await until(has_seen, "the second agent has seen a renewal", timeout_s=LONG_S)
        known = datetime.now(UTC)
        monkeypatch.setattr(silence, "GAP", timedelta(seconds=gap_s))
        first.api.is_cut = True
        await until(lambda: second.is_working, "the second agent works", timeout_s=LONG_S)

    assert second.watched_since is not None
    assert (second.watched_since < known) == (gap_s > 0)


async def test_work_that_fails_is_begun_again_by_whoever_gets_the_lease() -> None:
    cluster = Cluster()
    agent = Agent(cluster, "first")
    agent.fails = True
    agent.start()
    await until(lambda: agent.is_working, "the work was begun again", timeout_s=LONG_S)
    await agent.stop()

    assert agent.begun == 2


async def test_an_agent_ends_also_while_work_that_lost_the_lease_takes_long_to_stop() -> None:
    agent = Agent(Cluster(), "first")
    stopping, may_stop = asyncio.Event(), asyncio.Event()

    async def work(_watched_since: datetime) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopping.set()
            await may_stop.wait()

    running = asyncio.create_task(agent.leadership.run(work))
    await until(agent.leadership.may_act, "the agent works", timeout_s=LONG_S)
    agent.api.is_cut = True
    await asyncio.wait_for(stopping.wait(), LONG_S)
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=LONG_S)
    may_stop.set()

    assert done and running.cancelled()


async def test_an_agent_whose_lease_another_one_has_taken_stops_at_once() -> None:
    async with two_agents() as (first, second):
        await second.stop()
        lease = first.api.cluster.lease
        assert lease is not None
        first.api.cluster.lease = {**lease, "spec": {**lease["spec"], "holderIdentity": "third"}}
        await until(lambda: not first.is_working, "the first agent has stopped", timeout_s=LONG_S)

        assert not first.leadership.may_act()
        assert first.api.cluster.lease["spec"]["holderIdentity"] == "third"


async def test_no_request_is_sent_while_the_lease_is_not_held() -> None:
    sent: list[str] = []
    allowed = True

    class Client:
        configuration = "its configuration"

        async def update_params_for_auth(self) -> None:
            """Add nothing."""

        @property
        def rest_client(self) -> "Client":
            return self

        async def request(self, method: str, _url: str) -> str:
            sent.append(method)
            return "an answer"

    @asynccontextmanager
    async def open_client() -> AsyncIterator[Client]:
        yield Client()

    settings = {"target": "kubernetes", "gateway": "gateway/models", "open_cluster": open_client}
    workspace = fenced(Workspace.from_settings(settings), lambda: allowed)
    assert workspace.open_cluster is not None
    async with workspace.open_cluster() as client:
        assert client.configuration == "its configuration"
        assert await client.rest_client.request("PATCH", "/a") == "an answer"
        allowed = False
        with pytest.raises(TargetUnavailableError, match="DELETE /b was not sent"):
            await client.rest_client.request("DELETE", "/b")

    assert sent == ["PATCH"]
    with pytest.raises(ValueError, match="open_cluster"):
        fenced(workspace.model_copy(update={"open_cluster": None}), lambda: True)
