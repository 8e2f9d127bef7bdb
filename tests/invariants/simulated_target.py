"""A target in memory that fails as real ones do: outages, lost answers, versions that start late or never."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from controlled_rollout.endpoint import WEIGHT_TOTAL, Endpoint
from controlled_rollout.errors import ControlledRolloutError, TargetUnavailableError
from controlled_rollout.sizing import Load
from controlled_rollout.target import refusals
from controlled_rollout.target.protocol import (
    Change,
    EndpointStatus,
    LookNote,
    ReplicaState,
    ReplicaStatus,
    Revision,
    Target,
    VersionStatus,
)
from controlled_rollout.target.transition import CLOSED, Split, allowed_split
from tests.invariants.simulated_clock import SimulatedClock, moment
from tests.invariants.simulated_traffic import SimulatedTraffic
from tests.keyless_target import KeylessTarget

__all__ = ["NEVER", "Instance", "SimulatedTarget", "SimulatedTargets"]

WATCH_INTERVAL_S: Final = 5.0
# Seconds after which no test is still running.
NEVER: Final = 1e9


@dataclass
class Instance:
    """The replicas of one version.

    Attributes:
        ready_at: From when on they answer, in seconds of the clock; `NEVER` or later if never.
        down_since: Since when they do not answer any more; None while they do.
    """

    ready_at: float
    down_since: float | None = None

    def is_ready(self, now: float) -> bool:
        """Return whether the replicas answer."""
        return self.ready_at <= now and self.down_since is None


async def _nothing(call: str) -> None:
    """Do nothing before or after a call."""


@dataclass
class SimulatedTarget(KeylessTarget):
    """A target with one endpoint.

    Attributes:
        name: The endpoint's name.
        unavailable_until: In seconds of the clock: calls before fail with `outage`.
        outage: What they raise.
        lost_answers: How many of the next changes are stored although the caller gets no answer.
        serving_lag_s: How long the router takes to serve a new revision.
        starting_s: How long a new version takes to become ready; `NEVER` for ever.
        before, after: Awaited before and after each change: where a task may be killed, or somebody else be faster.
        stored: Called with each revision that was stored.
        revisions: The endpoint's revisions; empty if there is none.
        lives: The revisions of all endpoints of that name, one list for each time it was created.
        split: What the router serves.
        looked: The last look that was noted.
        looks: All looks that were noted, oldest first.
    """

    name: str
    clock: SimulatedClock
    traffic: SimulatedTraffic
    unavailable_until: float = 0.0
    outage: ControlledRolloutError = field(default_factory=lambda: TargetUnavailableError("the target does not answer"))
    lost_answers: int = 0
    serving_lag_s: float = 0.0
    starting_s: float = 2.0
    before: Callable[[str], Awaitable[None]] = _nothing
    after: Callable[[str], Awaitable[None]] = _nothing
    stored: Callable[[Revision], object] = lambda revision: None
    revisions: list[Revision] = field(default_factory=list)
    lives: list[list[Revision]] = field(default_factory=list)
    split: Split = CLOSED
    looked: LookNote | None = None
    looks: list[LookNote] = field(default_factory=list)
    instances: dict[str, Instance] = field(default_factory=dict)
    _served_at: list[float] = field(default_factory=list)
    _served: tuple[int, set[str]] | None = None
    _at: float = 0.0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Target]:
        """Open it, as `controlled_rollout.target.connect.connect` does."""
        yield self

    # What the simulation does with it.

    def advance(self) -> None:
        """Send the requests since the last call, and serve what has become ready or known meanwhile."""
        now = self.clock.seconds
        while self._at < now:
            stop = min((moment for moment in self._moments() if self._at < moment < now), default=now)
            shares = {name: weight / WEIGHT_TOTAL for name, weight in self.split.weights.items() if weight}
            self.traffic.send(shares, self._at, stop)
            self._at = stop
            self._serve()

    def _moments(self) -> list[float]:
        """Return the moments at which something changes by itself."""
        return [*self._served_at, *(instance.ready_at for instance in self.instances.values())]

    def _serve(self) -> None:
        """Let the router serve the newest revision that has reached it, as far as its versions are ready."""
        known = max((number for number, at in enumerate(self._served_at, start=1) if at <= self._at), default=0)
        ready = {name for name, instance in self.instances.items() if instance.is_ready(self._at)}
        if known and (known, ready) != self._served:
            self._served = known, ready
            self.split = allowed_split(self.revisions[known - 1].endpoint, served=self.split, ready=ready, live=ready)

    def store(self, endpoint: Endpoint, change: Change) -> Endpoint:
        """Store a revision if it is the next one, and start the replicas of new versions."""
        self.advance()
        same = refusals.already_stored(endpoint, self.revisions[-1] if self.revisions else None)
        if same is not None:
            return same
        if not self.revisions:
            self.lives.append(self.revisions)
        revision = Revision.after(endpoint, change)
        self.revisions.append(revision.model_copy(update={"created": self.clock.now()}))
        self.stored(self.revisions[-1])
        self._served_at.append(self.clock.seconds + self.serving_lag_s)
        for name in endpoint.versions.keys() - self.instances.keys():
            self.instances[name] = Instance(self.clock.seconds + self.starting_s)
        for name in self.instances.keys() - endpoint.versions.keys():
            del self.instances[name]
            self.traffic.forget(name)
        self._serve()
        return self.revisions[-1].endpoint

    @property
    def newest(self) -> Endpoint | None:
        """The newest revision, without a call of the target; None if there is no endpoint."""
        return self.revisions[-1].endpoint if self.revisions else None

    def drop(self) -> None:
        """Delete the endpoint."""
        self.advance()
        self.revisions, self.looked = [], None
        self.instances, self.split, self._served_at, self._served = {}, CLOSED, [], None

    # The protocol.

    async def endpoints(self) -> list[str]:
        self._check()
        return [self.name] if self.revisions else []

    async def endpoint(self, name: str) -> Endpoint:
        return (await self.history(name))[-1].endpoint

    async def history(self, name: str) -> list[Revision]:
        await self.before("read")
        self._check()
        if not self.revisions or name != self.name:
            raise refusals.not_found_error(name, [self.name] if self.revisions else [])
        return list(self.revisions)

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        await self.before("apply")
        self._check()
        stored = self.store(endpoint, change)
        await self.after("apply")
        self._lose_answer()
        return stored

    async def status(self, name: str, *, inspect: bool = True) -> EndpointStatus:
        newest = await self.endpoint(name)
        self.advance()
        return EndpointStatus(
            name=name,
            url="",
            revision=newest.revision,
            served_revision=self.split.revision if self.split.complete else 0,
            versions={version: self._version_status(version) for version in newest.versions},
            weight_ppm={version: weight for version, weight in self.split.weights.items() if weight},
            split_revision=self.split.revision,
        )

    def _version_status(self, name: str) -> VersionStatus:
        """Return the status of a version with one replica."""
        instance, now = self.instances[name], self.clock.seconds
        ready = instance.is_ready(now)
        down_since = None if instance.down_since is None else moment(instance.down_since)
        return VersionStatus(
            name=name,
            ready=ready,
            wanted_replicas=1,
            failed=instance.ready_at >= NEVER,
            down_since=down_since,
            cause=None if ready else "simulated",
            replicas=(ReplicaStatus(name=f"{name}-0", state=ReplicaState.READY if ready else ReplicaState.STARTING),),
            requests=self.traffic.counted.get(name, 0),
        )

    async def watch(self, name: str, *, reconcile: bool = False) -> AsyncGenerator[EndpointStatus]:
        last: EndpointStatus | None = None
        while True:
            status = await self.status(name)
            if status != last:
                last = status
                yield status
            coming = [moment for moment in self._moments() if moment > self.clock.seconds]
            await asyncio.sleep(min([*coming, self.clock.seconds + WATCH_INTERVAL_S]) - self.clock.seconds)

    async def load(self, name: str) -> Mapping[str, Load]:
        self._check()
        return {}

    async def logs(self, name: str, version: str, *, tail: int = 200) -> str:
        self._check()
        return ""

    async def scale(self, name: str, version: str, replicas: int, *, at_least: bool = False) -> None:
        self._check()

    async def store_secret(self, name: str, values: Mapping[str, str]) -> None:
        raise NotImplementedError

    async def note_look(self, name: str, version: str) -> None:
        self._check()
        if self.revisions:
            self.looked = LookNote(version=version, at=self.clock.now())
            self.looks.append(self.looked)

    async def last_look(self, name: str) -> LookNote | None:
        self._check()
        return self.looked

    async def delete(self, name: str, change: Change) -> None:
        await self.before("delete")
        self._check()
        self.drop()
        await self.after("delete")
        self._lose_answer()

    def _check(self) -> None:
        """Raise during an outage."""
        if self.clock.seconds < self.unavailable_until:
            raise self.outage

    def _lose_answer(self) -> None:
        """Raise after a change that was made, if the caller is not to get the answer."""
        if self.lost_answers:
            self.lost_answers -= 1
            raise TargetUnavailableError("the connection broke before the answer came")


@dataclass(frozen=True)
class SimulatedTargets(KeylessTarget):
    """A target with several endpoints, each of which fails by itself.

    Attributes:
        by_endpoint: What there is of each endpoint, by its name.
    """

    by_endpoint: Mapping[str, SimulatedTarget]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Target]:
        """Open it, as `controlled_rollout.target.connect.connect` does."""
        yield self

    async def endpoints(self) -> list[str]:
        return [name for target in self.by_endpoint.values() for name in await target.endpoints()]

    async def endpoint(self, name: str) -> Endpoint:
        return await self.by_endpoint[name].endpoint(name)

    async def history(self, name: str) -> list[Revision]:
        return await self.by_endpoint[name].history(name)

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        return await self.by_endpoint[endpoint.name].apply(endpoint, change)

    async def status(self, name: str, *, inspect: bool = True) -> EndpointStatus:
        return await self.by_endpoint[name].status(name, inspect=inspect)

    def watch(self, name: str, *, reconcile: bool = False) -> AsyncGenerator[EndpointStatus]:
        return self.by_endpoint[name].watch(name, reconcile=reconcile)

    async def load(self, name: str) -> Mapping[str, Load]:
        return await self.by_endpoint[name].load(name)

    async def logs(self, name: str, version: str, *, tail: int = 200) -> str:
        return await self.by_endpoint[name].logs(name, version, tail=tail)

    async def scale(self, name: str, version: str, replicas: int, *, at_least: bool = False) -> None:
        await self.by_endpoint[name].scale(name, version, replicas, at_least=at_least)

    async def store_secret(self, name: str, values: Mapping[str, str]) -> None:
        raise NotImplementedError

    async def note_look(self, name: str, version: str) -> None:
        await self.by_endpoint[name].note_look(name, version)

    async def last_look(self, name: str) -> LookNote | None:
        return await self.by_endpoint[name].last_look(name)

    async def delete(self, name: str, change: Change) -> None:
        await self.by_endpoint[name].delete(name, change)
