"""How many replicas a version needs for its share of the load, before it gets that share. Pure.

The replica calculator of Azure Machine Learning's documentation of AKS deployments: requests per second by seconds per
request are the requests that are under way at the same time (Little's law); a replica takes so many of them, and is not
to be busy all the time.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict

from controlled_rollout.endpoint import Endpoint, Version

__all__ = ["Load", "Size", "plan", "replicas_for"]

# What floating point adds to a product of a few factors must not cost a replica, nor make a share grow.
ROUNDING: Final = 1e-9


class Load(BaseModel):
    """What a version has to do now, as its router measures it.

    Attributes:
        requests_per_s: Requests per second that the router sends to it.
        request_time_s: Mean seconds from the router's sending a request to the end of the answer; None where it has
            answered none in the time that was measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_s: float
    request_time_s: float | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """What a version that is too small needs.

    Attributes:
        version: Its name.
        share: Its per cent of the endpoint's traffic after the change.
        grows: Whether that is more than before.
        requests_per_s: What that share comes to, of the load measured for the whole endpoint.
        request_time_s: Seconds that one of its requests is taken to last.
        running: Replicas that it should have now.
        needed: Replicas that it should have then; more than `running`.
        allowed: Its `autoscale_max_replicas`.
    """

    version: str
    share: float
    grows: bool
    requests_per_s: float
    request_time_s: float
    running: int
    needed: int
    allowed: int

    @property
    def enough(self) -> bool:
        """Whether it may have what it needs."""
        return self.needed <= self.allowed

    @property
    def replicas(self) -> int:
        """Replicas to run: what is needed as far as that is allowed, and none less than there are."""
        return max(self.running, min(self.needed, self.allowed))

    @property
    def in_words(self) -> str:
        """What is to be done, or why it cannot be."""
        each = f"{self.requests_per_s:.1f} requests/s at {self.request_time_s * 1000:.1f} ms"
        work = f"{self.share:g} % of the load ({each})"
        if self.enough:
            return f"version {self.version!r} goes from {self.running} to {self.needed} replicas for {work}"
        return (
            f"version {self.version!r} would need {self.needed} replicas for {work}, and its autoscale_max_replicas "
            f"allows {self.allowed}: raise that, or replica_max_concurrent_requests where the model can do with it, or "
            "send it less"
        )


def replicas_for(requests_per_s: float, request_time_s: float, *, target_utilisation: float, concurrency: int) -> int:
    """Return how many replicas a load needs, at least 1.

    Args:
        requests_per_s: Requests per second.
        request_time_s: Mean seconds of one request.
        target_utilisation: Part of its slots that a replica should have busy, above 0 and at most 1.
        concurrency: Slots of one replica: requests that it answers at the same time.

    Raises:
        ValueError: An argument is out of its range.
    """
    if not (0 <= requests_per_s < math.inf and 0 <= request_time_s < math.inf):
        raise ValueError(f"a load of {requests_per_s} requests/s at {request_time_s} s each cannot be")
    if not 0 < target_utilisation <= 1 or concurrency < 1:
        raise ValueError(
            f"replicas of {concurrency} slots cannot be used to {target_utilisation:.0%}: give at least 1 slot, and a "
            "utilisation above 0 and at most 100 %"
        )
    replicas = requests_per_s * request_time_s / target_utilisation / concurrency
    return max(1, math.ceil(replicas * (1 - ROUNDING)))


def plan(before: Endpoint, after: Endpoint, loads: Mapping[str, Load], running: Mapping[str, int]) -> dict[str, Size]:
    """Return what the versions that are too small for their share in `after` need, in the endpoint's order.

    The load is that of the whole endpoint, whichever of its versions have it now. A request is taken to last as long
    as the version's own do; of a version that has answered none, as long as control's, else as the slowest version's.
    Versions with a fixed number of replicas are left alone, and without a load there is nothing to do.

    Args:
        before: The endpoint as it is.
        after: The endpoint as it is to be.
        loads: The load of each version, measured.
        running: How many replicas each version should have now.
    """
    whole = math.fsum(load.requests_per_s for load in loads.values())
    had, gets = before.effective_traffic(), after.effective_traffic()
    sizes: dict[str, Size] = {}
    for name, version in after.versions.items():
        time_s = _request_time_s(name, before, loads)
        if version.num_replicas is not None or not whole or not gets[name] or time_s is None:
            continue
        requests_per_s = whole * gets[name] / 100
        needed = max(_needed(version, requests_per_s, time_s), version.autoscale_min_replicas)
        if needed > running.get(name, 0):
            sizes[name] = Size(
                version=name,
                share=gets[name],
                grows=gets[name] > had.get(name, 0.0) + ROUNDING,
                requests_per_s=requests_per_s,
                request_time_s=time_s,
                running=running.get(name, 0),
                needed=needed,
                allowed=version.autoscale_max_replicas,
            )
    return sizes


def _needed(version: Version, requests_per_s: float, request_time_s: float) -> int:
    return replicas_for(
        requests_per_s,
        request_time_s,
        target_utilisation=version.autoscale_target_utilization / 100,
        concurrency=version.replica_max_concurrent_requests,
    )


def _request_time_s(version: str, before: Endpoint, loads: Mapping[str, Load]) -> float | None:
    known = {name: load.request_time_s for name, load in loads.items() if load.request_time_s is not None}
    control = before.control.name if before.control else None
    return next((known[name] for name in (version, control) if name in known), max(known.values(), default=None))
