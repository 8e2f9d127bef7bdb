"""How long tests pause between two checks of what they wait for."""

import pytest

from tests.polling import INTERVAL_S, LONGEST_PAUSE_S, pause_s


@pytest.mark.parametrize(
    ("check_s", "pause"), [(0.0, INTERVAL_S), (0.001, INTERVAL_S), (0.1, 0.3), (10.0, LONGEST_PAUSE_S)]
)
def test_a_check_that_takes_long_is_repeated_after_a_longer_pause_up_to_a_bound(check_s: float, pause: float) -> None:
    assert pause_s(check_s, None) == pytest.approx(pause)


@pytest.mark.parametrize("interval_s", [0.0, 0.02, 5.0])
def test_a_pause_that_is_asked_for_is_kept_whatever_a_check_takes(interval_s: float) -> None:
    assert pause_s(10.0, interval_s) == interval_s
