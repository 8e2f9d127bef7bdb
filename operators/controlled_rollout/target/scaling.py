"""Scaling the versions of an endpoint before a change of its traffic: measure the load, compute, scale, wait."""

import asyncio
from datetime import timedelta
from functools import partial
from typing import Final

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import DeploymentError
from controlled_rollout.sizing import required_replicas
from controlled_rollout.target.protocol import Target
from controlled_rollout.target.waiting import Progress, retry_until_available, wait_until_ready

__all__ = ["scale_before", "scale_before_going_back"]

# While a roll-back waits for replicas, callers still get the errors that it ends: it waits for this part of its time.
ROLL_BACK_PART: Final = 0.25


async def scale_before(
    target: Target,
    before: Endpoint,
    after: Endpoint,
    *,
    timeout: timedelta,
    progress: Progress,
    going_back: bool = False,
) -> None:
    """Scale versions up for a change of traffic: compute replicas from the measured load, set them, wait for them.

    A version that gets more traffic and has enough replicas keeps them: the autoscaler must not take them away before
    the traffic comes.

    Args:
        target: The target of the endpoint.
        before: The endpoint as it is.
        after: The endpoint as it is to be.
        timeout: How long the target may not answer, and how long the replicas may take.
        progress: Called with a sentence when something changes.
        going_back: Whether this is a roll-back: a version that cannot have enough replicas gets those that it can
            have, and a target that does not answer is not asked again.

    Raises:
        DeploymentError: A version would need more replicas than it may have, or they did not become ready.
        TargetUnavailableError: The target did not answer in time.
    """
    call = partial(retry_until_available, timeout=timedelta(0) if going_back else timeout, progress=progress)
    loads = await call(lambda: target.load(before.name))
    if not any(load.requests_per_s for load in loads.values()):
        return
    versions = (await call(lambda: target.status(before.name, inspect=False))).versions
    running = {name: version.wanted_replicas for name, version in versions.items()}
    requirements = required_replicas(before, after, loads, running).values()
    refused = [required.summary() for required in requirements if required.gets_more and not required.is_allowed]
    if refused and not going_back:
        raise DeploymentError("; ".join(refused))
    for required in requirements:
        progress(required.summary())
    for required in requirements:
        await call(partial(target.scale, before.name, required.version, required.fewest, at_least=True))
    for required in requirements:
        # A roll-back does not wait for what has been asked for before.
        if required.gets_more and (required.is_short or not going_back):
            await wait_until_ready(target, before.name, required.version, timeout=timeout, progress=progress)


async def scale_before_going_back(
    target: Target, before: Endpoint, after: Endpoint, *, timeout: timedelta, progress: Progress
) -> None:
    """Scale up for a roll-back, within a quarter of `timeout`; report errors of the target, but do not raise them."""
    limit = timeout * ROLL_BACK_PART
    try:
        async with asyncio.timeout(limit.total_seconds()):
            await scale_before(target, before, after, timeout=limit, progress=progress, going_back=True)
    except Exception as error:  # whatever it is: it must not keep callers from a version that answers
        cause = str(error).partition("\n")[0] or f"this took longer than {limit.total_seconds():g} s"
        progress(f"rolling back without waiting for more replicas: {cause}")
