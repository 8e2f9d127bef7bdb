"""How long a rotation of signing keys waits for connections of before."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from controlled_rollout.cluster.api import Api
from controlled_rollout.target.kubernetes import key_set_standby
from controlled_rollout.tokens import SigningKeys

MADE = datetime(2031, 5, 4, 12, 0, 0, tzinfo=UTC)
ROUTE = {"metadata": {"creationTimestamp": "2031-05-04T12:00:00Z"}}


@pytest.mark.parametrize(("later_s", "waits_s"), [(0, 75), (30, 46), (75, 1), (76, 0), (9_999, 0), (-600, 75)])
def test_a_rotation_waits_for_the_rest_of_the_time_that_connections_may_be_open(later_s: int, waits_s: int) -> None:
    assert key_set_standby.drains_for(ROUTE, MADE + timedelta(seconds=later_s)) == timedelta(seconds=waits_s)


def test_without_a_route_it_waits_for_all_of_it() -> None:
    assert key_set_standby.drains_for(None, MADE) == timedelta(seconds=75)


def test_the_clock_is_the_api_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock is years away from it."""
    waited: list[float] = []

    class Server:
        async def find(self, path: str) -> dict[str, Any]:
            return ROUTE

        async def server_time(self) -> datetime:
            return MADE + timedelta(seconds=66)

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(key_set_standby.wait_until_known(cast("Api", Server()), "models", "digits", SigningKeys.new()))

    assert waited == [10]
