"""Latency in bins in which a version refused requests: what holds whatever the refused ones would have been.

Others waited in its queue then, so that what callers saw says nothing of the model by itself. How long a request was
scored does: the replica tells it, any wait left out. Of a request that was refused, or whose time is not known, it is
not known whether it would have been slow. An alarm takes it for the side on which it makes the treatment look best, a
pass for the one on which it makes it look worst. A likelihood ratio never falls when the treatment has one slow request
more or control one less, so the evidence is never more than with the true numbers, and keeps its error rate.
"""

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.columns import Columns, Metric

__all__ = ["FEW_REFUSED", "crowded", "is_judged", "latency_for_alarms", "latency_for_passes"]

Truths = NDArray[np.bool_]
# The part of a bin's requests that may be refused before its durations are no longer taken as they are.
FEW_REFUSED: Final = 0.01


def crowded(columns: Columns) -> Truths:
    """Return for each bin whether either version refused more than a few requests for lack of room.

    Args:
        columns: The bins, without the requests that were refused.
    """
    return _is_crowded(columns, treatment=True) | _is_crowded(columns, treatment=False)


def is_judged(columns: Columns) -> Truths:
    """Return for each bin whether alarms judge latency in it: there was room, or scoring times are known."""
    return ~crowded(columns) | _has_scoring(columns)


def latency_for_alarms(columns: Columns) -> Columns:
    """Return the columns with the least evidence of a slower treatment that crowded bins have. Pure.

    There a request is slow by how long it was scored. What is not known is fast for the treatment and slow for control.

    Args:
        columns: The bins, without the requests that were refused.
    """
    if columns.overloaded is None or not columns.slow:
        return columns
    full, used = crowded(columns), is_judged(columns)
    result = columns if used.all() else columns.without(~used)
    if not (full & used).any():
        return result
    refused, (timed, *by_scoring) = columns.overloaded, columns.scoring
    n_treatment, n_control = columns.treatment + refused.treatment, columns.control + refused.control
    unknown = n_control - timed.control
    bounds = full & used
    slow = tuple(
        Metric(
            np.where(bounds, of_scoring.treatment, as_seen.treatment),
            np.where(bounds, of_scoring.control + unknown, as_seen.control),
        )
        for as_seen, of_scoring in zip(result.slow, by_scoring, strict=True)
    )
    return replace(
        result,
        treatment=np.where(bounds, n_treatment, result.treatment),
        control=np.where(bounds, n_control, result.control),
        slow=slow,
    )


def latency_for_passes(columns: Columns) -> Columns:
    """Return the columns with the least evidence of a treatment that is not slower that crowded bins have. Pure.

    There a refused request of the treatment is slow, and the others are as callers saw them, any wait included. Where
    control is crowded itself nothing counts: its callers waited, too.

    Args:
        columns: The bins, without the requests that were refused.
    """
    refused = columns.overloaded
    if refused is None:
        return columns
    left_out, bounds = _is_crowded(columns, treatment=False), _is_crowded(columns, treatment=True)
    result = columns.without(left_out) if left_out.any() else columns
    more = np.where(bounds & ~left_out, refused.treatment, 0.0)
    if not more.any():
        return result

    def slower(metric: Metric) -> Metric:
        """Return the slow requests with those that were refused."""
        return Metric(metric.treatment + more, metric.control)

    return replace(
        result,
        treatment=result.treatment + more,
        slow=tuple(map(slower, result.slow)),
        over_limit=None if result.over_limit is None else slower(result.over_limit),
    )


def _is_crowded(columns: Columns, *, treatment: bool) -> Truths:
    """Return for each bin whether one of the versions refused more than a few requests."""
    if columns.overloaded is None:
        return np.zeros(len(columns.starts), dtype=bool)
    refused = columns.overloaded.treatment if treatment else columns.overloaded.control
    scored = columns.treatment if treatment else columns.control
    result: Truths = refused > FEW_REFUSED * (refused + scored)
    return result


def _has_scoring(columns: Columns) -> Truths:
    """Return for each bin whether it is known of both versions how long requests were scored."""
    if not columns.scoring:
        return np.zeros(len(columns.starts), dtype=bool)
    timed = columns.scoring[0]
    result: Truths = (timed.treatment > 0) & (timed.control > 0)
    return result
