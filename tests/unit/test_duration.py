import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from controlled_rollout.duration import Duration, format_duration, format_elapsed, parse_duration


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (timedelta(minutes=3), timedelta(minutes=3)),
        (timedelta(0), timedelta(0)),
        (90, timedelta(seconds=90)),
        (0.5, timedelta(seconds=0.5)),
        ("90", timedelta(seconds=90)),
        ("1 s", timedelta(seconds=1)),
        ("5 min", timedelta(minutes=5)),
        ("5min", timedelta(minutes=5)),
        (" 1.5 h ", timedelta(minutes=90)),
        ("2 d", timedelta(days=2)),
        ("PT5M", timedelta(minutes=5)),
        ("PT1H30M", timedelta(minutes=90)),
        ("P2D", timedelta(days=2)),
        ("PT0S", timedelta(0)),
    ],
)
def test_a_length_of_time_is_read_in_every_documented_form(value: Any, expected: timedelta) -> None:
    assert parse_duration(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", "soon", "-5 min", "5 m", "10m", "1e3 s", "05:00", "P", "-PT5M", "PT5"),
        *(
            -1,
            1e20,
            "P9000Y",
            "999999999 d",
            timedelta(days=4000),
            float("nan"),
            float("inf"),
            timedelta(seconds=-1),
            True,
            None,
            [],
        ),
    ],
)
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not a length of time"):
        parse_duration(value)


@pytest.mark.parametrize("value", ["P1M", "P1Y", " P2Y ", "P1Y2M", "P1M1D", "P0M", "P1YT5M"])
def test_months_and_years_are_refused_because_they_have_no_fixed_length(value: str) -> None:
    with pytest.raises(ValueError, match="not a length of time, because months and years have no fixed length"):
        parse_duration(value)


@given(st.timedeltas(timedelta(0), timedelta(days=3660)))
def test_a_setting_is_read_again_from_what_was_written_of_it(length: timedelta) -> None:
    setting: TypeAdapter[timedelta] = TypeAdapter(Duration)

    written = setting.dump_python(length, mode="json")

    assert setting.validate_python(written) == length
    [_, text] = setting.json_schema()["anyOf"]
    assert re.search(text["pattern"], written)


@given(st.integers(0, 3_660), st.sampled_from([("s", 1), ("min", 60), ("h", 3600), ("d", 86400)]))
def test_number_and_unit_multiply(count: int, unit: tuple[str, int]) -> None:
    assert parse_duration(f"{count} {unit[0]}") == timedelta(seconds=count * unit[1])


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (timedelta(0), "0 s"),
        (timedelta(seconds=0.5), "0.5 s"),
        (timedelta(seconds=90), "90 s"),
        (timedelta(minutes=5), "5 min"),
        (timedelta(hours=36), "36 h"),
        (timedelta(days=1), "1 d"),
    ],
)
def test_a_length_of_time_is_written_in_its_largest_whole_unit(length: timedelta, text: str) -> None:
    assert format_duration(length) == text
    assert parse_duration(text) == length


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (timedelta(seconds=10_000_001), "10000001 s"),
        (timedelta(seconds=1_234_567.5), "1234567.5 s"),
        (timedelta(microseconds=1), "0.000001 s"),
        (timedelta(days=3000), "3000 d"),
    ],
)
def test_a_duration_is_written_without_an_exponent(length: timedelta, expected: str) -> None:
    assert format_duration(length) == expected
    assert parse_duration(expected) == length


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.4, "0 s"), (59.6, "1 min"), (65, "1 min 5 s"), (3600, "1 h"), (3605, "1 h"),
        (86_399, "23 h 59 min"), (183_600, "2 d 3 h"), (-5, "-5 s"),
    ],
)  # fmt: skip
def test_a_measured_time_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert format_elapsed(timedelta(seconds=seconds)) == text
