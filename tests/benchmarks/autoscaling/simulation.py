"""Requests that come, wait, are answered or refused, while a rule says how many replicas there are."""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from controlled_rollout.autoscaling import Floor
from controlled_rollout.sizing import replicas_for
from tests.benchmarks.autoscaling.rules import TARGET, Ours, Rule, Seen

# A request is answered in 0.2 s on average (exponential), and refused after 0.5 s in the queue.
MEAN_S = 0.2
WAIT_S = 0.5
START_S = 5.0
# Before the curve begins, every rule has had this time to settle at its first load.
SETTLING_S = 120


@dataclass(frozen=True)
class Curve:
    """A load: how many replicas are busy with it at each moment (the demand), and when it changes."""

    demand: Callable[[float], float]
    seconds: int
    changes_at: float = 0.0
    start_s: float = START_S
    sized: float | None = None


def _noise(seconds: int) -> list[float]:
    chance = random.Random(11)
    return [4 * math.exp(chance.gauss(0, 0.3)) for _ in range(seconds)]


_NOISE = _noise(900)

CURVES: dict[str, Curve] = {
    "step, 1 → 8": Curve(lambda t: 8.0 if t >= 30.5 else 1.0, 330, 30.5),
    "ramp, 1 → 8 in 2 minutes": Curve(lambda t: 1 + 7 * min(1.0, max(0.0, (t - 30) / 120)), 420, 30),
    "spike, 1 → 8 for 20 s": Curve(lambda t: 8.0 if 30.5 <= t < 50.5 else 1.0, 420, 30.5),
    "diurnal, 1 to 8 in 30 minutes": Curve(lambda t: 4.5 - 3.5 * math.cos(2 * math.pi * t / 1800), 1800),
    "noise around 4": Curve(lambda t: _NOISE[min(int(t), len(_NOISE) - 1)], 900),
    "step, replicas start in 30 s": Curve(lambda t: 8.0 if t >= 30.5 else 1.0, 330, 30.5, start_s=30.0),
    "a shift from 10 to 80 %": Curve(lambda t: 8.0 if t >= 60.5 else 1.0, 360, 60.5, sized=8.0),
}


@dataclass
class Outcome:
    """What a rule made of a curve."""

    requests: int = 0
    refused: int = 0
    replica_seconds: float = 0.0
    decided_s: float | None = None
    enough_s: float | None = None
    changes: int = 0
    wanted: list[int] = field(default_factory=list)


class Service:
    """Replicas of one slot each behind one queue, as a router with the least requests first nearly is."""

    def __init__(self, replicas: int, start_s: float, chance: random.Random) -> None:
        self.wanted = self.ready = replicas
        self.busy = 0
        self.queue: deque[float] = deque()
        self._start_s = start_s
        self._chance = chance
        self._ends: list[float] = []
        self._starts: list[float] = []
        self.requests = self.refused = 0
        self._integral = 0.0
        self._at = 0.0

    def advance(self, now: float) -> None:
        """Let replicas start and requests end or give up until `now`."""
        while True:
            end = self._ends[0] if self._ends else math.inf
            start = self._starts[0] if self._starts else math.inf
            gives_up = self.queue[0] + WAIT_S if self.queue else math.inf
            at = min(end, start, gives_up)
            if at > now:
                break
            self._integrate(at)
            if at == end:
                heapq.heappop(self._ends)
                self.busy -= 1
            elif at == start:
                heapq.heappop(self._starts)
                self.ready += 1
            else:
                self.queue.popleft()
                self.refused += 1
            self._serve(at)
        self._integrate(now)

    def request(self, now: float) -> None:
        self.advance(now)
        self.requests += 1
        self.queue.append(now)
        self._serve(now)

    def scale(self, wanted: int, now: float) -> None:
        """Start replicas, or end them: first those that are not ready; a busy one ends its request."""
        for _ in range(wanted - self.wanted):
            heapq.heappush(self._starts, now + self._start_s)
        for _ in range(self.wanted - wanted):
            if self._starts:
                self._starts.remove(max(self._starts))
                heapq.heapify(self._starts)
            else:
                self.ready -= 1
        self.wanted = wanted

    def mean_demand(self) -> float:
        """Return the mean demand since this was asked last, a second ago."""
        mean, self._integral = self._integral, 0.0
        return mean

    def _serve(self, now: float) -> None:
        while self.queue and self.busy < self.ready:
            self.queue.popleft()
            self.busy += 1
            heapq.heappush(self._ends, now + self._chance.expovariate(1 / MEAN_S))

    def _integrate(self, now: float) -> None:
        self._integral += (self.busy + len(self.queue)) * (now - self._at)
        self._at = now


def simulate(rule: Rule, curve: Curve, seed: int) -> Outcome:
    """Return what a rule makes of a curve; the same arrivals for every rule."""
    arrivals, service = random.Random(seed), Service(2, curve.start_s, random.Random(seed + 1))
    outcome = Outcome()
    highest = max(curve.demand(t) for t in range(curve.seconds))
    due = 0.0
    for second in range(1, SETTLING_S + curve.seconds + 1):
        while due < second:
            if arrivals.random() < curve.demand(max(0.0, due - SETTLING_S)) / highest:
                service.request(due)
            due += arrivals.expovariate(highest / MEAN_S)
        service.advance(second)
        at = second - SETTLING_S
        if curve.sized is not None and isinstance(rule, Ours) and at == int(curve.changes_at) - 30:
            # A step sizes the version for its new share, and moves the traffic once the replicas are ready.
            sized = replicas_for(curve.sized / MEAN_S, MEAN_S, target_utilisation=TARGET, slots=1)
            rule.floor = Floor.for_shift(sized, second)
        before = service.wanted
        seen = Seen(second, service.busy, len(service.queue), service.mean_demand(), before, service.ready)
        service.scale(rule(seen), second)
        if at == 0:
            service.requests = service.refused = 0
        if at > 0:
            outcome.replica_seconds += service.wanted
            outcome.changes += service.wanted != before
            outcome.wanted.append(service.wanted)
            since = at - curve.changes_at
            if since > 0 and outcome.decided_s is None and service.wanted > before:
                outcome.decided_s = since
            if since > 0 and outcome.enough_s is None and service.ready >= math.ceil(curve.demand(at)):
                outcome.enough_s = since
    outcome.requests, outcome.refused = service.requests, service.refused
    return outcome
