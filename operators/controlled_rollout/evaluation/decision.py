"""What a gate task makes of one look at the evidence: wait, go on, fail, hold. Pure, but for `take_look`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from controlled_rollout.errors import ConflictError, EndpointError, EndpointNotFoundError, TargetUnavailableError
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate, Outcome
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.evaluation.look import Look

__all__ = ["Answer", "GateTerms", "Next", "decide", "ended", "take_look", "unreachable"]


class Next(StrEnum):
    """What the gate task does after a look."""

    WAIT = "wait"
    GO_ON = "go_on"
    FAIL = "fail"
    HOLD = "hold"
    ASK = "ask"
    CONFLICT = "conflict"
    NOTHING_TO_COMPARE = "nothing_to_compare"


class GateTerms(BaseModel):
    """Everything that a look needs and a trigger carries; JSON-able, so that any triggerer can go on with it.

    Attributes:
        endpoint, version: The treatment to look at.
        who: The task, for the record.
        owner: The run that must hold the endpoint; None for whoever does.
        gate: What the treatment has to show.
        bake: The least time at the present share.
        min_requests: The fewest treatment requests at the present share.
        require_pass: Whether the gate must pass; else it is enough that nothing alarms.
        decision_timeout: How long to wait at the present share.
        on_no_decision: What then: `roll_back` only if the evidence was seen and was not enough; else it holds.
        interval: The time between two looks.
        window: How the evidence is read.
        asked: When the task began to wait.
        held: When the rollout was last put on hold: whoever clears the task gives it another `decision_timeout`.
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
    on_no_decision: Literal["hold", "roll_back", "ask"]
    interval: timedelta
    window: EvidenceWindow = EvidenceWindow()
    asked: AwareDatetime
    held: AwareDatetime | None = None


@dataclass(frozen=True)
class Answer:
    """What one look leads to; travels in a trigger's event.

    Attributes:
        next: What the task does.
        reason: Why, in a sentence with the numbers.
        outcome: The gate's outcome; None where no look was possible.
        table: The claims as lines of text; empty without a look.
    """

    next: Next
    reason: str
    outcome: str | None = None
    table: str = ""

    def to_event(self) -> dict[str, Any]:
        """Return it as JSON-able fields. The numbers are text: an e-value may be infinite, which JSON cannot say."""
        return {"next": self.next.value, "reason": self.reason, "outcome": self.outcome, "table": self.table}

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> "Answer":
        """Return the answer that an event carries."""
        return cls(Next(event["next"]), event["reason"], event["outcome"], event["table"])


def decide(look: "Look", terms: GateTerms, *, now: datetime, table: str = "") -> Answer:
    """Return what to do after a look that was possible.

    An outage never passes and never rolls back, however long it lasts: after `decision_timeout` it holds, or asks.
    """
    verdict = look.verdict

    def answer(next_: Next, reason: str) -> Answer:
        return Answer(next_, reason, verdict.outcome.value, table)

    if verdict.outcome is Outcome.FAIL:
        return answer(Next.FAIL, verdict.reason)
    missing = _missing(look, terms)
    if not missing:
        return answer(Next.GO_ON, verdict.reason)
    since = look.since_shift if terms.held is None else min(look.since_shift, now - terms.held)
    if since < terms.decision_timeout:
        return answer(Next.WAIT, missing)
    limit = _text(terms.decision_timeout)
    late = f"no decision {_text(since)} after the split was set (decision_timeout {limit}): {missing}"
    may_roll_back = verdict.outcome in (Outcome.NOT_ENOUGH_EVIDENCE, Outcome.PASS)
    if terms.on_no_decision == "roll_back" and may_roll_back:
        return answer(Next.FAIL, late)
    if terms.on_no_decision == "ask":
        return answer(Next.ASK, late)
    return answer(Next.HOLD, late)


def _missing(look: "Look", terms: GateTerms) -> str:
    """Return what is missing for going on; empty when nothing is."""
    verdict = look.verdict
    if verdict.outcome not in (Outcome.PASS, Outcome.NOT_ENOUGH_EVIDENCE):
        return f"{verdict.outcome.value.replace('_', ' ')}: {verdict.reason}"
    missing = []
    if terms.require_pass and verdict.outcome is not Outcome.PASS:
        missing.append(f"not enough evidence: {verdict.reason}")
    if look.since_shift < terms.bake:
        missing.append(f"at {look.share:g} % for {_text(look.since_shift)} of {_text(terms.bake)}")
    if look.requests_since_shift < terms.min_requests:
        missing.append(f"{look.requests_since_shift} of {terms.min_requests} requests at {look.share:g} %")
    return "; ".join(missing)


def ended(found: "Endpoint | None", terms: GateTerms, problem: str) -> Answer:
    """Return what to do when there is no look because the rollout is not what it was.

    Args:
        found: The endpoint as it is now; None if it is gone.
        terms: What was asked.
        problem: Why the look was refused.
    """
    if found is not None and found.control is not None and found.control.name == terms.version:
        only = len(found.versions) == 1
        return Answer(
            Next.NOTHING_TO_COMPARE,
            f"first version of endpoint {terms.endpoint!r}: nothing to compare {terms.version!r} with"
            if only
            else f"version {terms.version!r} is the control of endpoint {terms.endpoint!r} already: nothing to compare",
        )
    return Answer(Next.CONFLICT, problem)


def unreachable(terms: GateTerms, problem: str, *, now: datetime) -> Answer:
    """Return what to do while the target does not answer: it says nothing about the model."""
    if now - terms.asked < terms.decision_timeout:
        return Answer(Next.WAIT, f"cannot see: {problem}", Outcome.CANNOT_SEE.value)
    return Answer(
        Next.ASK if terms.on_no_decision == "ask" else Next.HOLD,
        f"no decision {_text(now - terms.asked)} after the task began to wait: cannot see: {problem}",
        Outcome.CANNOT_SEE.value,
    )


async def take_look(workspace: Workspace, terms: GateTerms, say: Callable[[str], None]) -> Answer:
    """Look once, report the look as a table, and return what to do. Looks carry no state from one to the next."""
    from controlled_rollout.evaluation import look as looks
    from controlled_rollout.gate import describe
    from controlled_rollout.target.connect import connect

    async with connect(workspace) as target:
        try:
            look = await looks.look(
                workspace,
                target,
                terms.endpoint,
                terms.version,
                gate=terms.gate,
                who=terms.who,
                owner=terms.owner,
                window=terms.window,
            )
        except TargetUnavailableError as error:
            answer = unreachable(terms, str(error), now=datetime.now(UTC))
        except EndpointNotFoundError as error:
            answer = ended(None, terms, str(error))
        except (ConflictError, EndpointError) as error:
            answer = ended(await target.endpoint(terms.endpoint), terms, str(error))
        else:
            answer = decide(look, terms, now=datetime.now(UTC), table=describe(look.verdict))
            say(
                f"{terms.version} at {look.share:g} % for {_text(look.since_shift)}, {look.requests_since_shift} "
                f"requests: {look.verdict.outcome.value.replace('_', ' ')}\n{answer.table}"
            )
    say(f"{answer.next.value.replace('_', ' ')}: {answer.reason}")
    return answer


def _text(length: timedelta) -> str:
    """Write a length of time for people, to the second."""
    return str(timedelta(seconds=round(length.total_seconds())))
