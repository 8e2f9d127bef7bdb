import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout_collector.rows import (
    MAX_COLUMNS,
    MAX_NAME,
    MAX_ROWS,
    Nested,
    Row,
    Rows,
    json_text,
    read_rows,
    read_script_rows,
)

JSON = "application/json"


def inputs(data: Any) -> list[Row]:
    return list(read_rows(json.dumps(data).encode(), JSON, is_answer=False).rows)


def predictions(data: Any) -> list[Row]:
    return list(read_rows(json.dumps(data).encode(), JSON, is_answer=True).rows)


AGES = [{"age": 30, "name": "a"}, {"age": 40, "name": "b"}]


@pytest.mark.parametrize(
    "body",
    [
        AGES,
        {"data": AGES},
        {"Inputs": AGES},
        {"Inputs": {"data": AGES}},
        {"Inputs": {"data": AGES}, "GlobalParameters": {"method": "predict"}},
        {"columns": ["age", "name"], "data": [[30, "a"], [40, "b"]]},
        {"columns": ["age", "name"], "index": [7, 9], "data": [[30, "a"], [40, "b"]]},
        {"data": {"columns": ["age", "name"], "index": [7, 9], "data": [[30, "a"], [40, "b"]]}},
        {"age": [30, 40], "name": ["a", "b"]},
        {"frame": AGES},
        {"frame": {"columns": ["age", "name"], "data": [[30, "a"], [40, "b"]]}},
        json.dumps(AGES),
        json.dumps({"data": AGES}),
    ],
    ids=repr,
)
def test_the_shapes_that_callers_send_give_the_same_rows(body: Any) -> None:
    assert inputs(body) == AGES
    assert predictions(body) == AGES


def test_unnamed_columns_are_called_by_their_position() -> None:
    assert inputs({"data": [[1, 2.5], [3, None]]}) == [{"c0": 1, "c1": 2.5}, {"c0": 3, "c1": None}]
    assert inputs([1, 2, 3]) == [{"c0": 1, "c1": 2, "c2": 3}]
    assert inputs(5) == [{"c0": 5}]
    assert predictions([1, 2]) == [{"prediction": 1}, {"prediction": 2}]
    assert predictions([[0.1, 0.9]]) == [{"prediction_0": 0.1, "prediction_1": 0.9}]
    assert predictions([["cat"], ["dog"]]) == [{"prediction": "cat"}, {"prediction": "dog"}]
    assert predictions("cat") == [{"prediction": "cat"}]
    assert predictions(None) == [{"prediction": None}]


def test_an_answer_that_is_json_text_in_json_is_decoded_once_more() -> None:
    assert predictions(json.dumps([1, 2])) == [{"prediction": 1}, {"prediction": 2}]
    assert predictions(json.dumps({"label": "cat"})) == [{"label": "cat"}]


def test_any_other_object_is_one_row() -> None:
    assert inputs({"age": 30, "address": {"city": "x"}}) == [{"age": 30, "address": Nested('{"city": "x"}')}]
    assert inputs({"a": [1, 2], "b": 3}) == [{"a": Nested("[1, 2]"), "b": 3}]
    assert inputs({}) == [{}]


def test_parameters_that_are_tables_stand_beside_each_other() -> None:
    body = {"left": [{"x": 1}, {"x": 2}], "right": [[3], [4]], "method": "fast"}

    assert inputs(body) == [
        {"method": "fast", "left.x": 1, "right.c0": 3},
        {"method": "fast", "left.x": 2, "right.c0": 4},
    ]


def test_no_column_is_without_name_or_there_twice() -> None:
    assert inputs({"columns": ["a", "a", "", 7, None], "data": [[1, 2, 3, 4, 5, 6]]}) == [
        {"a": 1, "a.1": 2, "c2": 3, "7": 4, "null": 5, "c5": 6}
    ]


def test_csv_has_a_header_unless_its_first_line_has_a_number() -> None:
    def rows(text: str) -> list[Row]:
        return list(read_rows(text.encode(), "text/csv; charset=utf-8", is_answer=False).rows)

    assert rows("age,name\n30,a\n,b\n") == [{"age": 30.0, "name": "a"}, {"age": None, "name": "b"}]
    assert rows("30,a\r\n40,b") == [{"c0": 30.0, "c1": "a"}, {"c0": 40.0, "c1": "b"}]
    assert rows('a,b\n"x,y","1_000"\n') == [{"a": "x,y", "b": "1_000"}]
    assert rows("") == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[1,",
        b"plain text",
        b'{"a": 1} x',
        b"[" * 100_000,
        b"\x89PNG\r\n",
        b'{"a":' * 50_000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_bytes_that_are_no_json_are_no_rows(body: bytes) -> None:
    assert read_rows(body, JSON, is_answer=False) == Rows(is_data=False)


def test_a_body_with_too_many_rows_columns_or_cells_is_no_rows() -> None:
    too_large = Rows(is_data=False, too_large=True)

    assert read_rows(json.dumps([[1]] * (MAX_ROWS + 1)).encode(), JSON, is_answer=False) == too_large
    assert read_rows(json.dumps([1] * (MAX_COLUMNS + 1)).encode(), JSON, is_answer=False) == too_large
    assert read_rows(json.dumps([1] * (MAX_ROWS + 1)).encode(), JSON, is_answer=True) == too_large
    sparse = [{f"k{number % 500}": 1} for number in range(50_000)]
    assert read_rows(json.dumps(sparse).encode(), JSON, is_answer=False) == too_large
    csv = "\n".join(["1"] * (MAX_ROWS + 1)).encode()
    assert read_rows(csv, "text/csv", is_answer=False) == too_large
    repeated: dict[str, Any] = {"table": [[]] * 1_000} | {f"k{number}": number for number in range(101)}
    assert read_rows(json.dumps(repeated).encode(), JSON, is_answer=False) == too_large


def test_numbers_that_no_double_holds_are_read() -> None:
    assert inputs(json.loads("[1e999]")) == [{"c0": float("inf")}]
    assert read_rows(b"[" + b"9" * 5_000 + b"]", JSON, is_answer=False).rows == [{"c0": float("inf")}]
    (row,) = read_rows(b"[NaN]", JSON, is_answer=False).rows
    assert row["c0"] != row["c0"]


def test_half_a_surrogate_pair_is_replaced() -> None:
    (row,) = read_rows(b'{"\\ud800": "\\udc00", "x": {"y": "\\ud800"}}', JSON, is_answer=False).rows

    assert row == {"\ufffd": "\ufffd", "x": Nested('{"y": "\ufffd"}')}
    assert read_rows(b'{"\\ud800": [[1]], "x": 2}', JSON, is_answer=False).rows == [{"\ufffd.c0": 1, "x": 2}]


def test_a_column_with_a_long_name_takes_no_more_memory_for_its_rows() -> None:
    name = "n" * MAX_NAME
    rows = read_rows(json.dumps({name: [[1]] * 3, "x": 2}).encode(), JSON, is_answer=False).rows
    assert len({id(column) for row in rows for column in row if column != "x"}) == 1
    assert read_rows(json.dumps({f"{name}n": [[1]] * 3, "x": 2}).encode(), JSON, is_answer=False).too_large


def test_rows_that_a_script_collects_have_the_columns_of_its_frame() -> None:
    assert list(read_script_rows(b'[[1, "a"], [2, "b"]]', ["x", "y"]).rows) == [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]
    assert list(read_script_rows(b"[[1, 2]]", None).rows) == [{"c0": 1, "c1": 2}]
    assert list(read_script_rows(b'[{"x": 1}]', None).rows) == [{"x": 1}]
    assert read_script_rows(b"{", ["x"]) == Rows(is_data=False)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec=None)), inner, max_size=4),
    max_leaves=12,
)
BODIES = st.one_of(
    st.binary(max_size=60),
    VALUES.map(lambda value: json.dumps(value).encode()),
    VALUES.map(lambda value: json.dumps({"data": value}).encode()),
    VALUES.map(lambda value: json.dumps({"columns": ["a", "b"], "data": value}).encode()),
    VALUES.map(lambda value: json.dumps(json.dumps(value)).encode()),
    st.text().map(str.encode),
    st.lists(st.text(), max_size=4).map(lambda parts: ",".join(parts).encode()),
)


@given(BODIES, st.sampled_from([JSON, "text/csv", "", "image/png", "text/plain"]), st.booleans())
def test_no_body_raises_and_all_rows_can_be_written(body: bytes, content_type: str, is_answer: bool) -> None:
    for read in (read_rows(body, content_type, is_answer=is_answer), read_script_rows(body, ["a", "b"])):
        assert read.is_data or not read.rows
        for row in read.rows:
            for name, value in row.items():
                assert name.encode()
                assert json_text(value).encode() or value == ""
