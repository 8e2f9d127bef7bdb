"""The rules that are compared: ours, that of a HorizontalPodAutoscaler, and that of Knative's autoscaler (KPA).

All see what there is to see: requests that are answered and those that wait. A HorizontalPodAutoscaler that looks at
processor time would see less, because a processor is never busy for more than all of the time.
"""

import math
from collections import deque
from typing import NamedTuple, Protocol

from controlled_rollout.autoscaling import Floor, History, Limits, Reading, decide

TARGET = 0.7
MOST = 30


class Seen(NamedTuple):
    """What a rule is told: the state at a moment, and the mean demand of the second before."""

    now: float
    busy: int
    queued: int
    mean_demand: float
    wanted: int
    ready: int


class Rule(Protocol):
    """Called once a second; returns how many replicas are wanted from now on."""

    def __call__(self, seen: Seen) -> int: ...


class Ours:
    """`decide`, which sees moments only, as counters of Envoy are gauges."""

    def __init__(self) -> None:
        self.limits = Limits(minimum=1, maximum=MOST, slots=1, target_utilisation=TARGET)
        self.history = History()
        self.floor: Floor | None = None

    def __call__(self, seen: Seen) -> int:
        decision = decide(
            self.limits,
            Reading(seen.busy, seen.queued),
            wanted=seen.wanted,
            ready=seen.ready,
            now=seen.now,
            history=self.history,
            floor=self.floor,
        )
        self.history = decision.history
        return decision.replicas


class HorizontalPodAutoscaler:
    """Every 15 s; within 10 % of the target nothing; at most 4 or 100 % more in 15 s; down to the most of 5 minutes.

    https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/ (defaults of Kubernetes)
    """

    def __init__(self) -> None:
        self.demands: deque[float] = deque(maxlen=15)
        self.recommended: deque[tuple[float, int]] = deque()

    def __call__(self, seen: Seen) -> int:
        self.demands.append(seen.mean_demand)
        if round(seen.now) % 15:
            return seen.wanted
        demand = sum(self.demands) / len(self.demands)
        ratio = demand / (TARGET * seen.wanted)
        desired = seen.wanted if abs(ratio - 1) <= 0.1 else math.ceil(demand / TARGET)
        desired = min(MOST, max(1, desired), max(seen.wanted + 4, 2 * seen.wanted))
        self.recommended.append((seen.now, desired))
        while self.recommended[0][0] < seen.now - 300:
            self.recommended.popleft()
        return max(desired, min(seen.wanted, max(number for _, number in self.recommended)))


class Knative:
    """Every 2 s; the mean of 60 s, in a panic that of 6 s and never fewer; a panic is twice what the ready ones take.

    https://knative.dev/docs/serving/autoscaling/kpa-specific/ (defaults of Knative, container concurrency 1)
    """

    def __init__(self) -> None:
        self.demands: deque[float] = deque(maxlen=60)
        self.panic_since: float | None = None
        self.most_in_panic = 0

    def __call__(self, seen: Seen) -> int:
        self.demands.append(seen.mean_demand)
        if round(seen.now) % 2:
            return seen.wanted
        ready = max(1, seen.ready)
        last = list(self.demands)[-6:]
        stable = math.ceil(sum(self.demands) / len(self.demands) / TARGET)
        panic = math.ceil(sum(last) / len(last) / TARGET)
        if panic / ready >= 2:
            self.panic_since = seen.now
        elif self.panic_since is not None and seen.now - self.panic_since > 60:
            self.panic_since, self.most_in_panic = None, 0
        fewest = ready // 2
        desired = max(stable, fewest)
        if self.panic_since is not None:
            desired = self.most_in_panic = max(desired, panic, fewest, self.most_in_panic)
        return min(MOST, max(1, desired))


RULES: dict[str, type[Ours] | type[HorizontalPodAutoscaler] | type[Knative]] = {
    "ours": Ours,
    "KPA": Knative,
    "HPA": HorizontalPodAutoscaler,
}
