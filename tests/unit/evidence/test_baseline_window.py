"""The baseline is of control's own requests: it reaches neither behind what it is about nor into the rollout."""

from datetime import UTC, datetime, timedelta

import pytest

from controlled_rollout.evidence import EvidenceQuery, EvidenceWindow
from controlled_rollout.evidence.metric_store import QueryKey
from controlled_rollout.gate import Gate, MaxLatency

STARTED = datetime(2026, 1, 5, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("baseline_from", "first"),
    [
        (None, STARTED - HOUR),
        (STARTED - 5 * HOUR, STARTED - HOUR),
        (STARTED - HOUR / 4, STARTED - HOUR / 4),
        (STARTED + HOUR, STARTED),
    ],
)
def test_baseline_does_not_reach_behind_the_creation_of_control(
    baseline_from: datetime | None, first: datetime
) -> None:
    query = EvidenceQuery(
        endpoint="digits", control="old", treatment="new", started=STARTED, now=STARTED + HOUR,
        window=EvidenceWindow(baseline_length=HOUR), splits=(), gate=Gate(), baseline_from=baseline_from,
    )  # fmt: skip

    assert QueryKey.of(query).first == first


def test_requests_slower_than_max_latency_are_counted_after_those_beyond_controls_quantiles() -> None:
    gate = Gate(max_latency=MaxLatency(duration=timedelta(seconds=0.42)), latency_tolerance=0.05)
    key = QueryKey.of(
        EvidenceQuery(
            endpoint="digits", control="old", treatment="new", started=STARTED, now=STARTED + HOUR,
            window=EvidenceWindow(), splits=(), gate=gate,
        )
    )  # fmt: skip

    # The store multiplies the treatment's thresholds by 1 + tolerance.
    assert list(key.with_limit((10.0, 20.0))) == pytest.approx([10.0, 20.0, 400.0])
    assert key.with_limit(()) == ()
