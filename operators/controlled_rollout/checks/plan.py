"""The plan: what a rollout will do, step by step, for a person to read before it happens."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Final, Literal

from controlled_rollout.duration import format_duration
from controlled_rollout.endpoint import LEAST_SHARE, MAX_VERSIONS, Endpoint
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.rollout import LEAST_SILENCE, OnSilence

__all__ = ["RolloutPlan", "check_steps", "contradictions", "looks_too_rarely", "room_for"]

WITHOUT_DECISION: Final = {
    "hold": "it holds, and a person decides",
    "roll_back": "it rolls back, or holds if the evidence could not be read",
    "ask": "it asks a person",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """The steps of a rollout; `str()` gives the text.

    Attributes:
        endpoint, version: What is rolled out, and where.
        steps: The treatment's per cent at each step.
        bake, min_requests: The least time, and the fewest treatment requests, at each step.
        pass_every_step: Whether every gate has to pass, not only the last.
        decision_timeout, on_deadline: The most time at each step, and what follows it.
        approval: Whether a person approves the promotion.
        on_silence, silence: What happens when nobody has looked for so long.
        keep_warm: How long the former control stays.
        keep_treatment: Whether a treatment that was rolled back stays.
    """

    endpoint: str
    version: str
    steps: Sequence[float]
    bake: timedelta
    min_requests: int
    pass_every_step: bool
    decision_timeout: timedelta
    on_deadline: Literal["hold", "roll_back", "ask"]
    approval: bool
    on_silence: OnSilence
    silence: timedelta
    keep_warm: timedelta
    keep_treatment: bool

    def __str__(self) -> str:
        """Return the numbered steps of the rollout as text for a log."""
        promotion = len(self.steps) + 2
        lines = [
            f"Plan for version {self.version} of endpoint {self.endpoint}:",
            "  1. create it at 0 % and wait until it is ready (the first version of an endpoint gets all the traffic "
            f"at once, and steps 2 to {promotion - 1} are skipped)",
            *(f"  {number}. {self._shift_text(percentile)}" for number, percentile in enumerate(self.steps, start=2)),
            f"  {promotion}. {'when a person approves, ' if self.approval else ''}promote it to control with all the "
            "traffic",
            f"  {promotion + 1}. retire the former control after {format_duration(self.keep_warm)}",
            *self._silence_lines(),
            f"If a gate has no decision after {format_duration(self.decision_timeout)}, "
            f"{WITHOUT_DECISION[self.on_deadline]}. After a failure the version is rolled back at once and "
            f"{'kept at 0 %' if self.keep_treatment else 'retired'}.",
        ]
        return "\n".join(lines)

    def _silence_lines(self) -> list[str]:
        """Return the line on what happens when nobody looks any more; none if the treatment is kept then."""
        if self.on_silence is OnSilence.KEEP:
            return []
        return [
            f"If nobody has looked for {format_duration(self.silence)}, such as when Airflow is gone, the workspace's "
            "supervisor, or the cluster's agent if it has one, sets the version to 0 %."
        ]

    def _shift_text(self, percentile: float) -> str:
        """Return the text of one step: shift traffic, and the condition to go on."""
        must_pass = self.pass_every_step or percentile == self.steps[-1]
        condition = "when the gate passes" if must_pass else "unless a claim alarms or nearly does"
        requests = f"{self.min_requests} requests" if self.min_requests > 1 else "1 request"
        compared = " (compared with control's last requests: it gets none then)" if percentile >= 100 else ""
        return (
            f"shift {percentile:g} % of the traffic to it; go on after {format_duration(self.bake)} and "
            f"{requests} of evidence, {condition}{compared}"
        )


def contradictions(
    *, bake: timedelta, decision_timeout: timedelta, interval: timedelta, window: EvidenceWindow
) -> list[str]:
    """Return what cannot be about the times of a rollout, a sentence each; empty if they fit each other.

    Args:
        bake: The least time at each step.
        decision_timeout: The most time at each step.
        interval: The time between two looks.
        window: How the evidence is read.
    """
    problems = []
    first_bin = window.allowed_lag + window.bin_width
    if bake < first_bin:
        problems.append(
            f"bake = {format_duration(bake)} is over before any evidence of the step can be there: the first bin is "
            f"closed after allowed_lag {format_duration(window.allowed_lag)} + bin_width "
            f"{format_duration(window.bin_width)}: give {format_duration(first_bin)} or more"
        )
    if decision_timeout <= bake:
        problems.append(
            f"decision_timeout = {format_duration(decision_timeout)} leaves a gate no time after bake = "
            f"{format_duration(bake)}: give more"
        )
    if interval > decision_timeout:
        problems.append(
            f"interval = {format_duration(interval)} leaves a gate without a second look within decision_timeout = "
            f"{format_duration(decision_timeout)}, and a treatment that fails without one: give less"
        )
    if interval <= timedelta(0):
        problems.append(
            f"interval = {format_duration(interval)}: a gate has to wait between two looks: give more than 0"
        )
    return problems


def looks_too_rarely(silence: timedelta, interval: timedelta) -> str:
    """Return why a treatment would be taken back although its gate looks, as a sentence; empty if it would not.

    One look may take long, and one may be lost: two have to fit.

    Args:
        silence: After which time without a look the treatment is taken back.
        interval: The time between two looks.
    """
    least = max(2 * interval, LEAST_SILENCE)
    if silence >= least:
        return ""
    return (
        f"silence = {format_duration(silence)} would take a treatment back between two looks, which come every "
        f"interval = {format_duration(interval)}: give {format_duration(least)} or more, or on_silence='keep'"
    )


def room_for(endpoint: Endpoint, version: str) -> tuple[str, str]:
    """Return why a version has no room on an endpoint, and a warning that the next one will have none; empty if not.

    Args:
        endpoint: The endpoint as it is.
        version: The version that is to be rolled out.
    """
    kept = [name for name in endpoint.versions if name != version]
    names = ", ".join(kept)
    advice = "retire one, or let former controls stay for a shorter time with keep_warm"
    if len(kept) >= MAX_VERSIONS:
        return (
            f"endpoint {endpoint.name!r} has {len(kept)} versions ({names}), and at most {MAX_VERSIONS} are possible: "
            f"version {version!r} has no room: {advice}",
            "",
        )
    if len(kept) + 1 == MAX_VERSIONS:
        return "", (
            f"endpoint {endpoint.name!r} will have {MAX_VERSIONS} versions ({names}, {version}), as many as are "
            f"possible: the next rollout has no room as long as they stay: {advice}"
        )
    return "", ""


def check_steps(steps: Sequence[float]) -> None:
    """Raise ValueError unless the steps are ascending percentiles that a router can tell apart, up to 100.

    Raises:
        ValueError: There are none, or they are not numbers, not ascending, not between 0 and 100, or nearer to 0, to
            100 or to each other than `LEAST_SHARE`.
    """
    numbers = isinstance(steps, Sequence) and all(
        isinstance(step, (int, float)) and not isinstance(step, bool) for step in steps
    )
    if not steps or not numbers or not all(0 < step <= 100 for step in steps) or list(steps) != sorted(set(steps)):
        raise ValueError(
            f"steps={steps!r}: give ascending percentiles above 0 and up to 100, such as (10, 50); in a "
            "DAG there is a task for each, so they can be no template and not mapped"
        )
    shares = [0.0, *steps, *([] if steps[-1] == 100 else [100.0])]
    if any(after - before < LEAST_SHARE - 1e-9 for before, after in pairwise(shares)):
        raise ValueError(
            f"steps={steps!r}: give percentiles that differ from each other, from 0 and from 100 by {LEAST_SHARE:g} or "
            "more: that is the least share of the traffic that a step can move"
        )
