"""The gate's exact test of inputs over many rollouts at once: its own formulas, put together as it does for one."""

import math
from collections.abc import Sequence

import numpy as np

from controlled_rollout.gate.categories import BOTH_TILT_WEIGHTS, BOTH_TILTS, bucket_scores, category_weights
from controlled_rollout.gate.columns import Metric
from controlled_rollout.gate.mixture import CEILING
from controlled_rollout.gate.model import Gate
from controlled_rollout.gate.ratio import BOTH_SIDES, OddsRatio
from controlled_rollout.gate.restarts import process_weight
from controlled_rollout.gate.shift import Shift
from tests.benchmarks.gate.data.rollouts import Floats, Rollout

__all__ = ["deciding_bins_of_inputs"]


def deciding_bins_of_inputs(rollouts: Sequence[Rollout], gate: Gate) -> list[int | None]:
    """Return for each rollout the bin after which its inputs are said to differ; the split changes in none of them."""
    ((name, setting),) = gate.categories.items()
    counts = [rollout.columns.categories[name] for rollout in rollouts]
    treatment, control = (
        np.array([[getattr(one, arm) for one in of.values()] for of in counts]).transpose(1, 0, 2)
        for arm in ("treatment", "control")
    )
    _, runs, bins = treatment.shape
    both = treatment.sum(axis=0).ravel(), control.sum(axis=0).ravel()
    of_run = [category_weights(of) for of in counts]
    evidence = np.zeros((runs, bins))
    for number in range(len(treatment)):
        weights = np.array([of.get(list(one)[number], 0.0) for of, one in zip(of_run, counts, strict=True)])
        odds = OddsRatio(*both, Metric(treatment[number].ravel(), control[number].ravel()))
        for ratio in BOTH_SIDES:
            gains = odds.gains(1.0, ratio, runs * bins)
            evidence += weights[:, np.newaxis] / len(BOTH_SIDES) * _exponential(gains, runs)
    if setting.buckets is not None:
        evidence /= 2
        values = bucket_scores(counts[0], setting.buckets)
        shift = Shift(treatment.reshape(len(values), -1), control.reshape(len(values), -1), values)
        for tilt, weight in zip(BOTH_TILTS, BOTH_TILT_WEIGHTS, strict=True):
            evidence += weight / 2 * _exponential(shift.gains(tilt, runs * bins), runs)
    reached = process_weight(0) * evidence + 1 - process_weight(0) >= math.exp(-math.log(gate.split_alpha))
    return [int(one.argmax()) if one.any() else None for one in reached]


def _exponential(gains: Floats, runs: int) -> Floats:
    """Return the evidence after each bin of each rollout."""
    result: Floats = np.exp(np.minimum(np.cumsum(gains.reshape(runs, -1), axis=1), CEILING))
    return result
