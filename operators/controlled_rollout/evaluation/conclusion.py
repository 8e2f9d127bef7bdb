"""The verdict of a look: the gate's, or that the look cannot see. Pure: a replay computes it again."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from controlled_rollout.errors import EvidenceError
from controlled_rollout.evaluation import router_counts
from controlled_rollout.evidence import Evidence, EvidenceWindow
from controlled_rollout.gate import Outcome, Verdict, cannot_see, judge, with_aggregates
from controlled_rollout.record import LookInput
from controlled_rollout.target.protocol import EndpointStatus, ReplicaState, VersionStatus

__all__ = ["conclude", "conclude_but_aggregates", "treatment_down", "verdict_without_record"]

# Replicas are back earlier than that after their node was restarted.
MIN_DOWN_TIME: Final = timedelta(minutes=2)


def conclude(look: LookInput) -> Verdict:
    """Return a look's verdict, with what the expectations about all rows together say.

    Args:
        look: The evidence, and what else the verdict rests on.
    """
    return with_aggregates(conclude_but_aggregates(look), look.settings.gate, look.evidence.aggregates)


def conclude_but_aggregates(look: LookInput) -> Verdict:
    """Return the verdict of all that is judged at each look: the gate's, unless the treatment is down, or not seen.

    A treatment that is down fails whatever the evidence says: requests it never received leave no error rows.

    Args:
        look: The evidence, and what else the verdict rests on.
    """
    problem = _late_telemetry(look.evidence, look.settings.window) or router_counts.contradiction(look)
    try:
        evidence = look.evidence
        verdict = (
            cannot_see(problem) if problem else judge(evidence.bins, look.settings.gate, baseline=evidence.baseline)
        )
        if look.evidence.unseen and verdict.outcome is not Outcome.FAIL:
            # An alarm of what callers saw needs no collected data; for all else a part of the evidence is missing.
            verdict = cannot_see("; ".join(filter(None, (problem, look.evidence.unseen))))
        if verdict.outcome is Outcome.SPLIT_IS_WRONG and (problem := router_counts.split_contradiction(look)):
            verdict = cannot_see(problem)
    except EvidenceError as error:
        # Inconsistent counts are the metric store's fault, not the model's.
        verdict = cannot_see(str(error))
    if look.down:
        return replace(verdict, outcome=Outcome.FAIL, reason=look.down)
    if sampled := _sampling_text(look.evidence):
        return replace(verdict, reason=f"{verdict.reason}; {sampled}")
    return verdict


def _sampling_text(evidence: Evidence) -> str | None:
    """Return the words on how telemetry is sampled; None if every request has a row."""
    counts = [counts for bin_ in evidence.bins for counts in (bin_.control, bin_.treatment)]
    rows = sum(one.requests for one in counts)
    represented = sum(one.represented or one.requests for one in counts)
    return f"telemetry is sampled, 1 of {represented / rows:.3g}" if represented > rows > 0 else None


def verdict_without_record(verdict: Verdict, problem: str) -> Verdict:
    """Return what the verdict of a look that cannot be recorded counts: an alarm stays one, all else cannot see.

    Args:
        verdict: What the look concludes.
        problem: Why it cannot be recorded.
    """
    if verdict.outcome is Outcome.FAIL:
        return replace(verdict, reason=f"{verdict.reason} (not in the record: {problem})")
    # A look that cannot be replayed lets nothing go on.
    return cannot_see(f"the look cannot be recorded: {problem}")


def _late_telemetry(evidence: Evidence, window: EvidenceWindow) -> str | None:
    """Return a sentence if telemetry arrives later than `allowed_lag`; None if it is in time or its lag is unknown."""
    if evidence.lag is None or evidence.lag <= window.allowed_lag:
        return None
    lag_s, allowed_lag_s = evidence.lag.total_seconds(), window.allowed_lag.total_seconds()
    return (
        f"telemetry comes up to {lag_s:,.0f} s late, and bins are closed after {allowed_lag_s:,.0f} s: "
        "wait until telemetry is in time again, or allow more with allowed_lag"
    )


def treatment_down(status: EndpointStatus, *, control: str, treatment: str, now: datetime) -> str:
    """Return a sentence if the treatment has no ready replica and control has one; empty otherwise.

    Down: no ready replica for two minutes, or failed. The router answers the requests of a version without replicas by
    itself, and its telemetry may not say whose share they were.

    Args:
        status: The endpoint's status.
        control: Control's name.
        treatment: The treatment's name.
        now: The time of the look.
    """
    treated, compared = status.versions.get(treatment), status.versions.get(control)
    if treated is None or compared is None or _has_ready_replica(treated) or not _has_ready_replica(compared):
        return ""
    lasts = treated.down_since is not None and now - treated.down_since >= MIN_DOWN_TIME
    if not (treated.failed or lasts):
        return ""
    since = f" since {treated.down_since:%H:%M:%S}" if treated.down_since else ""
    return (
        f"version {treatment!r} has no ready replica{since} and cannot answer its share, and {control!r} has: "
        f"{treated.cause or 'no cause is known'}"
    )


def _has_ready_replica(version: VersionStatus) -> bool:
    """Return whether at least one replica of the version is ready."""
    return any(replica.state is ReplicaState.READY for replica in version.replicas)
