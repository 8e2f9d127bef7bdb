"""Bodies of requests and answers as rows and columns: JSON in the shapes that callers send, and CSV."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = [
    "MAX_CELLS",
    "MAX_COLUMNS",
    "MAX_ROWS",
    "Nested",
    "Row",
    "Rows",
    "Value",
    "json_text",
    "read_rows",
    "read_script_rows",
]

# A body with more is kept as one row without columns.
MAX_ROWS: Final = 100_000
MAX_COLUMNS: Final = 1_000
# Rows times columns: rows that lack most of the columns take little in a body, and all of it in a table.
MAX_CELLS: Final = 10_000_000
# What a table repeats in each of its rows: a body of some kilobytes has as much of it as it likes.
MAX_REPEATED: Final = 100_000
# A longer name of a column is none that somebody has chosen.
MAX_NAME: Final = 1_000
# A longer integer is out of the range of a double anyway, and Python refuses to read the longest.
MAX_INTEGER_DIGITS: Final = 300
# Python's own limit of a CSV field would refuse fields that the body's own cap allows.
CSV_FIELD_BYTES: Final = 1 << 30

csv.field_size_limit(CSV_FIELD_BYTES)


@dataclass(frozen=True, slots=True)
class Nested:
    """An object or a list inside a row.

    Attributes:
        text: Its JSON.
    """

    text: str


Value = None | bool | int | float | str | Nested
Row = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Rows:
    """What was read from a body.

    Attributes:
        rows: The rows, each a mapping of column to value; a column that a row lacks is not in its mapping.
        is_data: Whether the body was read as rows; else there are none, and only the bytes are known.
        too_large: Whether it has more rows or columns than are kept.
    """

    rows: Sequence[Row] = field(default=())
    is_data: bool = True
    too_large: bool = False


NO_DATA: Final = Rows(is_data=False)
TOO_LARGE: Final = Rows(is_data=False, too_large=True)


class _TooLargeError(Exception):
    """The body has more rows or columns than are kept."""


def read_rows(body: bytes, content_type: str, *, is_answer: bool) -> Rows:
    """Return the rows of a body; never raise, whatever the bytes are.

    Args:
        body: The whole body.
        content_type: Its media type; a body of another type that is JSON all the same is read as JSON.
        is_answer: Whether it is an answer: unnamed columns are then `prediction`, else `c0`, `c1`, ….
    """
    return _rows_if_readable(lambda: _rows_of_body(body, content_type, is_answer))


def read_script_rows(body: bytes, columns: Sequence[str] | None) -> Rows:
    """Return the rows that a script has collected; never raise, whatever the bytes are.

    Args:
        body: JSON: a list of rows, or what `read_rows` takes.
        columns: The names of the columns of rows that are lists; None if they have none.
    """

    def rows() -> Rows:
        """Return the rows of the JSON."""
        data = _parse_json(body)
        if columns is not None and isinstance(data, list):
            return _within_bounds(_rows_of_table(data, columns))
        return _rows_of_json(data, is_answer=False)

    return _rows_if_readable(rows)


def json_text(value: Value) -> str:
    """Return the JSON of a value, as it is written where a column has values of several types."""
    return value.text if isinstance(value, Nested) else json.dumps(value, ensure_ascii=False)


def _rows_if_readable(read: Callable[[], Rows]) -> Rows:
    """Return what `read` returns; a body that it cannot read is no rows."""
    try:
        return read()
    except _TooLargeError:
        return TOO_LARGE
    except (ValueError, RecursionError, csv.Error):
        # UnicodeDecodeError and JSONDecodeError are ValueErrors; deep nesting is a RecursionError.
        return NO_DATA


def _rows_of_body(body: bytes, content_type: str, is_answer: bool) -> Rows:
    """Return the rows of a body, by its media type; raise one of the errors that `_rows_if_readable` knows."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "text/csv":
        return _rows_of_csv(body.decode("utf-8-sig"))
    return _rows_of_json(_parse_json(body), is_answer)


def _parse_json(body: bytes) -> Any:
    """Return the value of a JSON text in UTF-8; raise ValueError if it is none."""
    return json.loads(body.decode("utf-8-sig"), parse_int=_integer)


def _integer(digits: str) -> int | float:
    """Return an integer; the longest as a double, which is infinite out of its range."""
    return int(digits) if len(digits) <= MAX_INTEGER_DIGITS else float(digits)


def _rows_of_json(data: Any, is_answer: bool) -> Rows:
    """Return the rows of a JSON value."""
    if isinstance(data, str):
        # Old scripts answer with json.dumps of what the server writes as JSON once more.
        try:
            inner = json.loads(data, parse_int=_integer)
        except ValueError:
            inner = data
        data = inner
    return _within_bounds(_rows_of_value(data, is_answer))


def _rows_of_value(data: Any, is_answer: bool) -> list[Row]:
    """Return the rows of a decoded JSON value, without regard to their number."""
    if not isinstance(data, dict):
        return _rows_of_list(data if isinstance(data, list) else [data], is_answer)
    for wrapper in ("data", "Inputs", "inputs"):
        # {"data": X}, {"Inputs": X}; a pandas split has `columns` beside its `data`.
        if wrapper in data and len(data) == 1 and isinstance(data[wrapper], dict | list):
            return _rows_of_value(data[wrapper], is_answer)
    # A second, fixed wrapper of the service's clients beside the data: {"Inputs": …, "GlobalParameters": …}.
    if set(data) == {"Inputs", "GlobalParameters"} and isinstance(data["Inputs"], dict | list):
        return _rows_of_value(data["Inputs"], is_answer)
    if _is_split(data):
        return _rows_of_table(data["data"], data["columns"])
    if _is_columns(data):
        names = list(data)
        return _rows_of_table(list(zip(*data.values(), strict=True)), names)
    if parameters := _tables_of_parameters(data, is_answer):
        return parameters
    return [_row_of_object(data)]


def _is_split(data: Mapping[str, Any]) -> bool:
    """Return whether an object is a pandas frame in the orientation `split`."""
    return (
        {"columns", "data"} <= set(data) <= {"columns", "data", "index", "dtypes"}
        and isinstance(data["columns"], list)
        and isinstance(data["data"], list)
    )


def _is_columns(data: Mapping[str, Any]) -> bool:
    """Return whether an object has columns of one length, none of which has rows or columns of its own."""
    return (
        bool(data)
        and all(isinstance(value, list) and value for value in data.values())
        and len({len(value) for value in data.values()}) == 1
        and not any(isinstance(item, dict | list) for value in data.values() for item in value)
    )


def _tables_of_parameters(data: Mapping[str, Any], is_answer: bool) -> list[Row]:
    """Return the rows of an object with one key per parameter of `run`, each a table; an empty list if it is none.

    A parameter that is a table gives the rows; several tables have equally many. What else the object has is repeated
    in each row. Columns of several tables are called `<parameter>.<column>`.
    """
    named = dict(zip(_unique_names(data), data.values(), strict=True))
    tables = {name: _rows_of_value(value, is_answer) for name, value in named.items() if _is_table(value)}
    if not tables or len({len(rows) for rows in tables.values()}) != 1:
        return []
    others = {name: value for name, value in named.items() if name not in tables}
    prefixes = {name: f"{name}." if len(named) > 1 else "" for name in tables}
    count = len(next(iter(tables.values())))
    if _check_column_count(len(others)) * count > MAX_REPEATED:
        raise _TooLargeError
    repeated = _row_of_object(others)
    # One text for each column, however many rows there are.
    columns: dict[tuple[str, str], str] = {}
    rows: list[Row] = []
    for number in range(count):
        row = dict(repeated)
        for parameter, table in tables.items():
            for name, value in table[number].items():
                if (parameter, name) not in columns:
                    columns[parameter, name] = prefixes[parameter] + name
                row[columns[parameter, name]] = value
        rows.append(row)
    return rows


def _is_table(value: Any) -> bool:
    """Return whether a value is a list of rows, or a pandas split."""
    if isinstance(value, dict):
        return _is_split(value)
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict | list) for item in value)


def _rows_of_list(items: list[Any], is_answer: bool) -> list[Row]:
    """Return the rows of a list: of objects, of lists, or of single values."""
    _check_table_size(len(items), 1)
    if all(isinstance(item, dict) for item in items):
        return [_row_of_object(item) for item in items]
    if all(isinstance(item, list) for item in items):
        return [_row_without_names(item, is_answer) for item in items]
    if is_answer:
        return [_row_without_names([item], is_answer) for item in items]
    if any(isinstance(item, dict | list) for item in items):
        # Rows of different shapes: each by itself.
        return [row for item in items for row in _rows_of_list([item], is_answer)]
    return [_row_without_names(items, is_answer)]


def _row_without_names(values: list[Any], is_answer: bool) -> Row:
    """Return the row of values without names."""
    if is_answer and len(values) == 1:
        return {"prediction": _value(values[0])}
    prefix = "prediction_" if is_answer else "c"
    return _row_under_names(values, [f"{prefix}{number}" for number in range(_check_column_count(len(values)))])


def _check_column_count(count: int) -> int:
    """Return the number of columns of a row; raise if it has too many."""
    if count > MAX_COLUMNS:
        raise _TooLargeError
    return count


def _check_table_size(rows: int, columns: int) -> None:
    """Raise if a table has too many rows, columns, or cells."""
    if rows > MAX_ROWS or _check_column_count(columns) * rows > MAX_CELLS:
        raise _TooLargeError


def _rows_of_table(data: Sequence[Any], columns: Sequence[Any]) -> list[Row]:
    """Return the rows of a table with named columns; a row that is no list is read by itself."""
    names = _unique_names(columns)
    _check_table_size(len(data), 1)
    return [
        _row_under_names(item, names)
        if isinstance(item, list | tuple)
        else _row_of_object(item)
        if isinstance(item, dict)
        else _row_under_names([item], names)
        for item in data
    ]


def _row_under_names(values: Sequence[Any], names: Sequence[str]) -> Row:
    """Return the row of values under names; values beyond the names are called by their position."""
    _check_column_count(len(values))
    row = {name: _value(value) for name, value in zip(names, values, strict=False)}
    for position in range(len(names), len(values)):
        row[f"c{position}"] = _value(values[position])
    return row


def _row_of_object(item: Mapping[str, Any]) -> Row:
    """Return the row of an object."""
    _check_column_count(len(item))
    return dict(zip(_unique_names(item), map(_value, item.values()), strict=True))


def _unique_names(names: Iterable[Any]) -> list[str]:
    """Return column names as text, none of them empty or twice."""
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    unique = []
    for position, name in enumerate(names):
        text = name if isinstance(name, str) else json.dumps(name, ensure_ascii=False)
        text = candidate = _utf8_text(text) or f"c{position}"
        if len(text) > MAX_NAME:
            raise _TooLargeError
        while candidate in taken:
            numbers[text] += 1
            candidate = f"{text}.{numbers[text]}"
        taken.add(candidate)
        unique.append(candidate)
        _check_column_count(len(unique))
    return unique


def _value(item: Any) -> Value:
    """Return a value of a row; objects and lists as their JSON."""
    if item is None or isinstance(item, bool | int | float):
        return item
    if isinstance(item, str):
        return _utf8_text(item)
    return Nested(_utf8_text(json.dumps(item, ensure_ascii=False)))


def _utf8_text(text: str) -> str:
    """Return text that can be written in UTF-8: halves of surrogate pairs are replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _within_bounds(rows: list[Row]) -> Rows:
    """Return rows, unless there are too many of them or of their columns together."""
    columns: set[str] = set()
    for row in rows:
        if not row.keys() <= columns:
            columns.update(row)
            _check_table_size(len(rows), len(columns))
    _check_table_size(len(rows), len(columns))
    return Rows(rows)


def _rows_of_csv(text: str) -> Rows:
    """Return the rows of a CSV text, whose first line has the names unless one of its fields is a number."""
    lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    if not lines:
        return Rows()
    has_header = not any(isinstance(_csv_value(item), int | float) for item in lines[0])
    names = (
        _unique_names(lines[0])
        if has_header
        else [f"c{number}" for number in range(_check_column_count(len(lines[0])))]
    )
    return _within_bounds([_row_under_names([_csv_value(item) for item in line], names) for line in lines[has_header:]])


def _csv_value(item: str) -> Value:
    """Return a field of a CSV line: a number, else text; None for an empty field."""
    if not item:
        return None
    if item[0] in "+-.0123456789" and len(item) <= MAX_INTEGER_DIGITS:
        try:
            number = float(item)
        except ValueError:
            return item
        # What float() also takes, and nobody means by it: 1_000.
        return number if math.isfinite(number) and "_" not in item else item
    return item
