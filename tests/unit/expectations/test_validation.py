"""Great Expectations on collected rows, in the process of its own that evaluates them: two of them for all tests."""

import json
from datetime import UTC, datetime, timedelta
from hashlib import md5
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.expectations import process, read_suite, server, validation
from controlled_rollout.expectations.process import count_in_process, validate_in_process
from controlled_rollout.expectations.result import Counted, ExpectationResult, RowCounts, Validation, ValidationRequest
from controlled_rollout.expectations.rows import read_rows
from tests.polling import wait_until

T0 = datetime(2026, 1, 5, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
FIRST_BIN = (T0 - datetime(1970, 1, 1, tzinfo=UTC)) // MINUTE
AGE, LABEL, PAIR, REGEX, MEAN, GONE, UNIQUE = "ages", "labels", "pairs", "wrong expression", "mean", "gone", "unique"


def between(column: str, **limits: float) -> dict[str, Any]:
    return {"type": "expect_column_values_to_be_between", "kwargs": {"column": column, **limits}}


EXPECTATIONS = {
    AGE: between("age", min_value=0, max_value=100, mostly=0.5),
    LABEL: {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "$label", "value_set": ["a", "b"]}},
    PAIR: {
        "type": "expect_column_pair_values_a_to_be_greater_than_b",
        "kwargs": {"column_A": "age", "column_B": "low", "ignore_row_if": "either_value_is_missing"},
    },
    REGEX: {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "$label", "regex": "("}},
    MEAN: {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "age", "min_value": 0, "max_value": 20}},
    GONE: between("gone", min_value=0),
    UNIQUE: {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "$label"}},
}
SUITE = read_suite(
    {
        "name": "applicants",
        "expectations": [
            {"name": name, "collection": "inputs", "type": one["type"], "kwargs": one["kwargs"]}
            for name, one in EXPECTATIONS.items()
        ],
    }
)


def write_part(file: Path, rows: list[dict[str, Any]], *, json_columns: tuple[str, ...] = ()) -> str:
    """Write a part as the collector does."""
    table = pa.Table.from_pylist(rows)
    table = table.set_column(table.column_names.index("$time"), "$time", table["$time"].cast(pa.timestamp("us", "UTC")))
    table = table.replace_schema_metadata({"controlled_rollout.json_columns": json.dumps(json_columns)})
    parquet.write_table(table, file)
    return str(file)


def row(identity: str, minute: float, *, number: int = 0, rows: int = 1, **more: Any) -> dict[str, Any]:
    """Return a row of a request."""
    return {
        "$request_id": identity,
        "$row": number,
        "$rows": rows,
        "$time": T0 + minute * MINUTE,
        "$status": more.pop("status", 200),
        "$addressed": more.pop("addressed", False),
        **more,
    }


def drawn(identity: str, rows: int) -> int:
    """Return which row of a request counts: engines of summaries draw the same."""
    return int(md5(identity.encode(), usedforsecurity=False).hexdigest()[:8], 16) % rows


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("parts")
    batch = [
        row("batch", 1.5, number=number, rows=3, age=500.0 if number == drawn("batch", 3) else 1.0, low=0.0)
        for number in range(3)
    ]
    first = [
        row("early", -1, age=-1.0, low=0.0),
        row("good", 0, age=30.0, low=1.0),
        row("old", 0.5, age=130.0, low=200.0),
        row("null", 1, age=None, low=1.0),
        row("addressed", 1, age=-1.0, low=1.0, addressed=True),
        row("refused", 1, age=-1.0, low=1.0, status=401),
        *batch,
        row("late", 3, age=-1.0, low=0.0),
    ]
    second = [row("text", 2) | {"$$label": '"c"'}, row("other", 2) | {"$$label": '"a"'}]
    return (
        write_part(folder / "1.parquet", first),
        write_part(folder / "2.parquet", second, json_columns=("$$label",)),
    )


def request(parts: tuple[str, ...], **more: Any) -> ValidationRequest:
    return ValidationRequest(suite=SUITE, collection="inputs", parts=parts, since=T0, until=T0 + 3 * MINUTE, **more)


@pytest.fixture(scope="module")
def counted(parts: tuple[str, ...]) -> Counted:
    return count_in_process(request(parts, bin_width=MINUTE))


@pytest.fixture(scope="module")
def results(parts: tuple[str, ...]) -> tuple[Validation, dict[str, ExpectationResult]]:
    validation = validate_in_process(request(parts))
    return validation, {one.name: one for one in validation.results}


def test_rows_and_unexpected_rows_are_counted_by_bin_one_row_of_each_request(counted: Counted) -> None:
    def by_minute(name: str) -> dict[int, tuple[int, int]]:
        return {number - FIRST_BIN: (one.rows, one.unexpected) for number, one in counted.by_bin[name].items()}

    assert by_minute(AGE) == {0: (2, 1), 1: (1, 1)}
    assert by_minute(LABEL) == {2: (2, 1)}
    assert by_minute(PAIR) == {0: (2, 1), 1: (1, 0)}


def test_only_expectations_of_rows_are_counted_and_columns_that_no_part_has_are_told(counted: Counted) -> None:
    assert set(counted.by_bin) == {AGE, LABEL, PAIR, REGEX, GONE}
    assert counted.columns == {"age", "low", "$label"}
    assert counted.by_bin[GONE] == {}


def test_columns_that_no_expectation_names_are_not_read(tmp_path: Path) -> None:
    """Callers may send others by the thousand, which together would make a table that no memory holds."""
    more = {f"odd{number}": 1.0 for number in range(100)}
    first = row("one", 0) | more | {"left.x": 2.0, "$$label": '"a"', "$$other": "b"}
    paths = [write_part(tmp_path / "1.parquet", [first], json_columns=("$$label",))]
    paths.append(write_part(tmp_path / "2.parquet", [row("two", 0, age=3.0)]))

    def columns(asked: frozenset[str] | None) -> set[str]:
        (rows,) = read_rows(paths, "inputs", since=T0, until=None, drawn=True, columns=asked)
        assert list(rows.ids) == ["one", "two"]
        return set(rows.data.columns)

    assert columns(frozenset({"age", "left.x", "$label", "gone"})) == {"age", "left.x", "$label"}
    assert columns(None) == {*more, "age", "left.x", "$label", "$other"}


def test_a_null_among_values_of_several_types_is_null(tmp_path: Path) -> None:
    values = ['"a"', None, "1", "[1]"]
    rows = [row(f"r{number}", 0) | {"mixed": value} for number, value in enumerate(values)]
    part = write_part(tmp_path / "p.parquet", rows, json_columns=("mixed",))
    (found,) = read_rows([part], "inputs", since=T0, until=None, drawn=True, columns=frozenset({"mixed"}))
    assert found.data["mixed"].tolist() == ["a", None, 1, [1]]


def test_an_exception_inside_an_expectation_is_told_with_its_text_and_leaves_the_others(counted: Counted) -> None:
    assert set(counted.faults) == {REGEX}
    assert counted.faults[REGEX].startswith("Invalid regular expression: ")


def test_all_rows_are_validated_at_once_with_the_requests_of_unexpected_values(
    results: tuple[Validation, dict[str, ExpectationResult]],
) -> None:
    validation, by_name = results

    assert (validation.rows, validation.part) == (8, 1.0)
    assert (by_name[AGE].rows, by_name[AGE].unexpected, by_name[AGE].success) == (5, 2, True)
    assert by_name[AGE].examples == (("old", [130.0]), ("batch", [500.0]))
    assert by_name[MEAN].success is False
    assert by_name[MEAN].observed == pytest.approx((30 + 130 + 500 + 1 + 1) / 5)
    assert (by_name[MEAN].rows, by_name[UNIQUE].unexpected) == (None, 0)


def test_what_cannot_be_evaluated_is_neither_success_nor_failure(
    results: tuple[Validation, dict[str, ExpectationResult]],
) -> None:
    _, by_name = results

    assert (by_name[GONE].success, by_name[REGEX].success) == (None, None)
    assert "gone" in by_name[GONE].fault
    assert by_name[REGEX].fault.startswith("Invalid regular expression: ")


def test_a_part_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "half.parquet").write_bytes(b"PAR1 half")

    with pytest.raises(EvidenceUnavailableError, match=r"could not be evaluated: .*half\.parquet"):
        count_in_process(request((str(tmp_path / "half.parquet"),), bin_width=MINUTE))


def test_an_evaluation_that_takes_too_long_is_an_error(parts: tuple[str, ...]) -> None:
    with pytest.raises(EvidenceUnavailableError, match=r"were not evaluated within 0\.01 s"):
        count_in_process(request(parts, bin_width=MINUTE), timeout=timedelta(milliseconds=10))


def test_a_server_that_has_ended_is_replaced_and_one_that_ends_within_a_question_is_an_error(
    parts: tuple[str, ...],
) -> None:
    first = process._running_server()
    first.control.close()  # as if it had been idle for too long
    first.process.wait(timeout=60)

    assert count_in_process(request(parts, bin_width=MINUTE)).by_bin
    second = process._running_server()
    assert second is not first
    # What is asked of it is the business of a fork, which may be killed.
    second.process.kill()
    with pytest.raises(EvidenceUnavailableError, match=r"could not be evaluated \(exit code -9\)"):
        process._ask_server(request(parts), timedelta(minutes=1))


def test_a_package_that_is_missing_is_named_with_what_to_install(
    parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'great_expectations'\" >&2\nexit 1\n")
    python.chmod(0o700)
    monkeypatch.setattr("sys.executable", str(python))

    with pytest.raises(EvidenceUnavailableError, match=r"'great_expectations': install .* with the extra data"):
        validate_in_process(request(parts))


def test_counts_are_what_they_are_read_from() -> None:
    counted = Counted(by_bin={AGE: {7: RowCounts(rows=3, unexpected=1)}}, columns=frozenset({"age"}), faults={})

    assert Counted.model_validate_json(counted.model_dump_json()) == counted


def test_a_regular_expression_that_takes_for_ever_is_ended_and_leaves_nothing_running(tmp_path: Path) -> None:
    text = write_part(tmp_path / "1.parquet", [row("long", 0) | {"text": "a" * 60 + "!"}])
    kwargs: dict[str, Any] = {"column": "text", "regex": "^(a+)+$"}
    suite = read_suite(
        {"inputs": {"expectations": [{"type": "expect_column_values_to_match_regex", "kwargs": kwargs}]}}
    )
    asked = request((text,), bin_width=MINUTE).model_copy(update={"suite": suite})
    running = psutil.Process(process._running_server().process.pid)

    with pytest.raises(EvidenceUnavailableError, match=r"not evaluated within 1 s: .* simpler regular expressions"):
        count_in_process(asked, timeout=timedelta(seconds=1))
    wait_until(lambda: not running.children(), "the fork has ended", timeout_s=10)


def test_more_memory_than_one_request_may_have_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "validate", lambda request: bytearray(2**60))

    assert server._answer_to(request(())) == server.Answer(fault="more than 3 GB of memory would be needed")
