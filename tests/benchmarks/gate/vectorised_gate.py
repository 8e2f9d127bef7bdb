"""The gate over thousands of runs at once: the package's own formulas, put together as `judge` does for one run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate import Bin, Counts, Gate
from controlled_rollout.gate.claims import alarm_threshold
from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.event_test import pass_ratios
from controlled_rollout.gate.mixture import CEILING, log_sum_exp
from controlled_rollout.gate.pass_conditions import near_in_newest, no_pass_because, no_step_because
from controlled_rollout.gate.rate import log_evidence, rate_of_odds
from controlled_rollout.gate.ratio import ABOVE, ABOVE_WEIGHTS, MOST_BURST, OddsRatio, bounded_discount
from controlled_rollout.gate.restarts import at_present_share, process_weight
from controlled_rollout.gate.shift import TILTS, duration_shift, scores
from controlled_rollout.gate.traffic_claims import latency_weights
from tests.benchmarks.gate.traffic import QUANTILES, TOLERANCE, Arm, Floats, Traffic, thresholds_ms

BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Looks:
    """When a rule decided, by run: the bin after which it first did, NEVER if it did not.

    Attributes:
        failed, passed: The bins; a pass is one of the share after the history.
        leans: After each bin (without warm-up) whether an alarm is close enough to its threshold for a step to wait.
    """

    failed: NDArray[np.int64]
    passed: NDArray[np.int64]
    leans: NDArray[np.bool_]


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
    """Judge every run after every bin."""
    gate = gate_of(traffic)
    skip = int(gate.warm_up / MINUTE)
    treatment, control, before = slow_counts(traffic)
    errors = _Events(traffic, traffic.treatment.errors, traffic.control.errors, traffic.before.errors, skip)
    slow = [_Events(traffic, treatment[..., k], control[..., k], before[..., k], skip) for k in range(len(QUANTILES))]
    starts = _starts(traffic.share[skip:])

    gains = errors.alarm_gains(gate.error_ratio, ABOVE)
    allowed = [errors.differs(gate.error_difference, first) for first in starts]
    evidence = _alarm(gains, ABOVE_WEIGHTS, starts, allowed)
    alarm = evidence >= math.log(alarm_threshold(gate, "errors", latency=True))
    gains = [gain for event in slow for gain in event.gains(1.0, ABOVE)]
    gains += _shift_gains(traffic, treatment, control, before, skip)
    latency = _alarm(gains, latency_weights(len(slow)), starts)
    limit = math.log(alarm_threshold(gate, "latency", latency=True))
    failed = _first(alarm | (latency >= limit))
    leans = _rises(evidence, alarm_threshold(gate, "errors", latency=True)) | _rises(latency, math.exp(limit))

    passes = errors.not_worse(gate, gate.acceptable_error_rate, starts)
    passes &= errors.below(gate, starts)
    for event, q in zip(slow, QUANTILES, strict=True):
        passes &= event.not_worse(gate, rate_of_odds(gate.pass_ratio * (1 - q) / q), starts)
    since = max(0, traffic.cell.history_bins - skip)
    passed = _first_pass(_bins_as_columns(traffic, (treatment, control), before, skip), passes, failed, since, gate)
    later = NEVER - skip
    failed, passed = (np.where(first < later, first + skip, NEVER) for first in (failed, passed))
    return Looks(failed, passed, leans)


def _rises(evidence: Floats, threshold: float) -> NDArray[np.bool_]:
    """Return where an alarm is at a tenth of its threshold or above: a step does not go on then."""
    return evidence >= math.log(threshold / 10)


def _starts(share: Floats) -> list[int]:
    """Return the bins at which the split changes, and the first one."""
    return [0, *(np.flatnonzero(np.diff(share)) + 1).tolist()]


def _alarm(
    gains: Sequence[Floats], weights: Sequence[float], starts: Sequence[int], allowed: Sequence[NDArray[np.bool_]] = ()
) -> Floats:
    """Return the log of an alarm's evidence: the average of the processes that begin at each start."""
    total = np.ones_like(gains[0])
    for number, first in enumerate(starts):
        weight = process_weight(number)
        mixed = _mixed([np.cumsum(gain[:, first:], axis=1) for gain in gains], weights)
        path = np.exp(np.minimum(mixed, CEILING))
        total[:, first:] += weight * (np.where(allowed[number], path, 0.0) if allowed else path) - weight
    result: Floats = np.log(np.maximum(total, 1e-300))
    return result


class _Events:
    def __init__(self, traffic: Traffic, treatment: Floats, control: Floats, before: Floats, skip: int) -> None:
        self.a, self.c = (arm.requests[:, skip:] for arm in (traffic.treatment, traffic.control))
        self.x, self.y = treatment[:, skip:].astype(float), control[:, skip:].astype(float)
        flat = Metric(self.x.ravel(), self.y.ravel())
        self.odds = OddsRatio(self.a.ravel(), self.c.ravel(), flat)
        self.burst = _burstiness(traffic.before.requests, before.astype(float))[:, None]

    def gains(self, null: float, ratios: Sequence[float]) -> list[Floats]:
        shape = self.a.shape
        return [self.odds.gains(null, ratio, self.a.size).reshape(shape) / self.burst for ratio in ratios]

    def alarm_gains(self, null: float, ratios: Sequence[float]) -> list[Floats]:
        bounds = [bounded_discount(max(burst, MOST_BURST)) for burst in self.burst[:, 0]]
        caps = np.log(np.array([cap for _, cap in bounds]))[:, None]
        above = self.burst > MOST_BURST
        return [
            np.where(above, np.minimum(gain * self.burst / MOST_BURST, caps), gain) for gain in self.gains(null, ratios)
        ]

    def differs(self, least: float, first: int) -> NDArray[np.bool_]:
        a, c, x, y = (counts[:, first:] for counts in (self.a, self.c, self.x, self.y))
        both = (a > 0) & (c > 0)
        total = np.where(both, a + c, 1.0)
        excess = np.cumsum(np.where(both, (x * c - y * a) / total, 0.0), axis=1)
        weight = np.cumsum(np.where(both, a * c / total, 0.0), axis=1)
        return (weight > 0) & (excess >= least * weight)

    def not_worse(self, gate: Gate, acceptable: float, starts: Sequence[int]) -> NDArray[np.bool_]:
        """Return after each bin whether what came at its share has established the claim."""
        ratios = pass_ratios(gate.pass_ratio)
        gains = self.gains(gate.pass_ratio, ratios)
        spans = []
        for span in map(slice, starts, [*starts[1:], None]):
            parts = [np.cumsum(gain[:, span], axis=1) + math.log(0.5 / len(ratios)) for gain in gains]
            x, n = (np.cumsum(counts[:, span], axis=1) / self.burst for counts in (self.x, self.a))
            parts.append(log_evidence(acceptable, x, n) + math.log(0.5))
            spans.append(_ever(log_sum_exp(np.array(parts)) >= -math.log(gate.beta)))
        return np.concatenate(spans, axis=1)

    def below(self, gate: Gate, starts: Sequence[int]) -> NDArray[np.bool_]:
        """Return after each bin whether what came at its share has shown a rate below `max_error_rate`."""
        spans = []
        for span in map(slice, starts, [*starts[1:], None]):
            x, n = (np.cumsum(counts[:, span], axis=1) / self.burst for counts in (self.x, self.a))
            spans.append(_ever(log_evidence(gate.max_error_rate, x, n) >= -math.log(gate.beta)))
        return np.concatenate(spans, axis=1)


def _first_pass(
    runs: Iterator[tuple[Columns, Columns]],
    passes: NDArray[np.bool_],
    failed: NDArray[np.int64],
    since: int,
    gate: Gate,
) -> NDArray[np.int64]:
    """Return the first bin from `since` on at which each run passes: every claim, and no condition against it."""
    result = np.full(len(passes), NEVER)
    for run, (judged, before) in enumerate(runs):
        for bin_ in np.flatnonzero(passes[run, since:]) + since:
            if bin_ >= failed[run]:
                break
            seen = judged.at(slice(0, bin_ + 1))
            present = seen.at(at_present_share(seen))
            against = chain(
                no_step_because(present, seen, before, gate),
                no_pass_because(present, judged, before, gate),
                near_in_newest(present, before, gate),
            )
            if next(against, None) is None:
                result[run] = bin_
                break
    return result


def _bins_as_columns(
    traffic: Traffic, slow: tuple[Floats, Floats], before: Floats, skip: int
) -> Iterator[tuple[Columns, Columns]]:
    """Yield each run's bins and its baseline as the gate has them."""
    nothing = np.zeros(traffic.before.requests.shape[1])
    treatment, control = traffic.treatment, traffic.control
    for run in range(len(control.requests)):
        judged = Columns(
            [BEGIN] * len(traffic.share[skip:]),
            treatment.requests[run, skip:],
            control.requests[run, skip:],
            Metric(treatment.errors[run, skip:], control.errors[run, skip:]),
            tuple(Metric(slow[0][run, skip:, k], slow[1][run, skip:, k]) for k in range(len(QUANTILES))),
            traffic.share[skip:],
            {},
            {},
        )
        earlier = Columns(
            [BEGIN] * len(nothing),
            nothing,
            traffic.before.requests[run],
            Metric(nothing, traffic.before.errors[run]),
            tuple(Metric(nothing, before[run, :, k]) for k in range(len(QUANTILES))),
            nothing * np.nan,
            {},
            {},
        )
        yield judged, earlier


def _mixed(paths: Sequence[Floats], weights: Sequence[float]) -> Floats:
    return log_sum_exp(np.array([path + math.log(weight) for path, weight in zip(paths, weights, strict=True)]))


def _shift_gains(traffic: Traffic, treatment: Floats, control: Floats, before: Floats, skip: int) -> list[Floats]:
    a, c = (arm.requests[:, skip:] for arm in (traffic.treatment, traffic.control))
    slow = [Metric(treatment[:, skip:, k].ravel(), control[:, skip:, k].ravel()) for k in range(len(QUANTILES))]
    shift = duration_shift(a.ravel(), c.ravel(), slow, QUANTILES)
    burst = _score_burstiness(traffic.before.requests, before)[:, None]
    return [shift.gains(tilt, a.size).reshape(a.shape) / burst for tilt in TILTS]


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
            # Whole users make the split vary more than it should: its check would say so.
            None if traffic.cell.sticky else float(share),
        )
        for m, share in enumerate(traffic.share)
    ]
    length = traffic.before.requests.shape[1]
    baseline = [Bin(BEGIN + (m - length) * MINUTE, counts(traffic.before, before, m), nothing) for m in range(length)]
    return rollout, baseline
