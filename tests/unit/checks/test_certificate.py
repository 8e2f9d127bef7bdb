"""The end of the endpoints' certificate is said in time."""

from datetime import UTC, datetime, timedelta

import pytest

from controlled_rollout.checks.certificate import ending_soon, with_certificate
from controlled_rollout.target.protocol import EndpointStatus
from controlled_rollout.workspace import Workspace

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (timedelta(days=31), None),
        (timedelta(days=30), None),
        (timedelta(days=29, hours=5), "in 29 days: renew its Secret"),
        (timedelta(hours=5), "in 0 days: renew its Secret"),
        (timedelta(0), "callers refuse it"),
        (timedelta(days=-2), "ended on 2026-02-27 00:00 UTC: callers refuse it"),
    ],
)
def test_30_days_before_its_end_a_certificate_is_warned_of(left: timedelta, said: str | None) -> None:
    sentence = ending_soon(NOW + left, NOW)

    assert (sentence is None) is (said is None)
    assert (said or "") in (sentence or "")


def status(url: str) -> EndpointStatus:
    return EndpointStatus(name="digits", url=url, revision=1, served_revision=1)


async def test_a_certificate_that_cannot_be_seen_is_a_warning_and_plain_http_is_none(closed_port: int) -> None:
    cluster = Workspace.from_settings({"target": "kubernetes", "gateway": "gateway/models"})
    plain = status("http://127.0.0.1:1/score")

    [warning] = (await with_certificate(cluster, status(f"https://127.0.0.1:{closed_port}/score"))).warnings

    assert "cannot be looked at from here: TCP: 127.0.0.1" in warning
    assert await with_certificate(cluster, plain) == plain
