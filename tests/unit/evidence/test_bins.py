"""Counts -> bins: thresholds, shares, closed bins."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.evidence import EvidenceWindow, SplitChange
from controlled_rollout.evidence.bins import (
    bins_of,
    closed_until,
    floor_to_bin,
    share_in,
    thresholds,
)
from controlled_rollout.evidence.rows import CountRow
from controlled_rollout.gate import Counts

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
S = timedelta(seconds=1)
WIDTH = 10 * S


def test_thresholds_are_control_s_quantiles_within_one_bucket() -> None:
    durations = [1.0 + 0.37 * number for number in range(2_000)]
    histogram: dict[int, int] = {}
    for duration in durations:
        bucket = math.floor(100 * math.log(duration))
        histogram[bucket] = histogram.get(bucket, 0) + 1

    result = thresholds(histogram, (0.5, 0.95, 0.99))

    for threshold, quantile in zip(result, (0.5, 0.95, 0.99), strict=True):
        exact = durations[math.ceil(quantile * len(durations)) - 1]
        assert exact <= threshold <= exact * 1.0102


@given(
    st.dictionaries(st.integers(-700, 2_000), st.integers(1, 10_000), min_size=1),
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5),
)
def test_at_most_one_minus_q_of_the_baseline_lies_above_each_threshold(
    histogram: dict[int, int], quantiles: list[float]
) -> None:
    result = thresholds(histogram, quantiles)

    total = sum(histogram.values())
    assert len(result) == (len(quantiles) if total >= 100 else 0)
    for threshold, quantile in zip(result, quantiles, strict=False):
        above = sum(count for bucket, count in histogram.items() if math.exp((bucket + 0.5) / 100) > threshold)
        assert above <= (1 - quantile) * total + 1e-6


def test_ninety_nine_requests_before_the_rollout_give_no_thresholds() -> None:
    assert thresholds({100: 99}, (0.5, 0.9)) == ()
    assert len(thresholds({100: 100}, (0.5, 0.9))) == 2


def test_bins_are_aligned_as_kql_aligns_them_and_only_past_ones_are_closed() -> None:
    assert floor_to_bin(T0 + 17 * S, WIDTH) == T0 + 10 * S
    assert closed_until(T0 + 19 * S, allowed_lag=2 * S, width=WIDTH) == T0 + 10 * S
    assert closed_until(T0 + 22 * S, allowed_lag=2 * S, width=WIDTH) == T0 + 20 * S


@pytest.mark.parametrize("width", [timedelta(0), 7 * S, -WIDTH, timedelta(microseconds=500), timedelta(days=2)])
def test_a_width_that_kql_and_duckdb_would_align_differently_is_refused(width: timedelta) -> None:
    with pytest.raises(ControlledRolloutError, match="part of a day"):
        EvidenceWindow(bin_width=width)


def test_the_share_is_the_last_one_set_before_the_bin() -> None:
    splits = [SplitChange(T0, 0.1), SplitChange(T0 + 60 * S, 0.5)]

    assert share_in(T0 + 30 * S, T0 + 40 * S, splits) == 0.1
    assert share_in(T0 + 70 * S, T0 + 80 * S, splits) == 0.5


@pytest.mark.parametrize("offset", [-4.5, 0.0, 0.1, 5.0, 9.9])
def test_a_change_in_or_just_before_the_bin_leaves_the_share_unknown(offset: float) -> None:
    splits = [SplitChange(T0 - 60 * S, 0.1), SplitChange(T0 + offset * S, 0.5)]

    assert share_in(T0, T0 + WIDTH, splits) is None


@pytest.mark.parametrize(("offset", "share"), [(-5.0, 0.5), (10.0, 0.1)])
def test_change_within_five_seconds_of_the_end_of_a_bin_is_ignored(offset: float, share: float) -> None:
    splits = [SplitChange(T0 - 60 * S, 0.1), SplitChange(T0 + offset * S, 0.5)]

    assert share_in(T0, T0 + WIDTH, splits) == share


def test_setting_the_same_share_again_keeps_it_known_and_nothing_set_is_unknown() -> None:
    again = [SplitChange(T0 - 60 * S, 0.1), SplitChange(T0 + 3 * S, 0.1)]

    assert share_in(T0, T0 + WIDTH, again) == 0.1
    assert share_in(T0, T0 + WIDTH, []) is None
    assert share_in(T0, T0 + WIDTH, [SplitChange(T0 + 60 * S, 0.1)]) is None


def _row(offset: float, version: str, requests: int, *, before: bool = False) -> CountRow:
    return CountRow(T0 + offset * S, version, before, Counts(requests, 0, (1, 0)))


def test_both_sides_of_a_bin_come_together_and_open_bins_are_left_out() -> None:
    rows = [
        _row(10, "treat", 3), _row(0, "ctrl", 5), _row(10, "ctrl", 7), _row(20, "ctrl", 9), _row(0, "other", 99),
        _row(0, "ctrl", 4, before=True), _row(-10, "ctrl", 6, before=True), _row(-10, "treat", 2, before=True),
    ]  # fmt: skip

    bins, baseline = bins_of(
        rows,
        control="ctrl",
        treatment="treat",
        width=WIDTH,
        started=T0 + 4 * S,
        until=T0 + 20 * S,
        splits=[SplitChange(T0 - 60 * S, 0.25)],
        n_thresholds=2,
    )

    assert [(b.start, b.control.requests, b.treatment.requests, b.share) for b in bins] == [
        (T0, 5, 0, 0.25),
        (T0 + 10 * S, 7, 3, 0.25),
    ]
    assert [(b.start, b.control.requests, b.treatment) for b in baseline] == [
        (T0 - 10 * S, 6, Counts(0, 0, (0, 0))),
        (T0, 4, Counts(0, 0, (0, 0))),
    ]
    assert {len(counts.slow) for b in bins for counts in (b.control, b.treatment)} == {2}
