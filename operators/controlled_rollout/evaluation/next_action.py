"""What a gate task does after a look: wait, go on, fail, hold, ask a person. Pure, except `take_look`."""

import asyncio
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from controlled_rollout.duration import format_elapsed
from controlled_rollout.errors import (
    PROGRAMMING_ERRORS,
    ConflictError,
    ControlledRolloutError,
    EndpointError,
    EndpointNotFoundError,
)
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate, Outcome
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.evaluation.look import Look
    from controlled_rollout.rollout import Rollout
    from controlled_rollout.target.protocol import Target

__all__ = [
    "GateTerms",
    "LookResult",
    "NextAction",
    "aggregates_are_due",
    "decide",
    "decide_after_conflict",
    "decide_after_error",
    "decide_for_person",
    "decide_when_unreachable",
    "take_look",
]


# Every request of a look has a time-out of its own; this one is for what hangs in spite of them.
LOOK_TIMEOUT: Final = timedelta(minutes=5)
# How long looks may fail for what looks like a fault in the software before the rollout is on hold.
FAULT_TIMEOUT: Final = timedelta(minutes=15)


class NextAction(StrEnum):
    """What the gate task does after a look."""

    WAIT = "wait"
    GO_ON = "go_on"
    FAIL = "fail"
    HOLD = "hold"
    ASK = "ask"
    CONFLICT = "conflict"
    NOTHING_TO_COMPARE = "nothing_to_compare"


class GateTerms(BaseModel):
    """Everything that a gate's looks need; carried by the trigger as JSON, so that any triggerer can continue.

    Attributes:
        endpoint, version: The treatment to look at.
        who: The task, for the record.
        owner: The run that must hold the endpoint; None for whoever does.
        gate: What the treatment has to show.
        bake: The least time at the present share, counted in evidence that was seen.
        min_requests: The fewest treatment requests seen at the present share; at least 1.
        require_pass: Whether the gate must pass; else it is enough that nothing alarms.
        decision_timeout: How long to wait at the present share; less where waiting cannot help.
        on_deadline: What then: `roll_back` only if the evidence was seen and was not enough; else it holds.
        interval: The time between two looks.
        window: How the evidence is read.
        waiting_since: When the task began to wait.
        held: Since when this task has put the rollout on hold; None if it has not, or was cleared since then.
        forgets_hold: Whether each look is a process of its own, which finds its own hold in the record.
        unseen_timeout: On hold, how long no look may see the evidence before the treatment is rolled back; None: for
            ever.
        only_alarms: Whether only an alarm, or the end of the rollout, decides: while a person is asked, before a step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str
    version: str
    who: str
    owner: str | None
    gate: Gate
    bake: timedelta
    min_requests: int
    require_pass: bool
    decision_timeout: timedelta
    on_deadline: Literal["hold", "roll_back", "ask"]
    interval: timedelta
    window: EvidenceWindow = EvidenceWindow()
    waiting_since: AwareDatetime
    held: AwareDatetime | None = None
    forgets_hold: bool = False
    unseen_timeout: timedelta | None = None
    only_alarms: bool = False

    def on_hold_since(self, rollout: "Rollout | None") -> datetime | None:
        """Return since when the rollout is on hold for this task; None if it is not.

        A hold that began before the task did has ended: a person has cleared the task.

        Args:
            rollout: What the endpoint says of the rollout; None if no run holds it.
        """
        if self.held is not None:
            return self.held
        marked = rollout.held if rollout is not None and rollout.version == self.version else None
        return marked if marked is not None and marked >= self.waiting_since else None

    def counted_from(self, rollout: "Rollout | None", shifted: datetime) -> datetime:
        """Return from when `decision_timeout` counts: from the last change of the split, or from the end of a hold.

        Args:
            rollout: What the endpoint says of the rollout; None if no run holds it.
            shifted: When the split was last changed.
        """
        if rollout is None or rollout.version != self.version:
            return shifted
        resumed = self.waiting_since if rollout.held is not None else rollout.resumed
        return shifted if resumed is None else max(shifted, resumed)


@dataclass(frozen=True)
class LookResult:
    """What a gate task does after a look, and why; travels in a trigger's event.

    Attributes:
        action: What the task does.
        reason: Why, in a sentence with the numbers.
        outcome: The gate's outcome; None where no look was possible.
        table: The claims as lines of text; empty without a look.
    """

    action: NextAction
    reason: str
    outcome: str | None = None
    table: str = ""

    def to_event(self) -> dict[str, Any]:
        """Return the result as JSON values for a trigger event; numbers become text, as an e-value may be infinite."""
        return {"action": self.action.value, "reason": self.reason, "outcome": self.outcome, "table": self.table}

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> "LookResult":
        """Return the result that `to_event` put into a trigger event."""
        return cls(NextAction(event["action"]), event["reason"], event["outcome"], event["table"])


def decide(
    look: "Look",
    terms: GateTerms,
    *,
    now: datetime,
    table: str = "",
    record_problem: str = "",
    unseen_for: timedelta | None = None,
) -> LookResult:
    """Return the next action of the gate task after a look: go on, wait, fail, hold or ask a person. Pure.

    An outage never passes and never rolls back, however long it lasts: after `decision_timeout` it holds, or asks.
    Where waiting cannot help, what `on_deadline` says is done sooner: after `bake` and the length of the baseline.
    While a person is asked only an alarm decides; on hold an alarm, or `unseen_timeout`.

    Args:
        look: The look.
        terms: The gate's terms.
        now: The time of the look.
        table: The claims as lines of text.
        record_problem: Why the record cannot take the line that lets the rollout go on; empty if it can.
        unseen_for: On hold, how long no look has seen the evidence; None if that is not known.
    """
    verdict = look.verdict

    def result(action: NextAction, reason: str) -> LookResult:
        """Return a look result with this action and reason, and the look's outcome and table."""
        return LookResult(action, reason, verdict.outcome.value, table)

    if verdict.outcome is Outcome.FAIL:
        return result(NextAction.FAIL, verdict.reason)
    if terms.only_alarms:
        return result(NextAction.WAIT, f"no alarm; {verdict.outcome.value.replace('_', ' ')}: {verdict.reason}")
    missing = _missing_to_go_on(look, terms) or record_problem
    if (held := terms.on_hold_since(look.document.rollout)) is not None:
        if terms.unseen_timeout is not None and unseen_for is not None and unseen_for >= terms.unseen_timeout:
            return result(
                NextAction.FAIL,
                f"on hold since {held:%Y-%m-%d %H:%M:%S}, and no look has seen the evidence for "
                f"{format_elapsed(unseen_for)} (unseen_timeout {format_elapsed(terms.unseen_timeout)}): {missing}",
            )
        return result(NextAction.WAIT, _on_hold(held, missing or f"the gate would go on now: {verdict.reason}"))
    if not missing:
        return result(NextAction.GO_ON, verdict.reason)
    waited = now - terms.counted_from(look.document.rollout, now - look.since_shift)
    in_vain = _waits_in_vain(look, terms, waited)
    if waited < terms.decision_timeout and not in_vain:
        return result(NextAction.WAIT, missing)
    timeout = format_elapsed(terms.decision_timeout)
    since = "the split was set" if waited == look.since_shift else "the last hold ended"
    why = "waiting longer cannot help" if in_vain else f"decision_timeout {timeout}"
    reason = f"no decision {format_elapsed(waited)} after {since} ({why}): {missing}"
    evidence_was_seen = verdict.outcome in (Outcome.NOT_ENOUGH_EVIDENCE, Outcome.PASS)
    if terms.on_deadline == "roll_back" and evidence_was_seen and not record_problem:
        return result(NextAction.FAIL, reason)
    if terms.on_deadline == "ask":
        return result(NextAction.ASK, reason)
    return result(NextAction.HOLD, reason)


def decide_for_person(look: "Look", terms: GateTerms, *, now: datetime, table: str = "") -> LookResult:
    """Return what a gate would do after a look, for a person who asks: of a rollout on hold, that it is. Pure.

    Whoever asks has not waited, so the hold of the endpoint's document counts whenever it began.

    Args:
        look: The look.
        terms: What the person asks for.
        now: The time of the look.
        table: The claims as lines of text.
    """
    rollout = look.document.rollout
    held = rollout.held if rollout is not None and rollout.version == terms.version else None
    result = decide(look, terms.model_copy(update={"held": held}), now=now, table=table)
    return result if held is None or result.action is NextAction.FAIL else replace(result, action=NextAction.HOLD)


def _missing_to_go_on(look: "Look", terms: GateTerms) -> str:
    """Return what a look still lacks for the rollout to go on, such as time or requests; empty if nothing."""
    verdict = look.verdict
    if verdict.outcome not in (Outcome.PASS, Outcome.NOT_ENOUGH_EVIDENCE):
        return f"{verdict.outcome.value.replace('_', ' ')}: {verdict.reason}"
    missing = []
    if terms.require_pass and verdict.outcome is not Outcome.PASS:
        missing.append(f"not enough evidence: {verdict.reason}")
    else:
        missing += verdict.waits
    missing += [
        f"an alarm is near: {claim.name}, e-value {claim.present:.3g} of {claim.threshold:.3g} now ({claim.detail})"
        for claim in verdict.claims
        if claim.is_near
    ]
    if look.seen_at_share < terms.bake:
        seen, bake = format_elapsed(look.seen_at_share), format_elapsed(terms.bake)
        missing.append(f"{seen} of {bake} seen at {look.share:g} %{_why_nothing_is_seen(look, terms)}")
    # Time without a request shows nothing.
    if look.requests_at_share < max(1, terms.min_requests):
        missing.append(f"{look.requests_at_share} of {max(1, terms.min_requests)} requests seen at {look.share:g} %")
    return "; ".join(missing)


def _waits_in_vain(look: "Look", terms: GateTerms, waited: timedelta) -> bool:
    """Return whether only a new rollout can lead to what the gate waits for: nobody would hear of it for a day.

    For a baseline's length it is waited that control becomes again what it was in that baseline.
    """
    verdict = look.verdict
    reasons = [reason for reason in verdict.needs_new_rollout if terms.require_pass or reason in verdict.waits]
    patience = terms.bake + terms.window.baseline_length
    return bool(reasons) and min(waited, look.seen_at_share) >= patience


def _why_nothing_is_seen(look: "Look", terms: GateTerms) -> str:
    """Return, while nothing is seen at the present share, when that begins; else an empty text."""
    if look.seen_at_share:
        return ""
    width, lag = format_elapsed(terms.window.bin_width), format_elapsed(terms.window.allowed_lag)
    return f" (requests count in bins of {width}, and a bin once it ended {lag} ago: bin_width, allowed_lag)"


def aggregates_are_due(look: "Look", terms: GateTerms) -> bool:
    """Return whether expectations about all rows together are to be evaluated now: all else lets the rollout go on.

    Pure. They are evaluated at no other look, because each one more is one more chance to be unfulfilled.

    Args:
        look: The look.
        terms: The gate's terms.
    """
    if look.not_evaluated is None or terms.only_alarms:
        return False
    return not _missing_to_go_on(replace(look, verdict=look.not_evaluated.verdict), terms)


def _on_hold(held: datetime, news: str) -> str:
    """Return the sentence that a rollout is on hold, and what is new."""
    return f"on hold since {held:%Y-%m-%d %H:%M:%S}, a person decides; {news}"


def decide_after_conflict(endpoint: "Endpoint | None", terms: GateTerms, problem: str) -> LookResult:
    """Return the next action after a look that raised because the rollout has ended or changed. Pure.

    Args:
        endpoint: The endpoint as it is now; None if it is gone.
        terms: The gate's terms.
        problem: Why the look was refused.
    """
    if endpoint is None or endpoint.control is None or endpoint.control.name != terms.version:
        return LookResult(NextAction.CONFLICT, problem)
    if len(endpoint.versions) == 1:
        reason = f"first version of endpoint {terms.endpoint!r}: nothing to compare {terms.version!r} with"
    else:
        reason = f"version {terms.version!r} is the control of endpoint {terms.endpoint!r} already: nothing to compare"
    return LookResult(NextAction.NOTHING_TO_COMPARE, reason)


def decide_when_unreachable(terms: GateTerms, problem: str, *, now: datetime) -> LookResult:
    """Return the next action while the target does not answer: wait, and hold after `decision_timeout`. Pure."""
    waited = now - terms.waiting_since
    if terms.held is not None:
        return LookResult(NextAction.WAIT, _on_hold(terms.held, f"cannot see: {problem}"), Outcome.CANNOT_SEE.value)
    if terms.only_alarms or waited < terms.decision_timeout:
        return LookResult(NextAction.WAIT, f"cannot see: {problem}", Outcome.CANNOT_SEE.value)
    return LookResult(
        NextAction.ASK if terms.on_deadline == "ask" else NextAction.HOLD,
        f"no decision {format_elapsed(waited)} after the task began to wait: cannot see: {problem}",
        Outcome.CANNOT_SEE.value,
    )


def decide_after_error(
    terms: GateTerms, error: Exception, *, now: datetime, last_look: datetime | None = None
) -> LookResult:
    """Return the next action after a look that raised: wait, and in the end hold. Pure.

    No error says anything about the model: none passes, and none rolls back. An error that looks like a fault in the
    software may come from an answer that nobody has foreseen: it holds once no look has worked for `FAULT_TIMEOUT`.

    Args:
        terms: The gate's terms.
        error: What the look raised.
        now: The time of the look.
        last_look: When a look last worked; None if that is not known.
    """
    problem = str(error) or type(error).__name__
    if not isinstance(error, PROGRAMMING_ERRORS):
        return decide_when_unreachable(terms, problem, now=now)
    problem = f"the look failed unexpectedly ({type(error).__name__}: {problem}); the log has the stack trace"
    result = decide_when_unreachable(terms, problem, now=now)
    silent = now - max(terms.waiting_since, last_look or terms.waiting_since)
    if result.action is not NextAction.WAIT or terms.only_alarms or terms.held is not None or silent < FAULT_TIMEOUT:
        return result
    reason = f"no look has worked for {format_elapsed(silent)}: cannot see: {problem}"
    return LookResult(NextAction.HOLD, reason, Outcome.CANNOT_SEE.value)


async def take_look(
    workspace: Workspace, terms: GateTerms, log: Callable[[str], None], *, acts: bool = True
) -> LookResult:
    """Look at the evidence once, log the claims as a table, and return the next action of the gate task.

    Whatever a target, a metric store or a record answers, or if they never do, this raises nothing: a look that failed
    could not see.

    Args:
        workspace: Where the endpoint, the evidence and the record are.
        terms: The gate's terms.
        log: Takes each sentence for the task's log.
        acts: Whether the record learns that the rollout goes on, and the endpoint that it holds: False for a person who
            asks what a gate would do.
    """
    from controlled_rollout.evaluation import hold
    from controlled_rollout.target.connect import connect

    try:
        async with asyncio.timeout(LOOK_TIMEOUT.total_seconds()) as limit, connect(workspace) as target:
            result = await _look_and_decide(workspace, target, terms, log, acts=acts)
    except Exception as error:  # whatever went wrong
        # What is away, or not allowed, is said in a sentence; where in the software it was found helps nobody.
        if not isinstance(error, ControlledRolloutError):
            log("".join(traceback.format_exception(error)).rstrip())
        late = TimeoutError(f"the look took longer than {format_elapsed(LOOK_TIMEOUT)}") if limit.expired() else None
        last_look = await hold.last_look(workspace, terms) if isinstance(error, PROGRAMMING_ERRORS) else None
        result = decide_after_error(terms, late or error, now=datetime.now(UTC), last_look=last_look)
    log(f"{result.action.value.replace('_', ' ')}: {result.reason}")
    return result


async def _look_and_decide(
    workspace: Workspace, target: "Target", terms: GateTerms, log: Callable[[str], None], *, acts: bool
) -> LookResult:
    """Look at the evidence of a connected target; return the next action, also for a look that was refused."""
    from controlled_rollout.evaluation import hold
    from controlled_rollout.evaluation import look as looks
    from controlled_rollout.evaluation.judgements import record_going_on
    from controlled_rollout.gate import describe

    look_now = partial(
        looks.look,
        *(workspace, target, terms.endpoint, terms.version),
        gate=terms.gate,
        who=terms.who,
        owner=terms.owner,
        gate_since=terms.waiting_since if acts and not terms.only_alarms else None,
        window=terms.window,
    )
    try:
        look = await look_now()
        if aggregates_are_due(look, terms):
            look = await look_now(evaluate=look.not_evaluated)
    except EndpointNotFoundError as error:
        return decide_after_conflict(None, terms, str(error))
    except (ConflictError, EndpointError) as error:
        return decide_after_conflict(await target.endpoint(terms.endpoint), terms, str(error))
    table = describe(look.verdict)
    now = datetime.now(UTC)
    unseen_for = await hold.unseen_for(workspace, look, terms, now=now)
    result = decide(look, terms, now=now, table=table, unseen_for=unseen_for)
    may_forget = terms.forgets_hold and result.action in (NextAction.GO_ON, NextAction.HOLD)
    if may_forget and (held := await hold.recorded_hold(workspace, terms)) is not None:
        # It could not be written into the endpoint when it began; this look writes it there.
        terms = terms.model_copy(update={"held": held})
        result = decide(look, terms, now=now, table=table)
    if not acts:
        result = decide_for_person(look, terms, now=now, table=table)
    if acts and result.action is NextAction.GO_ON:
        problem = await record_going_on(workspace, look.document, terms.version, look.verdict, who=terms.who)
        if not problem:
            # Only now, because who holds asks the record after the hold is stored: one of the two sees the other.
            look = replace(look, document=await hold.with_newest_hold(workspace, target, look.document, terms, log))
        result = decide(look, terms, now=now, table=table, record_problem=problem)
    if acts and result.action is not NextAction.FAIL and not terms.only_alarms:  # an alarm waits for no mark
        await hold.mark(target, look.document, terms, log)
    log(
        f"{terms.version} at {look.share:g} % for {format_elapsed(look.since_shift)}, "
        f"judged on {format_elapsed(look.seen_at_share)} and {look.requests_at_share} requests: "
        f"{look.verdict.outcome.value.replace('_', ' ')}\n{result.table}"
    )
    return result
