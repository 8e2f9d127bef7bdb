"""A workspace that is read in the background: bounded in time and memory, and one part that fails leaves the rest."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlled_rollout import steps
from controlled_rollout.errors import EndpointNotFoundError, TargetUnavailableError, WorkspaceError
from controlled_rollout.steps import Change
from controlled_rollout.target import connect as connect_module
from controlled_rollout.target.protocol import EndpointStatus
from controlled_rollout.view.models import EndpointDetail, WorkspaceOverview
from controlled_rollout.workspace import Workspace
from controlled_rollout_ui.api import watched_workspace
from controlled_rollout_ui.api.watched_workspace import MAX_DETAILS, WatchedWorkspace
from tests.polling import until
from tests.unit.steps.memory_target import MemoryTarget

WAIT_S = 30.0


def quiet(sentence: str) -> None:
    """Take a progress message."""


class SlowTarget(MemoryTarget):
    """A target of which some endpoints do not answer, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.hanging: set[str] = set()
        self.broken: set[str] = set()
        self.hangs = False
        self.readings = 0
        self.statuses = 0

    async def endpoints(self) -> list[str]:
        self.readings += 1
        if self.hangs:
            await asyncio.Event().wait()
        return await super().endpoints()

    async def status(self, name: str, *, inspect: bool = True) -> EndpointStatus:
        self.statuses += 1
        if name in self.hanging:
            await asyncio.Event().wait()
        if name in self.broken:
            raise RuntimeError("a token geheim-2 that nobody may see")
        return await super().status(name, inspect=inspect)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.local(tmp_path)


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> SlowTarget:
    target = SlowTarget()
    for module in (steps, connect_module, watched_workspace):
        monkeypatch.setattr(module, "connect", target.open)
    monkeypatch.setattr(watched_workspace, "POLL_S", 0.01)
    return target


@pytest.fixture
def watched(workspace: Workspace) -> WatchedWorkspace:
    return WatchedWorkspace("ml", lambda: workspace)


async def deploy(workspace: Workspace, *endpoints: str) -> None:
    change = Change(who="weekly/run-1/deploy")
    for endpoint in endpoints:
        await steps.deploy(
            workspace, endpoint, "v1a", image="a@sha256:1", owner="weekly/run-1", change=change, progress=quiet
        )


async def read(watched: WatchedWorkspace) -> WorkspaceOverview:
    return await watched.overview(wait_s=WAIT_S)


async def test_every_endpoint_is_a_row_and_the_first_answer_may_wait(
    workspace: Workspace, target: SlowTarget, watched: WatchedWorkspace
) -> None:
    assert (await watched.overview()).loading
    await deploy(workspace, "digits", "prices")
    shown = await until(lambda: is_complete(watched, 2), "both endpoints", timeout_s=WAIT_S)
    assert [endpoint.name for endpoint in shown.endpoints] == ["digits", "prices"]
    assert {endpoint.workspace for endpoint in shown.endpoints} == {"ml"}
    assert not shown.loading


async def is_complete(watched: WatchedWorkspace, number: int) -> WorkspaceOverview | None:
    shown = await watched.overview()
    return shown if len(shown.endpoints) == number else None


async def test_an_endpoint_that_does_not_answer_or_fails_is_a_row_that_says_so(
    workspace: Workspace, target: SlowTarget, watched: WatchedWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(workspace, "broken", "digits", "hanging")
    monkeypatch.setattr(watched_workspace, "DEADLINE_S", 1.0)
    target.hanging, target.broken = {"hanging"}, {"broken"}
    shown = {endpoint.name: endpoint for endpoint in (await read(watched)).endpoints}
    assert shown["digits"].problem is None
    assert "does not answer within 1 s" in (shown["hanging"].problem or "")
    assert "RuntimeError" in (shown["broken"].problem or "")
    assert "geheim-2" not in (shown["broken"].problem or "")


async def test_an_error_that_lasts_is_logged_once(
    workspace: Workspace, target: SlowTarget, watched: WatchedWorkspace, caplog: pytest.LogCaptureFixture
) -> None:
    await deploy(workspace, "broken")
    target.broken = {"broken"}
    await read(watched)
    readings = target.readings

    async def read_again() -> bool:
        await watched.overview()
        return target.readings > readings + 2

    await until(read_again, "two more readings", timeout_s=WAIT_S)
    assert [one.getMessage() for one in caplog.records if one.name == watched_workspace.__name__] == [
        "endpoint 'broken' of workspace ml cannot be read"
    ]


async def test_a_workspace_that_stops_answering_is_shown_as_it_was_last_seen_and_recovers(
    workspace: Workspace, target: SlowTarget, watched: WatchedWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(workspace, "digits")
    assert (await read(watched)).problem is None
    monkeypatch.setattr(watched_workspace, "DEADLINE_S", 0.1)
    target.hangs = True

    async def problem(wanted: bool) -> WorkspaceOverview | None:
        shown = await watched.overview()
        return shown if (shown.problem is not None) is wanted else None

    down = await until(lambda: problem(True), "the reason", timeout_s=WAIT_S)
    assert "does not answer" in (down.problem or "")
    assert [(one.name, one.state, len(one.versions)) for one in down.endpoints] == [("digits", "unknown", 1)]
    monkeypatch.setattr(watched_workspace, "DEADLINE_S", 10.0)
    target.hangs = False
    back = await until(lambda: problem(False), "the workspace", timeout_s=WAIT_S)
    assert back.endpoints[0].state == "steady"


async def test_a_connection_that_cannot_be_read_is_said(target: SlowTarget) -> None:
    def missing() -> Workspace:
        raise WorkspaceError("there is no connection 'ml': create it")

    shown = await read(WatchedWorkspace("ml", missing))
    assert (shown.problem, shown.endpoints) == ("there is no connection 'ml': create it", ())
    with pytest.raises(TargetUnavailableError, match="no connection"):
        await WatchedWorkspace("ml", missing).detail("digits", wait_s=WAIT_S)


async def test_a_sign_in_that_does_not_end_is_said_and_tried_again(
    workspace: Workspace, target: SlowTarget, watched: WatchedWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def hang(_: Workspace) -> AsyncIterator[SlowTarget]:
        await asyncio.Event().wait()
        yield target

    monkeypatch.setattr(watched_workspace, "connect", hang)
    monkeypatch.setattr(watched_workspace, "OPEN_DEADLINE_S", 0.1)
    assert "sign-in to workspace ml does not answer" in ((await read(watched)).problem or "")
    monkeypatch.setattr(watched_workspace, "connect", target.open)
    monkeypatch.setattr(watched_workspace, "OPEN_DEADLINE_S", WAIT_S)

    async def recovered() -> bool:
        return (await watched.overview()).problem is None

    await until(recovered, "the workspace", timeout_s=WAIT_S)


async def test_a_connection_that_hangs_keeps_one_thread_only(
    workspace: Workspace, target: SlowTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, begun = threading.Event(), list[int]()

    def hang() -> Workspace:
        begun.append(1)
        answers.wait(WAIT_S)
        return workspace

    monkeypatch.setattr(watched_workspace, "OPEN_DEADLINE_S", 0.05)
    watched = WatchedWorkspace("ml", hang)
    assert "connection ml does not answer" in ((await read(watched)).problem or "")
    for _ in range(5):
        with pytest.raises(TargetUnavailableError, match="connection ml does not answer"):
            await watched.open_workspace()
    assert begun == [1]

    answers.set()
    monkeypatch.setattr(watched_workspace, "OPEN_DEADLINE_S", WAIT_S)
    assert (await watched.open_workspace()).name == "ml"


async def test_charts_are_kept_for_few_endpoints_and_an_open_page_is_not_pushed_out_by_another(
    workspace: Workspace, target: SlowTarget, watched: WatchedWorkspace
) -> None:
    names = [f"digits-{number:02}" for number in range(2 * MAX_DETAILS)]
    await deploy(workspace, *names)
    await read(watched)
    for name in names:
        assert (await watched.detail(name)).overview.name == name
    assert list(watched._details) == names[:MAX_DETAILS]
    crowded = await watched.detail(names[-1])
    assert (crowded.loading, crowded.record_problem) == (False, watched_workspace.NO_ROOM)

    # Nobody has looked at the first of them for a while.
    watched._details[names[0]].asked -= 2 * watched_workspace.IDLE_S
    await watched.detail(names[-1])
    assert set(watched._details) == {*names[1:MAX_DETAILS], names[-1]}

    async def loaded() -> bool:
        return not (await watched.detail(names[-1])).loading

    await until(loaded, "the endpoint's page", timeout_s=WAIT_S)
    detail = await watched.detail(names[-1])
    assert (len(detail.history), detail.comparison, detail.record_problem) == (1, None, None)
    with pytest.raises(EndpointNotFoundError, match="no endpoint 'nothing'"):
        await watched.detail("nothing")
    other = WatchedWorkspace("ml", lambda: workspace)
    with pytest.raises(EndpointNotFoundError, match="no endpoint 'nothing'"):
        await other.detail("nothing", wait_s=WAIT_S)
    assert not other._details


async def test_more_endpoints_than_a_page_can_show_are_counted(
    workspace: Workspace, target: SlowTarget, watched: WatchedWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_workspace, "MAX_ENDPOINTS", 2)
    await deploy(workspace, "digits", "prices", "zebras")
    shown = await read(watched)
    assert ([one.name for one in shown.endpoints], shown.more) == (["digits", "prices"], 1)


async def test_nothing_is_read_while_nobody_looks(
    workspace: Workspace, target: SlowTarget, watched: WatchedWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    await read(watched)
    monkeypatch.setattr(watched_workspace, "IDLE_S", 0.0)
    task = watched._task
    assert task is not None
    await until(task.done, "the end of the readings", timeout_s=WAIT_S)
    readings = target.readings
    monkeypatch.setattr(watched_workspace, "IDLE_S", 30.0)
    await until(lambda: begins_again(watched, target, readings), "a new reading", timeout_s=WAIT_S)


async def test_what_was_seen_before_nobody_looked_is_shown_as_being_read(
    workspace: Workspace, target: SlowTarget, watched: WatchedWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = Change(who="maria")

    async def create(version: str) -> None:
        await steps.deploy(
            workspace, "digits", version, image="a@sha256:1", owner="maria", change=change, progress=quiet
        )
        await steps.promote(workspace, "digits", version, change=change, progress=quiet)

    await create("v1a")
    await read(watched)
    monkeypatch.setattr(watched_workspace, "IDLE_S", 0.0)
    task = watched._task
    assert task is not None
    await until(task.done, "the end of the readings", timeout_s=WAIT_S)
    monkeypatch.setattr(watched_workspace, "IDLE_S", WAIT_S)

    await target.delete("digits", change)
    await create("v7a")
    old = await watched.overview()
    assert (old.loading, [one.versions[0].name for one in old.endpoints]) == (True, ["v1a"])
    new = await read(watched)
    assert (new.loading, [one.versions[0].name for one in new.endpoints]) == (False, ["v7a"])


async def test_a_connection_that_leads_elsewhere_shows_nothing_of_where_it_led_before(
    workspace: Workspace, target: SlowTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = {"ml": workspace}
    watched = WatchedWorkspace("ml", lambda: connections["ml"])
    await deploy(workspace, "digits")
    assert len((await read(watched)).endpoints) == 1
    monkeypatch.setattr(watched_workspace, "SESSION_S", 0.0)
    connections["ml"] = Workspace.local(tmp_path / "elsewhere")

    async def moved() -> bool:
        return watched._workspace is not None and watched._workspace.root == connections["ml"].root

    await until(moved, "the other workspace", timeout_s=WAIT_S)
    assert (await watched.overview()).endpoints == ()


async def test_a_request_shows_what_has_changed_since_the_last_reading(
    workspace: Workspace, target: SlowTarget, watched: WatchedWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = await shown_page(workspace, watched, monkeypatch)
    monkeypatch.setattr(watched_workspace, "READING_SHARE", 0)

    change = Change(who="maria", reason="it is newer")
    await steps.deploy(workspace, "digits", "v2a", image="a@sha256:1", owner="maria", change=change, progress=quiet)
    detail = await watched.detail("digits")
    assert detail.overview.revision > shown.overview.revision
    assert detail.history[0].reason == "it is newer"

    await deploy(workspace, "prices")
    assert [one.name for one in (await watched.overview()).endpoints] == ["digits", "prices"]


async def shown_page(
    workspace: Workspace, watched: WatchedWorkspace, monkeypatch: pytest.MonkeyPatch
) -> EndpointDetail:
    """Deploy an endpoint and return its page; from then on each request reads again, and nothing else does."""
    for name in ("POLL_S", "FRESH_WAIT_S", "FRESH_DETAIL_WAIT_S"):
        monkeypatch.setattr(watched_workspace, name, WAIT_S)
    await deploy(workspace, "digits")
    await read(watched)
    shown = await until(lambda: loaded_detail(watched, "digits"), "the page", timeout_s=WAIT_S)
    monkeypatch.setattr(watched_workspace, "FRESH_S", 0.0)
    assert isinstance(shown, EndpointDetail)
    return shown


async def loaded_detail(watched: WatchedWorkspace, endpoint: str) -> EndpointDetail | None:
    detail = await watched.detail(endpoint)
    return None if detail.loading else detail


async def test_many_requests_at_once_read_an_endpoint_once(
    workspace: Workspace, target: SlowTarget, watched: WatchedWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shown_page(workspace, watched, monkeypatch)
    before = target.statuses
    await asyncio.gather(*(watched.detail("digits") for _ in range(20)))
    assert target.statuses - before == 1
    monkeypatch.setattr(watched_workspace, "FRESH_S", WAIT_S)
    before, readings = target.statuses, target.readings
    for _ in range(20):
        await watched.detail("digits")
        await watched.overview()
    assert (target.statuses, target.readings) == (before, readings)


async def test_of_two_readings_at_once_the_later_is_shown_though_the_earlier_fails_after_it(
    workspace: Workspace, target: SlowTarget, watched: WatchedWorkspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(workspace, "digits")
    ends = asyncio.Event()

    async def fail(name: str, *, inspect: bool = True) -> EndpointStatus:
        await ends.wait()
        raise TargetUnavailableError("the cluster does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(target, "status", fail)
        earlier = asyncio.create_task(watched._read_endpoint(workspace, target, "digits"))
        await asyncio.sleep(0)
    await watched._read_endpoint(workspace, target, "digits")
    ends.set()
    await earlier
    assert watched._endpoints["digits"].problem is None


async def begins_again(watched: WatchedWorkspace, target: SlowTarget, readings: int) -> bool:
    await watched.overview()
    return target.readings > readings
