"""The gate over thousands of runs at once: the package's own formulas, put together as `judge` does for one run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate import Bin, Counts, Gate
from controlled_rollout.gate.claims import alarm_threshold
from controlled_rollout.gate.columns import Metric
from controlled_rollout.gate.mixture import log_sum_exp
from controlled_rollout.gate.rate import log_evidence
from controlled_rollout.gate.ratio import ABOVE, ABOVE_WEIGHTS, OddsRatio
from controlled_rollout.gate.shift import TILTS, Shift, scores
from controlled_rollout.gate.traffic_claims import latency_weights, pass_ratios, rate_of_odds
from tests.benchmarks.gate.traffic import QUANTILES, TOLERANCE, Arm, Floats, Traffic, thresholds_ms

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Looks:
    """When a rule decided, by run: the minute after which it first did, NEVER if it did not."""

    failed: NDArray[np.int64]
    passed: NDArray[np.int64]


def gate_of(traffic: Traffic) -> Gate:
    """Return the gate that judges a cell: the defaults; a warm-up where the start is cold."""
    return Gate(warm_up=timedelta(minutes=5 if traffic.cell.cold else 0))


def slow_counts(traffic: Traffic) -> tuple[Floats, Floats, Floats]:
    """Return the slow requests of the treatment, of control, and of control before: runs x minutes x quantiles."""
    limits = thresholds_ms()
    return (
        traffic.treatment.slow(limits * (1 + TOLERANCE)),
        traffic.control.slow(limits),
        traffic.before.slow(limits),
    )


def looks(traffic: Traffic) -> Looks:
    """Judge every run after every minute."""
    gate = gate_of(traffic)
    skip = int(gate.warm_up / MINUTE)
    treatment, control, before = slow_counts(traffic)
    errors = _Events(traffic, traffic.treatment.errors, traffic.control.errors, traffic.before.errors, skip)
    slow = [_Events(traffic, treatment[..., k], control[..., k], before[..., k], skip) for k in range(len(QUANTILES))]

    alarm = _mixed(errors.paths(gate.error_ratio, ABOVE), ABOVE_WEIGHTS) >= math.log(
        alarm_threshold(gate, "errors", latency=True)
    )
    alarm = _ever(alarm) & errors.differs(gate.error_difference)
    paths = [path for event in slow for path in event.paths(1.0, ABOVE)] + _shift_paths(
        traffic, treatment, control, before, skip
    )
    latency = _mixed(paths, latency_weights(len(slow))) >= math.log(alarm_threshold(gate, "latency", latency=True))
    failed = _first(alarm | latency)

    passes = _ever(errors.not_worse(gate, gate.acceptable_error_rate))
    for event, q in zip(slow, QUANTILES, strict=True):
        passes &= _ever(event.not_worse(gate, rate_of_odds(gate.pass_ratio * (1 - q) / q)))
    passed = _first(passes)
    later = NEVER - skip
    failed, passed = (np.where(first < later, first + skip, NEVER) for first in (failed, passed))
    return Looks(failed, np.where(passed < failed, passed, NEVER))


class _Events:
    def __init__(self, traffic: Traffic, treatment: Floats, control: Floats, before: Floats, skip: int) -> None:
        self.a, self.c = (arm.requests[:, skip:] for arm in (traffic.treatment, traffic.control))
        self.x, self.y = treatment[:, skip:].astype(float), control[:, skip:].astype(float)
        flat = Metric(self.x.ravel(), self.y.ravel())
        self.odds = OddsRatio(self.a.ravel(), self.c.ravel(), flat)
        self.burst = _burstiness(traffic.before.requests, before.astype(float))[:, None]

    def paths(self, null: float, ratios: Sequence[float]) -> list[Floats]:
        shape = self.a.shape
        return [
            np.cumsum(self.odds.gains(null, ratio, self.a.size).reshape(shape) / self.burst, axis=1) for ratio in ratios
        ]

    def differs(self, least: float) -> NDArray[np.bool_]:
        both = (self.a > 0) & (self.c > 0)
        total = np.where(both, self.a + self.c, 1.0)
        excess = np.cumsum(np.where(both, (self.x * self.c - self.y * self.a) / total, 0.0), axis=1)
        weight = np.cumsum(np.where(both, self.a * self.c / total, 0.0), axis=1)
        return (weight > 0) & (excess >= least * weight)

    def not_worse(self, gate: Gate, acceptable: float) -> NDArray[np.bool_]:
        ratios = pass_ratios(gate)
        parts = [path + math.log(0.5 / len(ratios)) for path in self.paths(gate.pass_ratio, ratios)]
        x, n = (np.cumsum(counts, axis=1) / self.burst for counts in (self.x, self.a))
        parts.append(log_evidence(acceptable, x, n) + math.log(0.5))
        return log_sum_exp(np.array(parts)) >= -math.log(gate.beta)


def _mixed(paths: Sequence[Floats], weights: Sequence[float]) -> Floats:
    return log_sum_exp(np.array([path + math.log(weight) for path, weight in zip(paths, weights, strict=True)]))


def _shift_paths(traffic: Traffic, treatment: Floats, control: Floats, before: Floats, skip: int) -> list[Floats]:
    a, c = (arm.requests[:, skip:] for arm in (traffic.treatment, traffic.control))
    slow = [Metric(treatment[:, skip:, k].ravel(), control[:, skip:, k].ravel()) for k in range(len(QUANTILES))]
    shift = Shift(a.ravel(), c.ravel(), slow, QUANTILES)
    burst = _score_burstiness(traffic.before.requests, before)[:, None]
    return [np.cumsum(shift.gains(tilt, a.size).reshape(a.shape) / burst, axis=1) for tilt in TILTS]


def _score_burstiness(requests: Floats, slow: Floats) -> Floats:
    above = np.concatenate([requests[..., None], slow, np.zeros((*requests.shape, 1))], axis=-1)
    counts, values = above[..., :-1] - above[..., 1:], scores(QUANTILES)
    total = requests.sum(axis=1)
    mean = (counts @ values).sum(axis=1) / total
    variance = (counts * (values - mean[:, None, None]) ** 2).sum(axis=(1, 2)) / total
    served = requests > 0
    deviation = counts @ values / np.maximum(requests, 1) - mean[:, None]
    spread = np.where(served, requests * deviation**2, 0.0).sum(axis=1)
    burst: Floats = np.maximum(1.0, spread / variance / np.maximum(served.sum(axis=1) - 1, 1))
    return burst


def _burstiness(requests: Floats, events: Floats) -> Floats:
    total, hits = requests.sum(axis=1, keepdims=True), events.sum(axis=1, keepdims=True)
    rate = hits / np.maximum(total, 1)
    served = requests > 0
    spread = np.where(served, (events - requests * rate) ** 2 / np.maximum(requests, 1), 0.0).sum(axis=1)
    rate = rate[:, 0]
    possible = (rate > 0) & (rate < 1) & (served.sum(axis=1) >= 2)
    freedom = np.maximum(served.sum(axis=1) - 1, 1)
    phi = np.where(possible, spread / np.where(possible, rate * (1 - rate), 1.0) / freedom, 1.0)
    return np.maximum(1.0, phi)


def _ever(truths: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.maximum.accumulate(truths, axis=1)


def _first(truths: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(truths.any(axis=1), truths.argmax(axis=1), NEVER)


def bins_of(traffic: Traffic, run: int) -> tuple[list[Bin], list[Bin]]:
    """Return one run as `judge` takes it: the rollout's bins and the baseline."""
    treatment, control, before = slow_counts(traffic)

    def counts(arm: Arm, slow: Floats, minute: int) -> Counts:
        return Counts(
            int(arm.requests[run, minute]),
            int(arm.errors[run, minute]),
            tuple(int(count) for count in slow[run, minute]),
        )

    nothing = Counts(0, 0, (0,) * len(QUANTILES))
    rollout = [
        Bin(
            BEGIN + m * MINUTE,
            counts(traffic.control, control, m),
            counts(traffic.treatment, treatment, m),
            float(share),
        )
        for m, share in enumerate(traffic.share)
    ]
    length = traffic.before.requests.shape[1]
    baseline = [Bin(BEGIN + (m - length) * MINUTE, counts(traffic.before, before, m), nothing) for m in range(length)]
    return rollout, baseline
