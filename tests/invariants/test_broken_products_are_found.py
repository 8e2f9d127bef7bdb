"""The invariants find faults: with one rule of the product switched off, a short sequence breaks one of them."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from controlled_rollout import steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.evaluation import conclusion, next_action
from controlled_rollout.evaluation import look as looks
from controlled_rollout.gate import Outcome, Verdict
from controlled_rollout.steps import edits, permission, rules, silence
from controlled_rollout.target import silence_checks
from controlled_rollout.target.silence import Observation, Signs, SilenceCheck, check_silence
from tests.invariants.events import Event
from tests.invariants.invariants import Violation
from tests.invariants.sequences import replay_sequence

BROKEN_FROM_THE_START: tuple[Event, ...] = (("start_run", "two", 0), ("errors", "two", 1.0), ("tick", 3), ("tick", 18))


def _without_failing(look: Any) -> Verdict:
    """Conclude as the gate does, but never that a treatment fails."""
    verdict = conclusion.conclude_but_aggregates(look)
    return Verdict(Outcome.NOT_ENOUGH_EVIDENCE) if verdict.outcome is Outcome.FAIL else verdict


def _kept_share(endpoint: Endpoint, version: str, *, owner: str | None) -> Endpoint:
    """Release the endpoint, and leave the version its share."""
    return endpoint.release(version)


def _nothing_due(signs: Signs, before: Observation | None, **arguments: Any) -> SilenceCheck:
    """Check as the watch does, but never that a treatment is due."""
    return SilenceCheck(check_silence(signs, before, **arguments).observation)


def _never(*args: Any, **kwargs: Any) -> None:
    """Find no reason against anything."""


CASES: dict[str, tuple[Any, str, Any, tuple[Event, ...], str]] = {
    "a promotion that asks for no permission": (
        permission, "reason_not_to_promote", _never,
        (("start_run", "two", 5), ("tick", 1), ("mark", 0, "gate_50", "success")), "promoted",
    ),
    "a shift that asks for no permission": (
        permission, "reason_not_to_shift", _never,
        (("start_run", "two", 5), ("tick", 1), ("mark", 0, "gate_10", "success")), "raised",
    ),
    "a task for people that promotes what its own run rolls out": (
        permission, "owner_in_run", _never,
        (("start_run", "two", 5), ("tick", 1), ("task_for_people", 0, "promote", "two")), "promoted",
    ),
    "a roll-back of what somebody else has ended": (
        rules, "reason_not_to_roll_back", _never,
        (("start_run", "two", 4), ("tick", 2), ("command", "roll_back", "two")), "two owners",
    ),
    "a shift that an outage fails": (
        steps, "OUTAGE_TIMEOUT", timedelta(0),
        (("start_run", "two", 0), ("tick", 3), ("scheduler_busy", 30.0), ("target_away", 2000.0), ("tick", 5)),
        "outage",
    ),
    "a look that never fails": (
        looks, "conclude_but_aggregates", _without_failing, BROKEN_FROM_THE_START, "nobody looks",
    ),
    "a watch that takes nothing back": (
        silence_checks, "check_silence", _nothing_due,
        (("start_run", "two", 0), ("tick", 1), ("airflow_gone", 200.0), ("tick", 12)), "silence",
    ),
    "a watch that does not see looks": (
        (silence, silence_checks), "Signs", lambda newest, looked: Signs(newest),
        (("start_run", "two", 0), ("tick", 1), ("quiet", True), ("tick", 9)), "taken back",
    ),
    "a roll-back that leaves the share": (edits, "roll_back", _kept_share, BROKEN_FROM_THE_START, "run-1/roll_back"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_fault_breaks_an_invariant(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, fault, events, kind = CASES[case]
    for place in module if isinstance(module, tuple) else (module,):
        monkeypatch.setattr(place, name, fault)
    with pytest.raises(Violation, match=rf"^{kind}"):
        replay_sequence(events)


def test_a_failing_look_without_consequence_breaks_an_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    decide: Callable[..., next_action.LookResult] = next_action.decide

    def waiting(look: looks.Look, terms: next_action.GateTerms, **arguments: Any) -> next_action.LookResult:
        """Decide as the gate does, but wait after a look that failed."""
        result = decide(look, terms, **arguments)
        fails = result.action is next_action.NextAction.FAIL
        return next_action.LookResult(next_action.NextAction.WAIT, result.reason) if fails else result

    monkeypatch.setattr(next_action, "decide", waiting)
    with pytest.raises(Violation, match=r"^alarm"):
        replay_sequence(BROKEN_FROM_THE_START)
