"""The door: everything that changes an endpoint, or asks how it is, goes through a `Target`."""

import secrets
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Literal, Protocol, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.sizing import Load

__all__ = [
    "Change",
    "EndpointStatus",
    "Keys",
    "ReplicaState",
    "ReplicaStatus",
    "Revision",
    "Target",
    "VersionStatus",
]


KEY_BYTES: Final = 32


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Change(_Message):
    """Who changes an endpoint, and why: stored with the revision.

    Attributes:
        who: A person, or a task as `dag/run/task`.
        why: The reason in a sentence; empty leaves it to the step.
    """

    who: str
    why: str = ""

    def with_default(self, why: str) -> Self:
        """Return the change with `why` as its reason if it has none."""
        return self if self.why else self.model_copy(update={"why": why})


class Revision(_Message):
    """One stored state of an endpoint; immutable.

    Attributes:
        number: 1 for the first.
        endpoint: The endpoint as it was; `endpoint.revision == number`.
        change: Who and why.
        created: When it was stored.
    """

    number: int
    endpoint: Endpoint
    change: Change
    created: AwareDatetime

    @classmethod
    def after(cls, endpoint: Endpoint, change: Change) -> Self:
        """Return the revision that storing `endpoint` makes, now."""
        number = endpoint.revision + 1
        stored = endpoint.model_copy(update={"revision": number})
        return cls(number=number, endpoint=stored, change=change, created=datetime.now(UTC))


class ReplicaState(StrEnum):
    """Where a replica is in its life."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting to restart"
    STOPPING = "stopping"


class ReplicaStatus(_Message):
    """One process (or pod) of a version."""

    name: str
    state: ReplicaState
    restarts: int = 0
    last_exit: str | None = None


class VersionStatus(_Message):
    """How a version is.

    Attributes:
        ready: All the replicas that it should have answer.
        wanted_replicas: How many replicas it should have now.
        failed: It will not become ready by waiting; `cause` says why, `log_tail` holds the container's last lines.
        down_since: Since when it has had fewer ready replicas than it can do with; None while it has enough, or where
            the target does not say.
        requests: Requests that the router has sent to it since the router started.
        active: Requests that it is answering now.
    """

    name: str
    ready: bool
    wanted_replicas: int = 0
    failed: bool = False
    down_since: AwareDatetime | None = None
    cause: str | None = None
    log_tail: str = ""
    replicas: tuple[ReplicaStatus, ...] = ()
    requests: int = 0
    active: int = 0


class EndpointStatus(_Message):
    """How an endpoint is.

    Attributes:
        url: Where callers send their requests.
        revision: The newest stored revision.
        served_revision: The revision whose split the router has confirmed that it serves; behind `revision` while
            a version with traffic is not ready, or the router has not answered yet.
        versions: By name.
        trouble: What keeps the newest revision from being served and will not go away by waiting, in a sentence: the
            router refuses the route, somebody has changed it by hand. None while there is nothing of that kind.
        waiting_for: What the newest revision still waits for, for the reader of a time-out.
        weight_ppm: Parts of a million of the requests that the router has confirmed to send to each version now; empty
            while it sends requests to none, or has not confirmed.
        clusters: What the router calls the replicas of each version that shares the traffic, in its own counters.
    """

    name: str
    url: str
    revision: int
    served_revision: int
    versions: dict[str, VersionStatus] = Field(default_factory=dict)
    trouble: str | None = None
    waiting_for: str | None = None
    weight_ppm: dict[str, int] = Field(default_factory=dict)
    clusters: dict[str, str] = Field(default_factory=dict)


class Keys(_Message):
    """The two keys of an endpoint; never printed by accident."""

    primary: str = Field(repr=False)
    secondary: str = Field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """Return two keys that nobody has had before."""
        return cls(primary=secrets.token_urlsafe(KEY_BYTES), secondary=secrets.token_urlsafe(KEY_BYTES))

    def renewed(self, which: Literal["primary", "secondary"]) -> Self:
        """Return the keys with one of them new."""
        return self.model_copy(update={which: secrets.token_urlsafe(KEY_BYTES)})


class Target(Protocol):
    """A place where endpoints live, opened by `connect`.

    All methods raise `TargetUnavailableError` when it does not answer. It is used inside its `async with` only.
    """

    async def endpoints(self) -> list[str]:
        """Return the names of all endpoints, sorted."""
        ...

    async def endpoint(self, name: str) -> Endpoint:
        """Return the newest revision of an endpoint.

        Raises:
            EndpointNotFoundError: There is none of that name.
        """
        ...

    async def history(self, name: str) -> list[Revision]:
        """Return all kept revisions of an endpoint, oldest first."""
        ...

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        """Store `endpoint` as revision `endpoint.revision + 1` and begin to make it so.

        Applying what is already the newest revision stores nothing and carries on: a retried task may call it again.

        Returns:
            The endpoint as stored, with its revision number.

        Raises:
            ConflictError: Somebody else stored that revision first with another content; nothing was changed.
        """
        ...

    async def status(self, name: str) -> EndpointStatus:
        """Return how the endpoint and its versions are now."""
        ...

    def watch(self, name: str, *, reconcile: bool = False) -> AsyncIterator[EndpointStatus]:
        """Yield how the endpoint is: once at once, then whenever something has changed, until the caller has enough.

        Request counts may be left at 0: watching is for readiness and for the served revision.

        Args:
            name: The endpoint's name.
            reconcile: Whether to bring the newest revision about meanwhile: there is no controller in the cluster, so
                the waiting caller reconciles. Locally the supervisor does.
        """
        ...

    async def load(self, name: str) -> Mapping[str, Load]:
        """Return the load of each version that the router knows, measured over the last seconds."""
        ...

    async def logs(self, name: str, version: str, *, tail: int = 200) -> str:
        """Return the last `tail` lines of a version's log, also of one that is deleted or failed."""
        ...

    async def keys(self, name: str) -> Keys:
        """Return the endpoint's two keys."""
        ...

    async def regenerate_key(self, name: str, which: Literal["primary", "secondary"]) -> Keys:
        """Replace one key; the other keeps working the whole time."""
        ...

    async def scale(self, name: str, version: str, replicas: int) -> None:
        """Set the number of replicas that run now, without a new revision."""
        ...

    async def delete(self, name: str, change: Change) -> None:
        """Delete the endpoint, its versions and its keys; deleting what is not there is no error."""
        ...
