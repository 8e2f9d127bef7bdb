"""Users as the unit: each counts once at a split, and users who differ, or send much, mislead the gate no more."""

import math
import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest
from pydantic import ValidationError

from controlled_rollout.gate import Bin, Counts, Gate, Outcome, UserCounts, judge, wrong_unit
from controlled_rollout.gate.users import bins_of_users
from tests.sticky_users import (
    STARTED,
    UserRequest,
    bins_of_requests,
    counted_requests,
    request_bins,
    simulated_requests,
)

MINUTE = timedelta(minutes=1)
STEPS = ((STARTED, 0.0), (STARTED + 2 * MINUTE, 0.1), (STARTED + 12 * MINUTE, 0.3), (STARTED + 22 * MINUTE, 0.6))
GUARD = timedelta(seconds=5)
NOT_NULL = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "age"}}
USERS = Gate(unit="user", latency_quantiles=())
REQUESTS = Gate(latency_quantiles=())


def bins_of(requests: list[UserRequest]) -> list[Bin]:
    """Return the bins of a rollout, with the users and, beside them, all requests."""
    return bins_of_requests(counted_requests(requests, STEPS, guard=GUARD), STEPS)


def part(runs: int, judged: Callable[[random.Random], Outcome], outcome: Outcome) -> float:
    """Return in which part of simulated rollouts the gate concludes something at any look."""
    return sum(judged(random.Random(f"rollout {number}")) is outcome for number in range(runs)) / runs


def test_healthy_rollouts_of_users_who_differ_are_rarely_stopped_and_by_request_often() -> None:
    """A tenth of the users fails nearly always, another sends most requests: requests mislead, users do not.

    `make bench-gate` has a thousand times as many.
    """
    runs = 40

    def requests(source: random.Random) -> list[UserRequest]:
        return simulated_requests(source, STEPS, minutes=32, users=250, bad=0.1, heavy=0.1)

    outcomes = Counter(judge(bins_of(requests(random.Random(f"users {n}"))), USERS).outcome for n in range(runs))
    by_request = [
        judge(request_bins(requests(random.Random(f"requests {n}")), STEPS), REQUESTS).outcome for n in range(20)
    ]
    assert outcomes[Outcome.FAIL] / runs <= USERS.alpha + 3 * math.sqrt(USERS.alpha * (1 - USERS.alpha) / runs)
    assert outcomes[Outcome.SPLIT_IS_WRONG] <= 1
    assert by_request.count(Outcome.FAIL) + by_request.count(Outcome.SPLIT_IS_WRONG) > 5, by_request


def test_a_treatment_that_fails_many_users_is_stopped() -> None:
    """Users who come back count again only as long as they are drawn anew, and that is enough."""

    def judged(source: random.Random) -> Outcome:
        requests = simulated_requests(source, STEPS, minutes=32, users=1_500, treatment_bad=0.3)
        return judge(bins_of(requests), USERS).outcome

    assert part(8, judged, Outcome.FAIL) >= 0.9


def test_a_split_that_leaves_users_where_they_were_is_found() -> None:
    """The router serves 10 % where 30 % are set: new users tell it."""

    def judged(source: random.Random) -> Outcome:
        served = (STEPS[0], STEPS[1], (STEPS[2][0], 0.1), (STEPS[3][0], 0.1))
        requests = simulated_requests(source, served, minutes=32, users=4_000, returning=0.2)
        return judge(bins_of(requests), USERS).outcome

    assert part(3, judged, Outcome.SPLIT_IS_WRONG) == 1


def test_users_of_earlier_splits_are_apart_and_say_nothing_of_the_split() -> None:
    """One bin of requests becomes one for each way in which users were drawn."""
    control = Counts(90, 2, users=(UserCounts(20, 1), UserCounts(30, 1, above=0.1)))
    treatment = Counts(10, 1, users=(UserCounts(2, 0),))
    new, returned = bins_of_users([Bin(STARTED, control, treatment, share=0.3)])
    assert (new.control, new.treatment) == (Counts(20, 1), Counts(2, 0))
    assert (returned.control, returned.treatment) == (Counts(30, 1), Counts(0, 0))
    assert (new.checks_split, returned.checks_split) == (True, False)
    assert new.start < returned.start
    assert new.share == returned.share == 0.3


def test_requests_without_users_are_no_evidence_and_the_verdict_says_why() -> None:
    """No caller sends the key: nothing passes, nothing fails."""
    bins = [Bin(STARTED + n * MINUTE, Counts(900, 5), Counts(100, 90), share=0.1) for n in range(30)]
    verdict = judge(bins, USERS)
    assert verdict.outcome is Outcome.NOT_ENOUGH_EVIDENCE
    assert "no request has the key that the endpoint is sticky by" in verdict.reason
    assert (verdict.control_requests, verdict.treatment_requests) == (0, 0)


@pytest.mark.parametrize(
    "metrics",
    [
        {"means": {"revenue": {"worse": "lower"}}},
        {"categories": {"label": {}}},
        {"events": {"refused": {}}},
        {"judges_traffic": False},
        {"expectations": {"inputs": {"expectations": [NOT_NULL]}}},
    ],
)
def test_what_is_known_of_requests_only_is_refused(metrics: dict[str, object]) -> None:
    """A metric of requests would not be valid where requests of one user are alike."""
    with pytest.raises(ValidationError, match="requests of one user are not independent"):
        Gate.model_validate({"unit": "user", **metrics})


@pytest.mark.parametrize(
    ("unit", "sticky", "problem"),
    [
        ("request", None, ""),
        ("user", "header:x-user", ""),
        ("request", "cookie:session", "give the gate unit='user'"),
        ("user", None, "is not sticky"),
    ],
)
def test_the_unit_has_to_be_that_of_the_split(unit: str, sticky: str | None, problem: str) -> None:
    """Either way round a gate would conclude what does not follow."""
    found = wrong_unit(Gate.model_validate({"unit": unit}), "digits", sticky)
    assert problem in found
    assert bool(found) == bool(problem)
