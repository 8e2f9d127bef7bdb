"""Validates rows with Great Expectations itself; runs in a process of its own, which imports it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.expectations.result import (
    Counted,
    ExpectationResult,
    RowCounts,
    Validation,
    ValidationRequest,
)
from controlled_rollout.expectations.rows import MICROSECOND, read_rows, row_count
from controlled_rollout.expectations.suite import Expectation

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["count", "evaluated", "validate"]

MAX_EXAMPLES: Final = 10
LONGEST_FAULT: Final = 500
LONGEST_VALUE: Final = 200
MOST_VALUES: Final = 50
# Which rows a pair or several columns are asked of: those that these words leave.
LEAVES_OUT_ANY: Final = ("either_value_is_missing", "any_value_is_missing")
LEAVES_OUT_NONE: Final = ("neither", "never")
# These look at rows without a value.
ABOUT_NULL: Final = ("expect_column_values_to_be_null", "expect_column_values_to_not_be_null")


def count(request: ValidationRequest) -> Counted:
    """Count the rows and the unexpected rows of each row-wise expectation by bin, one row of each request.

    A column that some parts lack is null there; which of the columns there are at all is in the result.
    """
    expectations = [expectation for expectation in request.suite.of(request.collection) if expectation.is_row_wise]
    assert request.bin_width is not None  # noqa: S101 - the caller asks for bins
    width = request.bin_width // MICROSECOND
    counts: dict[str, dict[int, list[int]]] = {
        expectation.name: defaultdict(lambda: [0, 0]) for expectation in expectations
    }
    columns: set[str] = set()
    faults: dict[str, str] = {}
    parts = read_rows(
        request.parts,
        request.collection,
        since=request.since,
        until=request.until,
        drawn=True,
        columns=_columns_of(expectations),
    )
    for rows in parts:
        columns |= set(map(str, rows.data.columns))
        data = _with_columns(rows.data, expectations)
        bins = rows.times // width
        for expectation, result in zip(expectations, evaluated(data, expectations), strict=True):
            found = result["result"]
            indices = found.get("unexpected_index_list") or []
            fault = _fault(result)
            if not fault and len(indices) != found.get("unexpected_count"):
                fault = "the library does not say which rows are unexpected"
            if fault:
                faults.setdefault(expectation.name, fault)
                continue
            tally = counts[expectation.name]
            for number, asked in bins[_is_counted(expectation, data)].value_counts().items():
                tally[int(number)][0] += int(asked)
            unexpected = bins.iloc[[int(index) for index in indices]]
            for number, rows_found in unexpected.value_counts().items():
                tally[int(number)][1] += int(rows_found)
    by_bin = {
        name: {number: RowCounts(rows=max(both), unexpected=both[1]) for number, both in sorted(tally.items())}
        for name, tally in counts.items()
    }
    return Counted(by_bin=by_bin, columns=frozenset(columns), faults=faults)


def validate(request: ValidationRequest) -> Validation:
    """Evaluate every expectation of the collection on all rows at once."""
    import pandas as pd

    expectations = request.suite.of(request.collection)
    total = row_count(request.parts)
    part = min(1.0, request.max_rows / total) if total else 1.0
    chunks = list(
        read_rows(
            request.parts,
            request.collection,
            since=request.since,
            until=request.until,
            drawn=False,
            part_of_requests=part,
            columns=_columns_of(expectations),
        )
    )
    if not chunks:
        fault = "no rows were collected in this time"
        results = tuple(ExpectationResult(name=one.name, success=None, fault=fault) for one in expectations)
        return Validation(rows=0, part=part, results=results)
    data = pd.concat([chunk.data for chunk in chunks], ignore_index=True)
    ids = pd.concat([chunk.ids for chunk in chunks], ignore_index=True)
    found = zip(expectations, evaluated(data, expectations), strict=True)
    results = tuple(
        _of_a_part(one, part) if part < 1 and one.needs_all_rows else _expectation_result(one, result, data, ids)
        for one, result in found
    )
    return Validation(rows=len(data), part=part, results=results)


def evaluated(data: "pd.DataFrame", expectations: Sequence[Expectation]) -> list[dict[str, Any]]:
    """Return Great Expectations' result of each expectation, as a mapping."""
    from great_expectations.expectations.registry import get_expectation_impl

    batch = _rows_of_the_library().get_batch({"dataframe": data})
    results: dict[int, dict[str, Any]] = {}
    configurations: list[Any] = []
    for number, expectation in enumerate(expectations):
        try:
            # Each by itself first: an argument that is wrong says something about one only.
            configurations.append(get_expectation_impl(expectation.type)(**expectation.kwargs, meta={"number": number}))
        except Exception as error:  # whatever the library raises is what is wrong with this expectation
            results[number] = {"success": None, "result": {}, "exceptions": {"raised": str(error)}}
    for result in _validate(batch, configurations):
        results[result.expectation_config.meta["number"]] = {
            "success": result.success,
            "result": result.result,
            "exceptions": result.exception_info,
        }
    missing = {"success": None, "result": {}, "exceptions": {"raised": "the library gave no result"}}
    return [results.get(number, missing) for number in range(len(expectations))]


def _validate(batch: Any, configurations: Sequence[Any]) -> list[Any]:
    """Return the library's results; that of an expectation that raises is left out."""
    import great_expectations as gx

    how = {"result_format": "COMPLETE", "return_unexpected_index_query": False}
    if not configurations:
        return []
    try:
        return list(
            batch.validate(gx.ExpectationSuite(name="all", expectations=configurations), result_format=how).results
        )
    except Exception:  # one of them ends all of them
        if len(configurations) == 1:
            return []
        return [found for one in configurations for found in _validate(batch, [one])]


@lru_cache(maxsize=1)
def _rows_of_the_library() -> Any:
    """Return how the library is handed a table; it writes nothing, and forgets nothing of what it is configured."""
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    return (
        context.data_sources.add_pandas("collected")
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("all")
    )


def _fault(result: Mapping[str, Any]) -> str:
    """Return what went wrong inside an expectation, in a line; empty if it was evaluated."""
    exceptions = result["exceptions"] or {}
    if exceptions.get("raised_exception") is False:
        return ""
    texts = [exceptions] if "exception_message" in exceptions else list(exceptions.values())
    messages = [str(text.get("exception_message") if isinstance(text, Mapping) else text) for text in texts]
    return " ".join("; ".join(dict.fromkeys(messages)).split())[:LONGEST_FAULT]


def _is_counted(expectation: Expectation, data: "pd.DataFrame") -> "pd.Series[bool]":
    """Return for each row whether it counts for an expectation: the library leaves out rows without values."""
    names = expectation.columns
    known = data[[name for name in names if name in data]].notna()
    how = expectation.kwargs.get("ignore_row_if", "")
    if expectation.type in ABOUT_NULL or how in LEAVES_OUT_NONE or not len(known.columns):
        return data.index >= 0
    return known.all(axis=1) if how in LEAVES_OUT_ANY else known.any(axis=1)


def _columns_of(expectations: Sequence[Expectation]) -> frozenset[str] | None:
    """Return the columns that expectations name; None for all if one of them is about the table."""
    if not all(one.columns for one in expectations):
        return None
    return frozenset(name for one in expectations for name in one.columns)


def _with_columns(data: "pd.DataFrame", expectations: Sequence[Expectation]) -> "pd.DataFrame":
    """Return the columns that expectations name; one that is not there is null in all rows."""
    names = dict.fromkeys(name for one in expectations for name in one.columns)
    return data.reindex(columns=list(names))


def _of_a_part(expectation: Expectation, part: float) -> ExpectationResult:
    """Return that an expectation was not evaluated because only some of the requests were read."""
    fault = f"it is about all rows, and only {100 * part:.3g} % of the requests are read (max_rows)"
    return ExpectationResult(name=expectation.name, success=None, fault=fault)


def _expectation_result(
    expectation: Expectation, result: Mapping[str, Any], data: "pd.DataFrame", ids: "pd.Series[Any]"
) -> ExpectationResult:
    """Return one result with some examples of unexpected values and the requests that they are from."""
    if fault := _fault(result):
        return ExpectationResult(name=expectation.name, success=None, fault=fault)
    found = result["result"]
    indices = [index for index in found.get("unexpected_index_list") or () if isinstance(index, int)][:MAX_EXAMPLES]
    columns = [name for name in expectation.columns if name in data]
    counted = "unexpected_count" in found and "element_count" in found
    return ExpectationResult(
        name=expectation.name,
        success=bool(result["success"]),
        rows=int(found["element_count"]) - int(found.get("missing_count") or 0) if counted else None,
        unexpected=int(found["unexpected_count"]) if counted else None,
        observed=_bounded_json(_json_value(found.get("observed_value"))),
        examples=tuple(
            (str(ids.iloc[index]), _bounded_json(_json_value(data.loc[index, columns].tolist()))) for index in indices
        ),
    )


def _bounded_json(value: Any) -> Any:
    """Return a value of JSON with long texts cut, and of long lists how many there are and the first of them."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST_VALUE else f"{value[:LONGEST_VALUE]}…"
    if isinstance(value, Mapping):
        return {name[:LONGEST_VALUE]: _bounded_json(one) for name, one in list(value.items())[:MOST_VALUES]}
    if isinstance(value, list):
        first = [_bounded_json(one) for one in value[:MOST_VALUES]]
        return first if len(value) <= MOST_VALUES else {"number": len(value), "first": first}
    return value


def _json_value(value: Any) -> Any:
    """Return a value as JSON has it; what JSON has not as text."""
    if isinstance(value, Mapping):
        return {str(name): _json_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_json_value(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not (abs(value) <= 1.8e308):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
