"""Rollouts whose answers are known to be right or wrong only later: labels trickle in and are looked at each hour.

The requests of a day are judged. A request's first label says whether its answer was wrong; it enters the bin of the
interval (an hour) in which it arrived, together with requests of the same period, in which the split was the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.model import HAPPENED, NOT_HAPPENED, Event, Gate
from controlled_rollout.gate.model import Category as GateCategory
from tests.benchmarks.gate.data.rollouts import BASELINE_VALUES, LOOKS, START, Counted, Draw, Floats, Rollout, Seen

__all__ = ["LATE_GATE", "Late", "late_labels"]

# The requests of a day are judged, and looked at each hour from its end on.
HOURS = 24
# Labels of which both versions have at least so many requests to expect form a bin (as the judgement by labels does).
LEAST_OF_EACH = 5
SMALLEST_BIN = 20
LABELLED, ANSWERS = "labelled", "answers"

LATE_GATE = Gate(
    latency_quantiles=(),
    judges_traffic=False,
    events={ANSWERS: Event(counted="wrong answers")},
    categories={LABELLED: GateCategory()},
)


@dataclass(frozen=True)
class Late:
    """How labels arrive.

    Attributes:
        per_hour: Requests of both versions.
        wrong: The probability of a wrong answer: the treatment's and control's, by hour of the day or always.
        labelled: The part of requests that is ever labelled: the treatment's and control's.
        wrong_labelled: The same for wrong answers, if it is another.
        delay: After how many hours on average a label of a right answer arrives, and one of a wrong answer.
        shares: The treatment's part of the requests in equal parts of the day.
        by_period: Whether requests of times with another split are kept apart.
    """

    per_hour: float = 1_200
    wrong: tuple[float | Floats, float | Floats] = (0.1, 0.1)
    labelled: tuple[float, float] = (0.5, 0.5)
    wrong_labelled: tuple[float, float] | None = None
    delay: tuple[float, float] = (24.0, 24.0)
    shares: tuple[float, ...] = (0.1,)
    by_period: bool = True


@dataclass(frozen=True)
class _Labelled:
    """Labelled requests of one version: the hour of the request, that of the label's arrival, and what it says."""

    hour: Counted
    arrival: Counted
    wrong: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def late_labels(late: Late) -> Draw:
    """Return rollouts that are judged by labels."""
    hours = np.arange(HOURS)
    period = hours * len(late.shares) // HOURS
    shares = np.array(late.shares)[period]

    def draw(rng: np.random.Generator) -> Rollout:
        arms, totals = [], []
        for arm, part in enumerate((shares, 1 - shares)):
            requests = rng.poisson(late.per_hour * part)
            totals.append(np.bincount(period if late.by_period else period * 0, requests))
            arms.append(_labelled(rng, late, arm, requests))
        bins = [
            one
            for number in range(len(totals[0]))
            for one in _bins(rng, arms, period if late.by_period else period * 0, number, totals)
        ]
        bins.sort(key=lambda one: one.interval)
        return _rollout(rng, late, arms, bins)

    return draw


@dataclass(frozen=True)
class _Bin:
    """One bin: its interval; of the treatment and control the labels, the wrong ones, and the requests without one."""

    interval: int
    labels: tuple[int, int]
    wrong: tuple[int, int]
    unlabelled: tuple[int, int]


def _labelled(rng: np.random.Generator, late: Late, arm: int, requests: Counted) -> _Labelled:
    """Draw the labelled requests of one version."""
    hour = np.repeat(np.arange(HOURS), requests)
    wrong = rng.random(len(hour)) < np.broadcast_to(late.wrong[arm], HOURS)[hour]
    of_wrong = (late.wrong_labelled or late.labelled)[arm]
    kept = rng.random(len(hour)) < np.where(wrong, of_wrong, late.labelled[arm])
    hour, wrong = hour[kept], wrong[kept]
    delay = rng.standard_exponential(len(hour)) * np.where(wrong, late.delay[1], late.delay[0])
    return _Labelled(hour, (hour + rng.random(len(hour)) + delay).astype(np.int64), wrong)


def _bins(
    rng: np.random.Generator, arms: Sequence[_Labelled], period: Counted, number: int, totals: Sequence[Counted]
) -> list[_Bin]:
    """Return the bins of one period: as many labels of an interval as a bin needs, in the order of the requests."""
    chosen = [period[arm.hour] == number for arm in arms]
    hour, arrival, wrong = (
        np.concatenate([getattr(arm, name)[mine] for arm, mine in zip(arms, chosen, strict=True)])
        for name in ("hour", "arrival", "wrong")
    )
    treated = np.repeat([True, False], [int(mine.sum()) for mine in chosen])
    order = np.lexsort((rng.random(len(hour)), hour, arrival))
    arrival, wrong, treated = arrival[order], wrong[order], treated[order]
    unlabelled = [int(total[number]) for total in totals]
    size = max(SMALLEST_BIN, math.ceil(LEAST_OF_EACH * sum(unlabelled) / min(unlabelled)))
    counted = np.stack([treated, ~treated, treated & wrong, ~treated & wrong])
    so_far = np.concatenate([np.zeros((4, 1), dtype=np.int64), np.cumsum(counted, axis=1)], axis=1)
    first, bins = 0, []
    for interval, end in enumerate(np.cumsum(np.bincount(arrival, minlength=1)).tolist()):
        if end - first >= size:
            pieces = (end - first) // size
            for piece in range(pieces):
                begin, stop = (first + (end - first) * at // pieces for at in (piece, piece + 1))
                x, y, of_x, of_y = (so_far[:, stop] - so_far[:, begin]).tolist()
                unlabelled = [unlabelled[0] - x, unlabelled[1] - y]
                bins.append(_Bin(interval, (x, y), (of_x, of_y), (unlabelled[0], unlabelled[1])))
            first = end
    return bins


def _rollout(rng: np.random.Generator, late: Late, arms: Sequence[_Labelled], bins: Sequence[_Bin]) -> Rollout:
    """Return what the gate reads of the bins, and what other rules see at each look."""
    bins = [one for one in bins if one.interval < HOURS + LOOKS - 1]
    pairs = {
        name: np.array([getattr(one, name) for one in bins], dtype=np.float64).reshape(-1, 2)
        for name in ("labels", "wrong", "unlabelled")
    }
    labels, wrong, unlabelled = (pairs[name] for name in ("labels", "wrong", "unlabelled"))
    nothing = Metric(np.zeros(len(bins)), np.zeros(len(bins)))
    columns = Columns(
        [START + timedelta(hours=one.interval, microseconds=number) for number, one in enumerate(bins)],
        labels[:, 0],
        labels[:, 1],
        nothing,
        (),
        np.full(len(bins), np.nan),
        {},
        {
            ANSWERS: {HAPPENED: _metric(wrong), NOT_HAPPENED: _metric(labels - wrong)},
            LABELLED: {"labelled": _metric(labels), "not yet": _metric(unlabelled)},
        },
    )
    seen = []
    for arm in arms:
        look = np.maximum(arm.arrival - HOURS + 1, 0)
        known = look < LOOKS
        counts = np.bincount(look[known] * 2 + arm.wrong[known], minlength=2 * LOOKS).reshape(LOOKS, 2)
        seen.append(counts.astype(np.float64))
    before = rng.binomial(BASELINE_VALUES, float(np.mean(late.wrong[1])))
    baseline = np.array([BASELINE_VALUES - before, before], dtype=np.float64)
    looks = np.array([max(one.interval - HOURS + 1, 0) for one in bins], dtype=np.int64)
    return Rollout(columns, Seen(seen[0], seen[1], baseline), looks)


def _metric(pairs: Floats) -> Metric:
    """Return the treatment's and control's counts."""
    return Metric(pairs[:, 0], pairs[:, 1])
