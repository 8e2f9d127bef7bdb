"""Rollouts whose requests are independent: what the gate reads of each, and what other rules see."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from controlled_rollout.evidence.collected.values import bucket_edges, bucket_name
from controlled_rollout.expectations import Expectation
from controlled_rollout.gate.columns import Columns, Metric, Values
from controlled_rollout.gate.model import EXPECTED, UNEXPECTED

__all__ = [
    "BASELINE_VALUES",
    "LABELS",
    "LOOKS",
    "SHARE",
    "START",
    "Counted",
    "Distribution",
    "Draw",
    "Floats",
    "Rollout",
    "Seen",
    "buckets",
    "columns_of",
    "expected_rows",
    "label_shares",
    "labels",
    "log_normal",
    "means",
    "moments",
    "normal",
    "pareto",
    "requests_by_minute",
    "seen_numbers",
]

Floats = NDArray[np.float64]
Counted = NDArray[np.int64]

LOOKS = 60
SHARE = 0.1
LABELS = 10
# An hour of control at 300 requests a minute.
BASELINE_VALUES = 18_000
# Of so many values those of each minute are sorted.
MANY = 10_000
START = datetime(2026, 1, 1, tzinfo=UTC)
STARTS = tuple(START + timedelta(minutes=minute) for minute in range(LOOKS))
# Rules that compare distributions see how many numbers are between these quantiles of control, finer in the tails.
TAILS = 10.0 ** -np.arange(6, 2.4, -0.5)
LEVELS = np.concatenate([TAILS, np.arange(1, 200) / 200, 1 - TAILS[::-1]])
DECILES = np.concatenate([[0], np.minimum(np.floor(LEVELS * 10 + 1e-9), 9)]).astype(np.int64)


@dataclass(frozen=True)
class Seen:
    """What a rule that compares distributions sees: how many values have each label, or are in each cell.

    Attributes:
        treatment, control: By minute and label or cell.
        baseline: Control's before the rollout, by label or cell.
        edges: The cells' inner edges; None for labels.
        groups: Into which of control's ten deciles each cell falls; None for labels.
        spread: Control's standard deviation up to each minute; None for labels.
        allowed: Which part of the rows may be unexpected (the second label); None where nothing is expected of them.
    """

    treatment: Floats
    control: Floats
    baseline: Floats
    edges: Floats | None = None
    groups: Counted | None = None
    spread: Floats | None = None
    allowed: float | None = None


@dataclass(frozen=True)
class Rollout:
    """One simulated rollout.

    Attributes:
        columns: What the gate reads of it.
        seen: What other rules see.
        looks: For each bin of the columns the look, from 0, at which it is seen first; None: each look has its bin.
    """

    columns: Columns
    seen: Seen
    looks: Counted | None = None


Draw = Callable[[np.random.Generator], Rollout]


@dataclass(frozen=True)
class Distribution:
    """How control's numbers are distributed."""

    draw: Callable[[np.random.Generator, int], Floats]
    quantile: Callable[[Floats], Floats]


normal = Distribution(lambda rng, size: rng.standard_normal(size), ndtri)


def log_normal(sigma: float) -> Distribution:
    return Distribution(lambda rng, size: np.exp(sigma * rng.standard_normal(size)), lambda q: np.exp(sigma * ndtri(q)))


def pareto(shape: float) -> Distribution:
    return Distribution(lambda rng, size: 1 + rng.pareto(shape, size), lambda q: (1 - q) ** (-1 / shape))


def requests_by_minute(
    rng: np.random.Generator, per_minute: float, shares: float | Floats = SHARE
) -> tuple[Counted, Counted]:
    """Draw how many requests the treatment and control get in each minute."""
    part = np.broadcast_to(shares, LOOKS)
    return rng.poisson(per_minute * part), rng.poisson(per_minute * (1 - part))


def columns_of(
    sizes: tuple[Counted, Counted],
    *,
    shares: float | Floats = SHARE,
    values: Mapping[str, tuple[Values, Values]] | None = None,
    categories: Mapping[str, Mapping[str, Metric]] | None = None,
) -> Columns:
    """Return what the gate reads: requests without errors, and one metric."""
    treatment, control = (size.astype(np.float64) for size in sizes)
    nothing = Metric(np.zeros(LOOKS), np.zeros(LOOKS))
    set_shares = np.array(np.broadcast_to(shares, LOOKS), dtype=np.float64)
    return Columns(STARTS, treatment, control, nothing, (), set_shares, values or {}, categories or {})


def label_shares(variation: float, minute: Floats | float = 0.0, drift: float = 0.0) -> Floats:
    """Return the shares of ten labels, half of them more frequent by the variation, and others as time goes by."""
    half = np.where(np.arange(LABELS) < LABELS // 2, 1.0, -1.0)
    other = np.where(np.arange(LABELS) % 2 == 0, 1.0, -1.0)
    drifted = drift * np.atleast_1d(np.asarray(minute, dtype=np.float64))[:, None] / LOOKS
    shares: Floats = (1 + 2 * variation * half + 2 * drifted * other) / LABELS
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def labels(
    variation: float, per_minute: float, metric: str, *, drift: float = 0.0, shares: float | Floats = SHARE
) -> Draw:
    """Return rollouts with labels: the treatment's differ by a total variation, and both may drift alike.

    Args:
        variation: The total variation between the versions, all the time.
        per_minute: Requests of both versions.
        metric: The gate's metric.
        drift: The total variation between the last minute and the first, of both versions.
        shares: The treatment's part of the requests, by minute if it changes.
    """
    minutes = np.arange(LOOKS, dtype=np.float64)
    of_treatment, of_control = (label_shares(one, minutes, drift) for one in (variation, 0.0))
    before = label_shares(0.0)[0]

    def draw(rng: np.random.Generator) -> Rollout:
        sizes = requests_by_minute(rng, per_minute, shares)
        treatment = rng.multinomial(sizes[0], of_treatment).astype(np.float64)
        control = rng.multinomial(sizes[1], of_control).astype(np.float64)
        counts = {f"label {one}": Metric(treatment[:, one], control[:, one]) for one in range(LABELS)}
        seen = Seen(treatment, control, rng.multinomial(BASELINE_VALUES, before).astype(np.float64))
        return Rollout(columns_of(sizes, shares=shares, categories={metric: counts}), seen)

    return draw


def means(distribution: Distribution, shift: float, per_minute: float, metric: str, clip: float | None = None) -> Draw:
    """Return rollouts with numbers whose mean is judged; the treatment's are higher by a shift."""

    def draw(rng: np.random.Generator) -> Rollout:
        sizes, values, baseline = _numbers(rng, distribution, shift, per_minute)
        bounds = (-np.inf, np.inf)
        if clip is not None:
            low, high = np.quantile(baseline, [clip, 1 - clip], method="inverted_cdf")
            bounds = (float(low), float(high))
        judged = [moments(np.clip(arm, *bounds), size) for arm, size in zip(values, sizes, strict=True)]
        columns = columns_of(sizes, values={metric: (judged[0], judged[1])})
        return Rollout(columns, seen_numbers(values, sizes, baseline, distribution))

    return draw


def buckets(distribution: Distribution, shift: float, per_minute: float, metric: str, number: int = 10) -> Draw:
    """Return rollouts with numbers that are counted in buckets, whose edges are control's quantiles from before."""

    def draw(rng: np.random.Generator) -> Rollout:
        sizes, values, baseline = _numbers(rng, distribution, shift, per_minute)
        levels = np.arange(number + 1) / number
        edges = bucket_edges(np.quantile(baseline, levels, method="inverted_cdf").tolist())
        tallies = [_histogram(arm, np.array(edges), size) for arm, size in zip(values, sizes, strict=True)]
        counts = {
            bucket_name(one, edges): Metric(tallies[0][:, one], tallies[1][:, one]) for one in range(len(edges) + 1)
        }
        columns = columns_of(sizes, categories={metric: counts})
        return Rollout(columns, seen_numbers(values, sizes, baseline, distribution))

    return draw


def expected_rows(
    expectation: Expectation, per_minute: float, *, control: float | Floats, treatment: float | Floats
) -> Draw:
    """Return rollouts in which some rows are unexpected.

    Args:
        expectation: The gate's only expectation.
        per_minute: Requests of both versions.
        control, treatment: The probability of an unexpected row, by minute if it changes; before the rollout it is
            control's of the first minute.
    """
    before = float(np.atleast_1d(control)[0])

    def draw(rng: np.random.Generator) -> Rollout:
        sizes = requests_by_minute(rng, per_minute)
        hits = [rng.binomial(size, rate) for size, rate in zip(sizes, (treatment, control), strict=True)]
        arms = [np.stack([size - hit, hit], axis=1).astype(np.float64) for size, hit in zip(sizes, hits, strict=True)]
        counts = {
            EXPECTED: Metric(arms[0][:, 0], arms[1][:, 0]),
            UNEXPECTED: Metric(arms[0][:, 1], arms[1][:, 1]),
        }
        unexpected = int(rng.binomial(BASELINE_VALUES, before))
        baseline = np.array([BASELINE_VALUES - unexpected, unexpected], dtype=np.float64)
        columns = columns_of(sizes, categories={expectation.name: counts})
        return Rollout(columns, Seen(arms[0], arms[1], baseline, allowed=expectation.allowed))

    return draw


def seen_numbers(
    values: Sequence[Floats], sizes: Sequence[Counted], baseline: Floats, distribution: Distribution
) -> Seen:
    """Return what other rules see of the treatment's and control's numbers, which are in the order of their minutes."""
    edges = distribution.quantile(LEVELS)
    treatment, control = (_histogram(arm, edges, size) for arm, size in zip(values, sizes, strict=True))
    so_far = np.cumsum(sizes[1])
    totals = (np.concatenate([[0.0], np.cumsum(values[1] ** power)])[so_far] for power in (1, 2))
    mean, square = (total / np.maximum(so_far, 1) for total in totals)
    before = _histogram(baseline, edges, np.array([len(baseline)]))[0]
    return Seen(treatment, control, before, edges, DECILES, np.sqrt(np.maximum(square - mean * mean, 1e-12)))


def _numbers(
    rng: np.random.Generator, distribution: Distribution, shift: float, per_minute: float
) -> tuple[tuple[Counted, Counted], list[Floats], Floats]:
    """Draw the requests, the treatment's and control's numbers, and control's from before the rollout."""
    sizes = requests_by_minute(rng, per_minute)
    values = [distribution.draw(rng, int(size.sum())) + more for size, more in zip(sizes, (shift, 0.0), strict=True)]
    return sizes, values, distribution.draw(rng, BASELINE_VALUES)


def _histogram(values: Floats, edges: Floats, size: Counted) -> Floats:
    """Return by minute how many values are in each cell."""
    cells = len(edges) + 1
    if len(values) > MANY:  # sorting each minute is faster than searching for each value
        ends = np.cumsum(size)
        parts = [np.sort(values[end - number : end]) for end, number in zip(ends, size, strict=True)]
        below = np.array([np.searchsorted(part, edges, side="right") for part in parts], dtype=np.float64)
        return np.diff(below, axis=1, prepend=0, append=size[:, np.newaxis])
    where = np.repeat(np.arange(len(size)) * cells, size) + np.searchsorted(edges, values)
    return np.bincount(where, minlength=len(size) * cells).reshape(len(size), cells).astype(np.float64)


def moments(values: Floats, size: Counted) -> Values:
    """Return the count, mean and variance of each minute's values."""
    minute = np.repeat(np.arange(len(size)), size)
    count = size.astype(np.float64)
    mean = np.bincount(minute, values, len(size)) / np.maximum(count, 1)
    deviations = values - mean[minute]
    squares = np.bincount(minute, deviations * deviations, len(size))
    return Values(count, mean, np.where(count > 1, squares / np.maximum(count - 1, 1), 0.0))
