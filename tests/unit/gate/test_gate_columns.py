"""Counts that cannot be are refused with what was found, never judged."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from controlled_rollout.errors import ControlledRolloutError, EvidenceError
from controlled_rollout.gate import Bin, Counts, Gate, judge
from tests.unit.gate.rollouts import BEGIN, MINUTE

GOOD = Bin(BEGIN, Counts(100, 1, (50, 10, 5, 1)), Counts(100, 1, (50, 10, 5, 1)), 0.5)


def counts(requests: Any = 100, errors: Any = 1, slow: Any = (50, 10, 5, 1)) -> Counts:
    return Counts(requests, errors, slow)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (counts(requests=-1), "requests = -1 is negative"),
        (counts(errors=-1), "errors = -1 is negative"),
        (counts(errors=101), "errors = 101 is more than its 100 requests"),
        (counts(slow=(50, 101, 5, 1)), r"slow\[1\] = 101 is more than its 100 requests"),
        (counts(slow=(50, -3, 5, 1)), r"slow\[1\] = -3 is negative"),
        (counts(requests=100.0), "requests = 100.0 is not a whole number"),
        (counts(errors=float("nan")), "errors = nan is not a whole number"),
        (counts(errors=True), "errors = True is not a whole number"),
        (counts(slow=(50, 10, 5, None)), r"slow\[3\] = None is not a whole number"),
    ],
)
@pytest.mark.parametrize("arm", ["treatment", "control"])
def test_impossible_counts_are_refused_with_time_version_and_number(bad: Counts, problem: str, arm: str) -> None:
    arms = {"treatment": GOOD.treatment, "control": GOOD.control} | {arm: bad}
    bins = [GOOD, Bin(BEGIN + MINUTE, control=arms["control"], treatment=arms["treatment"])]

    with pytest.raises(EvidenceError, match=rf"12:01:00\+00:00: {arm} {problem}"):
        judge(bins, Gate())


@pytest.mark.parametrize("baseline", [False, True])
def test_impossible_counts_in_the_baseline_are_refused_too(baseline: bool) -> None:
    bad = [replace(GOOD, control=counts(errors=101))]

    with pytest.raises(EvidenceError):
        judge([] if baseline else bad, Gate(), baseline=bad if baseline else [])


@pytest.mark.parametrize(
    ("bins", "problem"),
    [
        ([replace(GOOD, treatment=counts(slow=(1,)))], "treatment has 1 counts of slow requests, the gate has 4"),
        ([replace(GOOD, control=counts(slow=()))], "control has 0 counts"),
        (
            [GOOD, replace(GOOD, start=BEGIN + MINUTE, treatment=counts(slow=()), control=counts(slow=()))],
            "has 0 counts",
        ),
        ([replace(GOOD, treatment=counts(slow=(1,)), control=counts(slow=(1,)))], "has 1 counts"),
    ],
)
def test_ragged_latency_counts_are_refused(bins: list[Bin], problem: str) -> None:
    with pytest.raises(EvidenceError, match=problem):
        judge(bins, Gate())


def test_version_without_requests_may_leave_latency_counts_out() -> None:
    idle = replace(GOOD, start=BEGIN + MINUTE, treatment=Counts(0, 0))

    assert any(claim.name == "latency is higher" for claim in judge([GOOD, idle], Gate()).claims)


def test_naive_time_is_refused() -> None:
    with pytest.raises(EvidenceError, match=r"2026-01-01T00:00:00 has no time zone"):
        judge([replace(GOOD, start=datetime(2026, 1, 1))], Gate())


def test_two_bins_at_one_time_are_refused() -> None:
    with pytest.raises(EvidenceError, match="two bins begin at"):
        judge([GOOD, replace(GOOD, start=BEGIN + MINUTE), GOOD], Gate())


@pytest.mark.parametrize("share", [-0.1, 1.1, 10.0, float("nan"), float("inf")])
def test_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(EvidenceError, match="is not between 0 and 1"):
        judge([replace(GOOD, share=share)], Gate())


def test_refusal_is_a_controlled_rollout_error_and_a_value_error() -> None:
    assert issubclass(EvidenceError, ControlledRolloutError)
    assert issubclass(EvidenceError, ValueError)


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0},
        {"alpha": 1},
        {"beta": -0.1},
        {"alpha": float("nan")},
        {"pass_ratio": 1},
        {"treatments": 0},
        {"weights": {"errors": 0}},
        {"weights": {"speed": 1}},
        {"unknown": 1},
    ],
)
def test_invalid_gate_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Gate(**settings)
