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
HISTORY_BIN = 30  # minutes
# Where users differ: the part of them whose requests fail, and whose take longer, and how many times as long.
FAILING_USERS, SLOW_USERS, SLOW_USER = 0.02, 0.1, 2.0
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
            bad about the treatment. In bins of half an hour.
        share_before: The treatment's part then.
        bins_per_minute: How many bins a minute has after the history.
        treatment_errors: The treatment's error rate, whatever control's is; None: `ratio` times control's.
        users: How many requests each user sends in a bin: users differ, one's requests do not; 0: every request is
            another user's.
        sticky: Whether the split is by user instead of by request.
        sampled: One in how many requests the metric store has a row of, for both versions alike.
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
    bins_per_minute: int = 1
    treatment_errors: float | None = None
    users: int = 0
    sticky: bool = False
    sampled: int = 1

    @property
    def history_bins(self) -> int:
        """How many bins the history has."""
        return self.history // HISTORY_BIN

    @property
    def bins(self) -> int:
        """How many bins there are, the history's included."""
        return self.history_bins + self.minutes * self.bins_per_minute


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
    bin_ = 1 / cell.bins_per_minute
    minute = np.concatenate([np.arange(-cell.history, 0.0, HISTORY_BIN), np.arange(0, cell.minutes, bin_)])
    width = np.where(minute < 0, HISTORY_BIN, bin_)
    share = np.where(minute < 0, cell.share_before, cell.share(minute))
    cold = np.where(minute < 4, 0.3 * (1 - minute / 4), 0.0) if cell.cold else np.zeros(len(minute))
    rate = cell.errors(minute)
    ratio, slower = (np.where(minute < 0, 1.0, value) for value in (cell.ratio, cell.slower))
    worse = np.minimum(ratio * rate + cold, 1) if cell.treatment_errors is None else np.array(cell.treatment_errors)
    arms = _Users if cell.users else _Requests
    earlier = arms(cell, np.full(BASELINE_MINUTES, 1.0), np.zeros(BASELINE_MINUTES), runs, rng)
    both = arms(cell, width, share, runs, rng)
    return Traffic(
        cell,
        share,
        earlier.arm(False, cell.errors(before), cell.latency(before)),
        both.arm(False, rate, cell.latency(minute)),
        both.arm(True, worse, cell.latency(minute) * slower * (1 + 5 * cold)),
    )


class _Requests:
    """The requests of both versions in each bin, each on its own."""

    def __init__(self, cell: Cell, width: Floats, share: Floats, runs: int, rng: np.random.Generator) -> None:
        self.cell, self.rng = cell, rng
        requests = rng.poisson(cell.per_minute * width, (runs, len(width)))
        treated = rng.binomial(requests, share)
        self.requests = {True: treated, False: requests - treated}

    def arm(self, is_treatment: bool, rate: Floats, scale: Floats) -> Arm:
        """Return one version's counts at an error rate and a latency, by bin."""
        requests = self.requests[is_treatment]
        errors = self.rng.binomial(requests, np.broadcast_to(rate, requests.shape))
        if self.cell.bursts:
            errors = errors + _bursts(requests, self.rng)
        durations = self.rng.multinomial(requests, bucket_probabilities(scale)[None, :, :])
        if self.cell.sampled > 1:
            kept = self.rng.binomial(requests, 1 / self.cell.sampled)
            errors = self.rng.hypergeometric(errors, requests - errors, kept)
            durations = self.rng.multinomial(kept, bucket_probabilities(scale)[None, :, :])
            requests = kept
        return Arm(requests.astype(float), np.minimum(errors, requests).astype(float), durations.astype(np.float32))


class _Users:
    """The requests of users, so many each in one bin: some users' requests fail, some users' take long."""

    def __init__(self, cell: Cell, width: Floats, share: Floats, runs: int, rng: np.random.Generator) -> None:
        self.rng = rng
        users = rng.poisson(cell.per_minute * width / cell.users, (runs, len(width)))
        self.kinds: dict[bool, list[tuple[NDArray[np.int64], bool, bool]]] = {True: [], False: []}
        failing = rng.binomial(users, FAILING_USERS)
        for some, fails in ((failing, True), (users - failing, False)):
            slow = rng.binomial(some, SLOW_USERS)
            for part, is_slow in ((slow, True), (some - slow, False)):
                if cell.sticky:
                    treated = rng.binomial(part, share) * cell.users
                else:
                    treated = rng.binomial(part * cell.users, share)
                self.kinds[True].append((treated, fails, is_slow))
                self.kinds[False].append((part * cell.users - treated, fails, is_slow))

    def arm(self, is_treatment: bool, rate: Floats, scale: Floats) -> Arm:
        """Return one version's counts: the error rate is the failing users', who have all of the errors."""
        parts = self.kinds[is_treatment]
        chances = np.minimum(rate / FAILING_USERS, 1)
        errors = sum(self.rng.binomial(n, np.broadcast_to(chances, n.shape)) for n, fails, _ in parts if fails)
        durations = sum(
            self.rng.multinomial(n, bucket_probabilities(scale * (SLOW_USER if slow else 1.0))[None, :, :])
            for n, _, slow in parts
        )
        requests = np.sum([n for n, _, _ in parts], axis=0)
        return Arm(requests.astype(float), np.asarray(errors, dtype=float), np.asarray(durations, dtype=np.float32))


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
    Cell("sampled, 1 of 10 of 3,000/min", 3_000, True, sampled=10),
    Cell("users of 20 requests, 300/min", 300, True, users=20),
    Cell("users of 20 requests, split by user, 300/min", 300, True, users=20, sticky=True, share=constant(0.5)),
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

# Judged by the gate alone: what begins with a shift from 10 to 50 % of 300 requests a minute, after so many minutes.
HISTORIES = (0, 120, 1440)
LATER = tuple(
    Cell(
        f"{name}, after {history // 60} h",
        300,
        False,
        ratio=ratio,
        slower=slower,
        share=constant(0.5),
        history=history,
        bins_per_minute=bins,
        minutes=minutes,
    )
    for name, ratio, slower, bins, minutes in (
        ("errors 0.5 -> 2 %", 4.0, 1.0, 3, 30),
        ("errors 0.5 -> 3 %", 6.0, 1.0, 3, 20),
        ("errors 0.5 -> 5 %", 10.0, 1.0, 6, 10),
        ("errors 0.5 -> 10 %", 20.0, 1.0, 12, 5),
        ("p95 +50 %", 1.0, 1.5, 12, 5),
    )
    for history in HISTORIES
)
# Neither better nor worse than control, or nothing to compare with: nothing of it may pass.
NO_PASS = (
    Cell("both broken: errors 66 % and 53 %", 300, True, errors=constant(0.66), treatment_errors=0.53, minutes=60),
    Cell("both broken: errors 20 % in both", 300, True, errors=constant(0.2), share=constant(0.5), minutes=60),
    Cell(
        "control broken: errors 0.5 -> 30 %, the treatment's 3 %",
        300,
        True,
        errors=lambda minute: np.where(minute < 0, 0.005, 0.3),
        treatment_errors=0.03,
        share=constant(0.5),
        minutes=60,
    ),
    Cell(
        "stale quantiles: control 50 times faster than before, the treatment 5 times slower than that",
        300,
        False,
        latency=lambda minute: np.where(minute < 0, 1.0, 0.02),
        slower=5.0,
        minutes=60,
    ),
)
ALL = (*CELLS, *LATER, *NO_PASS)
