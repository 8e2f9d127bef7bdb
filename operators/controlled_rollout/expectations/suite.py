"""A suite of Great Expectations as a value: which expectations there are, of which collection. Needs no library.

Great Expectations takes seconds to import: a DAG file, a trigger and a gate read suites with this.
"""

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from controlled_rollout.errors import ArgumentError

__all__ = ["Expectation", "Suite", "read_suite"]

MAX_EXPECTATIONS: Final = 100
MAX_FILE_BYTES: Final = 1_000_000
COLLECTION: Final = r"^[A-Za-z0-9_-]{1,64}$"
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


def _known(kind: str) -> str:
    """Return a type of expectation; raise ValueError if it is none that can be evaluated on collected rows."""
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

    name: str = Field(min_length=1, max_length=300)
    collection: str = Field(pattern=COLLECTION)
    type: Annotated[str, AfterValidator(_known)]
    kwargs: dict[str, JsonValue]

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

    name: str = Field(min_length=1, max_length=200)
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
    described = _described(source)
    if "expectations" in described:
        if {"name", "collection"} <= _keys_of_first(described):
            return _checked(described.get("name"), described["expectations"])
        return _checked(described.get("name"), list(_with_names(_expectations(described, None))))
    parts: list[dict[str, Any]] = []
    for collection, suite in described.items():
        parts += _expectations(_described(suite), str(collection))
    return _checked(" and ".join(map(str, described)), list(_with_names(parts)))


def _described(source: Any) -> Mapping[str, Any]:
    """Return a suite as a mapping; a text is the path of a file."""
    if isinstance(source, str | Path):
        path = Path(source)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ArgumentError(
                    f"the suite {path} has more than {MAX_FILE_BYTES:,} bytes: it is not a suite's JSON"
                )
            source = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
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
    result = []
    for one in expectations:
        kind = one.get("type", one.get("expectation_type")) if isinstance(one, Mapping) else None
        kwargs = one.get("kwargs") if isinstance(one, Mapping) else None
        if not isinstance(kind, str) or not isinstance(kwargs, Mapping):
            raise ArgumentError(f"an expectation has a type and kwargs, and not {one!r:.200}")
        kept = {str(name): value for name, value in kwargs.items() if name != "batch_id" and value is not None}
        meta = one.get("meta")
        about = collection or (meta.get("collection") if isinstance(meta, Mapping) else None)
        if about is None:
            about, kept = _without_collection(kind, kept)
        result.append({"collection": str(about), "type": kind, "kwargs": kept})
    return result


def _without_collection(kind: str, kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the one collection that an expectation's columns begin with, and its arguments without it."""
    columns = [kwargs[name] for name in COLUMN_ARGUMENTS if name in kwargs]
    for name in COLUMNS_ARGUMENTS:
        columns += kwargs.get(name, [])
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
            result[name] = [str(column).partition(".")[2] for column in result[name]]
    return found.pop(), result


def _with_names(expectations: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield expectations with a name each: its columns, what is expected, and a number where two would be the same."""
    seen: dict[str, int] = {}
    for one in expectations:
        name = _name(one)
        seen[name] = seen.get(name, 0) + 1
        yield {"name": name if seen[name] == 1 else f"{name} ({seen[name]})", **one}


def _name(expectation: Mapping[str, Any]) -> str:
    """Return what an expectation is called, such as `inputs.age: values to be between (min_value=0)`."""
    kwargs = dict(expectation["kwargs"])
    columns = [str(kwargs.pop(name)) for name in COLUMN_ARGUMENTS if name in kwargs]
    for name in COLUMNS_ARGUMENTS:
        columns += map(str, kwargs.pop(name, []))
    what = str(expectation["type"]).removeprefix("expect_").removeprefix("column_").replace("_", " ")
    arguments = ", ".join(f"{name}={json.dumps(value, default=str)}" for name, value in kwargs.items())
    about = ".".join(filter(None, (expectation["collection"], ", ".join(columns))))
    return f"{about}: {what}{f' ({arguments})' if arguments else ''}"[:280]


def _checked(name: Any, expectations: Any) -> Suite:
    """Return a suite of these expectations; raise ArgumentError if one is not valid, or two have the same name."""
    try:
        suite = Suite(name=str(name or "suite")[:200], expectations=expectations)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5])
        raise ArgumentError(f"the suite {str(name)[:200]!r} is not valid: {faults}") from error
    names = [one.name for one in suite.expectations]
    if len(set(names)) < len(names):
        raise ArgumentError(f"the suite {suite.name!r} has two expectations of one name: give each its own")
    return suite
