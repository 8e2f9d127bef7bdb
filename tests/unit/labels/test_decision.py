"""What follows from a look at labels, and which version it is about."""

from datetime import UTC, datetime, timedelta

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import EndpointError, NothingToDoError
from controlled_rollout.gate import Outcome
from controlled_rollout.labels.decision import (
    Comparison,
    LabelAction,
    comparison_of,
    decide,
    is_taken_back_by,
    version_to_judge,
    was_control_before,
)
from controlled_rollout.target.protocol import Change, Revision

START = datetime(2026, 1, 5, tzinfo=UTC)
TWO_WEEKS = timedelta(days=14)


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def history(*states: tuple[float, Endpoint, str]) -> list[Revision]:
    return [
        Revision(number=number, endpoint=endpoint, change=Change(who=who), created=day(at))
        for number, (at, endpoint, who) in enumerate(states, start=1)
    ]


FIRST = Endpoint(name="digits").create_version("old", is_control=True)
CANARY = FIRST.create_version("new", traffic_percentile=10)
PROMOTED = CANARY.promote("new")
LIVE = history((0, FIRST, "weekly/1"), (1, CANARY, "weekly/2"), (2, PROMOTED, "weekly/2"))


@pytest.mark.parametrize("waited", [0, 30])
@pytest.mark.parametrize("on_deadline", ["keep", "roll_back", "ask"])
def test_what_the_labels_have_shown_is_done_at_any_time(waited: float, on_deadline: str) -> None:
    for outcome, action in ((Outcome.FAIL, LabelAction.ROLL_BACK), (Outcome.PASS, LabelAction.CONFIRM)):
        decision = decide(
            outcome, "why", waited=timedelta(days=waited), decision_timeout=TWO_WEEKS, on_deadline=on_deadline
        )
        assert (decision.action, decision.reason) == (action, "why")


@pytest.mark.parametrize(
    ("outcome", "on_deadline", "action"),
    [
        (Outcome.NOT_ENOUGH_EVIDENCE, "keep", LabelAction.KEEP),
        (Outcome.NOT_ENOUGH_EVIDENCE, "roll_back", LabelAction.ROLL_BACK),
        (Outcome.NOT_ENOUGH_EVIDENCE, "ask", LabelAction.ASK),
        # An outage, and requests that are labelled otherwise, say nothing about the model.
        (Outcome.CANNOT_SEE, "roll_back", LabelAction.KEEP),
        (Outcome.SPLIT_IS_WRONG, "roll_back", LabelAction.KEEP),
        (Outcome.CANNOT_SEE, "ask", LabelAction.ASK),
    ],
)
def test_without_a_decision_in_time_the_author_has_chosen(
    outcome: Outcome, on_deadline: str, action: LabelAction
) -> None:
    early, late = (
        decide(outcome, "few labels", waited=waited, decision_timeout=TWO_WEEKS, on_deadline=on_deadline)
        for waited in (timedelta(days=13), timedelta(days=14, seconds=5))
    )
    assert early.action is LabelAction.WAIT
    assert late.action is action
    assert "no decision after 14 d (decision_timeout 14 d)" in late.reason
    assert "few labels" in late.reason


def test_without_a_name_the_control_of_when_the_run_began_is_judged_whatever_is_control_later() -> None:
    later = [*LIVE, *history((9, PROMOTED.create_version("third").promote("third"), "weekly/3"))]
    for revisions in (LIVE, later):
        assert version_to_judge(revisions, None, began=day(5)) == "new"
    assert version_to_judge(LIVE, None, began=day(-1)) == "old"
    assert version_to_judge(LIVE, "old", began=day(5)) == "old"
    with pytest.raises(EndpointError, match="has no version 'other'"):
        version_to_judge(LIVE, "other", began=day(5))
    with pytest.raises(EndpointError, match="had no control at 2026-01-10"):
        version_to_judge(history((0, Endpoint(name="digits"), "a")), None, began=day(5))


def test_a_version_is_judged_by_the_requests_of_the_time_in_which_it_shared_the_traffic() -> None:
    assert comparison_of(LIVE, "new", began=day(20)) == Comparison("old", day(1), day(2), waits_since=day(20))
    assert comparison_of(LIVE, "new", began=day(0.5)).waits_since == day(2)


def test_a_canary_is_judged_by_the_requests_before_the_run_began_at_each_of_its_looks() -> None:
    canary = LIVE[:2]
    assert comparison_of(canary, "new", began=day(9)) == Comparison("old", day(1), day(9), waits_since=day(9))
    assert comparison_of(canary, "new", began=day(0.5)) == Comparison("old", day(1), day(1), waits_since=day(1))


def test_a_version_that_shared_no_traffic_or_has_none_any_more_is_not_judged() -> None:
    with pytest.raises(EndpointError, match="never had a part of the traffic beside a control"):
        comparison_of(LIVE, "old", began=day(5))
    replaced = [*LIVE, *history((9, PROMOTED.create_version("third").promote("third"), "weekly/3"))]
    with pytest.raises(NothingToDoError, match="has no traffic any more: there is nothing to decide"):
        comparison_of(replaced, "new", began=day(5))


def test_a_version_that_this_run_has_taken_back_is_known_after_a_restart() -> None:
    back = Revision(number=4, endpoint=PROMOTED.promote("old"), change=Change(who="judge/1/judge"), created=day(9))
    retired = Revision(number=5, endpoint=back.endpoint, change=Change(who="somebody"), created=day(10))

    assert is_taken_back_by([*LIVE, back], "new", "judge/1") == back
    assert is_taken_back_by([*LIVE, back, retired], "new", "judge/1") == back
    assert is_taken_back_by([*LIVE, back], "new", "judge/12") is None
    assert is_taken_back_by(LIVE, "new", "judge/1") is None
    assert was_control_before([*LIVE, back, retired], "new", back)
    assert was_control_before(LIVE, "new", None)
    assert not was_control_before(LIVE[:2], "new", None)
    assert not was_control_before([back], "new", back)
