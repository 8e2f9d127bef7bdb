"""Requests that a version has refused because it had no room for them: no fault of its model, and no pass either.

A replica refuses a request when all its slots are busy for too long or its queue is full. How many replicas there are
is the author's choice and the cluster's, so these requests are no errors and not slow: they were never scored. A
version that refuses many of them is not ready for more traffic either, whoever is to blame.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.claims import ClaimResult
from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.crowded import FEW_REFUSED
from controlled_rollout.gate.event_test import EventTest
from controlled_rollout.gate.model import Gate
from controlled_rollout.gate.pass_conditions import recent_rate
from controlled_rollout.gate.rate import rate_of_odds
from controlled_rollout.gate.traffic_claims import rate_below

__all__ = ["no_pass_without_room", "no_step_without_room", "room_claims", "without_refused"]

Floats = NDArray[np.float64]

# So many of the newest requests tell whether a version goes on refusing some.
STEADY_REQUESTS: Final = 1_000
WHAT_TO_DO: Final = "give it more replicas, or more slots in each (docs/gate.md)"


def without_refused(columns: Columns, gate: Gate) -> Columns:
    """Return the columns without the requests that were refused for lack of room; as errors, if the gate says so. Pure.

    Args:
        columns: With what was refused.
        gate: Whether that is the model's fault.
    """
    refused = columns.overloaded
    if refused is None:
        return columns
    if gate.overload == "fail":
        errors = Metric(columns.errors.treatment + refused.treatment, columns.errors.control + refused.control)
        return replace(columns, errors=errors, overloaded=None)
    return replace(columns, treatment=columns.treatment - refused.treatment, control=columns.control - refused.control)


def room_claims(present: Columns, gate: Gate) -> list[ClaimResult]:
    """Test the pass claim that the treatment has room for its share; none if it has refused nothing there. Pure.

    Args:
        present: The bins at the present share, with what was refused.
        gate: What the treatment has to show.
    """
    refused = present.overloaded
    if refused is None or gate.overload == "fail" or gate.max_overload_rate >= 1 or not refused.treatment.any():
        return []
    name = f"requests refused for lack of room are below {100 * gate.max_overload_rate:.3g} %"
    return [rate_below(name, gate.max_overload_rate, EventTest(present, refused, gate, 1.0), gate)]


def no_step_without_room(present: Columns, gate: Gate) -> Iterator[str]:
    """Yield that the treatment refuses too many of its newest requests for lack of room; see `room_claims`. Pure."""
    refused = present.overloaded
    if refused is None or gate.overload == "fail":
        return
    recent = recent_rate(present.treatment, refused.treatment)
    if recent is not None and recent > gate.max_overload_rate:
        yield (
            f"{100 * recent:.3g} % of the treatment's newest requests were refused because it had no room, "
            f"{100 * gate.max_overload_rate:.3g} % are allowed (max_overload_rate): {WHAT_TO_DO}"
        )


def no_pass_without_room(present: Columns, gate: Gate) -> Iterator[str]:
    """Yield that so many requests are refused that latency cannot be shown, however many more there will be. Pure.

    Args:
        present: The bins at the present share, with what was refused.
        gate: What the treatment has to show.
    """
    refused = present.overloaded
    if refused is None or gate.overload == "fail" or not present.slow:
        return
    of_control = _steady_rate(present.control, refused.control)
    if of_control > FEW_REFUSED:
        yield (
            f"{100 * of_control:.3g} % of control's requests found no room at it; that is above "
            f"{100 * FEW_REFUSED:g} %, and its latency is no measure then: {WHAT_TO_DO}"
        )
    rate = _steady_rate(present.treatment, refused.treatment)
    if rate <= FEW_REFUSED:
        return
    # A refused request counts as slow: with so many the odds are too high even if all others are as fast as control's,
    # or as fast as they are.
    scored = float((present.treatment - refused.treatment).sum())
    spare = {
        q: rate_of_odds(gate.pass_ratio * (1 - q) / q) - min(1 - q, float(slow.treatment.sum()) / max(scored, 1.0))
        for q, slow in zip(gate.latency_quantiles, present.slow, strict=True)
    }
    hopeless = {q: part for q, part in spare.items() if rate >= part}
    if hopeless:
        quantile = min(hopeless, key=lambda q: hopeless[q])
        yield (
            f"{100 * rate:.3g} % of the treatment's requests found no room at it; that is above "
            f"{100 * max(hopeless[quantile], FEW_REFUSED):.3g} %, from which on no number of requests shows its "
            f"p{100 * quantile:g}: {WHAT_TO_DO}"
        )


def _steady_rate(requests: Floats, refused: Floats) -> float:
    """Return the part of a version's requests that it refuses: now, and since the present share, whichever is less."""
    total = float(requests.sum())
    recent = recent_rate(requests, refused, STEADY_REQUESTS)
    return min(recent, float(refused.sum()) / total) if recent is not None else 0.0
