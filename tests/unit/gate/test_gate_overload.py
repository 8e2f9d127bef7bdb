"""Requests that a version has refused because it had no room: no fault of its model, and no pass either."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate import Bin, Counts, Gate, Verdict, judge
from controlled_rollout.gate.model import UserCounts
from tests.unit.gate.rollouts import BEGIN, MINUTE

GATE = Gate(latency_quantiles=(0.5, 0.9))
AS_ERRORS = Gate(latency_quantiles=(0.5, 0.9), overload="fail")
BEFORE = [Bin(BEGIN - index * MINUTE, Counts(300, 1, (150, 30)), Counts(0, 0, (0, 0))) for index in range(1, 61)]


def bins(number: int, treatment: Counts, control: Counts | None = None, *, first: int = 0) -> list[Bin]:
    """Return alike bins at half of the traffic, 300 requests to each version; control is healthy unless given."""
    control = control or Counts(300, 1, (150, 30))
    return [Bin(BEGIN + (first + index) * MINUTE, control, treatment, 0.5) for index in range(number)]


def reached_claims(verdict: Verdict) -> set[str]:
    return {claim.name for claim in verdict.claims if claim.reached}


def test_a_version_without_room_is_held_and_not_blamed() -> None:
    # A fifth is refused, and what is not has waited in the queue.
    crowded = bins(60, Counts(300, 1, (239, 200), overloaded=60))

    verdict = judge(crowded, GATE, baseline=BEFORE)

    assert verdict.outcome == "not_enough_evidence"
    assert "20 % of the treatment's newest requests were refused because it had no room" in verdict.reason
    assert verdict.waits
    assert "latency is not judged in 60 bins" in verdict.reason
    assert not reached_claims(verdict) & {"errors are higher", "latency is higher", "split is wrong"}
    assert verdict.treatment_requests == 60 * 300


def test_an_author_may_have_a_version_without_room_fail() -> None:
    crowded = bins(60, Counts(300, 1, (150, 30), overloaded=60))

    verdict = judge(crowded, AS_ERRORS, baseline=BEFORE)

    assert verdict.outcome == "fail"
    assert "errors are higher" in verdict.reason


def test_a_model_that_fails_fails_however_many_requests_are_refused() -> None:
    # A model that hangs keeps its slots: hardly anything is scored, and that fails.
    hanging = bins(60, Counts(300, 3, (3, 3), overloaded=297))

    verdict = judge(hanging, GATE, baseline=BEFORE)

    assert verdict.outcome == "fail"
    assert "errors are higher" in verdict.reason


def test_a_version_that_has_room_again_passes_once_that_is_shown() -> None:
    crowded = bins(2, Counts(300, 0, (200, 100), overloaded=60))
    healthy = bins(120, Counts(300, 1, (150, 30)), first=2)

    soon = judge([*crowded, *healthy[:4]], GATE, baseline=BEFORE)
    later = judge([*crowded, *healthy], GATE, baseline=BEFORE)

    assert soon.outcome == "not_enough_evidence"
    assert "requests refused for lack of room are below 5 %" in soon.reason
    assert not soon.waits
    assert later.outcome == "pass"
    assert "requests refused for lack of room are below 5 %" in reached_claims(later)


def test_a_version_that_has_refused_nothing_has_nothing_to_show() -> None:
    verdict = judge(bins(120, Counts(300, 1, (150, 30))), GATE, baseline=BEFORE)

    assert verdict.outcome == "pass"
    assert not [claim for claim in verdict.claims if "lack of room" in claim.name]


def test_what_control_refuses_makes_no_treatment_better() -> None:
    # 2 % errors are four times control's, which refuses a third besides.
    control = Counts(300, 1, (130, 27), overloaded=100)

    verdict = judge(bins(120, Counts(300, 6, (150, 30)), control), GATE, baseline=BEFORE)

    assert verdict.outcome == "fail"
    assert "errors are higher" in verdict.reason


def test_an_author_may_allow_refusals() -> None:
    gate = Gate(latency_quantiles=(), max_overload_rate=1.0)

    verdict = judge(bins(120, Counts(300, 1, overloaded=60), Counts(300, 1)), gate)

    assert verdict.outcome == "pass"


def test_room_is_a_matter_of_requests_where_users_are_the_unit() -> None:
    users = (UserCounts(users=30, errors=0, slow=(15, 3)),)
    treatment = Counts(300, 1, (150, 30), overloaded=60, users=users)

    verdict = judge(
        bins(60, treatment, Counts(300, 1, (150, 30), users=users)), Gate(latency_quantiles=(0.5, 0.9), unit="user")
    )

    assert verdict.outcome == "not_enough_evidence"
    assert "requests were refused because it had no room" in verdict.reason
    with pytest.raises(ValidationError, match="leave one out"):
        Gate(unit="user", overload="fail")


@pytest.mark.parametrize("overloaded", [-1, 300, 2**60])
def test_more_refusals_than_there_can_be_are_refused(overloaded: int) -> None:
    impossible = replace(
        bins(1, Counts(300, 1, (150, 30)))[0], treatment=Counts(300, 1, (150, 30), overloaded=overloaded)
    )

    with pytest.raises(EvidenceError, match="overloaded"):
        judge([impossible], GATE)
