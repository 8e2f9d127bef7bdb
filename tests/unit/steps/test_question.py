"""What a person is asked: whether the gate has decided, by the record of this rollout at its present share."""

from datetime import timedelta
from pathlib import Path

import pytest

from controlled_rollout import record
from controlled_rollout.gate import Outcome, Verdict, verdict_to_dict
from controlled_rollout.record import Decision
from controlled_rollout.steps import question
from controlled_rollout.steps.question import Question, question_about, read_question
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget
from tests.unit.steps.test_permission import AT_10, AT_50, NOT_ABOUT_THIS, NOW, OTHER, ROLLOUT, RUN, fact, history

VERDICT = Verdict(Outcome.NOT_ENOUGH_EVIDENCE, reason="too few requests", treatment_requests=7)


def look(*, minutes: int = 0, at: int = 4, reason: str = "too few requests") -> Decision:
    return fact(
        "look", at=at, outcome="not_enough_evidence", reason=reason, time=NOW + timedelta(minutes=minutes),
        verdict=verdict_to_dict(VERDICT),
    )  # fmt: skip


def question_after(*oldest_first: Decision, owner: str | None = RUN) -> Question:
    return question_about(ROLLOUT, reversed(oldest_first), "v2a", owner)


def test_gate_that_let_the_rollout_go_on_from_this_share_has_decided() -> None:
    assert question_after(look(), fact(reason="errors are not worse")).decided == "pass: errors are not worse"
    assert question_after(fact(), owner=None).decided
    assert not question_after(fact(), owner=OTHER).decided


@pytest.mark.parametrize("lines", NOT_ABOUT_THIS.values(), ids=NOT_ABOUT_THIS)
def test_whatever_else_the_record_says_a_person_is_asked(lines: list[Decision]) -> None:
    assert not question_after(*lines).decided


def test_an_approval_of_an_earlier_question_is_no_decision_of_the_gate() -> None:
    assert not question_after(fact("approve")).decided


def test_version_that_is_control_needs_no_question() -> None:
    assert "is the control already" in question_about(history(AT_50.promote("v2a")), [], "v2a", RUN).decided


def test_the_newest_look_of_this_rollout_is_shown() -> None:
    shown = question_after(look(reason="older"), look(minutes=1))
    assert shown.reason == "At 50 %, the look of 2026-01-05 12:01:00 UTC found: not enough evidence: too few requests."
    assert "treatment 7 requests" in shown.table
    before = look().model_copy(update={"time": NOW - timedelta(days=1), "verdict": None})
    assert question_after(before) == Question("", "The gate has not looked at version 'v2a' at 50 % in this rollout.")


def test_without_a_rollout_the_gate_of_a_version_by_hand_counts() -> None:
    by_hand = [AT_10.release("v2a"), AT_50.release("v2a")]
    going_on = fact(at=2, of=history(*by_hand))
    assert question_about(history(*by_hand), [going_on], "v2a", None).decided
    assert not question_about(history(*by_hand), [going_on], "v2a", RUN).decided


async def test_endpoint_and_record_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, workspace = MemoryTarget(), Workspace.local(tmp_path)
    monkeypatch.setattr(question, "connect", target.open)
    for number, endpoint in enumerate((AT_10, AT_50)):
        stored = await target.apply(endpoint.model_copy(update={"revision": number}), ROLLOUT[0].change)
    record.append(
        workspace, Decision.about(stored, "v2a", step="go_on", who="weekly/gate", outcome="pass", reason="good")
    )
    assert (await read_question(workspace, "digits", "v2a", RUN)).decided == "pass: good"
