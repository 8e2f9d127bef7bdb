"""Waiting for a target, in bounded time: until it answers, a version is ready, a split is served.

The waiting caller reconciles: a target that is watched here is asked to reconcile meanwhile (docs/adr/0007).
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, TypeVar

from controlled_rollout.errors import DeploymentError, TargetUnavailableError
from controlled_rollout.target.protocol import EndpointStatus, Target, VersionStatus

__all__ = ["Progress", "retry_until_available", "wait_until_left", "wait_until_ready", "wait_until_served"]

Progress = Callable[[str], None]
Result = TypeVar("Result")

# The pause between two attempts at a target that does not answer.
RETRY_S: Final = 0.5


def _no_progress(sentence: str) -> None:
    """Report progress to nobody."""


async def retry_until_available(
    call: Callable[[], Awaitable[Result]], *, timeout: timedelta, progress: Progress
) -> Result:
    """Call a target until it answers, and return its answer.

    Args:
        call: Makes the call; it must be safe to repeat.
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
            outage.begin(error)
        await asyncio.sleep(RETRY_S)


async def wait_until_ready(
    target: Target, endpoint: str, version: str, *, timeout: timedelta, progress: Progress
) -> VersionStatus:
    """Wait until every replica of a version answers.

    Args:
        target: The target of the endpoint.
        endpoint: The endpoint's name.
        version: The version's name.
        timeout: How long to wait.
        progress: Called with a sentence whenever the states of the replicas have changed.

    Raises:
        DeploymentError: The version failed, or was not ready in time; the message has the cause and the last log lines.
        TargetUnavailableError: The target did not answer until the time was over.
    """
    latest: VersionStatus | None = None
    last_message = ""

    def ready(status: EndpointStatus) -> VersionStatus | None:
        nonlocal latest, last_message
        latest = status.versions.get(version)
        if latest is None:
            raise DeploymentError(f"version {version!r} is not among the versions of endpoint {endpoint!r} any more")
        if latest.ready:
            return latest
        if latest.failed:
            raise DeploymentError(_failure(endpoint, latest, latest.cause or "failed"))
        if (message := f"version {version!r}: {_replica_states(latest)}") != last_message:
            progress(message)
            last_message = message
        return None

    try:
        return await _first(ready, target, endpoint, timeout, progress)
    except _TimeIsOverError as error:
        late = f"not ready after {timeout.total_seconds():g} s"
        # A full status has log lines and warnings that a watched one leaves out.
        with contextlib.suppress(TargetUnavailableError):
            latest = (await target.status(endpoint)).versions.get(version, latest)
        if latest is None:
            raise DeploymentError(f"version {version!r} of endpoint {endpoint!r}: {late}, status not known") from error
        cause = f"{late}: {latest.cause or _replica_states(latest)}"
        raise DeploymentError(_failure(endpoint, latest, cause)) from error


async def wait_until_served(
    target: Target, endpoint: str, revision: int, *, timeout: timedelta, progress: Progress = _no_progress
) -> EndpointStatus:
    """Wait until the router confirms that it serves the whole split of `revision` or of a later one.

    A version that fails meanwhile is reported and does not end the wait: it may not matter to the split.

    Args:
        target: The target of the endpoint.
        endpoint: The endpoint's name.
        revision: The number of a stored revision.
        timeout: How long to wait.
        progress: Called with a sentence when a version fails, or the target does not answer.

    Raises:
        DeploymentError: The router will not serve it, or did not confirm it in time.
        TargetUnavailableError: The target did not answer until the time was over.
    """

    def is_served(status: EndpointStatus) -> bool:
        return status.served_revision >= revision

    return await _wait_for_router(is_served, target, endpoint, revision, timeout, progress)


async def wait_until_left(
    target: Target, endpoint: str, version: str, revision: int, *, timeout: timedelta, progress: Progress = _no_progress
) -> EndpointStatus:
    """Wait until the router confirms that, as `revision` or a later one asks, it sends no request to a version.

    Unlike `wait_until_served` this does not wait for other versions of the revision that are not ready yet.

    Args:
        target: The target of the endpoint.
        endpoint: The endpoint's name.
        version: A version without traffic in that revision; callers may still reach it by name.
        revision: The number of a stored revision.
        timeout: How long to wait.
        progress: Called with a sentence when a version fails, or the target does not answer.

    Raises:
        DeploymentError: The router will not serve the revision, or did not confirm in time.
        TargetUnavailableError: The target did not answer until the time was over.
    """

    def is_left(status: EndpointStatus) -> bool:
        return status.served_revision >= revision or (
            status.split_revision >= revision and version not in status.weight_ppm
        )

    return await _wait_for_router(is_left, target, endpoint, revision, timeout, progress)


async def _wait_for_router(
    is_done: Callable[[EndpointStatus], bool],
    target: Target,
    endpoint: str,
    revision: int,
    timeout: timedelta,
    progress: Progress,
) -> EndpointStatus:
    latest: EndpointStatus | None = None
    reported: set[str] = set()

    def done(status: EndpointStatus) -> EndpointStatus | None:
        nonlocal latest
        latest = status
        if is_done(status):
            return status
        if status.trouble and status.revision >= revision:
            raise DeploymentError(
                f"the router serves revision {status.served_revision} of endpoint {endpoint!r}, and waiting will not "
                f"make it {revision}: {status.trouble}"
            )
        for version in status.versions.values():
            if version.failed and version.name not in reported:
                reported.add(version.name)
                progress(f"version {version.name!r} has failed: {version.cause or 'the cause is not known'}")
        return None

    try:
        return await _first(done, target, endpoint, timeout, progress)
    except _TimeIsOverError as error:
        raise DeploymentError(_not_served(endpoint, revision, timeout, latest)) from error


async def _first(
    result_of: Callable[[EndpointStatus], Result | None],
    target: Target,
    endpoint: str,
    timeout: timedelta,
    progress: Progress,
) -> Result:
    """Watch an endpoint until `result_of` returns a result for its status, and return that; reconcile meanwhile.

    Raises:
        TargetUnavailableError: The target did not answer when the time was over.
        _TimeIsOverError: It did answer, and there was no result.
    """
    outage = _Outage(progress)
    try:
        async with asyncio.timeout(timeout.total_seconds()) as limit:
            while True:
                try:
                    async with contextlib.aclosing(target.watch(endpoint, reconcile=True)) as statuses:
                        async for status in statuses:
                            if (result := result_of(status)) is not None:
                                return result
                            outage.end()
                except TargetUnavailableError as error:
                    outage.begin(error)
                await asyncio.sleep(RETRY_S)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise outage.error or _TimeIsOverError() from error


class _TimeIsOverError(Exception):
    """The time that a wait may take is over."""


class _Outage:
    """Whether a target does not answer; reports each outage once."""

    def __init__(self, progress: Progress) -> None:
        self.error: TargetUnavailableError | None = None
        self._progress = progress

    def begin(self, error: TargetUnavailableError) -> None:
        if self.error is None:
            self._progress(f"trying again: {error}")
        self.error = error

    def end(self) -> None:
        self.error = None


def _replica_states(status: VersionStatus) -> str:
    counts: dict[str, int] = {}
    for replica in status.replicas:
        counts[replica.state.value] = counts.get(replica.state.value, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "no replica yet"


def _failure(endpoint: str, status: VersionStatus, cause: str) -> str:
    log = f"\nlast lines of its log:\n{status.log_tail}" if status.log_tail else "\nit has logged nothing"
    return f"version {status.name!r} of endpoint {endpoint!r} did not become ready: {cause}{log}"


def _not_served(endpoint: str, revision: int, timeout: timedelta, latest: EndpointStatus | None) -> str:
    late = f"after {timeout.total_seconds():g} s"
    if latest is None:
        return f"no status of endpoint {endpoint!r} {late}: whether the router serves revision {revision} is not known"
    unready = [version for version in latest.versions.values() if not version.ready]
    failures = [_failure(endpoint, version, version.cause or "failed") for version in unready if version.failed]
    return "\n".join(
        [
            f"the router still serves revision {latest.served_revision} of endpoint {endpoint!r}, not {revision}, "
            f"{late}; versions that are not ready: {', '.join(version.name for version in unready) or 'none'}"
            + (f"; waiting for: {latest.waiting_for}" if latest.waiting_for else ""),
            *failures,
        ]
    )
