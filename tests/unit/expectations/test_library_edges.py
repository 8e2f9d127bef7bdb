"""The process that evaluates, at its edges: nothing to read, a part of the requests, what the library raises."""

import gc
import signal
import socket
import sys
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.expectations import process, read_suite, server
from controlled_rollout.expectations.process import count_in_process, validate_in_process
from controlled_rollout.expectations.result import ExpectationResult, ValidationRequest
from controlled_rollout.expectations.validation import _validate
from tests.unit.expectations.test_validation import MINUTE, T0, row, write_part

SUITE = read_suite(
    {
        "inputs": {
            "expectations": [
                {"type": f"expect_{kind}", "kwargs": kwargs}
                for kind, kwargs in (
                    ("column_distinct_values_to_be_in_set", {"column": "name", "value_set": ["n0"]}),
                    ("column_mean_to_be_between", {"column": "age", "max_value": 1}),
                    ("column_quantile_values_to_be_between", {
                        "column": "age", "quantile_ranges": {"quantiles": [0.5], "value_ranges": [[0, 1]]},
                    }),
                    ("table_columns_to_match_set", {"column_set": ["age", "name", "one more"]}),
                    ("column_values_to_be_between", {"column": "age", "max_value": 10, "surprise": 1}),
                    ("column_values_to_be_in_set", {"column": "name", "value_set": ["x"]}),
                    ("table_row_count_to_equal", {"value": 100}),
                    ("column_to_exist", {"column": "gone"}),
                )
            ]
        }
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [row(f"r{number}", 0.5, age=float(number), name=f"n{number}" + "é" * 300) for number in range(100)]
    return write_part(tmp_path_factory.mktemp("edges") / "1.parquet", rows)


def validated(part: str, **more: Any) -> dict[str, ExpectationResult]:
    """Return the results by the first words of what is expected."""
    asked = ValidationRequest(suite=SUITE, collection="inputs", parts=(part,), since=T0, **more)
    names = [one.type.removeprefix("expect_") for one in SUITE.expectations]
    return dict(zip(names, validate_in_process(asked).results, strict=True))


def test_what_is_found_is_bounded_and_said_without_values_of_callers(part: str) -> None:
    found = validated(part)

    assert found["column_distinct_values_to_be_in_set"].success is False
    assert found["column_mean_to_be_between"].found == "observed 49.5"
    assert found["column_quantile_values_to_be_between"].found in ("observed 49", "observed 49.5", "observed 50")
    assert found["table_columns_to_match_set"].found == "observed 2 values"
    assert "surprise" in found["column_values_to_be_between"].fault
    assert found["column_values_to_be_between"].found == found["column_values_to_be_between"].fault
    assert (found["column_to_exist"].success, found["column_to_exist"].found) == (False, "not fulfilled")
    rows = found["column_values_to_be_in_set"]
    assert rows.found == "100 of 100 rows are unexpected (100 %)"
    assert len(rows.examples) == 10
    assert all(len(str(value)) < 250 for _, value in rows.examples)
    assert ExpectationResult(name="a", success=True, observed={"number": 7_000, "first": ["x"]}).found == (
        "observed 7,000 values"
    )


def test_what_is_about_all_rows_is_not_evaluated_on_a_part_of_the_requests(part: str) -> None:
    found = validated(part, max_rows=50)

    assert found["table_row_count_to_equal"].success is None
    assert "only 50 % of the requests are read" in found["table_row_count_to_equal"].fault
    assert found["column_mean_to_be_between"].success is False


def test_without_rows_nothing_is_fulfilled_and_nothing_is_not(part: str) -> None:
    found = validated(part, until=T0)

    assert {one.fault for one in found.values()} == {"no rows were collected in this time"}
    asked = ValidationRequest(suite=SUITE, collection="inputs", parts=(part,), since=T0, until=T0, bin_width=MINUTE)
    assert count_in_process(asked).by_bin == {one.name: {} for one in SUITE.row_wise}


def test_an_expectation_that_raises_leaves_the_results_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def suite(name: str, expectations: Sequence[str]) -> Sequence[str]:
        return expectations

    def validate(expectations: Sequence[str], **how: Any) -> SimpleNamespace:
        if "bad" in expectations:
            raise ValueError("no value was found")
        return SimpleNamespace(results=[f"result of {one}" for one in expectations])

    monkeypatch.setitem(sys.modules, "great_expectations", SimpleNamespace(ExpectationSuite=suite))
    batch = SimpleNamespace(validate=validate)

    assert _validate(batch, ["a", "bad", "b"]) == ["result of a", "result of b"]
    assert _validate(batch, []) == []


def test_the_server_ends_when_nobody_asks_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_load_library", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server.serve(theirs, idle=timedelta(milliseconds=1))
        ours.close()
        server.serve(theirs)


def test_a_server_that_does_not_end_is_killed_and_a_fork_leaves_it_to_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = process._Server()
    parent, one.owner = one.owner, -1
    assert not one.is_usable
    one.end()
    assert one.process.poll() is None
    one.owner = parent
    monkeypatch.setattr(process, "ENDING", timedelta(0))
    one.end()
    assert one.process.returncode is not None


def test_an_answer_that_never_comes_from_a_server_that_goes_on_is_an_error(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process._Server, "ask", lambda *_, **__: b"")
    asked = ValidationRequest(suite=SUITE, collection="inputs", parts=(part,), since=T0)

    with pytest.raises(EvidenceUnavailableError, match="was killed, perhaps because memory ran out"):
        validate_in_process(asked)
