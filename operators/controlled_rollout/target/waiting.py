"""Waiting on a target, in bounded time, with progress: until it answers, a version is ready, a split is served.

The one who waits does the work: a target that is watched by somebody who waits carries on meanwhile.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Final, TypeVar

from controlled_rollout.errors import DeploymentError, TargetUnavailableError
from controlled_rollout.target.protocol import EndpointStatus, Target, VersionStatus

__all__ = ["Progress", "patiently", "wait_until_ready", "wait_until_served"]

Progress = Callable[[str], None]
Result = TypeVar("Result")

# Between two tries at a target that does not answer.
RETRY_S: Final = 0.5


def _unheard(sentence: str) -> None:
    """Progress that nobody asked for."""


async def patiently(call: Callable[[], Awaitable[Result]], *, timeout: timedelta, progress: Progress) -> Result:
    """Return what one call of a target returns; while the target does not answer, try again.

    Args:
        call: Makes the call; must come to the same end when it is made again.
        timeout: How long to try; 0 tries once.
        progress: Called once with a sentence if the target does not answer at first.

    Raises:
        TargetUnavailableError: The target did not answer in time.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    outage = _Outage(progress)
    while True:
        try:
            return await call()
        except TargetUnavailableError as error:
            if time.monotonic() + RETRY_S > deadline:
                raise
            outage.began(error)
        await asyncio.sleep(RETRY_S)


async def wait_until_ready(
    target: Target, endpoint: str, version: str, *, timeout: timedelta, progress: Progress
) -> VersionStatus:
    """Wait until every replica of a version answers.

    Args:
        target: Where the endpoint lives.
        endpoint: The endpoint's name.
        version: The version's name.
        timeout: When to give up.
        progress: Called with a sentence each time the state changes.

    Raises:
        DeploymentError: The version failed, or was not ready in time; the message has the cause and the last log lines.
        TargetUnavailableError: The target did not answer until the time was over.
    """
    seen: VersionStatus | None = None
    said = ""

    def ready(status: EndpointStatus) -> VersionStatus | None:
        nonlocal seen, said
        seen = status.versions.get(version)
        if seen is None:
            raise DeploymentError(f"version {version!r} is not among the versions of endpoint {endpoint!r} any more")
        if seen.ready:
            return seen
        if seen.failed:
            raise DeploymentError(_failure(endpoint, seen, seen.cause or "failed"))
        if (now := _states(seen)) != said:
            progress(f"version {version!r}: {now}")
            said = now
        return None

    try:
        return await _first(ready, target, endpoint, timeout, progress)
    except _NotInTimeError:
        late = f"not ready after {timeout.total_seconds():g} s"
        # A look at leisure says more than one in passing.
        with contextlib.suppress(TargetUnavailableError):
            seen = (await target.status(endpoint)).versions.get(version, seen)
        if seen is None:
            raise DeploymentError(
                f"version {version!r} of endpoint {endpoint!r}: {late}, nor was its state seen"
            ) from None
        raise DeploymentError(_failure(endpoint, seen, f"{late}: {seen.cause or _states(seen)}")) from None


async def wait_until_served(
    target: Target, endpoint: str, revision: int, *, timeout: timedelta, progress: Progress = _unheard
) -> EndpointStatus:
    """Wait until the router confirms that it serves the split of `revision` (or of a later one).

    A version that fails meanwhile is said at once and waited for all the same: whether the router needs it is the
    target's to know, and a roll-back must not end at the very version that it takes the traffic from.

    Args:
        target: Where the endpoint lives.
        endpoint: The endpoint's name.
        revision: The number of a stored revision.
        timeout: When to give up.
        progress: Called with a sentence when a version fails, or the target does not answer.

    Raises:
        DeploymentError: The router will not serve it, or did not confirm it in time.
        TargetUnavailableError: The target did not answer until the time was over.
    """
    seen: EndpointStatus | None = None
    said: set[str] = set()

    def served(status: EndpointStatus) -> EndpointStatus | None:
        nonlocal seen
        seen = status
        if status.served_revision >= revision:
            return status
        if status.trouble and status.revision >= revision:
            raise DeploymentError(
                f"the router serves revision {status.served_revision} of endpoint {endpoint!r}, and waiting will not "
                f"make it {revision}: {status.trouble}"
            )
        for version in status.versions.values():
            if version.failed and version.name not in said:
                said.add(version.name)
                progress(f"version {version.name!r} has failed: {version.cause or 'it does not say why'}")
        return None

    try:
        return await _first(served, target, endpoint, timeout, progress)
    except _NotInTimeError:
        raise DeploymentError(_unserved(endpoint, revision, timeout, seen)) from None


async def _first(
    wanted: Callable[[EndpointStatus], Result | None],
    target: Target,
    endpoint: str,
    timeout: timedelta,
    progress: Progress,
) -> Result:
    """Return the first thing that `wanted` makes of the endpoint's status; the target carries on until then.

    Raises:
        TargetUnavailableError: The target did not answer when the time was over.
        _NotInTimeError: It did, and it was not so.
    """
    outage = _Outage(progress)
    try:
        async with asyncio.timeout(timeout.total_seconds()) as limit:
            while True:
                try:
                    async with _watched(target, endpoint) as statuses:
                        async for status in statuses:
                            if (found := wanted(status)) is not None:
                                return found
                            outage.ended()
                except TargetUnavailableError as error:
                    outage.began(error)
                await asyncio.sleep(RETRY_S)
    except TimeoutError:
        if not limit.expired():
            raise
        raise outage.error or _NotInTimeError from None


class _NotInTimeError(Exception):
    """The time is over."""


class _Outage:
    """Whether a target answers; says so once when it does not, and not again for every try."""

    def __init__(self, progress: Progress) -> None:
        self.error: TargetUnavailableError | None = None
        self._progress = progress

    def began(self, error: TargetUnavailableError) -> None:
        if self.error is None:
            self._progress(f"trying again: {error}")
        self.error = error

    def ended(self) -> None:
        self.error = None


@contextlib.asynccontextmanager
async def _watched(target: Target, endpoint: str) -> AsyncIterator[AsyncIterator[EndpointStatus]]:
    """Watch an endpoint, and let go of it at once at the end instead of whenever the interpreter gets there."""
    statuses = target.watch(endpoint, reconcile=True)
    try:
        yield statuses
    finally:
        if isinstance(statuses, AsyncGenerator):
            await statuses.aclose()


def _states(status: VersionStatus) -> str:
    counts: dict[str, int] = {}
    for replica in status.replicas:
        counts[replica.state.value] = counts.get(replica.state.value, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "no replica yet"


def _failure(endpoint: str, status: VersionStatus, cause: str) -> str:
    log = f"\nlast lines of its log:\n{status.log_tail}" if status.log_tail else "\nit has logged nothing"
    return f"version {status.name!r} of endpoint {endpoint!r} did not become ready: {cause}{log}"


def _unserved(endpoint: str, revision: int, timeout: timedelta, seen: EndpointStatus | None) -> str:
    late = f"after {timeout.total_seconds():g} s"
    if seen is None:
        return f"whether the router serves revision {revision} of endpoint {endpoint!r} was not to be seen {late}"
    unready = [version for version in seen.versions.values() if not version.ready]
    failures = [_failure(endpoint, version, version.cause or "failed") for version in unready if version.failed]
    return "\n".join(
        [
            f"the router still serves revision {seen.served_revision} of endpoint {endpoint!r}, not {revision}, "
            f"{late}; versions that are not ready: {', '.join(version.name for version in unready) or 'none'}"
            + (f"; it waits: {seen.waiting_for}" if seen.waiting_for else ""),
            *failures,
        ]
    )
