"""The SQL that summarises parts, in the dialect of the engine. Pure: text in, text out.

Of what others write only the names of columns get into it, in quotation marks; parts are parameters, or a view.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from controlled_rollout.evidence.bins import since_epoch
from controlled_rollout.evidence.collected.dialects import Dialect
from controlled_rollout.evidence.collected.engine import LARGEST_VALUE, Observation
from controlled_rollout.evidence.collected.part_columns import PartColumns
from controlled_rollout.evidence.collected.values import LONGEST_TEXT

__all__ = [
    "NOT_A_BUCKET",
    "NULL_BUCKET",
    "categories_sql",
    "means_sql",
    "observed_sql",
    "values_sql",
]

MICROSECOND: Final = timedelta(microseconds=1)
# Numbers of what is in no bucket.
NULL_BUCKET: Final = -1
NOT_A_BUCKET: Final = -2
# Lists and objects longer than this are told apart by so many characters.
LONGEST_JSON: Final = 10_000


def categories_sql(
    columns: PartColumns, observations: Sequence[Observation], *, since: datetime, bin_width: timedelta
) -> str:
    """Return the query for how often each value was drawn: one scan for all categories.

    Its rows: the part, the number of the bin, a bit for each observation (the first is the highest) that is 0 for the
    one whose value the row counts, the values, how many requests. Where all bits are 1 it counts all requests.
    """
    names = [f"c{number}" for number in range(len(observations))]
    values = [f", {_category_sql(columns, one)} AS {name}" for one, name in zip(observations, names, strict=True)]
    sets = ", ".join(["(part, bin)", *(f"(part, bin, {name})" for name in names)])
    bits = [f"grouping({name})::BIGINT * {2 ** (len(names) - 1 - place)}" for place, name in enumerate(names)]
    return (
        f"SELECT {', '.join(['part', 'bin', ' + '.join(bits) or '0', *names])}, count(*) FROM (\n"
        f"  SELECT {columns.quoted('$part')} AS part, {_bin(columns, bin_width)} AS bin{''.join(values)}\n"
        f"  FROM {_rows_clause(columns, since=since)} AND {columns.dialect.drawn}\n"
        f") GROUP BY GROUPING SETS ({sets})"
    )


def means_sql(
    columns: PartColumns, observations: Sequence[Observation], *, since: datetime, bin_width: timedelta
) -> str:
    """Return the query for the moments of the requests' means: one scan for all.

    Its rows: the part, the number of the bin, and for each observation count, mean, variance, and how many requests
    hold something that is no finite number.
    """
    rows = _rows_clause(columns, since=since)
    single, several, moments = [], [], []
    for number, observation in enumerate(observations):
        value, odd = _number_sql(columns, observation), f"({_is_no_number(columns, observation)})::BIGINT"
        single += [f"{value} AS m{number}", f"{odd} AS o{number}"]
        several += [f"avg({value}) AS m{number}", f"max({odd}) AS o{number}"]
        bounded = f"m{number}"
        if observation.bounds is not None:
            low, high = observation.bounds
            # Of nothing and a bound, the larger one is the bound.
            clipped = f"least(greatest(m{number}, {low!r}::DOUBLE), {high!r}::DOUBLE)"
            bounded = f"CASE WHEN m{number} IS NOT NULL THEN {clipped} END"
        moments += [f"count(m{number})", f"avg({bounded})", f"var_samp({bounded})", f"sum(o{number})::BIGINT"]
    part, count, bin_ = columns.quoted("$part"), columns.quoted("$rows"), _bin(columns, bin_width)
    return (
        f"SELECT part, bin, {', '.join(moments)} FROM (\n"
        f"  SELECT {part} AS part, {bin_} AS bin, {', '.join(single)} FROM {rows} AND {count} <= 1\n"
        "  UNION ALL\n"
        f"  SELECT {part}, min({bin_}), {', '.join(several)} FROM {rows} AND {count} > 1\n"
        f"  GROUP BY {_request_columns(columns)}\n"
        ") GROUP BY part, bin"
    )


def observed_sql(
    columns: PartColumns, observation: Observation, *, since: datetime, until: datetime
) -> tuple[str, int]:
    """Return the query for an observation of each request, and how often it takes the parts as a parameter.

    Its rows are the request's id and a number or NULL.
    """
    rows, value = _rows_clause(columns, since=since, until=until), _number_sql(columns, observation)
    identity, count = columns.quoted("$request_id"), columns.quoted("$rows")
    if observation.kind == "category":
        return f"SELECT {identity} AS id, {value} AS value FROM {rows} AND {columns.dialect.drawn}", 1
    return (
        f"SELECT {identity} AS id, {value} AS value FROM {rows} AND {count} <= 1\n"
        f"UNION ALL SELECT {identity}, avg({value}) FROM {rows} AND {count} > 1\n"
        f"GROUP BY {_request_columns(columns)}",
        2,
    )


def values_sql(dialect: Dialect, observed: Sequence[str], *, part: float) -> tuple[str, str]:
    """Return the queries for how many numbers there are, and for the numbers themselves.

    Args:
        dialect: The SQL of the engine.
        observed: Queries of `observed_sql`.
        part: The part of the requests (up to 1) whose numbers are wanted: those whose ids have the lowest hashes.
    """
    rows = f"({' UNION ALL '.join(observed)})"
    condition = "" if part >= 1 else f" AND {dialect.id_hash} < {int(part * 2**32)}"
    return f"SELECT count(value) FROM {rows}", f"SELECT value FROM {rows} WHERE value IS NOT NULL{condition}"


def _rows_clause(columns: PartColumns, *, since: datetime, until: datetime | None = None) -> str:
    """Return the part of a query that reads rows of requests that were split by weight, up to and with its WHERE."""
    time = columns.quoted("$time")
    condition = f"{time} >= {_time_sql(columns, since)}"
    if until is not None:
        condition += f" AND {time} < {_time_sql(columns, until)}"
    if columns.type_of("$addressed") == "truth value":
        condition += f" AND NOT coalesce({columns.quoted('$addressed')}, false)"
    if columns.type_of("$status") == "number":
        # No evidence in the metric store either: refused callers, and what a version itself refuses.
        condition += f" AND coalesce({columns.quoted('$status')}, 0) NOT IN (401, 403)"
    return f"{columns.dialect.source} WHERE {condition}"


def _time_sql(columns: PartColumns, moment: datetime) -> str:
    """Return a time as SQL."""
    return columns.dialect.time.format(since_epoch(moment, MICROSECOND))


def _bin(columns: PartColumns, width: timedelta) -> str:
    """Return the SQL of a row's bin: how many widths after 1970 it begins."""
    return columns.dialect.bin.format(columns.quoted("$time"), width // MICROSECOND)


def _request_columns(columns: PartColumns) -> str:
    """Return the columns that name a request. Callers may send an id again: two requests with one differ in time."""
    return ", ".join(map(columns.quoted, ("$part", "$request_id", "$time")))


def _category_sql(columns: PartColumns, observation: Observation) -> str:
    """Return the SQL of what a row has of a categorical metric: its value, or the number of its bucket."""
    name, kind = columns.quoted(observation.column), columns.type_of(observation.column)
    if observation.edges is not None:
        number = _number_sql(columns, observation)
        bucket = " + ".join(f"({number} > {edge!r}::DOUBLE)::INTEGER" for edge in observation.edges) or "0"
        return (
            f"CASE WHEN {_is_null(columns, observation)} THEN {NULL_BUCKET} "
            f"WHEN {number} IS NULL THEN {NOT_A_BUCKET} ELSE {bucket} END"
        )
    return {
        "number": f"{name}::DOUBLE",
        "truth value": name,
        "text": f"left({name}, {LONGEST_TEXT})",
        "json": f"left({name}, {LONGEST_JSON})",
        "bytes": f"md5({name})",
        "missing": "NULL::DOUBLE",
    }[kind]


def _number_sql(columns: PartColumns, observation: Observation) -> str:
    """Return the SQL of a row's value as a finite number, NULL if it is none."""
    name, kind = columns.quoted(observation.column), columns.type_of(observation.column)
    if kind in ("missing", "text", "bytes"):
        return "NULL::DOUBLE"
    value = f"TRY_CAST({name} AS DOUBLE)" if kind == "json" else f"{name}::DOUBLE"
    return f"CASE WHEN abs({value}) <= {LARGEST_VALUE!r} THEN {value} END"


def _is_null(columns: PartColumns, observation: Observation) -> str:
    """Return the SQL of whether a row has no value."""
    name, kind = columns.quoted(observation.column), columns.type_of(observation.column)
    if kind == "missing":
        return "true"
    return f"({name} IS NULL OR {name} = 'null')" if kind == "json" else f"{name} IS NULL"


def _is_no_number(columns: PartColumns, observation: Observation) -> str:
    """Return the SQL of whether a row has a value that is no finite number."""
    return f"NOT {_is_null(columns, observation)} AND {_number_sql(columns, observation)} IS NULL"
