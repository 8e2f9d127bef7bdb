"""One workspace as the page sees it: read in the background while somebody looks, kept in bounded memory.

Nothing is decided here: an API server that is restarted reads the same again.
"""

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar

from controlled_rollout import record
from controlled_rollout.errors import ControlledRolloutError, EndpointNotFoundError, TargetUnavailableError
from controlled_rollout.record.in_time import within_time
from controlled_rollout.target.connect import connect
from controlled_rollout.target.protocol import Target
from controlled_rollout.view.comparison import comparison
from controlled_rollout.view.followed_record import FollowedRecord
from controlled_rollout.view.history import ENTRIES, history_entries
from controlled_rollout.view.models import (
    Comparison,
    EndpointDetail,
    EndpointOverview,
    HistoryEntry,
    WorkspaceOverview,
)
from controlled_rollout.view.overview import by_urgency, unread_endpoint
from controlled_rollout.view.reading import KnownEndpoint, curl_command, read_overview
from controlled_rollout.view.rollout_series import RolloutSeries
from controlled_rollout.visible_text import short_text
from controlled_rollout.workspace import Workspace

__all__ = ["WatchedWorkspace"]

# Between two readings, while somebody looks; and how long after the last request somebody still does.
POLL_S: Final = 5.0
IDLE_S: Final = 30.0
# A state that is older is read again for the request that asks for it, which waits so long for that. Otherwise a page
# would show a change only after the time between two readings and the time between two requests.
FRESH_S: Final = 0.5
FRESH_WAIT_S: Final = 0.15
FRESH_DETAIL_WAIT_S: Final = 1.0
# A workspace may have hundreds of endpoints: for requests it is read in no more than one part in so many of the time.
READING_SHARE: Final = 5
# How long a workspace, and each of its endpoints, may take to answer.
DEADLINE_S: Final = 2.0
# How long the connection may take to be read and opened: on Kubernetes that may run a program that signs in.
OPEN_DEADLINE_S: Final = 15.0
# A connection is read anew, and signs in anew, after so long.
SESSION_S: Final = 120.0
AT_ONCE: Final = 8
MAX_ENDPOINTS: Final = 500
# Endpoints whose pages are open, and whose records are therefore kept as charts.
MAX_DETAILS: Final = 24
NO_ROOM: Final = (
    f"the pages of {MAX_DETAILS} other endpoints of this workspace are open: history and charts are shown here once "
    "one of them is closed"
)
LONGEST_PROBLEM: Final = 500
# A long record is read in slices, with pauses in which the server's other threads run.
SLICE_S: Final = 0.5
LINES_BEFORE_OTHERS: Final = 200
PAUSE_S: Final = 0.002

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass
class _Detail:
    """What is kept of an endpoint whose page is open.

    Attributes:
        asked: When it was last asked for, on the monotonic clock.
        followed: How far its record was read.
        series: What was read of it.
        comparison: The charts.
        history: The entries of its history.
        older_revisions: How many revisions are kept beyond those.
        revision: The revision that the history reaches to.
        problem: Why its record cannot be read.
        is_read: Whether its record has been read once.
        following: Held while its record is read: a reading that is given up stays behind in its thread.
    """

    asked: float
    followed: FollowedRecord | None = None
    series: RolloutSeries = field(default_factory=RolloutSeries)
    comparison: Comparison | None = None
    history: tuple[HistoryEntry, ...] = ()
    older_revisions: int = 0
    revision: int = -1
    problem: str | None = None
    is_read: bool = False
    following: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)


class WatchedWorkspace:
    """Reads a workspace every few seconds while somebody looks at it.

    Args:
        name: Its connection id.
        read_connection: Returns the workspace that the connection describes; it may block.

    Attributes:
        name: Its connection id.
        room_for_requests: How many requests may read it at once with a connection of their own.
    """

    def __init__(self, name: str, read_connection: Callable[[], Workspace]) -> None:
        self.name = name
        # Each request that needs the newest state opens a connection, which may run a program that signs in.
        self.room_for_requests = asyncio.Semaphore(AT_ONCE)
        self._read_connection = read_connection
        self._connection: asyncio.Task[Workspace] | None = None
        self._asked = 0.0
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._workspace: Workspace | None = None
        self._problem: str | None = None
        self._read: datetime | None = None
        self._endpoints: dict[str, EndpointOverview] = {}
        self._known: dict[str, KnownEndpoint] = {}
        self._details: OrderedDict[str, _Detail] = OrderedDict()
        self._more = 0
        # What is open while it is read, and what is read again for a request, by endpoint.
        self._session: tuple[Workspace, Target] | None = None
        self._refreshing: dict[str, asyncio.Task[None]] = {}
        # One record at a time: a long one needs memory, and the first reading of it takes long.
        self._room_for_record = asyncio.Lock()
        self._is_first_reading = False
        # When the newest reading of each endpoint began, and that of all; how long that took; what waits for its end.
        self._began: dict[str, float] = {}
        self._round_began = self._round_took = 0.0
        self._round = asyncio.Event()
        # Errors that have been logged, by what could not be read.
        self._logged: dict[str, str] = {}

    async def overview(self, *, wait_s: float = 0.0) -> WorkspaceOverview:
        """Return the workspace as it was last read, and read it again in the background.

        Args:
            wait_s: How long to wait for the first reading.
        """
        self._watch()
        await self._first_reading(wait_s)
        await self._refresh_all()
        return WorkspaceOverview(
            workspace=self.name,
            target=self._workspace.target if self._workspace else None,
            problem=self._problem,
            read=self._read,
            loading=self._is_loading,
            endpoints=tuple(sorted(self._endpoints.values(), key=by_urgency)),
            more=self._more,
        )

    async def detail(self, endpoint: str, *, wait_s: float = 0.0) -> EndpointDetail:
        """Return an endpoint with all that its page shows, as it was last read.

        Args:
            endpoint: Its name.
            wait_s: How long to wait for the first reading of the workspace.

        Raises:
            EndpointNotFoundError: There is none of that name.
            TargetUnavailableError: The workspace has not answered yet.
        """
        detail = self._detail_asked_for(endpoint)
        try:
            await self.endpoint(endpoint, wait_s=wait_s)
            await self._refresh(endpoint)
            overview = await self.endpoint(endpoint)
        except EndpointNotFoundError:
            self._details.pop(endpoint, None)
            raise
        workspace = self._workspace
        ca_file = str(workspace.endpoint_ca) if workspace and workspace.endpoint_ca else None
        return EndpointDetail(
            overview=overview,
            history=detail.history,
            older_revisions=detail.older_revisions,
            comparison=detail.comparison,
            loading=not detail.is_read and overview.problem is None,
            record_problem=detail.problem,
            curl=curl_command(overview, ca_file),
            command_line=(f"controlled-rollout status {endpoint}", f"controlled-rollout history {endpoint}"),
        )

    def _detail_asked_for(self, endpoint: str) -> _Detail:
        """Return what is kept of an endpoint; one that says so if there is no room because others' pages are open."""
        now = time.monotonic()
        detail = self._details.get(endpoint)
        if detail is None:
            detail = _Detail(now)
            oldest = next(iter(self._details.values()), detail)
            if len(self._details) >= MAX_DETAILS and now - oldest.asked <= IDLE_S:
                # Were an open page forgotten instead, its next request would push out another one, and so on.
                detail.is_read, detail.problem = True, NO_ROOM
                return detail
            if len(self._details) >= MAX_DETAILS:
                self._details.popitem(last=False)
            self._details[endpoint] = detail
            self._wanted.set()
        self._details.move_to_end(endpoint)
        detail.asked = now
        return detail

    async def endpoint(self, endpoint: str, *, wait_s: float = 0.0) -> EndpointOverview:
        """Return an endpoint as it was last read.

        Raises:
            EndpointNotFoundError: There is none of that name.
            TargetUnavailableError: The workspace has not answered yet.
        """
        self._watch()
        await self._first_reading(wait_s)
        if (found := self._endpoints.get(endpoint)) is not None:
            return found
        if self._is_loading or self._problem is not None:
            raise TargetUnavailableError(self._problem or f"workspace {self.name} is being read: ask again in a second")
        raise EndpointNotFoundError(f"workspace {self.name} has no endpoint {endpoint!r}")

    async def open_workspace(self) -> Workspace:
        """Return the workspace that the connection describes now.

        Raises:
            ControlledRolloutError: The connection cannot be read.
        """
        if self._connection is None or self._connection.done():
            self._connection = asyncio.create_task(asyncio.to_thread(self._read_connection))
        # A thread cannot be ended: while one hangs, nobody begins another.
        reading = asyncio.shield(self._connection)
        workspace = await _in_time(reading, OPEN_DEADLINE_S, f"connection {self.name}")
        return workspace.model_copy(update={"name": self.name})

    @property
    def _is_loading(self) -> bool:
        """Whether it has neither answered nor failed yet."""
        return self._read is None and self._problem is None

    def _watch(self) -> None:
        """Begin to read in the background, unless that goes on already."""
        self._asked = time.monotonic()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._keep_reading())

    async def _refresh_all(self) -> None:
        """Have all endpoints read again unless that was just done, and wait a little for it."""
        age = time.monotonic() - self._round_began
        if self._session is not None and age > max(FRESH_S, READING_SHARE * self._round_took):
            self._wanted.set()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._round.wait(), FRESH_WAIT_S)

    async def _refresh(self, endpoint: str) -> None:
        """Read an endpoint and its record again unless that was just done, and wait a little for it."""
        began = self._began.get(endpoint, 0.0)
        if self._session is None or time.monotonic() - began < FRESH_S:
            return
        reading = self._refreshing.get(endpoint)
        if reading is None:
            reading = asyncio.create_task(self._read_page(*self._session, endpoint))
            self._refreshing[endpoint] = reading
            reading.add_done_callback(lambda _: self._refreshing.pop(endpoint, None))
        await asyncio.wait([reading], timeout=FRESH_DETAIL_WAIT_S)

    async def _read_page(self, workspace: Workspace, target: Target, name: str) -> None:
        """Read an endpoint, and its history and record unless a record is being read for the first time."""
        await self._read_endpoint(workspace, target, name)
        detail = self._open_detail(name)
        if name in self._endpoints and detail is not None and detail.is_read and not self._is_first_reading:
            await self._read_detail(workspace, target, name, detail)

    async def _end_session(self) -> None:
        """End what is read for requests, before the connection is closed."""
        self._session = None
        readings = list(self._refreshing.values())
        for reading in readings:
            reading.cancel()
        await asyncio.gather(*readings, return_exceptions=True)

    async def _first_reading(self, wait_s: float) -> None:
        """Wait until it was read once, or could not be."""
        if wait_s and self._is_loading:
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except TimeoutError:
                return

    async def _keep_reading(self) -> None:
        """Read every few seconds until nobody has looked for a while."""
        while time.monotonic() - self._asked < IDLE_S:
            try:
                await self._read_session()
            except Exception as error:  # any: the page says it, and the next session may do better
                self._fail(error)
                await self._pause()
        self._expect_change()

    def _expect_change(self) -> None:
        """Take note that nobody reads any more: what was seen is old by the next look, and shown as being read then."""
        self._read = self._problem = None
        self._changed.clear()
        # An endpoint may be deleted and created again meanwhile, with as many revisions.
        self._known.clear()
        self._logged.clear()
        for detail in self._details.values():
            detail.revision, detail.is_read = -1, False

    async def _read_session(self) -> None:
        """Read with one opened connection, for a few minutes at most; raise what it fails with."""
        began = time.monotonic()
        workspace = await self.open_workspace()
        if self._workspace is not None and self._workspace.model_dump() != workspace.model_dump():
            # The connection leads elsewhere now, where endpoints may have the same names.
            self._known.clear()
            self._endpoints.clear()
            self._details.clear()
        self._workspace = workspace
        async with AsyncExitStack() as opened:
            opening = opened.enter_async_context(connect(workspace))
            target = await _in_time(opening, OPEN_DEADLINE_S, f"the sign-in to workspace {self.name}")
            opened.push_async_callback(self._end_session)
            self._session = workspace, target
            while time.monotonic() - began < SESSION_S and time.monotonic() - self._asked < IDLE_S:
                await self._read_once(workspace, target)
                await self._pause()

    async def _pause(self) -> None:
        """Wait until it is to be read again: for the next time, or because a page was opened."""
        try:
            await asyncio.wait_for(self._wanted.wait(), POLL_S)
        except TimeoutError:
            return
        finally:
            self._wanted.clear()

    def _fail(self, error: Exception) -> None:
        """Take note that the workspace does not answer; what was seen of its endpoints stays, and says so."""
        self._problem = self._problem_text(f"workspace {self.name}", error)
        self._endpoints = {
            name: unread_endpoint(self.name, name, self._problem, seen) for name, seen in self._endpoints.items()
        }
        self._changed.set()

    async def _read_once(self, workspace: Workspace, target: Target) -> None:
        """Read all endpoints, a few at a time; raise if the workspace does not answer."""
        began = time.monotonic()
        names = await _in_time(target.endpoints(), DEADLINE_S, f"workspace {self.name}")
        shown = names[:MAX_ENDPOINTS]
        self._more = len(names) - len(shown)
        self._known = {name: self._known.get(name, KnownEndpoint()) for name in shown}
        self._endpoints = {name: seen for name, seen in self._endpoints.items() if name in self._known}
        self._began = {name: at for name, at in self._began.items() if name in self._known}
        room = asyncio.Semaphore(AT_ONCE)

        async def read(name: str) -> None:
            """Read one endpoint when it is its turn."""
            async with room:
                await self._read_endpoint(workspace, target, name)

        await asyncio.gather(*(read(name) for name in shown))
        self._problem, self._read = None, datetime.now(UTC)
        self._changed.set()
        self._round_began, self._round_took = began, time.monotonic() - began
        self._round.set()
        self._round = asyncio.Event()
        await self._read_details(workspace, target)

    async def _read_endpoint(self, workspace: Workspace, target: Target, name: str) -> None:
        """Read one endpoint; one that cannot be read is a row that says why."""
        detail, began = self._open_detail(name), time.monotonic()
        known = self._known.setdefault(name, KnownEndpoint())
        reading = read_overview(workspace, target, name, known, inspect=detail is not None)
        try:
            shown = await _in_time(reading, DEADLINE_S, f"endpoint {name!r}")
        except EndpointNotFoundError:  # deleted meanwhile
            self._endpoints.pop(name, None)
            return
        except Exception as error:  # any: the other endpoints are shown
            problem = self._problem_text(f"endpoint {name!r} of workspace {self.name}", error)
            shown = unread_endpoint(self.name, name, problem, self._endpoints.get(name))
        # Of two readings at once that which began later is shown.
        if began >= self._began.get(name, 0.0):
            self._endpoints[name], self._began[name] = shown, began

    async def _read_details(self, workspace: Workspace, target: Target) -> None:
        """Read what the open pages show, one after the other: a long record needs memory and processor time."""
        ends = time.monotonic() + POLL_S
        unfinished = [name for name in self._details if name in self._endpoints]
        while unfinished and time.monotonic() < ends:
            name = unfinished.pop(0)
            detail = self._open_detail(name)
            if detail is None or name not in self._endpoints:  # closed or deleted meanwhile
                continue
            if not await self._read_detail(workspace, target, name, detail):
                unfinished.append(name)
        if unfinished:
            self._wanted.set()

    def _open_detail(self, name: str) -> _Detail | None:
        """Return what is kept of an endpoint whose page is open; None if it is not, and forget it then."""
        detail = self._details.get(name)
        if detail is not None and time.monotonic() - detail.asked > IDLE_S:
            del self._details[name]
            return None
        return detail

    async def _read_detail(self, workspace: Workspace, target: Target, name: str, detail: _Detail) -> bool:
        """Read an endpoint's history and record for its page; what fails is said there. Return whether all was read."""
        try:
            if detail.revision != self._endpoints[name].revision:
                history = await _in_time(target.history(name), OPEN_DEADLINE_S, f"the history of {name!r}")
                detail.history = history_entries(history)
                detail.older_revisions = max(0, len(history) - ENTRIES)
                detail.revision = history[-1].number
            where = record.storage_of(workspace, name).name
            async with self._room_for_record:
                self._is_first_reading = not detail.is_read
                try:
                    if not await within_time(where, lambda: _follow(workspace, name, detail)):
                        return False
                finally:
                    self._is_first_reading = False
            detail.problem = None
        except Exception as error:  # any: the rest of the page is shown
            what = f"history and record of endpoint {name!r} of workspace {self.name}"
            detail.problem = self._problem_text(what, error)
        detail.is_read = True
        return True

    def _problem_text(self, what: str, error: Exception) -> str:
        """Return why something cannot be read, for people: of an unexpected error its kind, for it may say a secret."""
        if isinstance(error, ControlledRolloutError):
            return short_text(str(error), most=LONGEST_PROBLEM)
        kind = type(error).__name__
        # The same is read every few seconds: its error is logged once while somebody looks.
        if self._logged.get(what) != kind:
            self._logged[what] = kind
            log.warning("%s cannot be read", what, exc_info=error)
        return f"it cannot be read because of an unexpected error ({kind}): see the API server's log"


def _follow(workspace: Workspace, name: str, detail: _Detail) -> bool:
    """Read what was appended to an endpoint's record, and make its charts; in a thread. Return whether all was read."""
    if not detail.following.acquire(timeout=SLICE_S):
        return False
    try:
        return _follow_alone(workspace, name, detail)
    finally:
        detail.following.release()


def _follow_alone(workspace: Workspace, name: str, detail: _Detail) -> bool:
    """Do what `_follow` does, of which one call at a time may."""
    if detail.followed is None:
        detail.followed = FollowedRecord(record.storage_of(workspace, name))
    ends = time.monotonic() + SLICE_S
    number = 0
    for number, line in enumerate(detail.followed.new_lines(), start=1):
        detail.series.add(line)
        if time.monotonic() > ends:
            return False
        if number % LINES_BEFORE_OTHERS == 0:
            time.sleep(PAUSE_S)
    if number or detail.comparison is None:
        detail.comparison = comparison(detail.series)
    return True


async def _in_time(work: Awaitable[Result], seconds: float, what: str) -> Result:
    """Return the result of some work, or raise TargetUnavailableError if it takes longer than its deadline.

    Args:
        work: The work.
        seconds: Its deadline.
        what: What is asked, for the message.
    """
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        raise TargetUnavailableError(f"{what} does not answer within {seconds:g} s: it is asked again") from error
