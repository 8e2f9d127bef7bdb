"""What a verdict means, and what a rollout waits for, in sentences that a newcomer understands. Pure."""

from datetime import datetime, timedelta
from typing import Final

from controlled_rollout.gate import Claim, Outcome, Verdict
from controlled_rollout.view.recent_looks import RecentLooks

__all__ = ["about_duration", "claim_meaning", "verdict_explanation", "verdict_sentence", "waiting_sentence"]

SENTENCES: Final = {
    Outcome.PASS: "{treatment} has shown that it is good enough: it may take over from {control}.",
    Outcome.FAIL: "{treatment} is worse than {control}: it is rolled back.",
    Outcome.NOT_ENOUGH_EVIDENCE: "Nothing speaks against {treatment} so far, and there are not enough requests yet to "
    "say that it is good enough.",
    Outcome.CANNOT_SEE: "The evidence cannot be read completely at the moment, so nothing is decided.",
    Outcome.SPLIT_IS_WRONG: "{treatment} and {control} did not get the same kind of traffic, or not in the parts that "
    "were set: they cannot be compared.",
}
NEXT: Final = {
    Outcome.PASS: "The rollout goes on with its next step once it has also waited long enough at the present share.",
    Outcome.FAIL: "The gate's task fails, and the task that rolls back gives the traffic back to the control.",
    Outcome.NOT_ENOUGH_EVIDENCE: "The gate looks again until there is enough evidence, or until its decision_timeout: "
    "then it is on hold, or a person is asked.",
    Outcome.CANNOT_SEE: "Neither success nor failure follows from that. The gate looks again; traffic stays as it is.",
    Outcome.SPLIT_IS_WRONG: "Nothing is rolled back because of it. Look for what routes or filters requests of one of "
    "the versions differently.",
}
E_VALUE: Final = (
    "An e-value says how strongly the requests so far speak for a claim: 1 is nothing, and the claim is taken as shown "
    "once its e-value reaches the threshold, such as 20. It may be looked at as often as you like."
)


def verdict_sentence(outcome: Outcome, *, treatment: str, control: str) -> str:
    """Return what a verdict means, in a sentence.

    Args:
        outcome: The verdict's outcome.
        treatment: The treatment's name.
        control: The control's name.
    """
    return SENTENCES[outcome].format(treatment=treatment, control=control)


def verdict_explanation(verdict: Verdict) -> tuple[str, ...]:
    """Return what a verdict rests on and what happens next, for people who ask what it means.

    Args:
        verdict: The verdict.
    """
    counted = (
        f"It rests on {verdict.treatment_requests:,} requests that the treatment has answered and "
        f"{verdict.control_requests:,} of the control, in the same time."
    )
    reached = [claim for claim in verdict.claims if claim.reached and claim.kind != "pass"]
    shown = [f"Shown: {claim.name}. {claim_meaning(claim)}" for claim in reached]
    return (counted, *shown, NEXT[verdict.outcome], E_VALUE)


def claim_meaning(claim: Claim) -> str:
    """Return what a claim means, in a sentence.

    Args:
        claim: The claim.
    """
    if claim.kind == "alarm":
        return "An alarm: once its e-value reaches the threshold, the treatment is rolled back."
    if claim.kind == "split":
        return (
            "A check of the comparison itself: once its e-value reaches the threshold, the rollout waits for a person."
        )
    return "Needed for a pass: its e-value has to reach the threshold before the treatment may take over."


def waiting_sentence(looks: RecentLooks, *, step: str, held: datetime | None) -> str:
    """Return what a rollout waits for, with the numbers, such as `another 412 requests, about 9 min`.

    Args:
        looks: What the record's newest lines say of it.
        step: The step that it is at, such as `10 %`.
        held: Since when it is on hold; None if it is not.
    """
    if held is not None:
        return f"a person: it is on hold since {held:%Y-%m-%d %H:%M} UTC"
    if looks.asked is not None:
        return f"a person's answer to the question of {looks.asked:%Y-%m-%d %H:%M} UTC, in Required Actions"
    verdict = looks.verdict
    if verdict is None:
        return (
            f"the first look at {step}" if not step.startswith("0 ") else "the version to be ready, and its first share"
        )
    if verdict.outcome is Outcome.FAIL:
        return "the roll-back"
    if verdict.outcome in (Outcome.CANNOT_SEE, Outcome.SPLIT_IS_WRONG):
        return f"evidence that can be judged: {verdict.reason}"
    if verdict.waits or verdict.no_pass:
        # More requests alone do not help.
        return "; ".join([*verdict.waits, *verdict.no_pass])
    missing = [claim for claim in verdict.claims if claim.kind == "pass" and not claim.reached]
    if any(claim.needed_requests is None for claim in missing):
        return "more evidence; how much cannot be said yet"
    needed = max((claim.needed_requests or 0 for claim in missing), default=0)
    if needed:
        return _requests_and_time(needed, looks.requests_per_second)
    # Whether a least time is left is known to the gate that looks, not to the record.
    return f"the least time at {step}, or the next step" if verdict.outcome is Outcome.PASS else "more evidence"


def about_duration(length: timedelta) -> str:
    """Return a length of time roughly, such as `9 min` or `3 h`, for people who wait.

    Args:
        length: The length.
    """
    seconds = max(1.0, length.total_seconds())
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 1.5 * size or (size == 60 and seconds >= 60):
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _requests_and_time(needed: int, per_second: float | None) -> str:
    """Return how many more requests are needed, and how long they take at the present rate."""
    more = f"another {needed:,} requests" if needed != 1 else "another request"
    if per_second is None:
        return more
    return f"{more}, about {about_duration(timedelta(seconds=min(needed / per_second, 3.2e8)))}"
