"""The overview of one endpoint: versions, traffic, the rollout under way, and whether a person is needed. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from controlled_rollout.duration import format_duration
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.gate import Outcome
from controlled_rollout.target.history import creation_of
from controlled_rollout.target.protocol import EndpointStatus, ReplicaState, Revision, VersionStatus
from controlled_rollout.target.silence import unattended_rollout
from controlled_rollout.view.models import (
    EndpointOverview,
    Health,
    ReplicaCount,
    RolloutOverview,
    State,
    Traffic,
    VersionOverview,
)
from controlled_rollout.view.recent_looks import RecentLooks
from controlled_rollout.view.runs import run_of_author, run_of_owner
from controlled_rollout.view.sentences import waiting_sentence
from controlled_rollout.visible_text import short_text, visible_text

__all__ = ["Creation", "by_urgency", "creations", "endpoint_overview", "hold_reason", "unread_endpoint"]

NO_LOOKS: Final = RecentLooks()
LONGEST_REASON: Final = 1_000
URGENCY: Final[tuple[State, ...]] = ("needs_person", "on_hold", "trouble", "unknown", "rolling_out", "steady")


@dataclass(frozen=True, slots=True)
class Creation:
    """When a version was created, by whom and why."""

    at: datetime
    who: str
    reason: str


def creations(history: Sequence[Revision]) -> dict[str, Creation]:
    """Return when and by whom each version of an endpoint was created; without those that are older than the history.

    Args:
        history: The endpoint's revisions, oldest first.
    """
    found = {name: creation_of(history, name) for name in history[-1].endpoint.versions}
    return {
        name: Creation(revision.created, revision.change.who, revision.change.reason)
        for name, revision in found.items()
        if revision is not history[0] or revision.number == 1
    }


def hold_reason(history: Sequence[Revision]) -> str:
    """Return why an endpoint's rollout was put on hold; empty if it is not on hold, or that is older than the history.

    Args:
        history: The endpoint's revisions, oldest first.
    """
    rollout = history[-1].endpoint.rollout
    if rollout is None or rollout.held is None:
        return ""
    reason = ""
    for revision in reversed(history):
        earlier = revision.endpoint.rollout
        if earlier is None or earlier.held != rollout.held:
            return reason
        reason = revision.change.reason
    return ""


def endpoint_overview(
    workspace: str,
    status: EndpointStatus,
    endpoint: Endpoint,
    created: Mapping[str, Creation],
    looks: RecentLooks = NO_LOOKS,
    *,
    reason_of_hold: str = "",
    read: datetime | None = None,
) -> EndpointOverview:
    """Return what people see of an endpoint.

    Args:
        workspace: The workspace's connection id, or its name.
        status: The endpoint's status.
        endpoint: Its newest revision.
        created: When and by whom its versions were created, as far as that is known.
        looks: What the record's newest lines say of its rollout.
        reason_of_hold: Why its rollout was put on hold; empty if that is not known.
        read: When that was read; None for the present.
    """
    rollout = _rollout(endpoint, looks)
    state, attention = _state(status, rollout, looks, reason_of_hold)
    control = endpoint.control
    names = sorted(endpoint.versions, key=lambda name: not endpoint.versions[name].is_control)
    return EndpointOverview(
        workspace=workspace,
        name=endpoint.name,
        url=status.url,
        auth=endpoint.auth.value,
        revision=status.revision,
        served_revision=status.served_revision,
        state=state,
        attention=attention,
        control=control.name if control else None,
        versions=tuple(_version(endpoint, name, status, created.get(name)) for name in names),
        rollout=rollout,
        waiting_runs=len(endpoint.waiting),
        trouble=_shown(status.trouble),
        waiting_for=_shown(status.waiting_for),
        warnings=tuple(visible_text(warning) for warning in status.warnings),
        certificate_ends=status.certificate_ends,
        read=read or datetime.now(UTC),
    )


def unread_endpoint(workspace: str, name: str, problem: str, last_seen: EndpointOverview | None) -> EndpointOverview:
    """Return an endpoint whose state cannot be read now: as it was last seen, with the reason.

    Args:
        workspace: The workspace's connection id.
        name: The endpoint's name.
        problem: Why it cannot be read, in a sentence.
        last_seen: What was last seen of it; None if nothing was.
    """
    seen = last_seen or EndpointOverview(
        workspace=workspace,
        name=name,
        url="",
        auth="",
        revision=0,
        served_revision=0,
        state="unknown",
        attention=None,
        control=None,
        versions=(),
        rollout=None,
        waiting_runs=0,
        trouble=None,
        waiting_for=None,
        warnings=(),
    )
    return seen.model_copy(update={"state": "unknown", "attention": problem, "problem": problem})


def by_urgency(endpoint: EndpointOverview) -> tuple[int, str]:
    """Return the key by which endpoints are sorted: those first that need a person."""
    return URGENCY.index(endpoint.state), endpoint.name


def _shown(text: str | None) -> str | None:
    """Return text that others may have written a part of, without characters that act on what shows it."""
    return None if text is None else visible_text(text)


def _state(
    status: EndpointStatus, rollout: RolloutOverview | None, looks: RecentLooks, reason_of_hold: str
) -> tuple[State, str | None]:
    """Return what comes first for a person, and why they should look at it."""
    if rollout is not None and rollout.asked is not None:
        return "needs_person", f"{rollout.version}: a person is asked whether it may go on."
    if rollout is not None and rollout.held is not None:
        reason = short_text(reason_of_hold, most=LONGEST_REASON).rstrip(".")
        because = f" Why: {reason}." if reason else ""
        return "on_hold", f"{rollout.version} is on hold: promote it or roll it back.{because}"
    if status.trouble:
        return "trouble", visible_text(status.trouble)
    if failed := [version for version in status.versions.values() if version.failed]:
        return (
            "trouble",
            f"{failed[0].name} does not become ready: {visible_text(failed[0].cause or 'no cause is known')}",
        )
    if rollout is None:
        return "steady", None
    if looks.verdict is not None and looks.verdict.outcome is Outcome.SPLIT_IS_WRONG:
        return "trouble", f"{rollout.version} cannot be compared with the control: {visible_text(looks.verdict.reason)}"
    return "rolling_out", None


def _rollout(endpoint: Endpoint, looks: RecentLooks) -> RolloutOverview | None:
    """Return the rollout that is under way; None if there is none."""
    rollout = endpoint.rollout
    if rollout is None:
        return None
    step = f"{endpoint.effective_traffic().get(rollout.version, 0.0):g} %"
    silence = None
    if unattended_rollout(endpoint):
        silence = f"If nobody looks for {format_duration(rollout.silence)}, its traffic is taken back."
    return RolloutOverview(
        version=rollout.version,
        owner=visible_text(rollout.owner),
        run=run_of_owner(rollout.owner),
        started=rollout.started,
        held=rollout.held,
        asked=looks.asked,
        step=step,
        waiting_for=visible_text(waiting_sentence(looks, step=step, held=rollout.held)),
        outcome=looks.verdict.outcome.value if looks.verdict else None,
        looked=looks.looked,
        silence=silence,
    )


def _version(endpoint: Endpoint, name: str, status: EndpointStatus, created: Creation | None) -> VersionOverview:
    """Return what people see of one version."""
    version, present = endpoint.versions[name], status.versions.get(name)
    weight = status.weight_ppm
    return VersionOverview(
        name=name,
        role="control" if version.is_control else "treatment",
        is_default=version.is_default,
        traffic=Traffic(
            percentile=version.traffic_percentile,
            effective=endpoint.effective_traffic()[name],
            served=weight.get(name, 0) / 10_000 if weight else None,
        ),
        replicas=_replicas(present),
        health=_health(present),
        cause=_shown(present.cause) if present else None,
        image=version.image,
        digest=version.image.partition("@")[2] or None,
        created=created.at if created else None,
        created_by=visible_text(created.who if created else ""),
        created_reason=short_text(created.reason if created else "", most=LONGEST_REASON),
        created_run=run_of_author(created.who) if created else None,
        requests=present.requests if present else 0,
        active=present.active if present else 0,
        autoscaled=version.autoscale_enabled,
    )


def _replicas(version: VersionStatus | None) -> ReplicaCount | None:
    """Return how many replicas a version has; None if that is not known."""
    if version is None:
        return None
    return ReplicaCount(
        ready=sum(replica.state is ReplicaState.READY for replica in version.replicas),
        wanted=max(version.wanted_replicas, len(version.replicas)),
        restarts=sum(replica.restarts for replica in version.replicas),
        scaling=_shown(version.scaling),
    )


def _health(version: VersionStatus | None) -> Health:
    """Return whether a version answers."""
    if version is None:
        return "missing"
    if version.ready:
        return "ready"
    return "failed" if version.failed else "not_ready"
