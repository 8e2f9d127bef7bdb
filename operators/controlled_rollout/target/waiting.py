"""Waiting on a target, in bounded time, with progress: for a version to be ready, for a split to be served."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta

from controlled_rollout.errors import DeploymentError
from controlled_rollout.target import EndpointStatus, Target, VersionStatus

__all__ = ["wait_until_ready", "wait_until_served"]

Progress = Callable[[str], None]


async def wait_until_ready(
    target: Target, endpoint: str, version: str, *, timeout: timedelta, progress: Progress, interval_s: float = 0.25
) -> VersionStatus:
    """Wait until every replica of a version answers.

    Args:
        target: Where the endpoint lives.
        endpoint: The endpoint's name.
        version: The version's name.
        timeout: When to give up.
        progress: Called with a sentence each time the state changes.
        interval_s: Seconds between two looks.

    Raises:
        DeploymentError: The version failed, or was not ready in time; the message has the cause and the last log lines.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    said = ""
    while True:
        status = (await target.status(endpoint)).versions.get(version)
        if status is None:
            raise DeploymentError(f"version {version!r} is not among the versions of endpoint {endpoint!r} any more")
        if status.ready:
            return status
        if status.failed:
            raise DeploymentError(_failure(endpoint, status, status.cause or "failed"))
        if time.monotonic() > deadline:
            raise DeploymentError(
                _failure(
                    endpoint,
                    status,
                    f"not ready after {timeout.total_seconds():g} s: {status.cause or _states(status)}",
                )
            )
        if (now := _states(status)) != said:
            progress(f"version {version!r}: {now}")
            said = now
        await asyncio.sleep(interval_s)


async def wait_until_served(
    target: Target, endpoint: str, revision: int, *, timeout: timedelta, interval_s: float = 0.05
) -> EndpointStatus:
    """Wait until the router confirms that it serves the split of `revision` (or of a later one).

    Raises:
        DeploymentError: The router did not confirm it in time.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        status = await target.status(endpoint)
        if status.served_revision >= revision:
            return status
        if time.monotonic() > deadline:
            unready = [name for name, version in status.versions.items() if not version.ready]
            raise DeploymentError(
                f"the router still serves revision {status.served_revision} of endpoint {endpoint!r}, not {revision}, "
                f"after {timeout.total_seconds():g} s; versions that are not ready: {', '.join(unready) or 'none'}"
            )
        await asyncio.sleep(interval_s)


def _states(status: VersionStatus) -> str:
    counts: dict[str, int] = {}
    for replica in status.replicas:
        counts[replica.state.value] = counts.get(replica.state.value, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "no replica yet"


def _failure(endpoint: str, status: VersionStatus, cause: str) -> str:
    log = f"\nlast lines of its log:\n{status.log_tail}" if status.log_tail else "\nit has logged nothing"
    return f"version {status.name!r} of endpoint {endpoint!r} did not become ready: {cause}{log}"
