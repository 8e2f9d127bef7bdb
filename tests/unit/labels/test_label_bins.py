"""Labelled requests in the gate's bins, by the arrival of their labels."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.evidence import SplitChange
from controlled_rollout.evidence.bins import since_epoch
from controlled_rollout.gate import Bin, Outcome, judge
from controlled_rollout.labels import Labels
from controlled_rollout.labels.bins import LabelBins, Requests, label_bins
from controlled_rollout.labels.measures import LabelledRequest, Measures
from controlled_rollout.labels.periods import Period, periods_of
from tests.unit.labels.labelled_rollout import HOUR, T0, UNTIL

WHOLE = (Period(T0, UNTIL),)
EVERYTHING = Labels.model_validate(
    {
        "metrics": ["accuracy", "precision", "recall", "log_loss", "auc", "absolute_error"],
        "probability": "predictions.p",
        "positive": 1,
    }
)


def request(
    number: int, *, treatment: bool, known: float, right: bool = True, positive: bool = True
) -> LabelledRequest:
    """Return a request that arrived so many seconds after T0, whose label was known so many hours after UNTIL."""
    label = int(positive)
    return LabelledRequest(
        is_treatment=treatment,
        request_id=f"r{number}",
        time=T0 + timedelta(seconds=number),
        known=UNTIL + known * HOUR,
        label=label,
        rows=[(label if right else 1 - label, 0.8 if right == positive else 0.3)],
    )


def in_order(requests: Sequence[LabelledRequest]) -> list[LabelledRequest]:
    return sorted(requests, key=lambda one: (since_epoch(one.known, HOUR), one.time, one.request_id))


def bins_of(requests: Sequence[LabelledRequest], labels: Labels = EVERYTHING, **changes: Any) -> LabelBins:
    totals = changes.get("totals", [Requests(1_000, 1_000)])
    return label_bins(in_order(requests), labels, Measures(labels), changes.get("periods", WHOLE), totals)


requests_strategy = st.lists(
    st.tuples(st.booleans(), st.floats(0, 30), st.booleans(), st.booleans()), min_size=1, max_size=400
).map(
    lambda drawn: [
        request(number, treatment=treatment, known=known, right=right, positive=positive)
        for number, (treatment, known, right, positive) in enumerate(drawn)
    ]
)


@given(requests_strategy, st.integers(0, 30), st.integers(0, 30))
def test_later_labels_change_nothing_of_what_an_earlier_look_has_judged(
    requests: list[LabelledRequest], first: int, second: int
) -> None:
    """The promise on false alarms rests on this: looks may be as many as one likes."""
    early, late = (
        bins_of([one for one in requests if one.known < UNTIL + hours * HOUR]).bins for hours in sorted((first, second))
    )
    assert late[: len(early)] == early
    assert sorted(bin_.start for bin_ in late) == [bin_.start for bin_ in late]
    assert len({bin_.start for bin_ in late}) == len(late)


@given(requests_strategy)
def test_each_labelled_request_is_counted_once_or_waits(requests: list[LabelledRequest]) -> None:
    result = bins_of(requests)
    judged = sum(bin_.control.requests + bin_.treatment.requests for bin_ in result.bins)
    assert judged + result.waiting == len(requests)
    assert result.waiting < 20 or not result.bins
    for bin_ in result.bins:
        for counts in (bin_.control, bin_.treatment):
            assert sum(counts.categories["accuracy"].values()) == counts.requests
            assert counts.requests == counts.categories["share of labelled requests"]["labelled"]


@given(requests_strategy)
def test_the_order_within_an_interval_does_not_depend_on_the_version_or_on_what_was_right(
    requests: list[LabelledRequest],
) -> None:
    """Which requests share a bin depends on times alone, so the versions may be compared within it."""
    turned = [replace(one, is_treatment=not one.is_treatment, rows=[(0, 0.5)]) for one in requests]
    sizes, others = (
        [bin_.control.requests + bin_.treatment.requests for bin_ in bins_of(some).bins] for some in (requests, turned)
    )
    assert sizes == others


def test_what_is_not_labelled_yet_gets_less_with_each_bin() -> None:
    requests = [request(number, treatment=number % 2 == 0, known=number / 40) for number in range(120)]
    result = bins_of(requests, totals=[Requests(100, 60)])
    left = [bin_.treatment.categories["share of labelled requests"]["not yet"] for bin_ in result.bins]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 60 - result.labelled["treatment"]


def test_a_bin_has_enough_requests_of_the_version_with_less_traffic() -> None:
    requests = [request(number, treatment=number % 20 == 0, known=0) for number in range(1_000)]
    sizes = [
        bin_.control.requests + bin_.treatment.requests
        for bin_ in bins_of(requests, totals=[Requests(19_000, 1_000)]).bins
    ]
    assert sizes == [100] * 10


def test_requests_of_different_splits_are_in_different_bins() -> None:
    periods = (Period(T0, T0 + 100 * timedelta(seconds=1)), Period(T0 + 100 * timedelta(seconds=1), UNTIL))
    requests = [request(number, treatment=number % 2 == 0, known=0) for number in range(200)]
    result = bins_of(requests, periods=periods, totals=[Requests(50, 50), Requests(50, 50)])
    assert [bin_.treatment.requests for bin_ in result.bins] == [10] * 10
    none_of_one = bins_of(requests, periods=periods, totals=[Requests(100, 0), Requests(50, 50)])
    assert len(none_of_one.bins) == 5


def test_a_version_that_is_wrong_more_often_fails_and_an_equal_one_passes() -> None:
    labels = Labels.model_validate({"metrics": ["accuracy"]})

    def outcome(wrong: int) -> Outcome:
        """Return the outcome if every so-manieth answer of the treatment is wrong, and every tenth of control."""
        requests = []
        for number in range(4_000):
            treatment = (number // 2) % 2 == 0
            right = number % (wrong if treatment else 10) != 0
            requests.append(request(number, treatment=treatment, known=number / 400, right=right))
        return judge(bins_of(requests, labels, totals=[Requests(2_000, 2_000)]).bins, labels.gate()).outcome

    assert (outcome(10), outcome(3)) == (Outcome.PASS, Outcome.FAIL)


@pytest.mark.parametrize("metric", ["log_loss", "absolute_error", "squared_error", "auc"])
def test_losses_and_the_auc_are_compared_as_means(metric: str) -> None:
    labels = Labels.model_validate({"metrics": {metric: {}}, "probability": "predictions.p", "positive": 1})
    requests = [
        request(number, treatment=number % 2 == 0, known=number / 400, right=number % 4 != 0, positive=number % 6 < 3)
        for number in range(4_000)
    ]
    verdict = judge(bins_of(requests, labels, totals=[Requests(2_000, 2_000)]).bins, labels.gate())
    assert verdict.outcome is Outcome.FAIL, verdict.reason
    assert verdict.reason.startswith(f"{metric} is {'lower' if metric == 'auc' else 'higher'}: ")


def test_bins_of_an_auc_add_requests_up_until_both_versions_have_enough_of_both_classes() -> None:
    labels = Labels.model_validate({"metrics": {"auc": {}}, "probability": "predictions.p", "positive": 1})
    requests = [
        request(number, treatment=number % 2 == 0, known=number / 400, right=number % 3 > 0, positive=number % 10 < 2)
        for number in range(1_000)
    ]
    bins = bins_of(requests, labels, totals=[Requests(500, 500)]).bins
    with_auc = [bin_ for bin_ in bins if bin_.treatment.means]
    assert 2 <= len(with_auc) < len(bins)
    assert all(bin_.treatment.means["auc"].count >= 20 and bin_.control.means["auc"].count >= 20 for bin_ in with_auc)


def test_a_label_that_cannot_be_used_is_counted_and_its_request_is_labelled_all_the_same() -> None:
    requests = [replace(request(number, treatment=number % 2 == 0, known=0), label=(1, 0)) for number in range(40)]
    result = bins_of(requests)
    assert result.problems == {"a list of another length than the request has rows": 40}
    assert result.labelled == {"control": 20, "treatment": 20}
    assert sum(sum(bin_.control.categories["accuracy"].values()) for bin_ in result.bins) == 0


def changes(*shares: float | None) -> tuple[SplitChange, ...]:
    """Return splits that are set every two hours."""
    return tuple(SplitChange(T0 + 2 * number * HOUR, share) for number, share in enumerate(shares))


def test_periods_are_the_times_with_one_split_and_traffic_for_both() -> None:
    minute = timedelta(minutes=1)
    assert periods_of(T0, UNTIL, changes(0.1, 0.5, 1.0)) == (
        Period(T0, T0 + 2 * HOUR),
        Period(T0 + 2 * HOUR + minute, T0 + 4 * HOUR),
    )
    assert periods_of(T0, UNTIL, changes(0.0, None, 0.5)) == (Period(T0 + 4 * HOUR + minute, UNTIL),)
    assert periods_of(T0 + HOUR, T0 + 3 * HOUR, changes(0.1, 0.5)) == (
        Period(T0 + HOUR, T0 + 2 * HOUR),
        Period(T0 + 2 * HOUR + minute, T0 + 3 * HOUR),
    )
    assert periods_of(T0, UNTIL, changes(1.0)) == ()


def test_without_known_splits_each_day_is_a_period() -> None:
    day = 24 * HOUR
    assert periods_of(T0 + 20 * HOUR, T0 + 2 * day + HOUR) == (
        Period(T0 + 20 * HOUR, T0 + day),
        Period(T0 + day, T0 + 2 * day),
        Period(T0 + 2 * day, T0 + 2 * day + HOUR),
    )


def starts(bins: Sequence[Bin]) -> list[Any]:
    return [bin_.start for bin_ in bins]


def test_bins_that_are_complete_in_one_interval_follow_each_other_by_a_microsecond() -> None:
    requests = [request(number, treatment=number % 2 == 0, known=0.5) for number in range(60)]
    assert starts(bins_of(requests).bins) == [UNTIL + number * timedelta(microseconds=1) for number in range(3)]
