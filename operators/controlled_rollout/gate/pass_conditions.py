"""What must not be so for a pass, whatever the claims say: plain conditions, without an error rate of their own.

A comparison says that the treatment is like control. It says nothing where control is broken itself, where control's
frozen quantiles are of another time, or where the newest requests tell another story than all of them together.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.columns import Columns
from controlled_rollout.gate.crowded import crowded
from controlled_rollout.gate.last_control import LEAST_REQUESTS, last_of_control, without_control
from controlled_rollout.gate.model import Gate
from controlled_rollout.gate.traffic_claims import traffic_claims

__all__ = ["near_in_newest", "needs_new_rollout_because", "no_pass_because", "no_step_because"]

Floats = NDArray[np.float64]

# The newest bins with so many requests must not have too many errors.
RECENT_REQUESTS: Final = 100
# So many of the treatment's newest requests (whole bins) are judged by themselves before a step goes on.
NEWEST: Final = (200, 1_000, 5_000)
# Control is broken by its own baseline with so many times the odds of an error, so much higher, and so many errors.
BROKEN_ODDS: Final = 10
BROKEN_DIFFERENCE: Final = 0.05
BROKEN_ERRORS: Final = 10
# A frozen quantile says nothing when control exceeds it with odds so many times higher or lower than before; so many
# exceedances must have been expected.
STALE_ODDS: Final = 10
STALE_EXPECTED: Final = 10


def no_step_because(present: Columns, judged: Columns, before: Columns, gate: Gate) -> Iterator[str]:
    """Yield why no step may go on now, and nothing may pass, each in a sentence.

    Args:
        present: The bins at the present share.
        judged: All of the rollout's bins, warm-up left out.
        before: Control's bins before the rollout.
        gate: What the treatment has to show.
    """
    recent = recent_rate(present.treatment, present.errors.treatment)
    if recent is not None and recent > gate.max_error_rate:
        yield (
            f"{100 * recent:.3g} % of the treatment's newest requests are errors, {100 * gate.max_error_rate:.3g} % "
            "are allowed (max_error_rate)"
        )
    if not without_control(present).any():
        yield from _broken_control(present, before, gate)
    else:
        yield from _nothing_to_compare(judged, before)


def no_pass_because(present: Columns, judged: Columns, before: Columns, gate: Gate) -> Iterator[str]:
    """Yield why nothing may pass now, each in a sentence; the arguments are those of `no_step_because`.

    At a share that leaves control nothing, its latency at the shares before tells whether the quantiles say anything.
    """
    yield from _limit_not_counted(present, gate)
    yield from _stale_quantiles(_compared(present, judged), gate).values()


def needs_new_rollout_because(present: Columns, judged: Columns, before: Columns, gate: Gate) -> Iterator[str]:
    """Yield which of the two above wait for something that does not come: in this rollout no pass can be expected.

    Control's quantiles stay what they were before the rollout, so one of them that says nothing in all bins at the
    present share, nor in the newer half of them, does so until control's latency is as before again. Only in the older
    half it is outweighed with time. At a share that leaves control nothing, control's bins do not change any more.
    """
    yield from _limit_not_counted(present, gate)
    compared = _compared(present, judged)
    stale = _stale_quantiles(compared, gate)
    if without_control(present).any():
        yield from _nothing_to_compare(judged, before)
        yield from stale.values()
    else:
        lasting = _stale_quantiles(compared.since(len(compared.starts) // 2), gate)
        yield from (sentence for quantile, sentence in stale.items() if quantile in lasting)


def near_in_newest(present: Columns, before: Columns, gate: Gate) -> Iterator[str]:
    """Yield that an alarm is near in the treatment's newest requests, judged by themselves before a step goes on.

    A long healthy past outweighs what has begun just now. The arguments are those of `no_step_because`.
    """
    for number in NEWEST:
        newest = _newest(present.treatment, number)
        if newest.all():
            return
        for alarm in traffic_claims(present.at(newest), before, gate)[0]:
            if alarm.claim.is_near:
                yield (
                    f"an alarm is near in the treatment's newest {number:,} requests: {alarm.claim.name}, e-value "
                    f"{alarm.claim.present:.3g} of {alarm.claim.threshold:.3g} ({alarm.claim.detail})"
                )
                return


def _newest(requests: Floats, number: int) -> NDArray[np.bool_]:
    """Return which bins are the newest that hold so many requests; all if there are no more."""
    later = np.cumsum(requests[::-1])[::-1] - requests
    result: NDArray[np.bool_] = later < number
    return result


def recent_rate(requests: Floats, events: Floats, number: int = RECENT_REQUESTS) -> float | None:
    """Return the rate of events in the newest bins that hold so many requests, or in all; None without requests."""
    recent = _newest(requests, number)
    total = float(requests[recent].sum())
    return float(events[recent].sum()) / total if total else None


def _broken_control(present: Columns, before: Columns, gate: Gate) -> Iterator[str]:
    """Yield that control is broken itself: as good as it is nothing to be."""
    requests, errors = float(present.control.sum()), float(present.errors.control.sum())
    if errors < BROKEN_ERRORS:
        return
    rate = max(errors / requests, recent_rate(present.control, present.errors.control) or 0.0)
    usual = float(before.errors.control.sum()) / max(1.0, float(before.control.sum()))
    higher = (
        before.control.sum() >= LEAST_REQUESTS
        and rate - usual >= BROKEN_DIFFERENCE
        and rate * (1 - usual) >= BROKEN_ODDS * usual * (1 - rate)
    )
    if higher or rate > gate.max_error_rate:
        was = f", {100 * usual:.3g} % before the rollout" if before.control.sum() else ""
        yield f"control itself is broken, and nothing to compare with: {100 * rate:.3g} % errors{was}"


def _nothing_to_compare(judged: Columns, before: Columns) -> Iterator[str]:
    """Yield that a treatment with all of the traffic cannot be compared with control's last requests."""
    if last_of_control(judged, before).requests < LEAST_REQUESTS:
        yield (
            f"control has no traffic to compare with, and had fewer than {LEAST_REQUESTS} requests before: give it a "
            "step with less than 100 %"
        )


def _limit_not_counted(present: Columns, gate: Gate) -> Iterator[str]:
    """Yield that nobody counts the requests slower than the gate's `max_latency`."""
    if gate.max_latency is not None and present.over_limit is None:
        yield (
            "max_latency cannot be shown: requests slower than it are counted only where control's quantiles from "
            "before the rollout are known"
        )


def _compared(present: Columns, judged: Columns) -> Columns:
    """Return the bins in which control's latency tells whether its frozen quantiles say anything about it."""
    alone = without_control(present).any()
    compared = judged.at(~without_control(judged)) if alone else present
    return compared.without(crowded(compared))


def _stale_quantiles(compared: Columns, gate: Gate) -> dict[float, str]:
    """Return which of control's frozen quantiles say nothing about its latency in the bins that are compared."""
    stale = {}
    requests = float(compared.control.sum())
    for quantile, metric in zip(gate.latency_quantiles, compared.slow, strict=False):
        slow, normal = float(metric.control.sum()), 1 - quantile
        if requests * min(normal, quantile) < STALE_EXPECTED:
            continue
        # Odds against odds, without a division: all or none may be slow.
        now, then = slow * quantile, (requests - slow) * normal
        if now > STALE_ODDS * then or then > STALE_ODDS * now:
            stale[quantile] = (
                f"control's p{100 * quantile:g} from before the rollout says nothing about its present latency: "
                f"{100 * slow / requests:.3g} % of its requests exceed it now, {100 * normal:.3g} % did then; roll out "
                "anew for a new baseline"
            )
    return stale
