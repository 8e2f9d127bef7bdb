"""The steps of a rollout: deploy, shift, promote, roll back, retire.

Airflow's tasks and the command line are thin wrappers around these. Each function says what is special about its step;
`skeleton.py` has what they share, `edits.py` what each makes of the endpoint, `rules.py` what a run may end,
`going_back.py` how a roll-back goes on trying, `retirement.py` the step that deletes a version.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from controlled_rollout import record
from controlled_rollout.defaults import OUTAGE_TIMEOUT, READY_TIMEOUT, ROLL_BACK_TIMEOUT, SERVED_TIMEOUT, SILENCE
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import (
    EndpointNotFoundError,
    NothingToDoError,
    NotJudgedError,
)
from controlled_rollout.record import Decision
from controlled_rollout.record.in_time import within_time
from controlled_rollout.rollout import OnSilence, WaitingRun
from controlled_rollout.steps import edits, permission, rules
from controlled_rollout.steps.going_back import is_outage, rollback_step, try_until_done
from controlled_rollout.steps.holding import hold
from controlled_rollout.steps.retirement import former_control, retire, retire_former_control
from controlled_rollout.steps.skeleton import Permit, Scale, Step, format_split, run_step
from controlled_rollout.target.connect import connect
from controlled_rollout.target.history import Promotion
from controlled_rollout.target.protocol import Change, Revision, Target
from controlled_rollout.target.scaling import scale_before, scale_before_going_back
from controlled_rollout.target.waiting import Progress, retry_until_available
from controlled_rollout.tokens import TokenIssuer
from controlled_rollout.workspace import Workspace

__all__ = [
    "Change",
    "Promotion",
    "deploy",
    "former_control",
    "has_held",
    "hold",
    "promote",
    "reason_not_promoted",
    "retire",
    "retire_former_control",
    "roll_back",
    "shift",
]

# Looks at the evidence once more; raises if the version must not get more traffic.
Look = Callable[[], Awaitable[None]]


# Long because every argument has a line, and a meaning.
async def deploy(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    image: str,
    owner: str,
    change: Change,
    sticky: str | None = None,
    auth: Auth | TokenIssuer | None = None,
    settings: Mapping[str, Any] | None = None,
    secrets: Mapping[str, Mapping[str, str]] | None = None,
    run_date: datetime | None = None,
    on_silence: OnSilence = OnSilence.KEEP,
    silence: timedelta = SILENCE,
    conflict_timeout: timedelta = timedelta(0),
    about: Mapping[str, Any] | None = None,
    timeout: timedelta = READY_TIMEOUT,
    progress: Progress = print,
) -> Endpoint:
    """Create a version at 0 % and wait until it is ready; the first version of a new endpoint gets all the traffic.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name; created if there is none.
        version: The new version's name.
        image: What it runs, `name@sha256:…`.
        owner: The run that holds the endpoint until its rollout ends.
        change: Who does it and why, for the history.
        sticky: By what a new endpoint's callers stay with a version, such as `header:x-user`; None splits at random.
        auth: How callers of a new endpoint show that they may call; an outside issuer stands for its tokens. None is
            `key`. An endpoint that exists keeps both: it is an error to ask for others, and None asks for nothing.
        settings: Further fields of `Version`.
        secrets: Values to store before, by key, by the name of the secret; `settings` name them.
        run_date: When the run was due: of several runs that wait the earliest is next, and the version of an earlier
            run does not replace that of a later one. None for a version that is deployed by hand.
        on_silence: What happens to a treatment with traffic that nobody has looked at for `silence`.
        silence: How long that is.
        conflict_timeout: How long to wait while another run holds the endpoint; 0 fails at once.
        about: Fields of the endpoint itself to set, such as its description, also of one that exists.
        timeout: How long the version may take to become ready.
        progress: Called with a sentence when something changes.

    Returns:
        The endpoint as stored.

    Raises:
        ConflictError: Another run holds the endpoint or is next, or the version exists with another image.
        NothingToDoError: The control is of a later run.
        DeploymentError: The version did not become ready.
        EndpointError: A rule was broken.
    """
    settings = settings or {}
    began = datetime.now(UTC)
    run = WaitingRun(owner=owner, run_date=run_date or began, until=began + conflict_timeout)
    step = Step(
        name="deploy",
        version=version,
        edit=lambda newest: edits.deploy(
            newest,
            version,
            image=image,
            owner=owner,
            at=datetime.now(UTC),
            settings=settings,
            auth=auth,
            sticky=sticky,
            run_date=run_date,
            on_silence=on_silence,
            silence=silence,
            about=about or {},
        ),
        done=lambda stored: f"version {version!r} is ready: {format_split(stored)}",
        purpose=f"deploy {version}",
        creates=Endpoint.new(endpoint, auth or Auth.KEY, sticky=sticky),
        conflict_timeout=conflict_timeout,
        waiting_run=run if conflict_timeout else None,
    )
    async with connect(workspace) as target:
        for name, values in (secrets or {}).items():
            await retry_until_available(partial(target.store_secret, name, values), timeout=timeout, progress=progress)
        return await run_step(step, workspace, target, endpoint, change=change, timeout=timeout, progress=progress)


async def shift(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    percentile: float,
    change: Change,
    owner: str | None = None,
    run: str | None = None,
    timeout: timedelta = SERVED_TIMEOUT,
    look: Look | None = None,
    progress: Progress = print,
) -> Endpoint:
    """Set a ready version's percentile and wait until the router serves the new split.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name.
        version: The version.
        percentile: Its per cent of the endpoint's requests, 0 to 100.
        change: Who does it and why, for the history.
        owner: The run that has to hold the endpoint; None for a shift by hand, which ends the rollout of another run.
        run: The run whose task takes the step; without `owner` it is a person for what other runs roll out only.
        timeout: How long the version may take to be ready and large enough, and the router to confirm.
        look: Called before each try, for a run's step may wait long: raises if the version must not go on.
        progress: Called with a sentence when something changes.

    Returns:
        The endpoint as stored.

    Raises:
        NothingToDoError: `owner` is given, and the version is control already.
        ConflictError: `owner` no longer holds the endpoint.
        NotJudgedError: `owner` is given, and nothing in the record lets the version go on from its present share.
        DeploymentError: The version is not ready, would need more replicas for its share of the measured load than it
            may have, or the router did not confirm the split in time.
        EndpointError: A rule was broken.
    """
    step = Step(
        name="shift",
        version=version,
        edit=lambda newest: edits.shift(
            newest, version, percentile=percentile, owner=owner, who=change.who, at=datetime.now(UTC)
        ),
        done=lambda stored: _shift_text(stored, version),
        purpose=f"send {percentile:g} % to {version}",
        permit=_permission(
            workspace,
            endpoint,
            version,
            owner,
            run,
            partial(permission.reason_not_to_shift, percentile=percentile),
        ),
        ready_before=True,
        scale=scale_before,
        owner=owner,
    )
    return await _run_through_outages(step, workspace, endpoint, owner, change, timeout, look, progress)


async def promote(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    change: Change,
    owner: str | None = None,
    run: str | None = None,
    needs_approval: bool = False,
    timeout: timedelta = SERVED_TIMEOUT,
    look: Look | None = None,
    progress: Progress = print,
) -> Endpoint:
    """Make a version default and control with all the traffic; the former control stays ready at 0 %.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name.
        version: The version to promote.
        change: Who does it and why, for the history.
        owner: The run that has to hold the endpoint, and whose gate has to have passed; None checks neither: the
            caller is a person, who approves it by calling.
        run: The run whose task takes the step; without `owner` it is a person for what other runs roll out only.
        needs_approval: With `owner`: whether only a person's approval in the record permits it, not a gate's pass.
        timeout: How long the version may take to be ready and large enough, and the router to confirm.
        look: Called before each try, for a run's step may wait long: raises if the version must not go on.
        progress: Called with a sentence when something changes.

    Returns:
        The endpoint as stored.

    Raises:
        ConflictError: `owner` no longer holds the endpoint.
        NotJudgedError: `owner` is given, and nothing in the record permits the promotion.
        DeploymentError: The version is not ready, would need more replicas for the measured load than it may have, or
            the router did not confirm the split in time.
        EndpointError: There is no such version.
    """
    reason_not_to = partial(permission.reason_not_to_promote, needs_approval=needs_approval)
    step = replace(
        _promotion_step(version, owner=owner, scale=scale_before),
        permit=_permission(workspace, endpoint, version, owner, run, reason_not_to),
        owner=owner,
    )
    return await _run_through_outages(step, workspace, endpoint, owner, change, timeout, look, progress)


async def roll_back(
    workspace: Workspace,
    endpoint: str,
    version: str,
    *,
    change: Change,
    to: str | None = None,
    to_former_control: bool = False,
    owner: str | None = None,
    timeout: timedelta = ROLL_BACK_TIMEOUT,
    progress: Progress = print,
) -> Endpoint | None:
    """Set a treatment to 0 % and release the endpoint, or replace a control by another version.

    It goes on trying while the target does not answer or refuses, or the router does not confirm. The versions that get
    the traffic back are given the replicas for it first, but it waits half a minute for them at most.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name.
        version: The version to roll back.
        change: Who does it and why, for the history.
        to: For a version that is the control: the version that takes its place, with all the traffic.
        to_former_control: Without `to`: whether a version that is the control is replaced by the control before it.
        owner: The run whose rollout this ends: versions that are not its own are left alone, and an endpoint that it
            has created, and whose only version never became ready, is deleted: no later rollout would have a control.
            None rolls back whichever run's version it is.
        timeout: How long to go on trying.
        progress: Called with a sentence when something changes, and after each try.

    Returns:
        The endpoint as stored; None if the endpoint or the version is not there (any more).

    Raises:
        NothingToDoError: `owner` is given, and the version is not that run's to roll back.
        ConflictError: Another run has taken the endpoint in the meantime.
        DeploymentError: The router will not serve the split, or did not confirm it until the time was over.
        EndpointError: The version is the control and `to` is missing, `to` does not fit, or there is no former control
            any more.
    """

    async def attempt(limit: timedelta) -> Endpoint | None:
        """Roll back once, with a new connection; wait for the router no longer than `limit`."""
        wait: dict[str, Any] = {"timeout": limit, "progress": progress}
        async with connect(workspace) as target:
            goal = to
            if goal is None and to_former_control:
                goal = rules.former_control_to_restore(await _read_history(target, endpoint), version)
            return await _roll_back_once(workspace, target, endpoint, version, change, to=goal, owner=owner, **wait)

    return await try_until_done(attempt, timeout=timeout, progress=progress)


async def reason_not_promoted(
    workspace: Workspace, endpoint: str, version: str, owner: str, progress: Progress = print
) -> str | None:
    """Return what ended a run's rollout, or that nothing did, as a sentence; None if its version has become control.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name.
        version: The version that the run has rolled out.
        owner: The run, as `dag/run`.
        progress: Called with a sentence if the target does not answer at first.

    Raises:
        TargetUnavailableError: The target did not answer in time.
    """
    return rules.reason_not_promoted(await _history_when_available(workspace, endpoint, progress), version, owner)


async def has_held(workspace: Workspace, endpoint: str, owner: str, progress: Progress = print) -> bool:
    """Return whether a run holds an endpoint, or has held it, for a rollout.

    Args:
        workspace: Where the endpoint lives.
        endpoint: The endpoint's name.
        owner: The run, as `dag/run`.
        progress: Called with a sentence if the target does not answer at first.

    Raises:
        TargetUnavailableError: The target did not answer in time.
    """
    history = await _history_when_available(workspace, endpoint, progress)
    rollouts = [revision.endpoint.rollout for revision in history]
    return any(rollout is not None and rollout.owner == owner for rollout in rollouts)


async def _history_when_available(workspace: Workspace, endpoint: str, progress: Progress) -> Sequence[Revision]:
    """Return an endpoint's history once the target answers; raise TargetUnavailableError if it does not in time."""
    async with connect(workspace) as target:
        return await retry_until_available(
            lambda: _read_history(target, endpoint), timeout=SERVED_TIMEOUT, progress=progress
        )


async def _run_through_outages(
    step: Step,
    workspace: Workspace,
    endpoint: str,
    owner: str | None,
    change: Change,
    timeout: timedelta,
    look: Look | None,
    progress: Progress,
) -> Endpoint:
    """Run a step that gives a version more traffic; a run's step goes on trying while target or record are away.

    If it failed, the run would roll a version back that may be good, because of an outage. Looks go on meanwhile.
    """

    async def attempt(_: timedelta) -> Endpoint:
        """Look, then run the step once, with a new connection."""
        if look is not None:
            await look()
        async with connect(workspace) as target:
            return await run_step(step, workspace, target, endpoint, change=change, timeout=timeout, progress=progress)

    return await try_until_done(
        attempt,
        timeout=timedelta(0) if owner is None else OUTAGE_TIMEOUT,
        progress=progress,
        done="shifted" if step.name == "shift" else "promoted",
        try_again_after=is_outage,
    )


def _permission(
    workspace: Workspace,
    endpoint: str,
    version: str,
    owner: str | None,
    run: str | None,
    reason_not_to: Callable[[Sequence[Revision], Iterable[Decision], str, str], str | None],
) -> Permit:
    """Return a step's `permit`, which reads the record and raises NotJudgedError; a person may without asking it."""

    async def permit(history: Sequence[Revision]) -> None:
        """Raise NotJudgedError if the record gives a reason not to take the step."""
        asks = owner or (permission.owner_in_run(history, version, run) if run is not None else None)
        if asks is None:
            return
        where = record.storage_of(workspace, endpoint).name
        decisions = record.read_newest_first(workspace, endpoint, version)
        if reason := await within_time(where, lambda: reason_not_to(history, decisions, version, asks)):
            raise NotJudgedError(reason)

    return permit


def _promotion_step(version: str, *, owner: str | None, scale: Scale, going_back: bool = False) -> Step:
    """Return the step that makes a version default and control with all the traffic."""
    return Step(
        name="promote",
        version=version,
        edit=partial(edits.promote, version=version, owner=owner),
        done=lambda stored: f"{version!r} is default and control of endpoint {stored.name!r}: {format_split(stored)}",
        purpose=f"promote {version} to control",
        ready_before=True,
        scale=scale,
        going_back=going_back,
    )


async def _roll_back_once(
    workspace: Workspace,
    target: Target,
    endpoint: str,
    version: str,
    change: Change,
    *,
    to: str | None,
    owner: str | None,
    timeout: timedelta,
    progress: Progress,
) -> Endpoint | None:
    """Take the step that `roll_back` describes; a target that does not answer fails it."""
    run = partial(run_step, change=change, timeout=timeout, progress=progress)
    history = await _read_history(target, endpoint)
    if owner is not None:
        if (held := rules.version_to_roll_back(history, version, owner)) != version:
            progress(
                f"{owner} has not rolled out {version!r}, and holds endpoint {endpoint!r} for {held!r}: that one is "
                "rolled back; give a version name that is the same for all tasks of a run"
            )
            version = held
        if rules.has_created_endpoint(history, version, owner):
            await _delete_if_never_ready(target, endpoint, version, change, progress)
            return None
        if reason := rules.reason_not_to_roll_back(history, version, owner):
            raise NothingToDoError(reason)
    if to is not None:
        rules.check_replacement(history, version, to)
        step = _promotion_step(to, owner=None, scale=scale_before_going_back, going_back=True)
        return await run(step, workspace, target, endpoint)
    rules.check_is_treatment(history, version)
    try:
        return await run(rollback_step(version, owner=owner), workspace, target, endpoint)
    except EndpointNotFoundError:
        return None


async def _read_history(target: Target, endpoint: str) -> Sequence[Revision]:
    """Return the endpoint's revisions, oldest first; empty if it does not exist."""
    try:
        return await target.history(endpoint)
    except EndpointNotFoundError:
        return []


async def _delete_if_never_ready(
    target: Target, endpoint: str, version: str, change: Change, progress: Progress
) -> None:
    """Delete an endpoint whose only version never became ready, so that a later rollout can create it again."""
    if (await target.status(endpoint, inspect=False)).versions[version].ready:
        raise NothingToDoError(f"version {version!r} is the first of endpoint {endpoint!r} and answers: it stays")
    await target.delete(endpoint, change)
    progress(f"endpoint {endpoint!r} is deleted: its first version {version!r} never became ready")


def _shift_text(stored: Endpoint, version: str) -> str:
    """Return what a shift has reached, as text; a default's percentile alone changes nothing."""
    split = f"the router serves revision {stored.revision}: {format_split(stored)}"
    if not stored.versions[version].is_default:
        return split
    return f"{split}; {version!r} is the default and gets whatever no other version has: shift another version instead"
