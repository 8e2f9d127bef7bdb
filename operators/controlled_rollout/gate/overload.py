"""Requests that a version has refused because it had no room for them: no fault of its model, and no pass either.

A replica refuses a request when all its slots are busy for too long or its queue is full. How many replicas there are
is the author's choice and the cluster's, so these requests are no errors and not slow: they were never scored. A
version that refuses many of them is not ready for more traffic either, whoever is to blame.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from controlled_rollout.gate.claims import ClaimResult
from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.event_test import EventTest
from controlled_rollout.gate.model import Gate
from controlled_rollout.gate.pass_conditions import recent_rate
from controlled_rollout.gate.traffic_claims import rate_below

__all__ = ["no_step_without_room", "room_claims", "without_refused"]

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
