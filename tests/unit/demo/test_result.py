"""How the demo ended, and whether it should have ended so."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.record import Decision
from scripts.demo.load_report import LoadReport, VersionReport
from scripts.demo.result import DemoFacts, conclude, format_e_value, undecided_because
from scripts.demo.settings import Fault

AT = datetime(2026, 1, 5, tzinfo=UTC)
BEFORE = Endpoint(name="digits").create_version("first", is_control=True).create_version("second")
PROMOTED = BEFORE.promote("second")


def decision(step: Any, **more: Any) -> Decision:
    return Decision(time=AT, endpoint="digits", version="second", step=step, who="run", **more)


def look(outcome: str, *claims: dict[str, Any]) -> Decision:
    return decision("look", outcome=outcome, verdict={"claims": list(claims)})


ALARM = {
    "name": "errors are higher",
    "kind": "alarm",
    "reached": True,
    "e_value": 143.2,
    "threshold": 40.0,
    "detail": "5 %",
}
QUIET = {"name": "latency is higher", "kind": "alarm", "reached": False, "e_value": 1.0, "threshold": 40.0}


def report(**failures: int) -> LoadReport:
    versions = {
        name: VersionReport(requests=100, failures={"status 500": failures[name]} if failures.get(name) else {})
        for name in ("first", "second")
    }
    return LoadReport(started=0, written=1, seconds=1, rate=1, finished=True, versions=versions)


GOOD = DemoFacts(
    fault=None,
    outage=False,
    control="first",
    run_state="success",
    decisions=(decision("deploy"), look("pass"), decision("promote")),
    endpoint=PROMOTED,
    report=report(),
    seconds=61.25,
)
ROLLED_BACK = replace(
    GOOD,
    fault=Fault.FAILING,
    run_state="failed",
    decisions=(decision("deploy"), look("fail", ALARM, QUIET), decision("roll_back", reason="errors are higher")),
    endpoint=BEFORE,
    report=report(second=7),
)


def test_summary_of_a_promotion_has_requests_and_failures() -> None:
    result = conclude(GOOD)

    assert result.last_line == "result: promoted second to control in 61.2 s; 200 requests, 0 failed"
    assert result.as_expected


def test_summary_of_a_roll_back_has_the_claim_and_its_e_value() -> None:
    result = conclude(ROLLED_BACK)

    assert result.last_line == "result: rolled back second: errors are higher, e-value 143 of 40.00"
    assert result.evidence == "errors are higher: 5 %"
    assert result.counts == "counts: first 100 requests, 0 failed; second 100 requests, 7 failed (7 × status 500)"
    assert result.as_expected


def test_summary_of_a_version_that_never_became_ready_has_the_reason() -> None:
    reason = "version 'second' of endpoint 'digits' did not become ready: exit code 3;\n  failed 3 times"
    result = conclude(
        replace(ROLLED_BACK, fault=Fault.CRASH, decisions=(decision("roll_back", reason=reason),), report=report())
    )

    assert result.last_line == "result: rolled back second: did not become ready: exit code 3; failed 3 times"
    assert result.as_expected


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        (replace(GOOD, report=report(first=1)), "1 requests failed"),
        (replace(GOOD, report=report(second=1)), "1 requests failed"),
        (replace(GOOD, run_state="failed"), "the run of the DAG ended as 'failed'"),
        (replace(GOOD, fault=Fault.SLOW), "the control is 'second' and not 'first'"),
        (replace(GOOD, outage=True), "no look had the outcome cannot_see"),
        (replace(GOOD, report=LoadReport(started=0, written=1, seconds=1, rate=1)), "no request was answered"),
        (replace(ROLLED_BACK, fault=None, report=report()), "the control is 'first' and not 'second'"),
        (
            replace(ROLLED_BACK, report=report(first=2, second=7)),
            "2 requests failed that were not sent to the treatment",
        ),
        (
            replace(ROLLED_BACK, endpoint=BEFORE.update_version("second", traffic_percentile=10)),
            "'first' has 90 % of the traffic, not 100",
        ),
        (
            replace(ROLLED_BACK, endpoint=BEFORE.claim("second", owner="run", at=AT)),
            "the endpoint is still held by run",
        ),
        (
            replace(GOOD, decisions=(decision("deploy"), decision("hold")), endpoint=BEFORE, run_state="failed"),
            "neither promoted nor rolled back: the run of the DAG ended as 'failed'",
        ),
        (
            replace(ROLLED_BACK, decisions=(), run_state="failed"),
            "neither promoted nor rolled back: the run of the DAG ended as 'failed'",
        ),
    ],
)
def test_unexpected_outcome_is_reported(facts: DemoFacts, text: str) -> None:
    result = conclude(facts)

    assert text in result.last_line
    assert result.last_line.startswith("result: ")
    assert "\n" not in result.last_line
    assert not result.as_expected


STALE = "control's p50 from before the rollout says nothing about its present latency; roll out anew for a new baseline"
UNDECIDED = (
    decision("deploy"),
    decision("look", outcome="not_enough_evidence", reason=STALE, verdict={"claims": [], "needs_new_rollout": [STALE]}),
    decision("roll_back", reason=f"no decision 20 s after the split was set (waiting longer cannot help): {STALE}"),
)


def test_a_rollout_is_undecided_if_it_was_taken_back_because_only_a_new_one_helps() -> None:
    assert undecided_because(UNDECIDED) == STALE.partition(";")[0]
    assert not undecided_because(UNDECIDED[:2])
    assert not undecided_because((*UNDECIDED, decision("promote")))
    assert not undecided_because(ROLLED_BACK.decisions)
    assert not undecided_because((UNDECIDED[1], look("fail", ALARM), UNDECIDED[2]))


def test_promotion_by_a_second_rollout_says_that_it_is_one() -> None:
    result = conclude(replace(GOOD, anew="rolled out anew, once"))

    assert (result.evidence, result.as_expected) == ("rolled out anew, once", True)


def test_a_second_rollout_without_a_decision_says_what_to_do() -> None:
    undecided = replace(GOOD, run_state="failed", decisions=UNDECIDED, endpoint=BEFORE, anew="rolled out anew, once")

    assert "(the second time: run the demo again" in conclude(undecided).last_line
    assert not conclude(undecided).as_expected


def test_outage_that_a_look_has_noticed_is_expected() -> None:
    facts = replace(GOOD, outage=True, decisions=(look("cannot_see"), *GOOD.decisions))

    assert conclude(facts).as_expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1.00"), (143.2, "143"), (12345.6, "12,346"), (3.2e9, "3.2e+09"), ("Infinity", "infinite")],
)
def test_e_values_are_short(value: float | str, text: str) -> None:
    assert format_e_value(value) == text
