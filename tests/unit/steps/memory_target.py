"""A target in memory: stores revisions as the real ones do; all versions are ready and served at once."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.sizing import Load
from controlled_rollout.target import refusals
from controlled_rollout.target.protocol import Change, EndpointStatus, LookNote, Revision, Target, VersionStatus
from controlled_rollout.target.transition import CLOSED, Split, allowed_split
from controlled_rollout.workspace import Workspace
from tests.keyless_target import KeylessTarget


class MemoryTarget(KeylessTarget):
    """A target that keeps its endpoints in this object.

    Attributes:
        openings: How often it was opened.
        calls: The names of the methods that were called.
        never_ready: Versions that do not become ready.
        unserved: Whether the router does not confirm anything.
        loads: What `load` answers.
        seen_requests: How many requests the router counts while it compares the split.
        before: By method: called before it does its work, such as by another writer.
        secrets: What was stored, by the secret's name.
        failing_calls: How many of the next calls fail because the target does not answer.
        looks: The last look that was noted, by endpoint.
    """

    def __init__(self) -> None:
        self.openings = 0
        self.calls: list[str] = []
        self.never_ready: set[str] = set()
        self.unserved = False
        self.loads: dict[str, Load] = {}
        self.seen_requests: int | None = None
        self.before: dict[str, Callable[[], None]] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.failing_calls = 0
        self.looks: dict[str, LookNote] = {}
        self._revisions: dict[str, list[Revision]] = {}
        self._replicas: dict[str, int] = {}
        self._served: dict[str, Split] = {}

    @asynccontextmanager
    async def open(self, workspace: Workspace) -> AsyncIterator[Target]:
        self.openings += 1
        yield self

    def store(self, endpoint: Endpoint, change: Change) -> Endpoint:
        """Store a revision if it is the next one."""
        revisions = self._revisions.setdefault(endpoint.name, [])
        same = refusals.already_stored(endpoint, revisions[-1] if revisions else None)
        if same is None:
            revisions.append(Revision.after(endpoint, change))
        return revisions[-1].endpoint

    def newest(self, name: str) -> Endpoint:
        """Return the newest revision, without a call of the target."""
        return self._revisions[name][-1].endpoint

    def drop(self, name: str) -> None:
        """Delete an endpoint, without a call of the target."""
        self._revisions.pop(name, None)

    async def endpoints(self) -> list[str]:
        self._call("endpoints")
        return sorted(self._revisions)

    async def endpoint(self, name: str) -> Endpoint:
        return (await self.history(name))[-1].endpoint

    async def history(self, name: str) -> list[Revision]:
        self._call("history")
        if name not in self._revisions:
            raise refusals.not_found_error(name, self._revisions)
        return list(self._revisions[name])

    async def apply(self, endpoint: Endpoint, change: Change) -> Endpoint:
        self._call("apply")
        return self.store(endpoint, change)

    async def status(self, name: str, *, inspect: bool = True) -> EndpointStatus:
        newest = await self.endpoint(name)
        versions = {
            version: VersionStatus(
                name=version,
                ready=version not in self.never_ready,
                failed=version in self.never_ready,
                wanted_replicas=self._replicas.get(version, 1),
            )
            for version in newest.versions
        }
        if not self.unserved:
            ready = set(newest.versions) - self.never_ready
            served = self._served.get(name, CLOSED)
            self._served[name] = allowed_split(newest, served=served, ready=ready, live=ready)
        split = self._served.get(name, CLOSED)
        return EndpointStatus(
            name=name,
            url="",
            revision=newest.revision,
            served_revision=split.revision if split.complete else 0,
            versions=versions,
            weight_ppm={version: weight for version, weight in split.weights.items() if weight},
            split_revision=split.revision,
            seen_requests=self.seen_requests,
        )

    async def watch(self, name: str, *, reconcile: bool = False) -> AsyncGenerator[EndpointStatus]:
        yield await self.status(name)

    async def load(self, name: str) -> Mapping[str, Load]:
        self._call("load")
        return self.loads

    async def logs(self, name: str, version: str, *, tail: int = 200) -> str:
        return ""

    async def scale(self, name: str, version: str, replicas: int, *, at_least: bool = False) -> None:
        self._call(f"scale {version} {'at least ' if at_least else ''}{replicas}")
        self._replicas[version] = max(replicas, self._replicas.get(version, 1)) if at_least else replicas

    async def store_secret(self, name: str, values: Mapping[str, str]) -> None:
        self._call("store_secret")
        self.secrets.setdefault(name, {}).update(values)

    async def note_look(self, name: str, version: str) -> None:
        if name in self._revisions:
            self.looks[name] = LookNote(version=version, at=datetime.now(UTC))

    async def last_look(self, name: str) -> LookNote | None:
        self._call("last_look")
        return self.looks.get(name)

    async def delete(self, name: str, change: Change) -> None:
        self._call("delete")
        self.drop(name)

    def _call(self, method: str) -> None:
        if self.failing_calls:
            self.failing_calls -= 1
            raise TargetUnavailableError("it does not answer")
        self.calls.append(method)
        if method in self.before:
            self.before[method]()
