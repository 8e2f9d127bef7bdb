"""How many replicas a version needs for its share of the load, before it gets that share. Pure.

The replica calculator of Azure Machine Learning's documentation of AKS deployments: requests per second times seconds
per request is the number of requests in flight (Little's law); a replica answers a fixed number of them at once, and
should be busy for only a part of the time.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict

from controlled_rollout.autoscaling import Limits
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.version import Version

__all__ = ["Load", "ReplicaRequirement", "autoscaler_limits", "replicas_for", "required_replicas", "total_load"]

# Rounding errors of floating point must not cost a replica, nor count as more traffic.
ROUNDING: Final = 1e-9


class Load(BaseModel):
    """The load of a version, as its router measures it.

    Attributes:
        requests_per_s: Requests per second that the router sends to it.
        request_time_s: Mean seconds from the router's sending a request to the end of the answer; None if it has
            answered none in the time that was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_s: float
    request_time_s: float | None = None


def total_load(parts: Iterable[Load]) -> Load:
    """Return the load of several parts of one version's requests together."""
    all_parts = tuple(parts)
    timed = [(part.requests_per_s, part.request_time_s) for part in all_parts if part.request_time_s is not None]
    rate = sum(requests_per_s for requests_per_s, _ in timed)
    if rate > 0:
        mean_s: float | None = sum(requests_per_s * seconds for requests_per_s, seconds in timed) / rate
    else:
        mean_s = max((seconds for _, seconds in timed), default=None)
    return Load(requests_per_s=sum(part.requests_per_s for part in all_parts), request_time_s=mean_s)


@dataclass(frozen=True, slots=True)
class ReplicaRequirement:
    """The replicas that a version needs for its share of the load.

    Attributes:
        version: Its name.
        traffic_percent: Its per cent of the endpoint's traffic after the change.
        gets_more: Whether that is more than before.
        requests_per_s: That share of the load measured for the whole endpoint, in requests per second.
        request_time_s: The mean time of one of its requests, in seconds.
        running: The replicas that it should have now.
        required: The replicas that it needs.
        limit: Its `autoscale_max_replicas`.
    """

    version: str
    traffic_percent: float
    gets_more: bool
    requests_per_s: float
    request_time_s: float
    running: int
    required: int
    limit: int

    @property
    def is_allowed(self) -> bool:
        """Whether the version's maximum allows as many replicas as it needs."""
        return self.required <= self.limit

    @property
    def fewest(self) -> int:
        """The number of replicas below which it must not go: the needed ones, up to the maximum."""
        return min(self.required, self.limit)

    @property
    def is_short(self) -> bool:
        """Whether replicas have to be added."""
        return self.fewest > self.running

    def summary(self) -> str:
        """Return a sentence for a log: how many replicas the version is to have, or why it cannot have them."""
        load = f"{self.requests_per_s:.1f} requests/s at {self.request_time_s * 1000:.1f} ms"
        share = f"{self.traffic_percent:g} % of the load ({load})"
        if self.is_allowed and self.is_short:
            return f"version {self.version!r} goes from {self.running} to {self.required} replicas for {share}"
        if self.is_allowed:
            return f"version {self.version!r} keeps at least {self.required} of its {self.running} replicas for {share}"
        return (
            f"version {self.version!r} would need {self.required} replicas for {share}, and its "
            f"autoscale_max_replicas allows {self.limit}: raise it, raise worker_count or "
            "replica_max_concurrent_requests if a replica can answer more requests at once, or send the version less "
            "traffic"
        )


def autoscaler_limits(version: Version) -> Limits:
    """Return a version's settings as the autoscaler takes them, the same on every target."""
    return Limits(
        minimum=version.autoscale_min_replicas,
        maximum=version.autoscale_max_replicas,
        slots=version.slots,
        target_utilisation=version.autoscale_target_utilization / 100,
        refresh_s=version.autoscale_refresh_seconds,
    )


def replicas_for(requests_per_s: float, request_time_s: float, *, target_utilisation: float, slots: int) -> int:
    """Return how many replicas a load needs at the target utilisation; at least 1.

    Args:
        requests_per_s: Requests per second.
        request_time_s: Mean seconds of one request.
        target_utilisation: The part of its slots that a replica should have busy, above 0 and at most 1.
        slots: The requests that one replica answers at the same time: `Version.slots`.

    Raises:
        ValueError: An argument is out of its range.
    """
    if not (0 <= requests_per_s < math.inf and 0 <= request_time_s < math.inf):
        raise ValueError(f"a load of {requests_per_s} requests/s at {request_time_s} s each is not possible")
    if not 0 < target_utilisation <= 1 or slots < 1:
        raise ValueError(
            f"replicas of {slots} slots cannot be busy for {target_utilisation:.0%} of the time: give at least "
            "1 slot, and a utilisation above 0 and at most 100 %"
        )
    replicas = requests_per_s * request_time_s / target_utilisation / slots
    return max(1, math.ceil(replicas * (1 - ROUNDING)))


def required_replicas(
    before: Endpoint, after: Endpoint, loads: Mapping[str, Load], running: Mapping[str, int]
) -> dict[str, ReplicaRequirement]:
    """Return the requirement of each version that gets more traffic, or has too few replicas for its share in `after`.

    The load is that of the whole endpoint, whichever versions have it now. The time of a request is the mean of the
    version's own requests; of a version that has answered none, that of control's, else of the slowest version's.
    Versions with a fixed number of replicas are left as they are, and without a load nothing is needed.

    Args:
        before: The endpoint before the change.
        after: The endpoint after the change.
        loads: The measured load of each version.
        running: The number of replicas that each version should have now.
    """
    total = math.fsum(load.requests_per_s for load in loads.values())
    percent_before, percent_after = before.effective_traffic(), after.effective_traffic()
    requirements: dict[str, ReplicaRequirement] = {}
    for name, version in after.versions.items():
        request_time_s = _request_time_s(name, before, loads)
        percent = percent_after[name]
        if version.num_replicas is not None or not total or not percent or request_time_s is None:
            continue
        requests_per_s = total * percent / 100
        replicas = replicas_for(
            requests_per_s,
            request_time_s,
            target_utilisation=version.autoscale_target_utilization / 100,
            slots=version.slots,
        )
        required = max(replicas, version.autoscale_min_replicas)
        gets_more = percent > percent_before.get(name, 0.0) + ROUNDING
        if gets_more or required > running.get(name, 0):
            requirements[name] = ReplicaRequirement(
                version=name,
                traffic_percent=percent,
                gets_more=gets_more,
                requests_per_s=requests_per_s,
                request_time_s=request_time_s,
                running=running.get(name, 0),
                required=required,
                limit=version.autoscale_max_replicas,
            )
    return requirements


def _request_time_s(version: str, before: Endpoint, loads: Mapping[str, Load]) -> float | None:
    """Return a version's time per request in seconds: its own, else control's, else the longest known, else None."""
    times = {name: load.request_time_s for name, load in loads.items() if load.request_time_s is not None}
    control = before.control.name if before.control else None
    return next((times[name] for name in (version, control) if name in times), max(times.values(), default=None))
