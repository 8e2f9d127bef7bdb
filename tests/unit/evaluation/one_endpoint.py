"""A target with one endpoint, `digits`, as far as a look needs it."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import cast

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import EndpointNotFoundError
from controlled_rollout.target.protocol import Change, EndpointStatus, Revision, Target, VersionStatus
from controlled_rollout.workspace import Workspace


class OneEndpoint:
    """An endpoint whose treatment `v2a` has had half of the traffic since `dag/run` created it; `v1a` is control.

    Args:
        before: When control was created.
        created: When the treatment was created.
        counted: What the router has counted by now.
        fails: What every call raises; None for nothing.
        routers: The router's processes that counted, and since when.

    Attributes:
        refuses: What a change raises; None for nothing.
        refuses_notes: What noting a look raises; None for nothing.
        looked_at: The versions of the looks that were noted.
    """

    def __init__(
        self,
        *,
        before: datetime,
        created: datetime,
        counted: Callable[[], Mapping[str, int]],
        fails: Exception | None = None,
        routers: Mapping[str, datetime] | None = None,
    ) -> None:
        self._counted = counted
        self._routers = dict(routers or {})
        self._fails = fails
        self.refuses: Exception | None = None
        self.refuses_notes: Exception | None = None
        self.looked_at: list[str] = []
        first = Endpoint(name="digits").create_version("v1a", is_control=True, is_default=True)
        rolling = first.claim("v2a", owner="dag/run", at=created).create_version("v2a", traffic_percentile=50)
        self.newest = rolling.model_copy(update={"revision": 2})
        self._history = [
            Revision(number=number, endpoint=endpoint, change=Change(who="a", reason="b"), created=moment)
            for number, endpoint, moment in ((1, first, before), (2, self.newest, created))
        ]

    async def history(self, name: str) -> list[Revision]:
        if self._fails is not None:
            raise self._fails
        return self._history if name == "digits" else []

    async def endpoint(self, name: str) -> Endpoint:
        if name != "digits":
            raise EndpointNotFoundError(f"there is no endpoint {name!r}")
        return self.newest

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        if self.refuses is not None:
            raise self.refuses
        number = len(self._history) + 1
        self.newest = endpoint.model_copy(update={"revision": number})
        revision = Revision(number=number, endpoint=self.newest, change=change, created=self._history[-1].created)
        self._history.append(revision)
        return self.newest

    async def note_look(self, name: str, version: str) -> None:
        if self.refuses_notes is not None:
            raise self.refuses_notes
        self.looked_at.append(version)

    def set_time_of_newest(self, moment: datetime) -> None:
        """Let the newest revision be of another moment."""
        self._history[-1] = self._history[-1].model_copy(update={"created": moment})

    async def status(self, name: str, *, inspect: bool = True) -> EndpointStatus:
        versions = {name: VersionStatus(name=name, ready=True, requests=n) for name, n in self._counted().items()}
        return EndpointStatus(
            name=name,
            url="",
            revision=2,
            served_revision=self.newest.revision,
            versions=versions,
            routers=self._routers,
        )

    @asynccontextmanager
    async def connect(self, workspace: Workspace) -> AsyncIterator[Target]:
        """Open it, as `controlled_rollout.target.connect.connect` does."""
        yield cast("Target", self)
