import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.evaluation.look import Look
from controlled_rollout.evaluation.next_action import (
    GateTerms,
    LookResult,
    NextAction,
    decide,
    decide_after_conflict,
    decide_after_error,
    decide_when_unreachable,
)
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Claim, Gate, Outcome, Verdict
from controlled_rollout.rollout import Rollout

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def terms(**changes: Any) -> GateTerms:
    return GateTerms(
        **{
            "endpoint": "digits",
            "version": "v2a",
            "who": "dag/run/gate",
            "owner": "dag/run",
            "gate": Gate(),
            "bake": 10 * MINUTE,
            "min_requests": 100,
            "require_pass": True,
            "decision_timeout": 60 * MINUTE,
            "on_deadline": "hold",
            "interval": MINUTE,
            "window": EvidenceWindow(bin_width=MINUTE, allowed_lag=MINUTE, baseline_length=MINUTE),
            "waiting_since": NOW - 30 * MINUTE,
            **changes,
        }
    )


def look(
    outcome: str,
    *,
    since: timedelta = 30 * MINUTE,
    requests: int = 1000,
    seen: timedelta | None = None,
    claims: tuple[Claim, ...] = (),
    resumed: datetime | None = None,
) -> Look:
    verdict = Verdict(Outcome(outcome), claims, reason=f"because of {outcome}")
    return Look(
        verdict,
        started=NOW - since,
        since_shift=since,
        seen_at_share=since if seen is None else seen,
        requests_at_share=requests,
        share=10.0,
        document=Endpoint(
            name="digits", rollout=Rollout(version="v2a", owner="dag/run", started=NOW - since, resumed=resumed)
        ),
    )


def test_passed_verdict_continues() -> None:
    assert decide(look("pass"), terms(), now=NOW).action is NextAction.GO_ON


@pytest.mark.parametrize("on_deadline", ["hold", "roll_back"])
def test_pass_that_cannot_be_recorded_waits_and_in_the_end_holds(on_deadline: str) -> None:
    problem, of = "it cannot be recorded", terms(on_deadline=on_deadline)
    assert decide(look("pass"), of, now=NOW, record_problem=problem).action is NextAction.WAIT
    late = decide(look("pass", since=60 * MINUTE), of, now=NOW, record_problem=problem)
    assert (late.action, late.reason.endswith(problem)) == (NextAction.HOLD, True)
    assert decide(look("fail"), of, now=NOW, record_problem=problem).action is NextAction.FAIL


def test_failed_verdict_fails_at_once_with_its_reason() -> None:
    result = decide(look("fail", since=MINUTE, requests=0), terms(), now=NOW)
    assert (result.action, result.reason) == (NextAction.FAIL, "because of fail")


@pytest.mark.parametrize(("since", "requests"), [(9 * MINUTE, 1000), (30 * MINUTE, 99)])
def test_passed_verdict_waits_for_the_time_and_the_requests_of_its_step(since: timedelta, requests: int) -> None:
    assert decide(look("pass", since=since, requests=requests), terms(), now=NOW).action is NextAction.WAIT


def test_an_intermediate_step_needs_no_pass_but_its_time_and_requests() -> None:
    assert decide(look("not_enough_evidence"), terms(), now=NOW).action is NextAction.WAIT
    easy = terms(require_pass=False)
    assert decide(look("not_enough_evidence"), easy, now=NOW).action is NextAction.GO_ON
    early = decide(look("not_enough_evidence", since=4 * MINUTE, requests=7), easy, now=NOW)
    assert early.action is NextAction.WAIT
    assert "4 min of 10 min seen" in early.reason
    assert "7 of 100 requests" in early.reason


def test_a_step_bakes_in_evidence_that_was_seen_not_in_time_that_passed() -> None:
    easy = terms(require_pass=False, min_requests=0, bake=2 * MINUTE)

    assert decide(look("not_enough_evidence", seen=2 * MINUTE, requests=7), easy, now=NOW).action is NextAction.GO_ON
    unseen = decide(look("not_enough_evidence", seen=MINUTE, requests=7), easy, now=NOW)
    assert unseen.action is NextAction.WAIT
    assert "1 min of 2 min seen at 10 %" in unseen.reason
    assert "bins" not in unseen.reason


def test_while_nothing_is_seen_the_reason_says_when_requests_begin_to_count() -> None:
    wait = decide(look("not_enough_evidence", seen=timedelta(0), requests=0), terms(), now=NOW)

    assert (
        "0 s of 10 min seen at 10 % (requests count in bins of 1 min, and a bin once it ended 1 min ago" in wait.reason
    )


@pytest.mark.parametrize("outcome", ["pass", "not_enough_evidence"])
def test_no_step_goes_on_before_a_request_at_its_share_was_seen(outcome: str) -> None:
    nothing = decide(look(outcome, requests=0), terms(require_pass=False, min_requests=0, bake=timedelta(0)), now=NOW)

    assert nothing.action is NextAction.WAIT
    assert "0 of 1 requests seen" in nothing.reason


@pytest.mark.parametrize("require_pass", [True, False])
def test_a_step_waits_while_an_alarm_is_near_and_goes_on_when_it_is_no_longer(require_pass: bool) -> None:
    def decided_after(present: float) -> LookResult:
        claim = Claim("errors are higher", "alarm", 39.0, 40.0, False, detail="2 %", present=present)
        return decide(look("pass", claims=(claim,)), terms(require_pass=require_pass), now=NOW)

    assert decided_after(3.9).action is NextAction.GO_ON
    assert decided_after(4.0).action is NextAction.WAIT
    assert "an alarm is near: errors are higher, e-value 4 of 40 now (2 %)" in decided_after(4.0).reason


def test_no_step_goes_on_with_a_broken_treatment_or_control() -> None:
    seen = look("not_enough_evidence")
    broken = replace(seen, verdict=replace(seen.verdict, waits=("control itself is broken",)))

    result = decide(broken, terms(require_pass=False), now=NOW)

    assert (result.action, result.reason) == (NextAction.WAIT, "control itself is broken")


@pytest.mark.parametrize("outcome", ["cannot_see", "split_is_wrong"])
@pytest.mark.parametrize("require_pass", [True, False])
def test_missing_evidence_and_a_wrong_split_never_continue(outcome: str, require_pass: bool) -> None:
    result = decide(look(outcome), terms(require_pass=require_pass), now=NOW)
    assert result.action is NextAction.WAIT
    assert outcome.replace("_", " ") in result.reason


def test_the_decision_timeout_counts_from_the_shift_so_that_a_retry_does_not_move_it() -> None:
    late = look("not_enough_evidence", since=60 * MINUTE)
    assert decide(late, terms(waiting_since=NOW), now=NOW).action is NextAction.HOLD
    assert decide(look("not_enough_evidence", since=59 * MINUTE), terms(), now=NOW).action is NextAction.WAIT


def test_the_author_may_roll_back_after_the_decision_timeout_if_the_evidence_was_seen() -> None:
    late = terms(on_deadline="roll_back")
    assert decide(look("not_enough_evidence", since=61 * MINUTE), late, now=NOW).action is NextAction.FAIL
    assert decide(look("pass", since=61 * MINUTE, requests=5), late, now=NOW).action is NextAction.FAIL


def in_vain(since: int, *, seen: int | None = None, waits: tuple[str, ...] = (), **changes: Any) -> Look:
    stale = "control's p50 says nothing"
    of = look("not_enough_evidence", since=since * MINUTE, seen=None if seen is None else seen * MINUTE, **changes)
    verdict = replace(of.verdict, waits=waits, no_pass=(stale,), needs_new_rollout=(*waits, stale), reason=stale)
    return replace(of, verdict=verdict)


@pytest.mark.parametrize(
    ("on_deadline", "action"),
    [("hold", NextAction.HOLD), ("roll_back", NextAction.FAIL), ("ask", NextAction.ASK)],
)
def test_a_gate_that_waits_in_vain_does_what_its_deadline_says_after_its_bake_and_the_baselines_length(
    on_deadline: str, action: NextAction
) -> None:
    of = terms(on_deadline=on_deadline)  # 10 min and 1 min; decision_timeout is 60 min

    assert decide(in_vain(10), of, now=NOW).action is NextAction.WAIT
    result = decide(in_vain(11), of, now=NOW)
    assert result.action is action
    assert result.reason == (
        "no decision 11 min after the split was set (waiting longer cannot help): not enough evidence: "
        "control's p50 says nothing"
    )


def test_a_gate_waits_in_vain_only_as_long_as_it_sees_and_anew_after_a_hold_was_cleared() -> None:
    assert decide(in_vain(30, seen=10), terms(), now=NOW).action is NextAction.WAIT
    for since, action in ((10, NextAction.WAIT), (11, NextAction.HOLD)):
        assert decide(in_vain(30, resumed=NOW - since * MINUTE), terms(), now=NOW).action is action


def test_a_step_without_a_pass_waits_in_vain_only_for_what_keeps_every_step_back() -> None:
    easy = terms(require_pass=False)
    assert decide(in_vain(30), easy, now=NOW).action is NextAction.GO_ON
    assert decide(in_vain(30, waits=("nothing to compare with",)), easy, now=NOW).action is NextAction.HOLD


@given(
    outcome=st.sampled_from(["cannot_see", "split_is_wrong"]),
    minutes=st.integers(0, 10**6),
    requests=st.integers(0, 10**6),
    require_pass=st.booleans(),
    on_deadline=st.sampled_from(["hold", "roll_back"]),
)
def test_an_outage_of_any_length_neither_passes_nor_rolls_back(
    outcome: str, minutes: int, requests: int, require_pass: bool, on_deadline: str
) -> None:
    result = decide(
        look(outcome, since=minutes * MINUTE, requests=requests),
        terms(require_pass=require_pass, on_deadline=on_deadline),
        now=NOW,
    )
    assert result.action in (NextAction.WAIT, NextAction.HOLD)


@given(
    outcome=st.sampled_from(["pass", "not_enough_evidence", "cannot_see", "split_is_wrong"]),
    minutes=st.integers(0, 10**6),
    on_deadline=st.sampled_from(["hold", "roll_back", "ask"]),
)
def test_while_a_person_is_asked_only_an_alarm_decides(outcome: str, minutes: int, on_deadline: str) -> None:
    asked = terms(only_alarms=True, on_deadline=on_deadline, waiting_since=NOW - minutes * MINUTE)
    assert decide(look(outcome, since=minutes * MINUTE), asked, now=NOW).action is NextAction.WAIT
    assert decide(look("fail", since=minutes * MINUTE), asked, now=NOW).action is NextAction.FAIL
    for error in (TimeoutError("no socket"), TypeError("a fault")):
        assert decide_after_error(asked, error, now=NOW).action is NextAction.WAIT


def test_clearing_a_gate_on_hold_restarts_its_decision_timeout() -> None:
    for since, action in ((5, NextAction.WAIT), (60, NextAction.HOLD)):
        late = look("not_enough_evidence", since=600 * MINUTE, resumed=NOW - since * MINUTE)
        assert decide(late, terms(), now=NOW).action is action


def test_a_hold_of_an_earlier_step_does_not_lengthen_a_later_one() -> None:
    before = NOW - 500 * MINUTE
    assert decide(look("not_enough_evidence", resumed=before), terms(), now=NOW).action is NextAction.WAIT
    assert decide(look("pass", resumed=before), terms(), now=NOW).action is NextAction.GO_ON
    late = look("not_enough_evidence", since=60 * MINUTE, resumed=before)
    assert decide(late, terms(), now=NOW).action is NextAction.HOLD


def test_a_target_that_does_not_answer_is_waited_for_and_then_held() -> None:
    assert decide_when_unreachable(terms(), "no socket", now=NOW).action is NextAction.WAIT
    held = decide_when_unreachable(
        terms(waiting_since=NOW - 60 * MINUTE, on_deadline="roll_back"), "no socket", now=NOW
    )
    assert held.action is NextAction.HOLD
    assert "no socket" in held.reason


def test_the_first_version_has_nothing_to_be_compared_with() -> None:
    first = Endpoint(name="digits").create_version("v2a", is_control=True)
    result = decide_after_conflict(first, terms(), "nobody holds it")
    assert result.action is NextAction.NOTHING_TO_COMPARE
    assert result.reason.startswith("first version")


def test_version_promoted_meanwhile_has_no_control_to_compare_with() -> None:
    promoted = Endpoint(name="digits").create_version("v1a", is_control=True).create_version("v2a").promote("v2a")
    result = decide_after_conflict(promoted, terms(), "nobody holds it")
    assert result.action is NextAction.NOTHING_TO_COMPARE
    assert "control" in result.reason


def test_rollout_ended_by_another_owner_is_a_conflict() -> None:
    endpoint = Endpoint(name="digits").create_version("v1a", is_control=True).create_version("v2a")
    taken = endpoint.claim("v3a", owner="other/run", at=NOW)
    for present in (endpoint, taken, None):
        assert decide_after_conflict(present, terms(), "other/run holds it") == LookResult(
            NextAction.CONFLICT, "other/run holds it"
        )


def test_look_result_survives_strict_json() -> None:
    result = decide(look("fail"), terms(), now=NOW, table="claim  inf")
    event = json.loads(json.dumps(result.to_event(), allow_nan=False))
    assert LookResult.from_event(event) == result


def test_terms_survive_json() -> None:
    asked = terms(gate=Gate(alpha=0.01, warm_up=5 * MINUTE, burst_cap=3.0))
    carried = json.loads(json.dumps(asked.model_dump(mode="json"), allow_nan=False))
    assert GateTerms.model_validate(carried) == asked
