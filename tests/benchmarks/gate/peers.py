"""The rules of other tools on the same traffic, from their own documentation and source.

Each returns the minute after which it rolls the treatment back. They promote what they have not rolled back by the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from tests.benchmarks.gate.traffic import EDGES_MS, Arm, Floats, Traffic, bucket_means, thresholds_ms

NEVER = np.iinfo(np.int64).max
DELAY = 5  # minutes left out where the start is cold, by the rules that have such a setting
KAYENTA_EVERY = 5
TOLERANCE, CONFIDENCE = 0.25, 0.98


@dataclass(frozen=True)
class Peer:
    """A rule: what the table calls it, what it is, and when it rolls back, by run."""

    name: str
    what: str
    failed: Callable[[Traffic], NDArray[np.int64]]


def argo(
    traffic: Traffic, *, success: float, every: int, limit: int, slowest: float | None = None
) -> NDArray[np.int64]:
    """Argo Rollouts, background analysis: every so many minutes the canary's success rate in that time.

    A measurement that misses its successCondition has failed; a metric fails when it has more failed measurements than
    failureLimit (assessMetricFailureInconclusiveOrError in analysis/analysis.go). With `slowest` a second metric asks
    for a p95 of at most that many times control's.
    """
    treatment, begin = traffic.treatment, _delay(traffic)
    ends = np.arange(begin + every, traffic.cell.minutes + 1, every)
    windows = [slice(end - every, end) for end in ends]
    missed = [
        np.stack([_sum(treatment.errors, w) > (1 - success) * _sum(treatment.requests, w) for w in windows], axis=1)
    ]
    if slowest is not None:
        worst = slowest * thresholds_ms((0.95,))[0]
        missed.append(
            np.stack([quantile_ms(treatment.durations[:, w].sum(axis=1), 0.95) > worst for w in windows], axis=1)
        )
    failed: NDArray[np.int64] = np.minimum.reduce(
        [_first(np.cumsum(misses, axis=1) > limit, ends - 1) for misses in missed]
    )
    return failed


def flagger(traffic: Traffic) -> NDArray[np.int64]:
    """Flagger as documented: every minute success rate >= 99 % and p99 <= 500 ms; the fifth failed check rolls back."""
    treatment = traffic.treatment
    failing = (treatment.errors > 0.01 * treatment.requests) | (quantile_ms(treatment.durations, 0.99) > 500)
    return _first(np.cumsum(failing, axis=1) >= 5, np.arange(traffic.cell.minutes))


def kayenta(traffic: Traffic) -> NDArray[np.int64]:
    """Kayenta's NetflixACAJudge: Mann-Whitney over the minutes' error rates and p95s, every five minutes.

    A metric is High when the lower confidence bound of the shift is above a quarter of its estimate and the ratio of
    means is 1 or more; of two metrics with equal weight one High is a score of 50, below the usual marginal 75.
    """
    begin = _delay(traffic)
    ends = np.arange(begin + KAYENTA_EVERY, traffic.cell.minutes + 1, KAYENTA_EVERY)
    series = (
        tuple(np.where(arm.requests > 0, arm.errors / np.maximum(arm.requests, 1), 0.0) for arm in _arms(traffic)),
        tuple(quantile_ms(arm.durations, 0.95) for arm in _arms(traffic)),
    )
    failed = []
    for treatment, control in series:
        high = [is_high(treatment[:, begin:end], control[:, begin:end]) for end in ends]
        failed.append(_first(np.stack(high, axis=1), ends - 1))
    return np.minimum(*failed)


def is_high(experiment: Floats, control: Floats) -> NDArray[np.bool_]:
    """Return whether Kayenta calls the experiment High, by run.

    The shift for which the Mann-Whitney statistic U (continuity corrected, variance corrected for ties) is at the 99 %
    point is an order statistic of the pairwise differences, and the estimate is their median (Hodges and Lehmann).
    """
    runs, m = experiment.shape
    n = control.shape[1]
    z = norm.ppf(1 - (1 - CONFIDENCE) / 2)
    ties = _ties(experiment) + _ties(control)
    variance = m * n / 12 * (m + n + 1 - ties / ((m + n) * (m + n - 1)))
    needed = np.ceil(m * n / 2 + 0.5 + z * np.sqrt(np.maximum(variance, 0.0)))
    # The bound is never below 0: most runs are decided by the sign of the differences alone.
    positive = np.zeros(runs)
    for column in experiment.T:
        positive += (column[:, None] > control).sum(axis=1)
    high = np.zeros(runs, dtype=bool)
    for run in np.flatnonzero((positive >= needed) | (needed > m * n)):
        pairs = np.subtract.outer(experiment[run], control[run])
        bound = 0.25 * abs(np.median(pairs))
        high[run] = (pairs > bound).sum() >= needed[run] if needed[run] <= m * n else pairs.min() > bound
    means = experiment.mean(axis=1), control.mean(axis=1)
    comparable: NDArray[np.bool_] = (means[0] == 0) | (means[1] == 0) | (means[0] >= means[1])
    return high & comparable


def _ties(values: Floats) -> Floats:
    """Return the sum of t^3 - t over the groups of equal values, by row."""
    ordered = np.sort(values, axis=1)
    new = np.concatenate([np.ones((len(values), 1), dtype=bool), np.diff(ordered, axis=1) != 0], axis=1)
    group = np.cumsum(new, axis=1) - 1 + np.arange(len(values))[:, None] * values.shape[1]
    sizes: Floats = np.bincount(group.ravel(), minlength=values.size).reshape(values.shape).astype(float)
    ties: Floats = (sizes**3 - sizes).sum(axis=1)
    return ties


def asymptotic(traffic: Traffic) -> NDArray[np.int64]:
    """Pooled asymptotic confidence sequences for the differences of error rate and mean duration, each at alpha / 2.

    Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, arXiv 2103.06476, two samples pooled over all minutes so far,
    rho tuned for half an hour of the cell's traffic. The same tolerances as the gate's: 0.2 points, 5 % of the mean.
    """
    begin = _delay(traffic)
    treatment, control = ({name: values[:, begin:] for name, values in _pooled(arm).items()} for arm in _arms(traffic))
    n, m = (np.cumsum(arm["requests"], axis=1) for arm in (treatment, control))
    looks = (n >= 30) & (m >= 30)
    n, m = np.maximum(n, 2), np.maximum(m, 2)
    aim = 30.0 / (1 / np.maximum(n[:, 29:30], 1) + 1 / m[:, 29:30])
    alarm: NDArray[np.bool_] = np.zeros(n.shape, dtype=bool)
    for total, square, tolerance in (
        ("errors", "errors", lambda mean: 0.002),
        ("duration", "duration_squared", lambda mean: 0.05 * mean),
    ):
        means: list[Floats] = []
        variances: list[Floats] = []
        for arm, size in ((treatment, n), (control, m)):
            mean = np.cumsum(arm[total], axis=1) / size
            means.append(mean)
            variances.append(np.maximum(np.cumsum(arm[square], axis=1) / size - mean**2, 0.0) / size)
        spread = variances[0] + variances[1]
        size = 1 / (1 / n + 1 / m)
        # One observation stands for each unit of effective sample size; rho is optimal at the size after 30 minutes.
        rho = (-2 * np.log(0.025) + np.log(-2 * np.log(0.025) + 1)) / (aim / 30.0)
        radius = np.sqrt(spread * (1 + 1 / (size * rho)) * np.log((1 + size * rho) / 0.025**2))
        alarm |= looks & (means[0] - means[1] - radius > tolerance(means[1]))
    return _first(alarm, begin + np.arange(alarm.shape[1]))


def _pooled(arm: Arm) -> dict[str, Floats]:
    means = bucket_means()
    return {
        "requests": arm.requests,
        "errors": arm.errors,
        "duration": arm.durations @ means,
        "duration_squared": arm.durations @ means**2,
    }


def quantile_ms(histogram: Floats, q: float) -> Floats:
    """Return a quantile as histogram_quantile does: linear inside the bucket; 0 where nothing was counted."""
    edges = np.concatenate([[0.0], EDGES_MS, [EDGES_MS[-1]]])
    below = np.cumsum(histogram, axis=-1)
    rank = q * below[..., -1:]
    bucket = (below < rank).sum(axis=-1)
    bucket = np.minimum(bucket, len(EDGES_MS))
    before = np.where(bucket > 0, np.take_along_axis(below, np.maximum(bucket - 1, 0)[..., None], -1)[..., 0], 0.0)
    inside = np.take_along_axis(histogram, bucket[..., None], -1)[..., 0]
    part = np.where(inside > 0, (rank[..., 0] - before) / np.maximum(inside, 1), 0.0)
    quantile: Floats = edges[bucket] + part * (edges[bucket + 1] - edges[bucket])
    return quantile


def _arms(traffic: Traffic) -> tuple[Arm, Arm]:
    return traffic.treatment, traffic.control


def _delay(traffic: Traffic) -> int:
    return DELAY if traffic.cell.cold else 0


def _sum(values: Floats, window: slice) -> Floats:
    sums: Floats = values[:, window].sum(axis=1)
    return sums


def _first(truths: NDArray[np.bool_], minutes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(truths.any(axis=1), minutes[truths.argmax(axis=1)], NEVER)


PEERS = (
    Peer(
        "Argo, as documented",
        "success rate >= 95 % over 5 minutes, failureLimit 3 (its Analysis page's example; it looks at no latency)",
        lambda traffic: argo(traffic, success=0.95, every=5, limit=3),
    ),
    Peer(
        "Argo, with p95",
        "the same, and a second metric: p95 at most 1.2 times control's over 5 minutes, failureLimit 3",
        lambda traffic: argo(traffic, success=0.95, every=5, limit=3, slowest=1.2),
    ),
    Peer(
        "Argo, strict",
        "success rate >= 99 % every minute, failureLimit 0 (its default)",
        lambda traffic: argo(traffic, success=0.99, every=1, limit=0),
    ),
    Peer(
        "Flagger",
        "success rate >= 99 % and p99 <= 500 ms every minute, threshold 5 (the example of its tutorials)",
        flagger,
    ),
    Peer(
        "Kayenta",
        "NetflixACAJudge, tolerance 0.25, confidence 0.98, on the minutes' error rates and p95s, every 5 minutes",
        kayenta,
    ),
    Peer(
        "AsympCS, pooled",
        "asymptotic confidence sequences (arXiv 2103.06476) on error rate and mean duration, alpha 5 % together, "
        "with the gate's tolerances",
        asymptotic,
    ),
)
