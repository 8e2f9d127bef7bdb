"""Rollouts whose answers are known to be right or wrong only later: labels trickle in and are looked at each hour.

The requests of a day are judged. A request's first label says whether its answer was wrong; it enters the bin of the
interval (an hour) in which it arrived, together with requests of the same period, in which the split was the same.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.model import HAPPENED, NOT_HAPPENED
from controlled_rollout.labels.settings import LABELLED, LabelMetric, Labels
from tests.benchmarks.gate.data.rollouts import BASELINE_VALUES, LOOKS, START, Counted, Draw, Floats, Rollout, Seen

__all__ = ["HOURS", "LATE_GATE", "SETTINGS", "Late", "bins_of_labels", "labelled_requests", "late_labels"]

# The requests of a day are judged, and looked at each hour from its end on.
HOURS = 24
# Labels of which both versions have at least so many requests to expect form a bin (as the judgement by labels does).
LEAST_OF_EACH = 5
SMALLEST_BIN = 20
SETTINGS = Labels(metrics={"accuracy": LabelMetric()})
LATE_GATE = SETTINGS.gate()


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
class Labelled:
    """Labelled requests of one version.

    Attributes:
        time: When each arrived, in hours.
        arrival: In which interval its label arrived.
        wrong: Whether its answer was wrong.
    """

    time: Floats
    arrival: Counted
    wrong: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True)
class LabelBin:
    """One bin: its interval; of the treatment and control the labels, the wrong ones, and the requests without one."""

    interval: int
    labels: tuple[int, int]
    wrong: tuple[int, int]
    unlabelled: tuple[int, int]


def late_labels(late: Late) -> Draw:
    """Return rollouts that are judged by labels."""

    def draw(rng: np.random.Generator) -> Rollout:
        arms, totals = labelled_requests(rng, late)
        return _rollout(rng, late, arms, bins_of_labels(arms, totals))

    return draw


def labelled_requests(rng: np.random.Generator, late: Late) -> tuple[list[Labelled], list[Counted]]:
    """Draw the treatment's and control's labelled requests, and how many requests each has in each period."""
    hours = np.arange(HOURS)
    part = hours * len(late.shares) // HOURS
    share = np.array(late.shares)[part]
    arms, totals = [], []
    for arm, of_arm in enumerate((share, 1 - share)):
        requests = rng.poisson(late.per_hour * of_arm)
        totals.append(np.bincount(part, requests).astype(np.int64))
        hour = np.repeat(hours, requests)
        time = hour + rng.random(len(hour))
        wrong = rng.random(len(hour)) < np.broadcast_to(late.wrong[arm], HOURS)[hour]
        of_wrong = (late.wrong_labelled or late.labelled)[arm]
        kept = rng.random(len(hour)) < np.where(wrong, of_wrong, late.labelled[arm])
        time, wrong = time[kept], wrong[kept]
        delay = rng.standard_exponential(len(time)) * np.where(wrong, late.delay[1], late.delay[0])
        arms.append(Labelled(time, (time + delay).astype(np.int64), wrong))
    return arms, totals if late.by_period else [total.sum(keepdims=True) for total in totals]


def bins_of_labels(arms: Sequence[Labelled], totals: Sequence[Counted]) -> list[LabelBin]:
    """Return the bins, by the arrival of the labels: what `labels/bins.py` makes of the same requests, in arrays."""
    periods = len(totals[0])
    bins = [one for number in range(periods) for one in _bins_of_period(arms, totals, number, HOURS / periods)]
    return sorted(bins, key=lambda one: one.interval)


def _bins_of_period(
    arms: Sequence[Labelled], totals: Sequence[Counted], number: int, hours: float
) -> Iterator[LabelBin]:
    """Yield the bins of one period, of so many hours: an interval's labels, once there are as many as a bin needs."""
    chosen = [(arm.time // hours).astype(np.int64) == number for arm in arms]
    time, arrival, wrong = (
        np.concatenate([getattr(arm, name)[mine] for arm, mine in zip(arms, chosen, strict=True)])
        for name in ("time", "arrival", "wrong")
    )
    treated = np.repeat([True, False], [int(mine.sum()) for mine in chosen])
    order = np.lexsort((time, arrival))
    arrival, wrong, treated = arrival[order], wrong[order], treated[order]
    unlabelled = [int(total[number]) for total in totals]
    size = max(SMALLEST_BIN, math.ceil(LEAST_OF_EACH * sum(unlabelled) / min(unlabelled)))
    counted = np.stack([treated, ~treated, treated & wrong, ~treated & wrong])
    so_far = np.concatenate([np.zeros((4, 1), dtype=np.int64), np.cumsum(counted, axis=1)], axis=1)
    first = 0
    for interval, end in enumerate(np.cumsum(np.bincount(arrival, minlength=1)).tolist()):
        pieces = (end - first) // size
        for piece in range(pieces):
            begin, stop = (first + (end - first) * at // pieces for at in (piece, piece + 1))
            x, y, of_x, of_y = (so_far[:, stop] - so_far[:, begin]).tolist()
            unlabelled = [unlabelled[0] - x, unlabelled[1] - y]
            yield LabelBin(interval, (x, y), (of_x, of_y), (unlabelled[0], unlabelled[1]))
        first = end if pieces else first


def _rollout(rng: np.random.Generator, late: Late, arms: Sequence[Labelled], bins: Sequence[LabelBin]) -> Rollout:
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
            "accuracy": {HAPPENED: _metric(wrong), NOT_HAPPENED: _metric(labels - wrong)},
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
