"""All claims of one look: errors, latency, split, and the author's own metrics."""

from collections.abc import Iterable
from dataclasses import dataclass

from controlled_rollout.gate.claims import ClaimResult
from controlled_rollout.gate.columns import Columns, columns
from controlled_rollout.gate.crowded import crowded, is_judged
from controlled_rollout.gate.event_claims import event_claims
from controlled_rollout.gate.expectation_claims import expectation_claims
from controlled_rollout.gate.metric_claims import metric_claims
from controlled_rollout.gate.model import Bin, Gate
from controlled_rollout.gate.overload import no_pass_without_room, no_step_without_room, room_claims, without_refused
from controlled_rollout.gate.pass_conditions import (
    near_in_newest,
    needs_new_rollout_because,
    no_pass_because,
    no_step_because,
)
from controlled_rollout.gate.restarts import at_present_share
from controlled_rollout.gate.traffic_claims import split_wrong, traffic_claims
from controlled_rollout.gate.users import bins_of_users

__all__ = ["Assessment", "assess"]


@dataclass(frozen=True, slots=True)
class Assessment:
    """Every claim of one look; bins are counted from the first one, warm-up included.

    Attributes:
        alarms: Claims that fail the treatment.
        splits: Claims that the two versions did not get the same kind of traffic as was set.
        passes: Claims that a pass needs, all of them.
        no_step: Why no step may go on now, and nothing may pass, in words.
        no_pass: Why nothing may pass now, whatever the claims say, in words.
        needs_new_rollout: Those of the two that only a new rollout changes, as far as can be seen now.
        notes: What was left out, in words.
        control_requests, treatment_requests: How many requests were counted, warm-up left out.
    """

    alarms: tuple[ClaimResult, ...]
    splits: tuple[ClaimResult, ...]
    passes: tuple[ClaimResult, ...]
    no_step: tuple[str, ...]
    no_pass: tuple[str, ...]
    needs_new_rollout: tuple[str, ...]
    notes: tuple[str, ...]
    control_requests: int
    treatment_requests: int


def assess(bins: Iterable[Bin], gate: Gate, baseline: Iterable[Bin]) -> Assessment:
    """Test every claim of the gate on the bins of one look. Pure.

    Args:
        bins: All closed bins since the rollout began, in any order.
        gate: What the treatment has to show.
        baseline: Control's bins before the rollout.

    Raises:
        EvidenceError: The counts are inconsistent.
    """
    n_quantiles = len(gate.latency_quantiles)
    limit = gate.max_latency is not None
    requests: Columns | None = None
    if gate.unit == "user":
        bins = list(bins)
        requests = columns(bins, quantiles=n_quantiles, limit=limit)
        bins, baseline = bins_of_users(bins), bins_of_users(baseline)
    named = (*gate.categories, *gate.events, *gate.expectation_names)
    all_bins = columns(bins, quantiles=n_quantiles, means=gate.means, categories=named, limit=limit)
    before = without_refused(columns(baseline, quantiles=n_quantiles, limit=limit), gate)
    warm_up = all_bins.warm_up_bins(gate.warm_up)
    if not gate.judges_traffic:
        return _without_traffic(all_bins.since(warm_up), gate, warm_up)
    # The split is checked during warm-up too.
    split, was_wrong = split_wrong(all_bins, gate)
    counted = (all_bins.without(was_wrong) if was_wrong.any() else all_bins).since(warm_up)
    # Whether there is room is a matter of requests, whoever sends them.
    served = counted if requests is None else requests.since(requests.warm_up_bins(gate.warm_up))
    served_at_present = served.at(at_present_share(served))
    judged = without_refused(counted, gate)

    traffic_alarms, traffic_passes = traffic_claims(judged, before, gate)
    metrics = metric_claims(judged, gate)
    event_alarms, event_passes = event_claims(judged, gate)
    alarms = (*traffic_alarms, *metrics.alarms, *event_alarms, *expectation_claims(judged, gate))
    splits = metrics.splits
    passes = (*traffic_passes, *room_claims(served_at_present, gate), *metrics.passes, *event_passes)
    present = judged.at(at_present_share(judged))
    has_failed = any(alarm.established_at is not None for alarm in alarms)
    return Assessment(
        tuple(alarm.later(warm_up) for alarm in alarms),
        (split, *(other.later(warm_up) for other in splits)),
        passes,
        (
            *no_step_because(present, judged, before, gate),
            *no_step_without_room(served_at_present, gate),
            *(() if has_failed else near_in_newest(present, before, gate)),
        ),
        (*no_pass_because(present, judged, before, gate), *no_pass_without_room(served_at_present, gate)),
        tuple(needs_new_rollout_because(present, judged, before, gate)),
        tuple(_notes(judged, gate, warm_up, int(was_wrong.sum()))),
        int(counted.control.sum()),
        int(counted.treatment.sum()),
    )


def _without_traffic(judged: Columns, gate: Gate, warm_up: int) -> Assessment:
    """Test the claims about the author's metrics alone; a pass needs one of them at least.

    Args:
        judged: The bins, warm-up left out.
        gate: What the treatment has to show.
        warm_up: How many bins were left out.
    """
    metrics = metric_claims(judged, gate)
    event_alarms, event_passes = event_claims(judged, gate)
    passes = (*metrics.passes, *event_passes)
    return Assessment(
        tuple(alarm.later(warm_up) for alarm in (*metrics.alarms, *event_alarms)),
        tuple(split.later(warm_up) for split in metrics.splits),
        passes,
        (),
        () if passes else ("nothing says what a pass has to rule out: give a metric a pass_margin",),
        (),
        tuple(_notes(judged, gate, warm_up, 0)),
        int(judged.control.sum()),
        int(judged.treatment.sum()),
    )


def _notes(judged: Columns, gate: Gate, warm_up: int, wrong: int) -> Iterable[str]:
    """Yield what the reason of the verdict has to mention: metrics that are not judged, bins left out as warm-up."""
    if judged.starts:
        if gate.judges_traffic and gate.latency_quantiles and not judged.slow:
            yield (
                "latency is not judged: the bins carry no counts of slow requests, as when control had hardly any "
                "requests before the rollout"
            )
        if judged.slow and (left_out := int((~is_judged(judged)).sum())):
            yield f"latency is not judged in {left_out} bins: a version had no room, and requests waited in its queue"
        if judged.slow and (bounded := int((crowded(judged) & is_judged(judged)).sum())):
            yield f"latency is judged in {bounded} bins by how long requests were scored: a version had no room there"
        for name in (*gate.means, *gate.categories, *gate.events, *gate.expectation_names):
            if name not in judged.means and name not in judged.categories:
                yield f"{name} is not judged: the bins carry no values of it"
    if gate.unit == "user":
        yield (
            "users are counted, each by the first request of a step"
            if judged.starts
            else "no user is counted: no request has the key that the endpoint is sticky by"
        )
    if warm_up:
        yield f"{warm_up} {'bin' if warm_up == 1 else 'bins'} of warm-up left out"
    if wrong:
        yield f"{wrong} {'bin' if wrong == 1 else 'bins'} left out in which the split was wrong; it is right again"
