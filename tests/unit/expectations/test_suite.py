"""Suites are read as authors have them, and what is no suite is refused with what to write."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.errors import ArgumentError
from controlled_rollout.expectations import Suite, read_suite
from controlled_rollout.expectations.suite import MAX_FILE_BYTES
from tests import airflow_home

BETWEEN = "expect_column_values_to_be_between"
IN_SET = "expect_column_values_to_be_in_set"
SCHEMA = "expect_column_values_to_match_json_schema"


def suite(*expectations: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a suite as Great Expectations writes it."""
    described = [{"type": kind, "kwargs": kwargs, "meta": {}} for kind, kwargs in expectations]
    return {"name": "applicants", "expectations": described, "meta": {"great_expectations_version": "1.24.1"}}


def nested(depth: int) -> Any:
    """Return lists in lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


AGE = suite((BETWEEN, {"column": "inputs.age", "min_value": 0, "mostly": 0.99, "batch_id": "p-a"}))


class Object:
    """Stands for a `great_expectations.ExpectationSuite`."""

    def to_json_dict(self) -> dict[str, Any]:
        return AGE


def test_a_suite_is_read_from_an_object_a_mapping_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "suite.json"
    file.write_text(json.dumps(AGE))

    suites = [read_suite(source) for source in (Object(), AGE, file, str(file))]

    [one] = suites[0].expectations
    assert suites == [suites[0]] * 4
    assert (one.collection, one.type, one.kwargs) == (
        "inputs",
        BETWEEN,
        {"column": "age", "min_value": 0, "mostly": 0.99},
    )
    assert one.name == "inputs.age: values to be between (min_value=0, mostly=0.99)"
    assert one.is_row_wise and one.allowed == pytest.approx(0.01)


def test_a_suite_for_other_data_is_given_a_collection_and_keeps_its_columns() -> None:
    read = read_suite(
        {
            "inputs": suite((BETWEEN, {"column": "inputs.age", "min_value": 0})),
            "predictions": suite(("expect_table_row_count_to_be_between", {"min_value": 1})),
        }
    )

    assert read.collections == ("inputs", "predictions")
    assert read.of("inputs")[0].kwargs["column"] == "inputs.age"
    assert read.of("predictions")[0].name == "predictions: table row count to be between (min_value=1)"
    assert not read.of("predictions")[0].is_row_wise


def test_what_was_read_is_read_again_from_its_own_json() -> None:
    read = read_suite(AGE)

    assert read_suite(read.model_dump(mode="json")) == read_suite(read) == read
    assert Suite.model_validate_json(read.model_dump_json()) == read


def test_expectations_of_the_same_text_have_names_of_their_own() -> None:
    same = (BETWEEN, {"column": "inputs.age", "min_value": 0})

    assert [one.name[-3:] for one in read_suite(suite(same, same)).expectations] == ["=0)", "(2)"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "are a suite of Great Expectations"),
        ({}, "are a suite of Great Expectations"),
        ("absent.json", "cannot be read as JSON"),
        ({"expectations": 7}, "has a list of expectations"),
        ({"expectations": []}, "is not valid"),
        ({"expectations": [7]}, "has a type and kwargs"),
        (suite((BETWEEN, {"column": "age"})), "write each as <collection>.<column>"),
        (
            suite(("expect_column_pair_values_to_be_equal", {"column_A": "inputs.a", "column_B": "predictions.b"})),
            "one",
        ),
        (suite(("expect_table_row_count_to_equal", {"value": 1})), "write each as <collection>.<column>"),
        (suite(("unexpected_rows_expectation", {"column": "inputs.a"})), "is not valid"),
        (suite(*[(BETWEEN, {"column": "inputs.a"})] * 10_000), "10,000 expectations, and 100 are evaluated"),
        (suite((BETWEEN, {"column": "inputs.a", "row_condition": "@__import__('os')"})), "row_condition is not taken"),
        (suite((BETWEEN, {"column": "inputs.a", "max_value": {"$PARAMETER": "now()"}})), "outside of the suite"),
        (suite((SCHEMA, {"column": "inputs.a", "json_schema": {"$ref": "http://inside/"}})), "outside of the suite"),
        (suite((BETWEEN, {"column": "inputs.a", "max_value": float("nan")})), "is no finite number"),
        (suite((BETWEEN, {"column": "inputs.a", "mostly": "0.5"})), "mostly = '0.5' is not the part"),
        (suite((BETWEEN, {"column": "inputs.a", "mostly": 7})), "mostly = 7 is not the part"),
        (suite((IN_SET, {"column": "inputs.a", "value_set": list(range(100_000))})), "bytes, and 200,000 are taken"),
        (suite((IN_SET, {"column": "inputs.a", "value_set": [print]})), "is not valid"),
        (suite((SCHEMA, {"column": "inputs.a", "json_schema": nested(100_000)})), "is not valid|nested too deeply"),
        (suite(("expect_table_columns_to_match_set", {"column_set": 7})), "write each as <collection>"),
        (suite(("expect_my_own", {"column": "inputs.a"})), "is not an expectation of Great Expectations"),
        (suite((BETWEEN, {"column": "inputs.a"})) | {"name": "a\nb"}, "is not valid"),
        ({"no collection": suite((BETWEEN, {"column": "a"}))}, "is not valid"),
    ],
)
def test_what_is_no_suite_is_refused_with_what_to_write(source: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        read_suite(source)


def test_neither_a_dag_file_nor_a_trigger_nor_a_look_loads_the_library() -> None:
    """It takes seconds and some hundred megabytes: only the process that evaluates may."""
    code = (
        "import json, sys\n"
        "import controlled_rollout.evaluation.look, controlled_rollout.evidence.collected.source\n"
        "import controlled_rollout.evidence.collected.version_data, controlled_rollout.expectations.process\n"
        "from controlled_rollout import CollectedDataGateOperator, CollectedDataSensor, Gate, TreatmentGateSensor\n"
        "from controlled_rollout.triggers import collected_data, treatment_gate\n"
        "suite = json.loads(sys.argv[1])\n"
        "gate = Gate(expectations=suite)\n"
        "TreatmentGateSensor(task_id='gate', endpoint='digits', version='v1', gate=gate)\n"
        "CollectedDataGateOperator(task_id='check', endpoint='digits', expectations=suite)\n"
        "print([name for name in ('great_expectations', 'pandas', 'pyarrow', 'duckdb') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, json.dumps(AGE)],
        env=os.environ | {"AIRFLOW_HOME": str(airflow_home.HOME)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_file_that_is_too_large_for_a_suite_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "suite.json"
    with file.open("wb") as sparse:
        sparse.truncate(MAX_FILE_BYTES + 1)

    with pytest.raises(ArgumentError, match="it is not a suite's JSON"):
        read_suite(file)


def test_a_file_of_brackets_is_no_suite(tmp_path: Path) -> None:
    file = tmp_path / "suite.json"
    file.write_text("[" * 500_000)

    with pytest.raises(ArgumentError, match="cannot be read as JSON"):
        read_suite(file)


@pytest.mark.parametrize("column", ['a"b', "a\\b", "a\nb", "a\x1b[2Jb", "a'; DROP TABLE x; --", "ä €", "a.b"])
def test_a_column_may_be_called_anything_and_its_expectation_is_named_in_one_visible_line(column: str) -> None:
    [one] = read_suite(suite((BETWEEN, {"column": f"inputs.{column}", "min_value": 0}))).expectations

    assert one.kwargs["column"] == column
    assert one.name.isprintable()


def test_settings_of_the_library_are_left_out_of_its_arguments() -> None:
    settings = {"result_format": "BOOLEAN_ONLY", "catch_exceptions": False, "include_config": True, "batch_id": "b"}
    [one] = read_suite(suite((BETWEEN, {"column": "inputs.a", "min_value": 0, **settings}))).expectations

    assert one.kwargs == {"column": "a", "min_value": 0}


def test_a_long_set_of_values_is_a_number_in_the_name() -> None:
    [one] = read_suite(suite((IN_SET, {"column": "inputs.a", "value_set": list(range(5_000))}))).expectations

    assert one.name == "inputs.a: values to be in set (value_set=5,000 values)"
