"""Waiting for a target, in bounded time: until it answers, a version is ready, a split is served.

The waiting caller reconciles: a target that is watched here is asked to reconcile meanwhile (docs/adr/0007).
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final, TypeVar

from controlled_rollout.errors import (
    AccessError,
    ControlledRolloutError,
    DeploymentError,
    RouterTimeoutError,
    TargetUnavailableError,
)
from controlled_rollout.target.protocol import EndpointStatus, ReplicaState, Target, VersionStatus

__all__ = ["Progress", "retry_until_available", "wait_until_ready", "wait_until_served", "wait_until_without_traffic"]

Progress = Callable[[str], None]
Result = TypeVar("Result")

# The pause between two attempts at a target that does not answer.
RETRY_S: Final = 0.5
# An API server refuses what it allows (401, 403) while it starts or cannot look up who asks. A permission that is
# really missing must not hold a step up for longer than this.
REFUSED_S: Final = 30.0
# How many lines of the log the error of a version has that is not ready in time.
LOG_LINES: Final = 15
# How long a step that has taken a version's traffic away waits for a router that lets nobody in.
OPENING: Final = timedelta(seconds=15)


def _no_progress(sentence: str) -> None:
    """Ignore a progress message."""


async def retry_until_available(
    call: Callable[[], Awaitable[Result]], *, timeout: timedelta, progress: Progress
) -> Result:
    """Await `call` again and again until the target answers; return the answer.

    Args:
        call: Makes the call; it must be safe to repeat.
        timeout: How long to try; 0 tries once.
        progress: Called once with a sentence if the target does not answer at first, or refuses.

    Raises:
        AccessError: The target refused until `timeout` was over, or for half a minute.
        TargetUnavailableError: The target did not answer in time.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    outage = _Outage(progress)
    while True:
        try:
            return await call()
        except (TargetUnavailableError, AccessError) as error:
            if time.monotonic() + RETRY_S > deadline or outage.begin(error) > REFUSED_S:
                raise
        await asyncio.sleep(RETRY_S)


async def wait_until_ready(
    target: Target, endpoint: str, version: str, *, timeout: timedelta, progress: Progress
) -> VersionStatus:
    """Wait until every replica of a version answers; return the version's status.

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

    def status_if_ready(status: EndpointStatus) -> VersionStatus | None:
        """Return the version's status if it is ready, else None; raise DeploymentError if it failed or was deleted."""
        nonlocal latest, last_message
        latest = status.versions.get(version)
        if latest is None:
            raise DeploymentError(f"version {version!r} is not among the versions of endpoint {endpoint!r} any more")
        if latest.ready:
            return latest
        if latest.failed:
            raise DeploymentError(_failure_message(endpoint, latest, latest.cause or "failed"))
        if (message := f"version {version!r}: {_replica_states(latest)}") != last_message:
            progress(message)
            last_message = message
        return None

    try:
        return await _watch_until_result(status_if_ready, target, endpoint, timeout, progress)
    except _WaitTimeoutError as error:
        late = f"not ready after {timeout.total_seconds():g} s"
        # A full status has log lines and warnings that a watched one leaves out.
        with contextlib.suppress(TargetUnavailableError):
            latest = (await target.status(endpoint)).versions.get(version, latest)
        if latest is None:
            raise DeploymentError(f"version {version!r} of endpoint {endpoint!r}: {late}, status not known") from error
        if not latest.log_tail:  # it has those of replicas that have failed; one may also wait in its `init()`
            with contextlib.suppress(ControlledRolloutError):
                log = await target.logs(endpoint, version, tail=LOG_LINES)
                latest = latest.model_copy(update={"log_tail": log.rstrip("\n")})
        cause = f"{late}: {latest.cause or _replica_states(latest)}"
        raise DeploymentError(_failure_message(endpoint, latest, cause)) from error


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
        """Return whether the router serves this revision or a later one as a whole."""
        return status.served_revision >= revision

    return await _wait_for_router(is_served, target, endpoint, revision, timeout, progress)


async def wait_until_without_traffic(
    target: Target, endpoint: str, version: str, revision: int, *, timeout: timedelta, progress: Progress = _no_progress
) -> EndpointStatus:
    """Wait until the router confirms that, as `revision` or a later one asks, a version gets no traffic.

    Unlike `wait_until_served` this does not wait for other versions of the revision that are not ready yet. While the
    router lets nobody in although another version has a replica, such as after somebody has deleted the route, it waits
    a quarter of a minute more: the waiting caller is who opens it again.

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

    def has_no_traffic(status: EndpointStatus) -> bool:
        """Return whether the router's confirmed split gives the version no traffic."""
        return status.served_revision >= revision or (
            status.split_revision >= revision and version not in status.weight_ppm
        )

    status = await _wait_for_router(has_no_traffic, target, endpoint, revision, timeout, progress)
    replicas = [one.state for name, other in status.versions.items() if name != version for one in other.replicas]
    if status.weight_ppm or ReplicaState.READY not in replicas:
        return status
    try:
        return await _wait_for_router(
            lambda later: bool(later.weight_ppm), target, endpoint, revision, min(timeout, OPENING), progress
        )
    except (DeploymentError, TargetUnavailableError, AccessError) as error:
        progress(f"version {version!r} gets no traffic, and the router lets nobody in: {error}")
        return status


async def _wait_for_router(
    is_done: Callable[[EndpointStatus], bool],
    target: Target,
    endpoint: str,
    revision: int,
    timeout: timedelta,
    progress: Progress,
) -> EndpointStatus:
    """Watch an endpoint until `is_done` is true for its status; raise DeploymentError if the router is too late."""
    latest: EndpointStatus | None = None
    reported: set[str] = set()

    def status_if_done(status: EndpointStatus) -> EndpointStatus | None:
        """Return the status if `is_done` is true for it, else None; raise if the router will not serve the revision."""
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
        return await _watch_until_result(status_if_done, target, endpoint, timeout, progress)
    except _WaitTimeoutError as error:
        raise RouterTimeoutError(_not_served_message(endpoint, revision, timeout, latest)) from error


async def _watch_until_result(
    result_of: Callable[[EndpointStatus], Result | None],
    target: Target,
    endpoint: str,
    timeout: timedelta,
    progress: Progress,
) -> Result:
    """Watch an endpoint until `result_of` returns a result for its status; return the result. Reconcile meanwhile.

    Raises:
        AccessError: The target refused when the time was over, or for half a minute.
        TargetUnavailableError: The target did not answer when the time was over.
        _WaitTimeoutError: It did answer, and there was no result.
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
                except (TargetUnavailableError, AccessError) as error:
                    if outage.begin(error) > REFUSED_S:
                        raise
                await asyncio.sleep(RETRY_S)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise outage.error or _WaitTimeoutError() from error


class _WaitTimeoutError(Exception):
    """Raised when a wait has reached its timeout without a result."""


class _Outage:
    """Whether a target does not answer now, or refuses; each outage is reported once."""

    def __init__(self, progress: Progress) -> None:
        self.error: TargetUnavailableError | AccessError | None = None
        self._progress = progress
        self._refused_since: float | None = None

    def begin(self, error: TargetUnavailableError | AccessError) -> float:
        """Record and report that the target does not answer; return for how many seconds it has refused by now."""
        if self.error is None:
            self._progress(f"trying again: {error}")
        self.error = error
        if not isinstance(error, AccessError):
            self._refused_since = None
            return 0.0
        self._refused_since = self._refused_since or time.monotonic()
        return time.monotonic() - self._refused_since

    def end(self) -> None:
        """Record that the target answers again."""
        self.error = self._refused_since = None


def _replica_states(status: VersionStatus) -> str:
    """Return a phrase with the number of replicas in each state, such as `2 ready, 1 starting`."""
    counts: dict[str, int] = {}
    for replica in status.replicas:
        counts[replica.state.value] = counts.get(replica.state.value, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "no replica yet"


def _failure_message(endpoint: str, status: VersionStatus, cause: str) -> str:
    """Return the message for a version that did not become ready: the cause and its last log lines."""
    log = f"\nlast lines of its log:\n{status.log_tail}" if status.log_tail else "\nit has logged nothing"
    return f"version {status.name!r} of endpoint {endpoint!r} did not become ready: {cause}{log}"


def _not_served_message(endpoint: str, revision: int, timeout: timedelta, latest: EndpointStatus | None) -> str:
    """Return the message for a revision that was not served in time: what is served and what is not ready."""
    late = f"after {timeout.total_seconds():g} s"
    if latest is None:
        return f"no status of endpoint {endpoint!r} {late}: whether the router serves revision {revision} is not known"
    unready = [version for version in latest.versions.values() if not version.ready]
    failures = [_failure_message(endpoint, version, version.cause or "failed") for version in unready if version.failed]
    return "\n".join(
        [
            f"the router still serves revision {latest.served_revision} of endpoint {endpoint!r}, not {revision}, "
            f"{late}; versions that are not ready: {', '.join(version.name for version in unready) or 'none'}"
            + (f"; waiting for: {latest.waiting_for}" if latest.waiting_for else ""),
            *failures,
        ]
    )
