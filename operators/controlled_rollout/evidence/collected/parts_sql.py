"""The SQL that summarises parts, for DuckDB. Pure: text in, text out.

Of what others write only the names of columns get into it, in quotation marks; parts are parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeAlias

from controlled_rollout.evidence.collected.engine import LARGEST_VALUE, Observation
from controlled_rollout.evidence.collected.values import LONGEST_TEXT

__all__ = [
    "NOT_A_BUCKET",
    "NULL_BUCKET",
    "ColumnType",
    "PartColumns",
    "categories_sql",
    "means_sql",
    "observed_sql",
    "quantiles_sql",
]

ColumnType: TypeAlias = Literal["number", "truth value", "text", "json", "bytes", "missing"]

MICROSECOND: Final = timedelta(microseconds=1)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Numbers of what is in no bucket.
NULL_BUCKET: Final = -1
NOT_A_BUCKET: Final = -2
# One row of each request, the same in every engine: drawn by the first 32 bits of the MD5 of the request's id.
DRAWN: Final = """("$rows" <= 1 OR "$row" = ('0x' || substr(md5("$request_id"), 1, 8))::UINTEGER % "$rows")"""
ID_HASH: Final = """('0x' || substr(md5(id), 9, 8))::UINTEGER"""
# Lists and objects longer than this are told apart by so many characters.
LONGEST_JSON: Final = 10_000


@dataclass(frozen=True, slots=True)
class PartColumns:
    """The columns of a part.

    Attributes:
        types: By name the type in the file and what the values are.
        renamed: What DuckDB calls columns whose names it does not tell apart from others, such as `age` beside `Age`.
    """

    types: dict[str, tuple[str, ColumnType]]
    renamed: Mapping[str, str] = field(default_factory=dict)

    def quoted(self, column: str) -> str:
        """Return what a column is called in SQL."""
        return '"' + self.renamed.get(column, column).replace('"', '""') + '"'

    def type_of(self, column: str) -> ColumnType:
        """Return what the values of a column are."""
        return self.types[column][1] if column in self.types else "missing"

    @property
    def data(self) -> frozenset[str]:
        """The columns that are data; those of the collector begin with one `$`."""
        return frozenset(name for name in self.types if not name.startswith("$") or name.startswith("$$"))


def categories_sql(
    columns: PartColumns, observations: Sequence[Observation], *, since: datetime, bin_width: timedelta
) -> str:
    """Return the query for how often each value was drawn: one scan for all categories.

    Its rows: the part, the number of the bin, a bit for each observation (the first is the highest) that is 0 for the
    one whose value the row counts, the values, how many requests. Where all bits are 1 it counts all requests.
    """
    names = [f"c{number}" for number in range(len(observations))]
    values = [f", {_category(columns, one)} AS {name}" for one, name in zip(observations, names, strict=True)]
    sets = ", ".join(["(part, bin)", *(f"(part, bin, {name})" for name in names)])
    bits = f"GROUPING({', '.join(names)})" if names else "0"
    return (
        f"SELECT {', '.join(['part', 'bin', bits, *names])}, count(*) FROM (\n"
        f'  SELECT "$part" AS part, {_bin(bin_width)} AS bin{"".join(values)}\n'
        f"  FROM {_rows(columns, since=since)} AND {DRAWN}\n"
        f") GROUP BY GROUPING SETS ({sets})"
    )


def means_sql(
    columns: PartColumns, observations: Sequence[Observation], *, since: datetime, bin_width: timedelta
) -> str:
    """Return the query for the moments of the requests' means: one scan for all.

    Its rows: the part, the number of the bin, and for each observation count, mean, variance, and how many rows hold
    something that is no finite number.
    """
    rows = _rows(columns, since=since)
    # Callers may send an id again: two requests with one are told apart by their times.
    single, several, moments = [], [], []
    for number, one in enumerate(observations):
        value, odd = _number(columns, one), f"count_if({_is_no_number(columns, one)})"
        single += [f"{value} AS m{number}", f"({_is_no_number(columns, one)})::BIGINT AS o{number}"]
        several += [f"avg({value}) AS m{number}", f"{odd} AS o{number}"]
        bounded = f"m{number}"
        if one.bounds is not None:
            low, high = one.bounds
            # Of nothing and a bound, the larger one is the bound.
            clipped = f"least(greatest(m{number}, {low!r}::DOUBLE), {high!r}::DOUBLE)"
            bounded = f"CASE WHEN m{number} IS NOT NULL THEN {clipped} END"
        moments += [f"count(m{number})", f"avg({bounded})", f"var_samp({bounded})", f"sum(o{number})::BIGINT"]
    return (
        f"SELECT part, bin, {', '.join(moments)} FROM (\n"
        f'  SELECT "$part" AS part, {_bin(bin_width)} AS bin, {", ".join(single)} FROM {rows} AND "$rows" <= 1\n'
        "  UNION ALL\n"
        f'  SELECT "$part", min({_bin(bin_width)}), {", ".join(several)} FROM {rows} AND "$rows" > 1\n'
        '  GROUP BY "$part", "$request_id", "$time"\n'
        ") GROUP BY part, bin"
    )


def observed_sql(
    columns: PartColumns, observation: Observation, *, since: datetime, until: datetime
) -> tuple[str, int]:
    """Return the query for an observation of each request, and how often it takes the parts as a parameter.

    Its rows are the request's id and a number or NULL.
    """
    rows, value = _rows(columns, since=since, until=until), _number(columns, observation)
    if observation.kind == "category":
        return f'SELECT "$request_id" AS id, {value} AS value FROM {rows} AND {DRAWN}', 1
    return (
        f'SELECT "$request_id" AS id, {value} AS value FROM {rows} AND "$rows" <= 1\n'
        f'UNION ALL SELECT "$request_id", avg({value}) FROM {rows} AND "$rows" > 1\n'
        'GROUP BY "$part", "$request_id", "$time"',
        2,
    )


def quantiles_sql(observed: Sequence[str], quantiles: Sequence[float], *, part: float) -> tuple[str, str]:
    """Return the queries for how many numbers there are, and for their quantiles.

    Args:
        observed: Queries of `observed_sql`.
        quantiles: Which quantiles.
        part: The part of the requests (up to 1) that the quantiles are of: those whose ids have the lowest hashes.
    """
    rows = f"({' UNION ALL '.join(observed)})"
    condition = "" if part >= 1 else f" WHERE {ID_HASH} < {int(part * 2**32)}"
    wanted = ", ".join(map(repr, quantiles))
    return f"SELECT count(value) FROM {rows}", f"SELECT quantile_disc(value, [{wanted}]) FROM {rows}{condition}"


def _rows(columns: PartColumns, *, since: datetime, until: datetime | None = None) -> str:
    """Return the part of a query that reads rows of requests that were split by weight, up to and with its WHERE."""
    condition = f'"$time" >= {_time(since)}'
    if until is not None:
        condition += f' AND "$time" < {_time(until)}'
    if columns.type_of("$addressed") == "truth value":
        condition += ' AND NOT coalesce("$addressed", false)'
    if columns.type_of("$status") == "number":
        # No evidence in the metric store either: refused callers, and what a version itself refuses.
        condition += ' AND coalesce("$status", 0) NOT IN (401, 403)'
    return f"read_parquet(?, filename = '$part', hive_partitioning = false) WHERE {condition}"


def _time(moment: datetime) -> str:
    """Return a time as SQL."""
    return f"make_timestamptz({(moment - EPOCH) // MICROSECOND})"


def _bin(width: timedelta) -> str:
    """Return the SQL of a row's bin: how many widths after 1970 it begins."""
    return f'epoch_us("$time") // {width // MICROSECOND}'


def _category(columns: PartColumns, observation: Observation) -> str:
    """Return the SQL of what a row has of a categorical metric: its value, or the number of its bucket."""
    name, kind = columns.quoted(observation.column), columns.type_of(observation.column)
    if kind == "missing":
        return "NULL"
    if observation.edges is not None:
        number = _number(columns, observation)
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
    }[kind]


def _number(columns: PartColumns, observation: Observation) -> str:
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
    return f"NOT {_is_null(columns, observation)} AND {_number(columns, observation)} IS NULL"
