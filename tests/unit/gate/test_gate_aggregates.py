"""Expectations about all rows together: what they do to a verdict once they were evaluated, and before."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controlled_rollout.gate import (
    AggregateResult,
    Aggregates,
    Bin,
    Counts,
    Gate,
    Outcome,
    Verdict,
    cannot_see,
    judge,
    with_aggregates,
)

T0 = datetime(2026, 1, 5, tzinfo=UTC)
MEAN = {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "predictions.score", "max_value": 0.5}}
NULL = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "predictions.score"}}
PASSED = Verdict(Outcome.PASS, reason="all is well")


def gate(*expectations: dict[str, Any], **more: Any) -> Gate:
    return Gate.model_validate({"expectations": {"expectations": [*(expectations or (MEAN,))]}, **more})


def aggregates_found(treatment: bool | None, control: bool | None) -> Aggregates:
    text = {True: "observed 0.4", False: "observed 0.9", None: "there is no column 'score'"}
    result = AggregateResult("mean", treatment, control, text[treatment], text[control])
    return Aggregates(T0, T0, T0 + timedelta(minutes=5), (result,))


def test_before_they_are_evaluated_nothing_passes_and_no_step_goes_on() -> None:
    verdict = with_aggregates(PASSED, gate(), None)

    assert verdict.outcome is Outcome.NOT_ENOUGH_EVIDENCE
    assert verdict.waits == ("1 expectation about all rows together: evaluated once, when all else lets go on",)


@pytest.mark.parametrize(
    ("treatment", "control", "against", "outcome", "says"),
    [
        (True, True, "control", Outcome.PASS, "all is well"),
        (True, False, "control", Outcome.PASS, "all is well"),
        (False, True, "control", Outcome.NOT_ENOUGH_EVIDENCE, "mean: treatment observed 0.9, control observed 0.4"),
        (False, False, "control", Outcome.PASS, "all is well; fulfilled by neither version"),
        (None, True, "control", Outcome.CANNOT_SEE, "treatment there is no column 'score'"),
        (True, None, "control", Outcome.CANNOT_SEE, "control there is no column 'score'"),
        (False, None, "control", Outcome.CANNOT_SEE, "could not be evaluated"),
        (True, None, "allowed", Outcome.PASS, "all is well"),
        (True, False, "allowed", Outcome.PASS, "all is well"),
        (False, False, "allowed", Outcome.NOT_ENOUGH_EVIDENCE, "not fulfilled, of the requests from 2026-01-05 00:00"),
        (None, True, "allowed", Outcome.CANNOT_SEE, "could not be evaluated"),
    ],
)
def test_what_the_treatment_alone_does_not_fulfil_keeps_it_at_its_share(
    treatment: bool | None, control: bool | None, against: str, outcome: Outcome, says: str
) -> None:
    judged = gate(expectations_against=against)
    verdict = with_aggregates(PASSED, judged, aggregates_found(treatment, control))

    assert (verdict.outcome, says in verdict.reason) == (outcome, True), verdict
    assert bool(verdict.waits) == (outcome is Outcome.NOT_ENOUGH_EVIDENCE)
    fails = with_aggregates(
        PASSED, judged.model_copy(update={"on_aggregate": "fail"}), aggregates_found(treatment, control)
    )
    # Only what keeps a rollout at its share rolls back, and only if the author says so.
    assert fails.outcome is (Outcome.FAIL if outcome is Outcome.NOT_ENOUGH_EVIDENCE else outcome)


@pytest.mark.parametrize("outcome", [Outcome.FAIL, Outcome.CANNOT_SEE, Outcome.SPLIT_IS_WRONG])
def test_an_alarm_a_wrong_split_and_what_cannot_be_seen_stay_so(outcome: Outcome) -> None:
    verdict = Verdict(outcome, reason="because")

    assert with_aggregates(verdict, gate(on_aggregate="fail"), aggregates_found(False, True)) == verdict
    assert with_aggregates(verdict, gate(), None) == verdict


def test_a_gate_without_them_is_not_changed_by_them() -> None:
    assert with_aggregates(cannot_see("away"), Gate(), None) == cannot_see("away")
    assert with_aggregates(PASSED, gate(NULL), None) == PASSED


def test_they_take_no_part_of_alpha() -> None:
    def thresholds(gate: Gate) -> dict[str, float]:
        claims = judge([Bin(T0, Counts(100, 0), Counts(100, 0), share=0.5)], gate).claims
        return {claim.name: claim.threshold for claim in claims if claim.kind == "alarm"}

    assert thresholds(gate(latency_quantiles=())) == thresholds(Gate(latency_quantiles=()))
    assert gate(NULL, MEAN).expectation_names == gate(NULL).expectation_names
    with pytest.raises(ValueError, match="weights for expectations"):
        gate(weights={"expectations": 2})
