"""Expectations as claims: unexpected rows of the treatment against control's, or against what is allowed."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from controlled_rollout.gate import Bin, Counts, Gate, Outcome, judge

AGE = "inputs.age: values to be between (min_value=0, mostly=0.95)"
SUITE: dict[str, Any] = {
    "name": "applicants",
    "expectations": [
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "inputs.age", "min_value": 0, "mostly": 0.95},
        }
    ],
}
QUIET: dict[str, Any] = {"latency_quantiles": (), "expectations": SUITE}
T0 = datetime(2026, 1, 5, tzinfo=UTC)


def counts(requests: int, unexpected: int) -> Counts:
    return Counts(requests, 0, categories={AGE: {"expected": requests - unexpected, "unexpected": unexpected}})


def bins(treatment: float, control: float, *, number: int = 60, seed: int = 1) -> list[Bin]:
    """Return an hour of 100 requests a minute to each version, with these rates of unexpected rows."""
    draw = np.random.default_rng(seed)
    return [
        Bin(
            T0 + minute * timedelta(minutes=1),
            counts(100, int(draw.binomial(100, control))),
            counts(100, int(draw.binomial(100, treatment))),
            share=0.5,
        )
        for minute in range(number)
    ]


def test_a_treatment_that_violates_an_expectation_more_than_control_fails_with_the_numbers() -> None:
    verdict = judge(bins(0.3, 0.02), Gate(**QUIET))

    assert verdict.outcome is Outcome.FAIL
    assert AGE in verdict.reason
    assert "5 % allowed" in verdict.reason


def test_a_suite_that_control_violates_as_well_rolls_nobody_back() -> None:
    verdict = judge(bins(0.4, 0.4), Gate(**QUIET))

    assert verdict.outcome is Outcome.PASS


def test_more_than_control_but_no_more_than_is_allowed_is_no_alarm() -> None:
    assert judge(bins(0.03, 0.002), Gate(**QUIET)).outcome is Outcome.PASS


def test_the_absolute_reading_fails_by_what_is_allowed_whatever_control_does() -> None:
    absolute = Gate(**QUIET, expectations_against="allowed")

    assert judge(bins(0.4, 0.4), absolute).outcome is Outcome.FAIL
    assert judge(bins(0.04, 0.0), absolute).outcome is Outcome.PASS


def test_where_no_row_may_be_unexpected_one_is_enough_for_the_absolute_reading() -> None:
    strict = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "inputs.age"}}
    gate = Gate.model_validate({**QUIET, "expectations": {"expectations": [strict]}, "expectations_against": "allowed"})
    [name] = gate.expectation_names
    unexpected = {"expected": 99, "unexpected": 1}
    one = Bin(T0, Counts(100, 0), Counts(100, 0, categories={name: unexpected}), share=0.5)

    assert judge([one], gate).outcome is Outcome.FAIL


@pytest.mark.parametrize("against", ["control", "allowed"])
def test_healthy_treatments_are_stopped_no_more_often_than_alpha_over_sixty_looks(against: str) -> None:
    gate = Gate.model_validate({**QUIET, "expectations_against": against})
    stopped = sum(judge(bins(0.05, 0.05, seed=seed), gate).outcome is Outcome.FAIL for seed in range(100))

    # Everything that was ever reached stays reached: the last look tells of all.
    assert stopped <= 5 + 3 * 2.2


def test_expectations_without_rows_are_said_not_to_be_judged() -> None:
    verdict = judge([Bin(T0, Counts(100, 0), Counts(100, 0), share=0.5)], Gate(**QUIET))

    assert f"{AGE} is not judged" in verdict.reason


def test_all_expectations_together_have_one_part_of_alpha() -> None:
    two = {"expectations": [*SUITE["expectations"]] * 2}

    def thresholds(gate: Gate) -> dict[str, float]:
        claims = judge(bins(0.0, 0.0, number=2), gate).claims
        return {claim.name: claim.threshold for claim in claims if claim.kind == "alarm"}

    assert thresholds(Gate(**QUIET)) == {"errors are higher": 40.0, f"{AGE} is violated more": 40.0}
    assert thresholds(Gate.model_validate({**QUIET, "expectations": two}))["errors are higher"] == 40.0
    weighted = thresholds(Gate(**QUIET, weights={"expectations": 3}))
    assert weighted[f"{AGE} is violated more"] == pytest.approx(80 / 3)


def test_a_gate_with_expectations_is_read_back_from_its_record() -> None:
    gate = Gate(**QUIET)

    assert Gate.model_validate_json(gate.model_dump_json()) == gate
    assert Gate.model_validate_json(gate.model_dump_json(exclude_none=True)) == gate
    assert gate.collections == ("inputs",)


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        ({"type": "expect_column_values_to_be_null", "kwargs": {"column": "age"}}, "write each as <collection>"),
        ({"type": "expect_colum_mean_to_be_between", "kwargs": {"column": "inputs.age"}}, "mean expect_column_mean_to"),
        ({"type": "expect_table_row_count_to_equal_other_table", "kwargs": {"column": "inputs.age"}}, "in memory"),
    ],
)
def test_an_expectation_that_cannot_be_evaluated_on_rows_is_refused(expectation: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Gate.model_validate({"expectations": {"expectations": [expectation]}})
