from collections.abc import Sequence
from datetime import timedelta

import pytest

from controlled_rollout.checks.forecast import ControlTraffic, forecast
from controlled_rollout.gate import Gate

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def lines(
    traffic: ControlTraffic | None, steps: Sequence[float] = (10, 50), bake: timedelta = 10 * MINUTE
) -> list[str]:
    return forecast(Gate(), steps, traffic, bake=bake, decision_timeout=HOUR).splitlines()


def test_every_step_says_what_it_can_show_at_the_present_traffic() -> None:
    header, tenth, half = lines(ControlTraffic(36_000, 180, HOUR))
    assert "10 requests/s, 0.5 % of them errors" in header
    assert tenth.strip().startswith("10 % of 10 requests/s: ")
    assert half.strip().startswith("50 % of 10 requests/s: ")
    assert "within 10 min" in tenth


def test_without_a_bake_a_step_shows_what_it_can_until_its_decision_timeout() -> None:
    assert "within 60 min" in lines(ControlTraffic(36_000, 180, HOUR), bake=timedelta(0))[1]


def test_with_few_requests_the_error_rate_is_assumed_to_be_usual() -> None:
    assert "errors assumed to be 0.5 %" in lines(ControlTraffic(100, 50, HOUR))[0]


@pytest.mark.parametrize(
    ("traffic", "words"),
    [
        (None, "first version"),
        (ControlTraffic(0, 0, HOUR), "no requests to control"),
        (ControlTraffic(10, 0, timedelta(0)), "not known"),
    ],
)
def test_without_traffic_there_is_no_forecast(traffic: ControlTraffic | None, words: str) -> None:
    [line] = lines(traffic)
    assert words in line


def test_forecast_of_a_step_with_all_the_traffic_says_what_it_is_compared_with() -> None:
    line = lines(ControlTraffic(3_600, 18, HOUR), steps=(100,))[1]
    assert "at 100 %: compared with control's last requests" in line
    assert "a pass errors of at most 1 %" in line
