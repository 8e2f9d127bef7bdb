"""What a look concludes from what it read: the gate's verdict, or that it cannot see. Pure: it can be replayed."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from controlled_rollout.errors import EvidenceError
from controlled_rollout.evidence import Evidence, EvidenceWindow, Reading
from controlled_rollout.gate import Bin, Gate, Outcome, Verdict, cannot_see, judge

__all__ = ["conclude", "unseen"]

# So many requests in a row that a store knows nothing of are no accident.
UNSEEN_REQUESTS: Final = 20


def conclude(
    evidence: Evidence,
    gate: Gate,
    *,
    control: str,
    treatment: str,
    window: EvidenceWindow,
    router: Sequence[Reading] = (),
    down: str = "",
) -> Verdict:
    """Judge what a look read, unless it is not all that there is.

    A treatment that is down fails, whatever was read: whom it cannot answer it cannot be seen to answer badly.

    Args:
        evidence: What was read.
        gate: What the treatment has to show.
        control: Control's name.
        treatment: The treatment's name.
        window: How the evidence was read.
        router: What the router had counted at some moments, oldest first.
        down: That the treatment is down, in a sentence; empty if it is not.
    """
    blind = late(evidence, window) or unseen(evidence, router, control=control, treatment=treatment, window=window)
    try:
        verdict = cannot_see(blind) if blind else judge(evidence.bins, gate, baseline=evidence.baseline)
    except EvidenceError as error:
        # Counts that cannot be say something about the store, nothing about the model.
        verdict = cannot_see(str(error))
    return replace(verdict, outcome=Outcome.FAIL, reason=down) if down else verdict


def late(evidence: Evidence, window: EvidenceWindow) -> str | None:
    """Say that bins were closed too early; None if telemetry comes in time, or the store does not tell."""
    if evidence.lag is None or evidence.lag <= window.allowed_lag:
        return None
    lag_s, allowed_lag_s = evidence.lag.total_seconds(), window.allowed_lag.total_seconds()
    return (
        f"telemetry comes up to {lag_s:,.0f} s late, and bins are closed after {allowed_lag_s:,.0f} s: "
        "wait until the way to the store is free again, or allow more with allowed_lag"
    )


def unseen(
    evidence: Evidence, router: Sequence[Reading], *, control: str, treatment: str, window: EvidenceWindow
) -> str | None:
    """Say which version the router has sent requests to and the store knows nothing of; None if it sees both.

    A store that loses one version's rows must not make the other look good, and one that falls silent must not let
    time pass as if nothing had happened.
    """
    for name in (control, treatment):
        shared = [one for one in evidence.bins if one.share is not None and _part(one, name == treatment) > 0]
        if not shared:
            continue
        seen = sum(_requests(one, name == treatment) for one in evidence.bins)
        sent = router[-1].requests.get(name, 0) if router else 0
        if sent and not seen:
            return _sentence(name, sent, f"in {len(evidence.bins)} bins")
        newest = max((one.start for one in evidence.bins if _requests(one, name == treatment)), default=None)
        if newest is not None and (silent := _silent(name, newest + window.bin_width, router, evidence.until)):
            return silent
    return None


def _silent(name: str, seen_until: datetime, router: Sequence[Reading], until: datetime) -> str | None:
    """Say that the store has nothing of a version since an earlier reading, although the router counted on."""
    closed = [reading for reading in router if seen_until <= reading.at <= until]
    if len(closed) < 2:
        return None
    sent = closed[-1].requests.get(name, 0) - closed[0].requests.get(name, 0)
    if sent < UNSEEN_REQUESTS:
        return None
    return _sentence(name, sent, f"between {closed[0].at:%H:%M:%S} and {closed[-1].at:%H:%M:%S}")


def _sentence(name: str, sent: int, where: str) -> str:
    return (
        f"the router has sent {sent} requests to version {name!r}, and the metric store has none of them {where}: look "
        "at the telemetry's way from the router to the store"
    )


def _part(one: Bin, is_treatment: bool) -> float:
    share = one.share or 0.0
    return share if is_treatment else 1 - share


def _requests(one: Bin, is_treatment: bool) -> int:
    return (one.treatment if is_treatment else one.control).requests
