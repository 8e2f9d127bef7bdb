from datetime import timedelta
from typing import Any

import pytest

from controlled_rollout.arguments import (
    choice,
    duration,
    evidence_window,
    flag,
    gate_of,
    mapping_of,
    number,
    read_all,
    text,
    whole_number,
)
from controlled_rollout.errors import ArgumentError
from controlled_rollout.gate import Gate


def test_a_wrong_length_of_time_is_refused_by_the_argument_s_name() -> None:
    assert duration("bake", "5 min") == duration("bake", "PT5M") == timedelta(minutes=5)
    with pytest.raises(ArgumentError, match="bake = '10m' is not a length of time"):
        duration("bake", "10m")


def test_numbers_may_be_text() -> None:
    assert number("percentile", "12.5") == 12.5
    assert whole_number("min_requests", "500") == 500


@pytest.mark.parametrize("value", ["ten", "nan", "inf", True, None])
def test_invalid_number_is_refused_with_the_name_of_the_argument(value: Any) -> None:
    with pytest.raises(ArgumentError, match="percentile"):
        number("percentile", value)


@pytest.mark.parametrize("value", ["1.5", -1, "-1"])
def test_negative_or_broken_count_is_refused_with_the_name_of_the_argument(value: int | str) -> None:
    with pytest.raises(ArgumentError, match="min_requests"):
        whole_number("min_requests", value)


def test_flags_and_choices_take_what_a_template_renders() -> None:
    assert flag("require_pass", "True") is True
    assert flag("require_pass", False) is False
    with pytest.raises(ArgumentError, match="neither true nor false"):
        flag("require_pass", "yes")
    assert choice("on_conflict", "wait", "fail", "wait") == "wait"
    with pytest.raises(ArgumentError, match="'retry' is not known: choose one of fail, wait"):
        choice("on_conflict", "retry", "fail", "wait")


def test_a_gate_may_be_a_value_its_fields_their_json_or_left_out() -> None:
    gate = Gate(alpha=0.01, warm_up=timedelta(minutes=5))
    assert gate_of(gate) is gate
    assert gate_of({"alpha": "0.01", "warm_up": "5 min"}) == gate
    assert gate_of('{"alpha": 0.01, "warm_up": "300 s"}') == gate
    assert gate_of(None) == gate_of("") == gate_of({}) == Gate()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 2}, r"gate\.alpha = 2"),
        ({"alfa": 0.1}, r"gate\.alfa.*known are alpha"),
        ({"warm_up": "a while"}, r"gate\.warm_up = 'a while'"),
        ("[1]", "not a mapping"),
        ("{", "not a mapping"),
    ],
)
def test_invalid_gate_is_refused_with_the_name_of_its_field(fields: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        gate_of(fields)


def test_settings_may_be_json_text() -> None:
    assert mapping_of("settings", '{"cpu_cores": 0.5}') == {"cpu_cores": 0.5}
    assert mapping_of("settings", None) == mapping_of("settings", "") == {}
    with pytest.raises(ArgumentError, match="settings"):
        mapping_of("settings", "0.5 cores")


def test_a_text_is_one_even_if_native_rendering_made_a_number_of_it() -> None:
    assert text("reason", 1234) == "1234"
    with pytest.raises(ArgumentError, match="image = None"):
        text("image", None)


def test_how_evidence_is_read_is_checked_as_a_whole() -> None:
    window = evidence_window("10 s", 2, "PT1H")
    assert (window.bin_width, window.allowed_lag) == (timedelta(seconds=10), timedelta(seconds=2))
    assert window.baseline_length == timedelta(hours=1)
    with pytest.raises(ArgumentError, match="bin_width"):
        evidence_window("7 s", 2, "PT1H")
    with pytest.raises(ArgumentError, match="allowed_lag"):
        evidence_window("10 s", "late", "PT1H")


def test_all_faulty_arguments_are_named_at_once() -> None:
    assert read_all({"bake": lambda: duration("bake", "1 s")}) == {"bake": timedelta(seconds=1)}
    with pytest.raises(ArgumentError, match=r"bake = .*\nshare = "):
        read_all({"bake": lambda: duration("bake", "soon"), "share": lambda: number("share", "half"), "x": lambda: 1})
