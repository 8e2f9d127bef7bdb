"""A suite of Great Expectations as a value: which expectations there are, of which collection. Needs no library.

Great Expectations takes seconds to import: a DAG file, a trigger and a gate read suites with this.
"""

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from controlled_rollout.errors import ArgumentError
from controlled_rollout.visible_text import short_text

__all__ = ["Expectation", "Suite", "read_suite"]

MAX_EXPECTATIONS: Final = 100
LONGEST_NAME: Final = 280
SHOWN_VALUES: Final = 20
MAX_FILE_BYTES: Final = 1_000_000
# A gate with its suite travels in tasks, triggers and records.
MAX_BYTES: Final = 200_000
COLLECTION: Final = r"^[A-Za-z0-9_-]{1,64}$"
VISIBLE: Final = r"^[^\x00-\x1f\x7f]*$"
# Settings of the library, or of another run of it: what is evaluated, and how it is answered, is decided here.
LEFT_OUT: Final = ("batch_id", "result_format", "catch_exceptions", "include_config", "meta")
# The text of a condition is evaluated as an expression.
REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
REFUSED: Final = ("row_condition", "condition_parser")
# Arguments that name a column, or several.
COLUMN_ARGUMENTS: Final = ("column", "column_A", "column_B")
COLUMNS_ARGUMENTS: Final = ("column_list", "column_set")
# Each row fulfils them or does not, whatever the other rows are. Not among them: what compares a row with others, such
# as expect_column_values_to_be_unique.
ROW_WISE: Final = frozenset(
    f"expect_{name}"
    for name in (
        "column_pair_values_a_to_be_greater_than_b",
        "column_pair_values_to_be_equal",
        "column_pair_values_to_be_in_set",
        "column_value_lengths_to_be_between",
        "column_value_lengths_to_equal",
        "column_values_to_be_between",
        "column_values_to_be_dateutil_parseable",
        "column_values_to_be_in_set",
        "column_values_to_be_json_parseable",
        "column_values_to_be_null",
        "column_values_to_match_json_schema",
        "column_values_to_match_regex",
        "column_values_to_match_regex_list",
        "column_values_to_match_strftime_format",
        "column_values_to_not_be_in_set",
        "column_values_to_not_be_null",
        "column_values_to_not_match_regex",
        "column_values_to_not_match_regex_list",
        "multicolumn_sum_to_equal",
        "multicolumn_values_to_be_equal",
        "select_column_values_to_be_unique_within_record",
    )
)


# They are about all rows together, or about the table. Not among them: what only SQL evaluates, or what needs another
# table.
AGGREGATE: Final = frozenset(
    f"expect_{name}"
    for name in (
        "column_distinct_values_to_be_in_set",
        "column_distinct_values_to_contain_set",
        "column_distinct_values_to_equal_set",
        "column_kl_divergence_to_be_less_than",
        "column_max_to_be_between",
        "column_mean_to_be_between",
        "column_median_to_be_between",
        "column_min_to_be_between",
        "column_most_common_value_to_be_in_set",
        "column_proportion_of_non_null_values_to_be_between",
        "column_proportion_of_unique_values_to_be_between",
        "column_quantile_values_to_be_between",
        "column_stdev_to_be_between",
        "column_sum_to_be_between",
        "column_to_exist",
        "column_unique_value_count_to_be_between",
        "column_value_z_scores_to_be_less_than",
        "column_values_to_be_decreasing",
        "column_values_to_be_in_type_list",
        "column_values_to_be_increasing",
        "column_values_to_be_of_type",
        "column_values_to_be_unique",
        "compound_columns_to_be_unique",
        "table_column_count_to_be_between",
        "table_column_count_to_equal",
        "table_columns_to_match_ordered_list",
        "table_columns_to_match_set",
        "table_row_count_to_be_between",
        "table_row_count_to_equal",
    )
)
# What they find in a part of the requests is not what they would find in all.
OF_ALL_ROWS: Final = frozenset(
    f"expect_{name}"
    for name in (
        "column_distinct_values_to_contain_set",
        "column_distinct_values_to_equal_set",
        "column_max_to_be_between",
        "column_min_to_be_between",
        "column_proportion_of_unique_values_to_be_between",
        "column_sum_to_be_between",
        "column_unique_value_count_to_be_between",
        "table_row_count_to_be_between",
        "table_row_count_to_equal",
    )
)


def _known_type(kind: str) -> str:
    """Return the type of an expectation; raise ValueError if it cannot be evaluated on collected rows."""
    if kind in ROW_WISE or kind in AGGREGATE:
        return kind
    close = get_close_matches(kind, ROW_WISE | AGGREGATE, n=1)
    raise ValueError(
        f"{kind!r:.120} is not an expectation of Great Expectations that is evaluated on rows in memory"
        + (f"; did you mean {close[0]}?" if close else "")
    )


class Expectation(BaseModel):
    """One expectation.

    Attributes:
        name: What it is called in claims and reports; unique in its suite.
        collection: The collection whose rows it is about.
        type: Its type in Great Expectations, such as `expect_column_values_to_be_between`.
        kwargs: Its arguments there, columns without the collection.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=300, pattern=VISIBLE)
    collection: str = Field(pattern=COLLECTION)
    type: Annotated[str, AfterValidator(_known_type)]
    kwargs: dict[str, JsonValue]

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Raise ValueError if an argument would be run as code, fetched, or looked up elsewhere."""
        if given := [name for name in REFUSED if name in self.kwargs]:
            raise ValueError(
                f"{given[0]} is not taken: its text would be evaluated; collect what the condition is about"
            )
        mostly = self.kwargs.get("mostly", 1.0)
        if isinstance(mostly, bool) or not isinstance(mostly, int | float) or not 0 <= mostly <= 1:
            raise ValueError(f"mostly = {mostly!r:.100} is not the part of the rows that has to be expected, 0 to 1")
        for name, value in _named_values(self.kwargs):
            if name == "$PARAMETER" or (name in REFERENCES and not str(value).startswith("#")):
                raise ValueError(f"{name} = {value!r:.100} refers to something outside of the suite: write it out")
            if isinstance(value, float) and not isfinite(value):
                raise ValueError(f"{name} = {value} is no finite number: leave the bound out")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it names."""
        columns = [str(self.kwargs[name]) for name in COLUMN_ARGUMENTS if name in self.kwargs]
        for name in COLUMNS_ARGUMENTS:
            several = self.kwargs.get(name)
            columns += map(str, several) if isinstance(several, list) else []
        return tuple(columns)

    @property
    def is_row_wise(self) -> bool:
        """Whether each row fulfils it or does not, so that unexpected rows can be counted as they come."""
        return self.type in ROW_WISE

    @property
    def needs_all_rows(self) -> bool:
        """Whether a part of the requests says nothing about it, such as how many rows there are."""
        return self.type in OF_ALL_ROWS

    @property
    def allowed(self) -> float:
        """The part of the rows that may be unexpected: 1 less the expectation's `mostly`."""
        mostly = self.kwargs.get("mostly", 1.0)
        return 1.0 - float(mostly) if isinstance(mostly, int | float) else 0.0


class Suite(BaseModel):
    """A suite of expectations.

    Attributes:
        name: Its name.
        expectations: At least one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200, pattern=VISIBLE)
    expectations: tuple[Expectation, ...] = Field(min_length=1, max_length=MAX_EXPECTATIONS)

    @property
    def collections(self) -> tuple[str, ...]:
        """The collections that it is about, in order of appearance."""
        return tuple(dict.fromkeys(one.collection for one in self.expectations))

    @property
    def row_wise(self) -> tuple[Expectation, ...]:
        """The expectations that each row fulfils or does not."""
        return tuple(one for one in self.expectations if one.is_row_wise)

    @property
    def aggregates(self) -> tuple[Expectation, ...]:
        """The expectations about all rows together."""
        return tuple(one for one in self.expectations if not one.is_row_wise)

    def of(self, collection: str) -> tuple[Expectation, ...]:
        """Return the expectations about one collection."""
        return tuple(one for one in self.expectations if one.collection == collection)


def read_suite(source: Any) -> Suite:
    """Return a suite from what an author has: an object of Great Expectations, a JSON file, or a mapping.

    Columns are written `<collection>.<column>`, such as `inputs.age`. A suite that was made for other data has columns
    without a collection: give it as `{"inputs": suite}`, and one for predictions beside it if there is one.

    Args:
        source: A `great_expectations.ExpectationSuite`, its JSON as a mapping, the path of a file with that JSON, or a
            mapping of collections to such suites.

    Raises:
        ArgumentError: It is none of these, or an expectation is about no collection, or about two.
    """
    if isinstance(source, Suite):
        return source
    described = _suite_mapping(source)
    if "expectations" in described:
        if {"name", "collection"} <= _keys_of_first(described):
            return _checked_suite(described.get("name"), described["expectations"])
        return _checked_suite(described.get("name"), list(_with_names(_expectations(described, None))))
    parts: list[dict[str, Any]] = []
    for collection, suite in described.items():
        parts += _expectations(_suite_mapping(suite), str(collection))
    return _checked_suite(" and ".join(map(str, described)), list(_with_names(parts)))


def _suite_mapping(source: Any) -> Mapping[str, Any]:
    """Return a suite as a mapping; a text is the path of a file."""
    if isinstance(source, str | Path):
        path = Path(source)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ArgumentError(
                    f"the suite {path} has more than {MAX_FILE_BYTES:,} bytes: it is not a suite's JSON"
                )
            source = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ArgumentError(f"the suite {path} cannot be read as JSON: {error}") from error
    elif hasattr(source, "to_json_dict"):
        source = source.to_json_dict()
    if not isinstance(source, Mapping) or not source:
        raise ArgumentError(
            f"expectations are a suite of Great Expectations, its JSON, or {{'inputs': suite}}, and not {source!r:.200}"
        )
    return source


def _keys_of_first(described: Mapping[str, Any]) -> frozenset[str]:
    """Return the keys of a suite's first expectation; empty if there is none."""
    expectations = described["expectations"]
    first = expectations[0] if isinstance(expectations, list | tuple) and expectations else None
    if isinstance(first, Expectation):
        return frozenset(Expectation.model_fields)
    return frozenset(first) if isinstance(first, Mapping) else frozenset()


def _expectations(described: Mapping[str, Any], collection: str | None) -> list[dict[str, Any]]:
    """Return a suite's expectations with their collection and their columns in it, without names."""
    expectations = described.get("expectations")
    if not isinstance(expectations, list | tuple):
        raise ArgumentError(f"a suite has a list of expectations, and not {expectations!r:.200}")
    if len(expectations) > MAX_EXPECTATIONS:
        raise ArgumentError(f"a suite has {len(expectations):,} expectations, and {MAX_EXPECTATIONS} are evaluated")
    result = []
    for expectation in expectations:
        kind = (
            expectation.get("type", expectation.get("expectation_type")) if isinstance(expectation, Mapping) else None
        )
        kwargs = expectation.get("kwargs") if isinstance(expectation, Mapping) else None
        if not isinstance(kind, str) or not isinstance(kwargs, Mapping):
            raise ArgumentError(f"an expectation has a type and kwargs, and not {expectation!r:.200}")
        kept = {str(name): value for name, value in kwargs.items() if name not in LEFT_OUT and value is not None}
        meta = expectation.get("meta")
        about = collection or (meta.get("collection") if isinstance(meta, Mapping) else None)
        if about is None:
            about, kept = _without_collection(kind, kept)
        result.append({"collection": str(about), "type": kind, "kwargs": kept})
    return result


def _without_collection(kind: str, kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the one collection that an expectation's columns begin with, and its arguments without it."""
    columns = [kwargs[name] for name in COLUMN_ARGUMENTS if name in kwargs]
    for name in COLUMNS_ARGUMENTS:
        columns += _column_list(kwargs.get(name))
    found = {str(column).partition(".")[0] for column in columns if "." in str(column)}
    if len(found) != 1 or not all("." in str(column) for column in columns):
        raise ArgumentError(
            f"{kind} is about the columns {columns!r:.200}: write each as <collection>.<column>, such as inputs.age, "
            "all of one collection; or give the whole suite as {'inputs': suite}"
        )
    result = dict(kwargs)
    for name in COLUMN_ARGUMENTS:
        if name in result:
            result[name] = str(result[name]).partition(".")[2]
    for name in COLUMNS_ARGUMENTS:
        if name in result:
            result[name] = [str(column).partition(".")[2] for column in _column_list(result[name])]
    return found.pop(), result


def _with_names(expectations: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield expectations with a name each: its columns, what is expected, and a number where two would be the same."""
    seen: dict[str, int] = {}
    for expectation in expectations:
        name = _name(expectation)
        seen[name] = seen.get(name, 0) + 1
        yield {"name": name if seen[name] == 1 else f"{name} ({seen[name]})", **expectation}


def _name(expectation: Mapping[str, Any]) -> str:
    """Return what an expectation is called, such as `inputs.age: values to be between (min_value=0)`."""
    kwargs = dict(expectation["kwargs"])
    columns = [str(kwargs.pop(name)) for name in COLUMN_ARGUMENTS if name in kwargs]
    for name in COLUMNS_ARGUMENTS:
        columns += map(str, _column_list(kwargs.pop(name, None)))
    what = str(expectation["type"]).removeprefix("expect_").removeprefix("column_").replace("_", " ")
    arguments = ", ".join(f"{name}={_short_json(value)}" for name, value in kwargs.items())
    about = ".".join(filter(None, (expectation["collection"], ", ".join(columns))))
    return short_text(f"{about}: {what}{f' ({arguments})' if arguments else ''}", most=LONGEST_NAME)


def _short_json(value: Any) -> str:
    """Return an argument as JSON, cut where it is long."""
    if isinstance(value, list | tuple) and len(value) > SHOWN_VALUES:
        return f"{len(value):,} values"
    try:
        text = json.dumps(value, default=str)
    except RecursionError:
        return "…"
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"


def _column_list(value: Any) -> list[Any]:
    """Return an argument that names several columns as a list."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _named_values(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value in an argument, however deep, with its key; a value in a list has the list's key."""
    left = [("", value)]
    while left:
        name, one = left.pop()
        yield name, one
        if isinstance(one, Mapping):
            left += [(str(key), inner) for key, inner in one.items()]
        elif isinstance(one, list | tuple):
            left += [(name, inner) for inner in one]


def _checked_suite(name: Any, expectations: Any) -> Suite:
    """Return a suite of these expectations; raise ArgumentError if one is not valid, or two have the same name."""
    try:
        suite = Suite(name=str(name or "suite")[:200], expectations=expectations)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"[:500]
            for fault in error.errors(include_url=False, include_input=False)[:5]
        )
        raise ArgumentError(f"the suite {str(name)[:200]!r} is not valid: {faults}") from error
    except RecursionError as error:
        raise ArgumentError(f"the suite {str(name)[:200]!r} is nested too deeply to be one") from error
    if (size := len(suite.model_dump_json())) > MAX_BYTES:
        raise ArgumentError(
            f"the suite {suite.name!r} has {size:,} bytes, and {MAX_BYTES:,} are taken: give fewer expectations, or "
            "shorter sets of values"
        )
    names = [one.name for one in suite.expectations]
    if len(set(names)) < len(names):
        raise ArgumentError(f"the suite {suite.name!r} has two expectations of one name: give each its own")
    return suite
