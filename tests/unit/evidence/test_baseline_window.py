"""The baseline is of control's own requests: it reaches neither behind what it is about nor into the rollout."""

from datetime import UTC, datetime, timedelta

import pytest

from controlled_rollout.evidence import EvidenceQuery, EvidenceWindow
from controlled_rollout.evidence.metric_store import QueryKey
from controlled_rollout.gate import Gate

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
