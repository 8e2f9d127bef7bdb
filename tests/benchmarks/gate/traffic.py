"""Simulated rollouts: the counts of every minute, for thousands of runs at once.

Durations are drawn into the buckets of a histogram, as metric stores keep them. The edges contain control's quantiles
and the same times 1.05, so the gate's counts are exact; the other rules read quantiles and means off the buckets.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Floats = NDArray[np.float64]

QUANTILES = (0.5, 0.9, 0.95, 0.99)
TOLERANCE = 0.05
MEDIAN_MS, SPREAD = 100.0, 0.6
MINUTES = 120
BASELINE_MINUTES = 60
HISTORY_BIN = 10
REPLICA_REQUESTS = 30  # requests a minute that one replica serves, where bursts hit replicas


def thresholds_ms(quantiles: tuple[float, ...] = QUANTILES) -> Floats:
    """Return control's latency quantiles."""
    return np.array([MEDIAN_MS * np.exp(SPREAD * norm.ppf(q)) for q in quantiles])


_GRID = MEDIAN_MS * np.exp(SPREAD * np.linspace(-2.4, 4.2, 23))
EDGES_MS: Floats = np.unique(np.concatenate([_GRID, thresholds_ms(), thresholds_ms() * (1 + TOLERANCE)]))


def bucket_probabilities(scale: Floats) -> Floats:
    """Return each bucket's probability when every duration is `scale` times as long; one row per scale."""
    below = norm.cdf((np.log(EDGES_MS / MEDIAN_MS) - np.log(np.atleast_1d(scale))[:, None]) / SPREAD)
    whole = np.concatenate([np.zeros((len(below), 1)), below, np.ones((len(below), 1))], axis=1)
    return np.maximum(np.diff(whole, axis=1), 0.0)


def bucket_means() -> Floats:
    """Return the mean duration inside each bucket, at scale 1."""
    inner = (np.log(EDGES_MS / MEDIAN_MS)) / SPREAD
    whole = np.concatenate([[-np.inf], inner, [np.inf]])
    mass = np.diff(norm.cdf(whole))
    part = np.diff(norm.cdf(whole - SPREAD))
    means: Floats = MEDIAN_MS * np.exp(SPREAD**2 / 2) * part / mass
    return means


def constant(value: float) -> Callable[[Floats], Floats]:
    """Return a path that does not move."""
    return lambda minute: np.full(len(minute), value)


@dataclass(frozen=True)
class Cell:
    """One kind of rollout.

    Attributes:
        name: What the table calls it.
        per_minute: Requests to both versions together.
        healthy: Whether the treatment is as good as control.
        errors: Control's error rate, by minute.
        ratio: How many times control's error rate the treatment's is.
        slower: How many times as long the treatment takes.
        latency: By how much both take longer, by minute.
        share: The treatment's part, by minute.
        bursts: Whether replicas fail for a minute now and then, both versions' alike.
        cold: Whether the treatment's first minutes are slow and failing.
        minutes: How long the run is.
        history: How many minutes both versions have been alike before, with `share_before`: only then begins what is
            bad about the treatment. In bins of ten minutes.
        share_before: The treatment's part then.
    """

    name: str
    per_minute: int
    healthy: bool
    errors: Callable[[Floats], Floats] = field(default_factory=lambda: constant(0.005))
    ratio: float = 1.0
    slower: float = 1.0
    latency: Callable[[Floats], Floats] = field(default_factory=lambda: constant(1.0))
    share: Callable[[Floats], Floats] = field(default_factory=lambda: constant(0.1))
    bursts: bool = False
    cold: bool = False
    minutes: int = MINUTES
    history: int = 0
    share_before: float = 0.1

    @property
    def history_bins(self) -> int:
        """How many bins the history has."""
        return self.history // HISTORY_BIN


@dataclass(frozen=True)
class Arm:
    """One version's counts: runs x minutes, durations runs x minutes x buckets."""

    requests: Floats
    errors: Floats
    durations: Floats

    def slow(self, thresholds: Floats) -> Floats:
        """Return how many requests took longer than each threshold (an edge): runs x minutes x thresholds."""
        return np.stack(
            [self.durations[..., np.searchsorted(EDGES_MS, edge) + 1 :].sum(axis=-1) for edge in thresholds], -1
        )


@dataclass(frozen=True)
class Traffic:
    """A cell's runs: control before the rollout, then both versions."""

    cell: Cell
    share: Floats
    before: Arm
    control: Arm
    treatment: Arm


def simulate(cell: Cell, runs: int, rng: np.random.Generator) -> Traffic:
    """Return so many runs of a cell."""
    before = np.arange(-BASELINE_MINUTES, 0.0) - cell.history
    minute = np.concatenate([np.arange(-cell.history, 0.0, HISTORY_BIN), np.arange(0.0, cell.minutes)])
    width = np.where(minute < 0, HISTORY_BIN, 1)
    share = np.where(minute < 0, cell.share_before, cell.share(minute))
    requests = rng.poisson(cell.per_minute * width, (runs, len(minute)))
    treated = rng.binomial(requests, share)
    cold = np.where(minute < 4, 0.3 * (1 - minute / 4), 0.0) if cell.cold else np.zeros(len(minute))
    rate = cell.errors(minute)
    ratio, slower = (np.where(minute < 0, 1.0, value) for value in (cell.ratio, cell.slower))
    return Traffic(
        cell,
        share,
        _arm(
            cell, rng.poisson(cell.per_minute, (runs, BASELINE_MINUTES)), cell.errors(before), cell.latency(before), rng
        ),
        _arm(cell, requests - treated, rate, cell.latency(minute), rng),
        _arm(cell, treated, np.minimum(ratio * rate + cold, 1), cell.latency(minute) * slower * (1 + 5 * cold), rng),
    )


def _arm(cell: Cell, requests: NDArray[np.int64], rate: Floats, scale: Floats, rng: np.random.Generator) -> Arm:
    chances = np.broadcast_to(rate, requests.shape)
    errors = rng.binomial(requests, chances)
    if cell.bursts:
        errors = errors + _bursts(requests, rng)
    durations = rng.multinomial(requests, bucket_probabilities(scale)[None, :, :])
    return Arm(requests.astype(float), np.minimum(errors, requests).astype(float), durations.astype(np.float32))


def _bursts(requests: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the errors of replicas of which each, one minute in a hundred, fails 40 % of what it gets."""
    replicas = np.maximum(1, np.round(requests / REPLICA_REQUESTS)).astype(np.int64)
    failing = rng.binomial(replicas, 0.01)
    return rng.binomial(np.round(requests * failing / replicas).astype(np.int64), 0.4)


def ramp(minute: Floats) -> Floats:
    """Return a split that moves in steps: 5, 10, 25 and 50 %, half an hour each."""
    return np.take(np.array([0.05, 0.1, 0.25, 0.5]), np.minimum(minute // 30, 3).astype(int))


def wave(low: float, high: float) -> Callable[[Floats], Floats]:
    """Return a path that rises from low to high in two hours, as a morning does."""
    return lambda minute: low + (high - low) * 0.5 * (1 - np.cos(np.pi * np.clip(minute, 0, 120) / 120))


def incident(usual: float, then: float) -> Callable[[Floats], Floats]:
    """Return a path that is usual except for ten minutes."""
    return lambda minute: np.where((minute >= 45) & (minute < 55), then, usual)


CELLS = (
    *(Cell(f"A/A, {rate:,}/min", rate, True) for rate in (30, 300, 3_000)),
    Cell("4 % errors in both, 300/min", 300, True, errors=constant(0.04)),
    Cell("base rate rises, split changes", 300, True, errors=wave(0.002, 0.03), latency=wave(1, 1.6), share=ramp),
    Cell(
        "incident hits both, split changes", 300, True, errors=incident(0.005, 0.3), latency=incident(1, 3), share=ramp
    ),
    Cell("errors in bursts", 300, True, bursts=True),
    Cell("cold start", 300, True, cold=True),
    *(
        cell
        for rate in (30, 300, 3_000)
        for cell in (
            Cell(f"errors 0.5 -> 1 %, {rate:,}/min", rate, False, ratio=2.0),
            Cell(f"errors 1 -> 5 %, {rate:,}/min", rate, False, errors=constant(0.01), ratio=5.0),
            Cell(f"errors 0.5 -> 20 %, {rate:,}/min", rate, False, ratio=40.0),
            Cell(f"p95 +20 %, {rate:,}/min", rate, False, slower=1.2),
            Cell(f"p95 +50 %, {rate:,}/min", rate, False, slower=1.5),
        )
    ),
    Cell("errors 2 -> 4 %, 3,000/min", 3_000, False, errors=constant(0.02), ratio=2.0),
)
