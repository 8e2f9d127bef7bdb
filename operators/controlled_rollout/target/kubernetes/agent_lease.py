"""The Lease by which one agent at a time is at work for a namespace. Pure.

The algorithm is that of Kubernetes' own controllers (client-go, `tools/leaderelection`): a Lease is free when it was
not changed for its whole duration, by the clock of whoever looks at it. The clocks of two machines are never compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from controlled_rollout.cluster.api import Object
from controlled_rollout.cluster.kinds import LEASE, MANAGED_BY

__all__ = ["DURATION_S", "LEASE_NAME", "Sighting", "claimed", "new_lease", "released", "sighted"]

LEASE_NAME: Final = "controlled-rollout-agent"
# How long a Lease is its holder's after it was last renewed.
DURATION_S: Final = 15


@dataclass(frozen=True)
class Sighting:
    """What a candidate has seen of a Lease.

    Attributes:
        holder: Whose it was; empty for nobody's.
        renewed: The text of its `renewTime`, which is only compared with itself.
        since_s: Since when it has been like that, by the candidate's own clock, in seconds.
    """

    holder: str
    renewed: str
    since_s: float


def sighted(lease: Object, before: Sighting | None, now_s: float) -> Sighting:
    """Return what is seen of a Lease now; its time stays that of the first sighting while nobody changes it.

    Args:
        lease: The Lease.
        before: What was seen of it before.
        now_s: The candidate's clock, in seconds.
    """
    spec: Mapping[str, Any] = lease.get("spec") or {}
    holder, renewed = str(spec.get("holderIdentity") or ""), str(spec.get("renewTime") or "")
    if before is not None and (before.holder, before.renewed) == (holder, renewed):
        return before
    return Sighting(holder, renewed, now_s)


def new_lease(namespace: str, identity: str, now: datetime) -> Object:
    """Return the Lease of a namespace, held by `identity`, as it is created."""
    return {
        "apiVersion": LEASE.version,
        "kind": LEASE.name,
        "metadata": {"name": LEASE_NAME, "namespace": namespace, "labels": dict(MANAGED_BY)},
        "spec": {**_renewed_fields(identity, now), "acquireTime": _micro_time(now), "leaseTransitions": 0},
    }


def claimed(lease: Object, seen: Sighting, identity: str, *, now: datetime, now_s: float) -> Object | None:
    """Return the change of a Lease by which a candidate takes or renews it; None while it is another one's.

    Args:
        lease: The Lease.
        seen: What has been seen of it.
        identity: The candidate.
        now: The time, to be noted.
        now_s: The candidate's clock, in seconds.
    """
    if seen.holder == identity:
        return {"spec": _renewed_fields(identity, now)}
    spec: Mapping[str, Any] = lease.get("spec") or {}
    duration_s = spec.get("leaseDurationSeconds") or DURATION_S
    if seen.holder and now_s - seen.since_s < duration_s:
        return None
    transitions = int(spec.get("leaseTransitions") or 0) + 1
    return {
        "spec": {**_renewed_fields(identity, now), "acquireTime": _micro_time(now), "leaseTransitions": transitions}
    }


def released(now: datetime) -> Object:
    """Return the change of a Lease by which its holder gives it up, so that another one need not wait."""
    return {"spec": {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _micro_time(now)}}


def _renewed_fields(identity: str, now: datetime) -> Object:
    """Return the fields that a holder writes each time."""
    return {"holderIdentity": identity, "leaseDurationSeconds": DURATION_S, "renewTime": _micro_time(now)}


def _micro_time(now: datetime) -> str:
    """Return a time as Kubernetes' MicroTime."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
