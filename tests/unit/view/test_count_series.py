"""Counts over time: nothing is lost when bins are added up, however long a rollout lasts, and memory stays bounded."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.view.count_series import FOLDED, RECENT, CountSeries

T0 = datetime(2026, 1, 5, tzinfo=UTC)


def bin_at(minute: int, requests: int = 10, share: float | None = 0.1) -> dict[str, Any]:
    counts = {"requests": requests, "errors": requests // 10, "slow": [requests // 2, requests // 5]}
    start = (T0 + timedelta(minutes=minute)).isoformat()
    return {"start": start, "treatment": counts, "control": {"requests": 90, "errors": 0}, "share": share}


def test_thirty_days_of_minutes_are_kept_small_and_every_request_counts() -> None:
    series = CountSeries(60.0, 2)
    minutes = 30 * 24 * 60
    for begin in range(0, minutes, 500):
        series.apply(begin, [bin_at(minute) for minute in range(begin, min(begin + 500, minutes))])

    spans = series.spans(200)
    assert len(spans) <= 200
    assert sum(span.treatment[0] for span in spans) == 10 * minutes
    assert sum(span.control[0] for span in spans) == 90 * minutes
    assert len(series.folded) <= FOLDED
    assert len(series.recent) <= 2 * RECENT
    widths = {later.start - earlier.start for earlier, later in pairwise(spans)}
    assert widths == {series.span_width(200)}


def test_a_look_revises_the_newest_bins() -> None:
    series = CountSeries(60.0, 2)
    series.apply(0, [bin_at(0), bin_at(1), bin_at(2, share=None)])
    series.apply(2, [bin_at(2, requests=30, share=0.25), bin_at(3)])

    assert [span.treatment for span in series.spans(10)] == [
        (10, 1, 5, 2),
        (10, 1, 5, 2),
        (30, 3, 15, 6),
        (10, 1, 5, 2),
    ]
    assert [span.share for span in series.spans(10)] == [0.1, 0.1, 0.25, 0.1]


def test_without_bins_there_is_nothing() -> None:
    assert CountSeries(60.0, 2).spans(10) == []


@given(minutes=st.sets(st.integers(0, 5_000), min_size=1), most=st.integers(1, 300))
def test_spans_are_as_few_as_asked_and_lose_nothing(minutes: set[int], most: int) -> None:
    series = CountSeries(60.0, 2)
    series.apply(0, [bin_at(minute) for minute in sorted(minutes)])
    spans = series.spans(most)
    assert len(spans) <= most
    assert sum(span.treatment[0] for span in spans) == 10 * len(minutes)
