"""The steps of a rollout, each of which may be killed and called again and comes to the same end.

Airflow's tasks and the command line are thin wrappers around these. A step reads the endpoint's newest revision,
decides with the pure rules of `endpoint.py`, gives the versions that are to get more traffic the replicas for it,
applies the next revision if anything is to change, and waits until the target says that it is so. When somebody else's
revision came first, it decides anew on that one. A target that is away for a while delays a step, up to its time-out.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

from controlled_rollout import record
from controlled_rollout.defaults import CONFLICT_TIMEOUT, READY_TIMEOUT, RETIRE_TIMEOUT, SERVED_TIMEOUT
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import ConflictError, EndpointNotFoundError
from controlled_rollout.evaluation.rollout import check_owner
from controlled_rollout.record import Decision
from controlled_rollout.target.connect import connect
from controlled_rollout.target.protocol import Change, Revision, Target
from controlled_rollout.target.scaling import scale_before, scale_before_going_back
from controlled_rollout.target.waiting import Progress, patiently, wait_until_ready, wait_until_served
from controlled_rollout.workspace import Workspace

__all__ = ["Promotion", "promote", "promotion_of", "retire", "roll_back", "roll_out", "shift"]

Edit = Callable[[Endpoint], Endpoint]

MOST_WRITERS = 10
CONFLICT_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Promotion:
    """When a version became control, and which version it replaced.

    Attributes:
        at: When the revision was stored.
        former_control: The control before; None if there was none.
    """

    at: datetime
    former_control: str | None


async def roll_out(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    image: str,
    owner: str,
    who: str,
    why: str = "",
    auth: Auth = Auth.KEY,
    settings: dict[str, Any] | None = None,
    on_conflict: Literal["fail", "wait"] = "fail",
    conflict_timeout: timedelta = CONFLICT_TIMEOUT,
    timeout: timedelta = READY_TIMEOUT,
    progress: Progress = print,
) -> Endpoint:
    """Create a version at 0 % and wait until it is ready; the first version of a new endpoint takes all the traffic.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name; created if there is none.
        version: The new version's name.
        image: What it runs, `name@sha256:…`.
        owner: The run that holds the endpoint until its rollout ends.
        who: Who does it, for the history.
        why: The reason, for the history.
        auth: How callers of a new endpoint show that they may call.
        settings: Further fields of `Version`.
        on_conflict: Whether to fail or to wait while another run holds the endpoint.
        conflict_timeout: How long to wait for that.
        timeout: How long the version may take to become ready.
        progress: Called with a sentence when something changes.

    Raises:
        ConflictError: Another run holds the endpoint, or the version exists with another image.
        DeploymentError: The version did not become ready.
        EndpointError: A rule was broken.
    """
    async with connect(workspace) as target:
        change = Change(who=who, why=why or f"roll out {version}")

        def edit(found: Endpoint) -> Endpoint:
            if version in found.versions:
                if found.versions[version].image != image:
                    raise ConflictError(
                        f"endpoint {endpoint!r} already has a version {version!r} with image "
                        f"{found.versions[version].image!r}, not {image!r}: choose another name"
                    )
                if found.versions[version].is_control:
                    return found
                return found.claim(version, owner=owner, at=datetime.now(UTC))
            if not found.versions:
                return found.create_version(version, is_control=True, image=image, **(settings or {}))
            held = found.claim(version, owner=owner, at=datetime.now(UTC))
            return held.create_version(version, image=image, **(settings or {}))

        deadline = time.monotonic() + conflict_timeout.total_seconds()
        said = ""
        while True:
            try:
                new = Endpoint(name=endpoint, auth=auth)
                stored = await _change(target, endpoint, edit, change, new=new, timeout=timeout, progress=progress)
                break
            except ConflictError as conflict:
                if on_conflict == "fail" or time.monotonic() > deadline:
                    raise
                if str(conflict) != said:
                    said = str(conflict)
                    progress(f"waiting: {said}")
                await asyncio.sleep(CONFLICT_INTERVAL_S)
        _append(workspace, stored, version, "roll_out", change)
        progress(
            f"version {version!r} is in revision {stored.revision} of endpoint {endpoint!r}; waiting until it is ready"
        )
        await wait_until_ready(target, endpoint, version, timeout=timeout, progress=progress)
        progress(f"version {version!r} is ready")
        await wait_until_served(target, endpoint, stored.revision, timeout=timeout, progress=progress)
        return stored


async def shift(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    percentile: float,
    who: str,
    why: str = "",
    owner: str | None = None,
    timeout: timedelta = SERVED_TIMEOUT,
    progress: Progress = print,
) -> Endpoint:
    """Set a version's percentile once it is ready and large enough, and wait until the router serves the new split.

    Raises:
        ConflictError: `owner` no longer holds the endpoint.
        DeploymentError: The version is not ready, would need more replicas for its share of the measured load than it
            may have, or the router did not confirm the split in time.
        EndpointError: A rule was broken.
    """
    async with connect(workspace) as target:
        change = Change(who=who, why=why or f"send {percentile:g} % to {version}")

        def edit(found: Endpoint) -> Endpoint:
            check_owner(found, version, owner)
            return found.shift(version, percentile)

        before = await patiently(lambda: target.endpoint(endpoint), timeout=timeout, progress=progress)
        after = edit(before)  # what is refused is refused before anything is waited for
        await wait_until_ready(target, endpoint, version, timeout=timeout, progress=progress)
        await scale_before(target, before, after, timeout=timeout, progress=progress)
        stored = await _change(target, endpoint, edit, change, timeout=timeout, progress=progress)
        status = await wait_until_served(target, endpoint, stored.revision, timeout=timeout, progress=progress)
        _append(workspace, stored, version, "shift", change)
        progress(f"the router serves revision {status.served_revision}: {_split(stored)}")
        return stored


async def promote(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    who: str,
    why: str = "",
    owner: str | None = None,
    going_back: bool = False,
    timeout: timedelta = SERVED_TIMEOUT,
    progress: Progress = print,
) -> Endpoint:
    """Make a version default and control with all the traffic; the old control stays, ready, at 0 %.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name.
        version: The version to promote.
        who: Who does it, for the history.
        why: The reason, for the history.
        owner: The run that should hold the endpoint; None does not check.
        going_back: Whether this goes back to a former control: that is not refused for want of replicas, nor does it
            wait long for them.
        timeout: How long the version may take to be ready and large enough, and the router to confirm.
        progress: Called with a sentence when something changes.

    Raises:
        ConflictError: `owner` no longer holds the endpoint.
        DeploymentError: The version is not ready, would need more replicas for the measured load than it may have, or
            the router did not confirm the split in time.
        EndpointError: There is no such version.
    """
    async with connect(workspace) as target:
        change = Change(who=who, why=why or f"promote {version} to control")

        def edit(found: Endpoint) -> Endpoint:
            if owner is not None and found.version(version).is_control:
                # Promoted before the run was killed, or by a person: a rollout that began since then is not the run's.
                return found.release(version)
            promoted = found.promote(version)
            if promoted is found:
                return found.release(version)
            check_owner(found, version, owner)
            # Whatever rollout was under way has ended: all other versions are at 0 now.
            return promoted.release(promoted.rollout.version) if promoted.rollout else promoted

        before = await patiently(lambda: target.endpoint(endpoint), timeout=timeout, progress=progress)
        after = edit(before)  # what is refused is refused before anything is waited for
        await wait_until_ready(target, endpoint, version, timeout=timeout, progress=progress)
        scale = scale_before_going_back if going_back else scale_before
        await scale(target, before, after, timeout=timeout, progress=progress)
        stored = await _change(target, endpoint, edit, change, timeout=timeout, progress=progress)
        await wait_until_served(target, endpoint, stored.revision, timeout=timeout, progress=progress)
        _append(workspace, stored, version, "promote", change)
        progress(f"{version!r} is default and control of endpoint {endpoint!r}: {_split(stored)}")
        return stored


async def roll_back(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    who: str,
    why: str,
    owner: str | None = None,
    timeout: timedelta = SERVED_TIMEOUT,
    progress: Progress = print,
) -> Endpoint | None:
    """Set a treatment to 0 % and let go of the endpoint; everything else stays as it is.

    The versions that get the traffic back are given the replicas for it first, where they need more and as far as that
    goes quickly: a roll-back is never refused, and waits for them no longer than a quarter of its time.

    Returns:
        The endpoint, or None when it or the version is not there (any more): then there is nothing to roll back.

    Raises:
        ConflictError: `owner` is given and another run holds the endpoint for this version.
        DeploymentError: The router did not confirm the split in time.
        EndpointError: The version is the default or the control.
    """
    async with connect(workspace) as target:
        change = Change(who=who, why=why)

        def edit(found: Endpoint) -> Endpoint:
            if found.rollout is not None and found.rollout.version == version:
                check_owner(found, version, owner)
            return found.roll_back(version).release(version)

        try:
            before = await patiently(lambda: target.endpoint(endpoint), timeout=timeout, progress=progress)
            if version not in before.versions:
                return None
            await scale_before_going_back(target, before, edit(before), timeout=timeout, progress=progress)
            stored = await _change(target, endpoint, edit, change, timeout=timeout, progress=progress)
        except EndpointNotFoundError:
            return None
        await wait_until_served(target, endpoint, stored.revision, timeout=timeout, progress=progress)
        _append(workspace, stored, version, "roll_back", change)
        progress(f"{version!r} is rolled back: {_split(stored)}")
        return stored


async def retire(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    who: str,
    why: str = "",
    timeout: timedelta = RETIRE_TIMEOUT,
    progress: Progress = print,
) -> Endpoint | None:
    """Delete a version that has no traffic; one that is gone already is no error, and None means that all is gone.

    Raises:
        ConflictError: The version has traffic, or a run holds the endpoint to roll it out.
        EndpointError: The version is the default.
    """
    async with connect(workspace) as target:
        change = Change(who=who, why=why or f"retire {version}")

        def edit(found: Endpoint) -> Endpoint:
            if version not in found.versions:
                return found
            share = found.effective_traffic()[version]
            if share > 0 and not found.versions[version].is_default:
                raise ConflictError(
                    f"version {version!r} has {share:g} % of the traffic of {endpoint!r}: shift it away first"
                )
            if found.rollout is not None and found.rollout.version == version:
                raise ConflictError(
                    f"version {version!r} is being rolled out by {found.rollout.owner}: promote it or roll it back "
                    "first"
                )
            return found.delete_version(version)

        try:
            before = await patiently(lambda: target.endpoint(endpoint), timeout=timeout, progress=progress)
            await scale_before(target, before, edit(before), timeout=timeout, progress=progress)
            stored = await _change(target, endpoint, edit, change, timeout=timeout, progress=progress)
        except EndpointNotFoundError:
            return None
        await wait_until_served(target, endpoint, stored.revision, timeout=timeout, progress=progress)
        _append(workspace, stored, version, "retire", change)
        progress(f"{version!r} is deleted; endpoint {endpoint!r} has {', '.join(stored.versions)}")
        return stored


def promotion_of(history: Sequence[Revision], version: str) -> Promotion | None:
    """Return when the version last became control and whom it replaced; None if it is not control now."""
    promotion = None
    before: Endpoint | None = None
    for revision in history:
        is_control = version in revision.endpoint.versions and revision.endpoint.versions[version].is_control
        was_control = before is not None and version in before.versions and before.versions[version].is_control
        if is_control and not was_control:
            former = before.control.name if before is not None and before.control is not None else None
            promotion = Promotion(revision.created, former)
        if not is_control:
            promotion = None
        before = revision.endpoint
    return promotion


async def _change(
    target: Target,
    name: str,
    edit: Edit,
    change: Change,
    *,
    timeout: timedelta,
    progress: Progress,
    new: Endpoint | None = None,
) -> Endpoint:
    """Apply `edit` to the newest revision; when somebody else's revision came first, to that one."""
    ask = partial(patiently, timeout=timeout, progress=progress)
    for _ in range(MOST_WRITERS):
        try:
            found = await ask(lambda: target.endpoint(name))
        except EndpointNotFoundError:
            if new is None:
                raise
            found = new
        edited = edit(found)
        try:
            # Applied also when nothing changes: a step that was killed carries on where it was.
            return await ask(partial(target.apply, edited, change))
        except ConflictError as conflict:
            latest = conflict
            await asyncio.sleep(random.uniform(0.01, 0.1))  # noqa: S311 - spreads writers, hides nothing
    raise latest


def _append(
    workspace: Workspace,
    stored: Endpoint,
    version: str,
    step: Literal["roll_out", "shift", "promote", "roll_back", "retire"],
    change: Change,
) -> None:
    decision = Decision(
        time=datetime.now(UTC),
        endpoint=stored.name,
        version=version,
        step=step,
        who=change.who,
        why=change.why,
        share=stored.effective_traffic().get(version),
        revision=stored.revision,
    )
    record.append(workspace, decision)


def _split(endpoint: Endpoint) -> str:
    return ", ".join(f"{name} {share:g} %" for name, share in endpoint.effective_traffic().items())
