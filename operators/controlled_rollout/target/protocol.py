"""The interface to the place where endpoints are: everything that changes or reads one goes through a `Target`."""

import secrets
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Literal, Protocol, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.sizing import Load
from controlled_rollout.tokens import DEFAULT_LIFETIME, Token

__all__ = [
    "Change",
    "EndpointStatus",
    "Keys",
    "LookNote",
    "ReplicaState",
    "ReplicaStatus",
    "Revision",
    "Target",
    "VersionStatus",
]


KEY_BYTES: Final = 32


class _Message(BaseModel):
    """An immutable value that a target receives or returns; unknown fields raise a validation error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Change(_Message):
    """Who changes an endpoint and why; stored with the revision.

    Attributes:
        who: A person, or a task as `dag/run/task`.
        reason: The reason in a sentence; empty leaves it to the step.
    """

    who: str
    reason: str = ""

    def with_default(self, reason: str) -> Self:
        """Return the change with this as its reason if it has none."""
        return self if self.reason else self.model_copy(update={"reason": reason})


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
        """Return the next revision: `endpoint` with its number raised by one, stored now."""
        number = endpoint.revision + 1
        stored = endpoint.model_copy(update={"revision": number})
        return cls(number=number, endpoint=stored, change=change, created=datetime.now(UTC))


class LookNote(_Message):
    """That somebody has looked at a treatment, or that a step of its rollout was under way.

    Attributes:
        version: The treatment.
        at: When.
    """

    version: str
    at: AwareDatetime


class ReplicaState(StrEnum):
    """The state of a replica."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting to restart"
    STOPPING = "stopping"


class ReplicaStatus(_Message):
    """The status of one process (or pod) of a version."""

    name: str
    state: ReplicaState
    restarts: int = 0
    last_exit: str | None = None


class CollectedCounts(_Message):
    """What the replicas of a version that collects have captured.

    Attributes:
        captured: Requests, and calls of scripts' collectors, that were captured.
        dropped: Those that were not, because a spool was full or a disk failed.
        unreadable: Records that were damaged, and data of scripts that could not be read.
        pending_bytes: What is not in the storage yet.
    """

    captured: int = 0
    dropped: int = 0
    unreadable: int = 0
    pending_bytes: int = 0


class VersionStatus(_Message):
    """The status of a version.

    Attributes:
        ready: Whether as many replicas answer as a step waits for: all that it should have, but for those that only the
            load asks for.
        wanted_replicas: How many replicas it should have now.
        scaling: Why an autoscaled version should have so many, since its number was last changed; None if it was not,
            or if the target does not know.
        failed: Whether waiting will not make it ready; `cause` says why, `log_tail` has the last lines of its log.
        down_since: Since when it has been unavailable; None while it is available, or if the target does not know.
        cause: What keeps it from being ready; None if it is ready, or if that is not known.
        requests: Requests that the router has sent to it since the router started, by the weights of the split.
        unsent: Requests that the router answered itself, because it had no healthy replica or no connection; one that
            was tried again may count again.
        active: Requests that it is answering now.
        collected: What its replicas have captured; None if it does not collect, or if the target does not know.
    """

    name: str
    ready: bool
    wanted_replicas: int = 0
    scaling: str | None = None
    failed: bool = False
    down_since: AwareDatetime | None = None
    cause: str | None = None
    log_tail: str = ""
    replicas: tuple[ReplicaStatus, ...] = ()
    requests: int = 0
    unsent: int = 0
    active: int = 0
    collected: CollectedCounts | None = None


class EndpointStatus(_Message):
    """The status of an endpoint.

    Attributes:
        url: Where callers send their requests.
        revision: The newest stored revision.
        served_revision: The newest revision whose whole split the router has confirmed; behind `revision` while a
            version with traffic is not ready, or the router has not confirmed yet.
        versions: The status of each version, by name.
        trouble: A sentence on what keeps the newest revision from being served and will not go away by waiting: the
            router refuses the route, or somebody has edited it. None if there is nothing of that kind.
        waiting_for: A sentence on what the newest revision waits for; None if for nothing that is known.
        warnings: A sentence for each thing that is not as the newest revision asks for, and does not keep it from being
            served: what somebody has deleted or edited by hand, and what steps do about it.
        certificate_ends: When the router's certificate ends; None without TLS, or if the target does not know.
        weight_ppm: Parts of a million of the requests that the router has confirmed to send to each version now; empty
            while it sends requests to none, or has not confirmed.
        split_revision: The revision that `weight_ppm` is of: as near to that revision's split as its versions allow. It
            is wholly served if `served_revision` is the same.
        seen_requests: How many requests the router has shared out while its counters were compared with the split: with
            0 the split is set, and not yet seen by traffic. None if they were not compared.
        clusters: By version: the name of its cluster in the router's own counters; of versions that share the traffic.
        routers: The processes of the router whose counts these are, and since when each runs; empty if it is not known.
    """

    name: str
    url: str
    revision: int
    served_revision: int
    versions: dict[str, VersionStatus] = Field(default_factory=dict)
    trouble: str | None = None
    waiting_for: str | None = None
    warnings: tuple[str, ...] = ()
    certificate_ends: AwareDatetime | None = None
    weight_ppm: dict[str, int] = Field(default_factory=dict)
    split_revision: int = 0
    seen_requests: int | None = None
    clusters: dict[str, str] = Field(default_factory=dict)
    routers: dict[str, AwareDatetime] = Field(default_factory=dict)


class Keys(_Message):
    """The two keys of an endpoint; their `repr` does not show them."""

    primary: str = Field(repr=False)
    secondary: str = Field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """Return two new random keys."""
        return cls(primary=secrets.token_urlsafe(KEY_BYTES), secondary=secrets.token_urlsafe(KEY_BYTES))

    def renewed(self, which: Literal["primary", "secondary"]) -> Self:
        """Return a copy of the keys with one of them replaced by a new random key."""
        return self.model_copy(update={which: secrets.token_urlsafe(KEY_BYTES)})


class Target(Protocol):
    """Where endpoints run: a local workspace or a cluster, opened by `connect` for the length of an `async with`.

    All methods raise `TargetUnavailableError` if it does not answer.
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
        """Store `endpoint` as revision `endpoint.revision + 1` and begin to reconcile it.

        If the newest revision has that content already, nothing is stored and it is reconciled further: a retried task
        may call this again.

        Returns:
            The endpoint as stored, with its revision number.

        Raises:
            ConflictError: Another writer stored that revision first with another content; nothing was changed.
        """
        ...

    async def status(self, name: str, *, inspect: bool = True) -> EndpointStatus:
        """Return the status of the endpoint and its versions.

        Args:
            name: The endpoint's name.
            inspect: Whether to compare all objects of the endpoint with its newest revision and to look for rules of
                others, for `warnings` and `trouble`. On Kubernetes that is four requests of five: looks do without.
        """
        ...

    def watch(self, name: str, *, reconcile: bool = False) -> AsyncGenerator[EndpointStatus]:
        """Yield the endpoint's status, first as it is and then whenever it has changed, until the caller stops.

        Request counts may be left at 0: watching is for readiness and for what is served.

        Args:
            name: The endpoint's name.
            reconcile: Whether to reconcile the newest revision meanwhile: there is no controller in the cluster, so the
                waiting caller does. Locally the supervisor reconciles in any case.
        """
        ...

    async def load(self, name: str) -> Mapping[str, Load]:
        """Return the load of each version that the router has counters of, measured over the last seconds."""
        ...

    async def logs(self, name: str, version: str, *, tail: int = 200) -> str:
        """Return the last `tail` lines of a version's log, also if it has failed."""
        ...

    async def keys(self, name: str) -> Keys:
        """Return the endpoint's two API keys, with which callers authenticate."""
        ...

    async def regenerate_key(self, name: str, which: Literal["primary", "secondary"]) -> Keys:
        """Replace one key, and wait until the router has confirmed it; the other keeps working the whole time.

        Raises:
            TargetUnavailableError: The router has not confirmed it in time; the new key is stored.
        """
        ...

    async def token(self, name: str, *, lifetime: timedelta = DEFAULT_LIFETIME) -> Token:
        """Return a new token for the endpoint's callers, signed with the endpoint's current signing key.

        Args:
            name: The endpoint's name, the token's audience.
            lifetime: How long it is accepted: 1 minute to 24 hours.

        Raises:
            EndpointError: Its callers have no tokens, or those of an outside issuer; or the lifetime is not possible.
        """
        ...

    async def rotate_signing_keys(self, name: str) -> None:
        """Rotate the endpoint's signing keys, and wait until the router has confirmed it; no caller is interrupted.

        New tokens are signed with the next key, which the router has accepted already. Tokens of the key of before go
        on working, and are refused after the next rotation.

        Raises:
            EndpointError: It has no signing keys.
            TargetUnavailableError: The router has not confirmed it in time; the keys are rotated.
        """
        ...

    async def scale(self, name: str, version: str, replicas: int, *, at_least: bool = False) -> None:
        """Change how many replicas of a version run, at once and without a new revision.

        An autoscaler takes none below that number for the next ten minutes.

        Args:
            name: The endpoint's name.
            version: The version's name.
            replicas: The number.
            at_least: Whether more replicas than that stay, and a higher number that was asked for a moment ago holds.

        Raises:
            EndpointError: There is no such version, or the number is below 1 or above 1,000.
        """
        ...

    async def store_secret(self, name: str, values: Mapping[str, str]) -> None:
        """Store values in a secret, which versions name in `environment_variables`; other keys of it stay.

        A version gets a changed value when its replicas start.

        Args:
            name: The secret's name; it is made if there is none.
            values: The values, by key.

        Raises:
            EndpointError: A name is not valid, or the secret exists and is not one of ours.
        """
        ...

    async def note_look(self, name: str, version: str) -> None:
        """Write down beside the endpoint that somebody looks at a treatment now; without a new revision.

        Where an endpoint is gone, nothing is written.
        """
        ...

    async def last_look(self, name: str) -> LookNote | None:
        """Return what `note_look` has written down last; None if nothing was, or it cannot be understood."""
        ...

    async def delete(self, name: str, change: Change) -> None:
        """Delete the endpoint, its versions and its keys; if there is no such endpoint, do nothing."""
        ...
