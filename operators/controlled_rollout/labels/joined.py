"""Labels joined to the requests that versions have collected, by correlation id: in DuckDB, in bounded memory."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence import CLOCKS_DIFFER
from controlled_rollout.evidence.bins import EPOCH, since_epoch
from controlled_rollout.evidence.collected.duckdb_engine import (
    PARTS_PER_QUERY,
    DuckDBEngine,
    alike_in_duckdb,
    as_patterns,
)
from controlled_rollout.evidence.collected.engine import Observation
from controlled_rollout.evidence.collected.part_columns import PartColumns
from controlled_rollout.evidence.collected.part_files import PartFiles
from controlled_rollout.labels.bins import Requests
from controlled_rollout.labels.measures import LabelledRequest
from controlled_rollout.labels.periods import Period
from controlled_rollout.labels.settings import Labels
from controlled_rollout.labels.source import Label, LabelRow

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["JoinCounts", "Joined", "joined"]

MICROSECOND: Final = timedelta(microseconds=1)
TIMEOUT: Final = timedelta(minutes=10)
ROWS_AT_ONCE: Final = 10_000
LONGEST_ID: Final = 1_000
SHOWN_COLUMNS: Final = 10


@dataclass(frozen=True, slots=True)
class JoinCounts:
    """What became of the labels that were read.

    Attributes:
        read: How many labels have a value.
        unknown: How many of them name no request of the two versions in the time.
        early: How many arrived before their request, and are not used.
        repeated: How many say again what the request's first label said.
        corrections: How many say something else than it, and are not used.
        shared_ids: How many requests have the correlation id of an earlier one, and are left out.
    """

    read: int = 0
    unknown: int = 0
    early: int = 0
    repeated: int = 0
    corrections: int = 0
    shared_ids: int = 0


class Joined:
    """The requests of two versions, and the first label of each: tables of one connection.

    Args:
        connection: A DuckDB of its own.
        labels: The settings.
        since: Requests that arrived from then on.
        until: Requests that arrived before.
    """

    def __init__(self, connection: "DuckDBPyConnection", labels: Labels, since: datetime, until: datetime) -> None:
        """Create the tables."""
        self._connection = connection
        self._labels = labels
        self._since, self._until = since, until
        self._columns = [column.partition(".")[2] for column in labels.columns]
        self._groups: list[tuple[int, list[str], PartColumns]] = []
        # Times are microseconds since 1970.
        connection.execute("CREATE TABLE label (correlation VARCHAR, label VARCHAR, arrived BIGINT)")
        connection.execute(
            "CREATE TABLE request (correlation VARCHAR, arrived BIGINT, id VARCHAR, arm TINYINT, part VARCHAR)"
        )

    def add_labels(self, rows: Iterable[LabelRow], *, limit: int) -> None:
        """Store the labels that have a value, some thousands at a time.

        Raises:
            EvidenceUnavailableError: There are more than `limit`, or one is damaged.
        """
        import pyarrow

        left = iter(rows)
        number = 0
        while batch := list(islice(left, ROWS_AT_ONCE)):
            number += len(batch)
            if number > limit:
                raise EvidenceUnavailableError(
                    f"there are more than {limit:,} labels: give a larger max_labels, or judge a shorter time"
                )
            batch = [row for row in batch if _has_value(row)]
            table = pyarrow.table(
                {
                    "correlation": pyarrow.array([_checked_id(row) for row in batch], pyarrow.string()),
                    "label": pyarrow.array([json.dumps(row.label) for row in batch], pyarrow.string()),
                    "arrived": pyarrow.array([_microseconds(row.arrived) for row in batch], pyarrow.int64()),
                }
            )
            self._connection.register("batch", table)
            self._connection.execute("INSERT INTO label SELECT * FROM batch")
            self._connection.unregister("batch")

    def add_requests(self, version: str, arm: int, parts: Sequence[str]) -> None:
        """Read the requests of one version that callers got an answer to, without what the answer was.

        Args:
            version: The version's name.
            arm: 0 for control, 1 for the treatment.
            parts: Its parts as files.

        Raises:
            EvidenceUnavailableError: A column is in none of them, or there is no request.
        """
        observations = [Observation(column, column, "category") for column in (*self._columns, "$truncated")]
        known: set[str] = set()
        for first in range(0, len(parts), PARTS_PER_QUERY):
            for alike, columns, data in alike_in_duckdb(
                self._connection, parts[first : first + PARTS_PER_QUERY], observations
            ):
                self._connection.execute(
                    'INSERT INTO request SELECT coalesce("$correlation_id", "$request_id"), epoch_us("$time"), '
                    f'"$request_id", {arm}, "$part" FROM {self._rows_clause(columns)} AND "$row" = 0',
                    [as_patterns(alike)],
                )
                self._groups.append((arm, alike, columns))
                known.update(columns.types)
                known.update(chain.from_iterable(data.values()))
        collection = self._labels.collection
        if not self._fetch_number("SELECT count(*) FROM request WHERE arm = ?", [arm]):
            raise EvidenceUnavailableError(
                f"version {version!r} has no answered request in {collection!r} from {self._since:%Y-%m-%d %H:%M} to "
                f"{self._until:%Y-%m-%d %H:%M}: it did not collect then (collect_model_data), or its data was deleted"
            )
        for column in self._columns:
            if column not in known:
                shown = sorted(name for name in known if not name.startswith("$"))[:SHOWN_COLUMNS]
                raise EvidenceUnavailableError(
                    f"column {collection}.{column} is not in the data that version {version!r} has collected from "
                    f"{self._since:%Y-%m-%d %H:%M} to {self._until:%Y-%m-%d %H:%M}; the columns "
                    f"there: {', '.join(shown)}"
                )

    def join(self) -> None:
        """Give each request its first label; of several requests with one correlation id the first one counts."""
        self._connection.execute(
            "CREATE TABLE single AS SELECT correlation, first[1] AS arrived, first[2] AS id, first[3] AS arm, "
            "first[4] AS part, n FROM (SELECT correlation, min(ROW(arrived, id, arm, part)) AS first, count(*) AS n "
            "FROM request GROUP BY correlation)"
        )
        self._connection.execute(
            "CREATE TABLE usable AS SELECT label.* FROM label JOIN single USING (correlation) "
            "WHERE label.arrived >= single.arrived - ?",
            [CLOCKS_DIFFER // MICROSECOND],
        )
        # Which of two labels that arrived at the same moment is the first does not depend on their order in the source.
        self._connection.execute(
            "CREATE TABLE first_label AS SELECT correlation, min(ROW(arrived, label)) AS first, count(*) AS n "
            "FROM usable GROUP BY correlation"
        )
        self._connection.execute(
            "CREATE TABLE known AS SELECT id, arrived, arm, part, first[1] AS known, first[2] AS label "
            "FROM single JOIN first_label USING (correlation)"
        )

    def counts(self) -> JoinCounts:
        """Return what became of the labels."""
        read = self._fetch_number("SELECT count(*) FROM label")
        unknown = self._fetch_number(
            "SELECT count(*) FROM label l WHERE NOT EXISTS (FROM single s WHERE s.correlation = l.correlation)"
        )
        used, later = self._fetch_row("SELECT count(*), coalesce(sum(n), 0) FROM first_label")
        same = self._fetch_number(
            "SELECT count(*) FROM usable JOIN first_label USING (correlation) WHERE usable.label = first[2]"
        )
        return JoinCounts(
            read=read,
            unknown=unknown,
            early=read - unknown - int(later),
            repeated=same - used,
            corrections=int(later) - same,
            shared_ids=self._fetch_number("SELECT coalesce(sum(n - 1), 0) FROM single"),
        )

    def totals(self, periods: Sequence[Period]) -> list[Requests]:
        """Return for each period how many requests each version has answered, labelled or not."""
        result = []
        for period in periods:
            control, treatment = self._fetch_row(
                "SELECT count_if(arm = 0), count_if(arm = 1) FROM single WHERE arrived >= ? AND arrived < ?",
                [_microseconds(period.begin), _microseconds(period.end)],
            )
            result.append(Requests(control, treatment))
        return result

    def requests(self) -> Iterator[LabelledRequest]:
        """Yield the labelled requests with their answers, by the interval of the label's arrival, time and id."""
        names = [f"c{index}" for index in range(len(self._columns))]
        self._connection.execute(
            "CREATE TABLE answered (arm TINYINT, id VARCHAR, arrived BIGINT, known BIGINT, label VARCHAR, "
            f"{', '.join(f'{name} VARCHAR[]' for name in names)})"
        )
        with_labels = {part for (part,) in self._connection.execute("SELECT DISTINCT part FROM known").fetchall()}
        for arm, parts, columns in self._groups:
            if read := [part for part in parts if part in with_labels]:
                values = [
                    f"{_as_json(columns, column)} AS {name}" for column, name in zip(self._columns, names, strict=True)
                ]
                lists = [f"list({name} ORDER BY number)" for name in names]
                self._connection.execute(
                    f"INSERT INTO answered SELECT {arm}, known.id, known.arrived, known.known, known.label, "
                    f'{", ".join(lists)} FROM (SELECT "$request_id" AS id, epoch_us("$time") AS arrived, '
                    f'"$row" AS number, {", ".join(values)} FROM {self._rows_clause(columns)}) AS answer JOIN known '
                    f"ON known.arm = {arm} AND known.id = answer.id AND known.arrived = answer.arrived "
                    "GROUP BY known.id, known.arrived, known.known, known.label",
                    [as_patterns(read)],
                )
        width = self._labels.bin_width // MICROSECOND
        result = self._connection.execute(f"SELECT * FROM answered ORDER BY known // {width}, arrived, id, arm")
        while found := result.fetchmany(ROWS_AT_ONCE):
            for arm, id_, arrived, known, label, *values in found:
                yield LabelledRequest(
                    is_treatment=arm == 1,
                    request_id=id_,
                    time=EPOCH + arrived * MICROSECOND,
                    known=EPOCH + known * MICROSECOND,
                    label=_label(label),
                    rows=tuple(zip(*(map(_from_json, column) for column in values), strict=True)),
                )

    def _rows_clause(self, columns: PartColumns) -> str:
        """Return the part of a query that reads rows of answered requests that were split by weight, with its WHERE."""
        condition = (
            f'epoch_us("$time") >= {_microseconds(self._since)} AND epoch_us("$time") < {_microseconds(self._until)}'
        )
        if columns.type_of("$addressed") == "truth value":
            condition += ' AND NOT coalesce("$addressed", false)'
        if columns.type_of("$status") == "number":
            condition += ' AND coalesce("$status", 200) < 400'
        if columns.type_of("$truncated") == "truth value":
            # The answer was too long to be kept: whether it was right is not known.
            condition += ' AND NOT coalesce("$truncated", false)'
        return f"read_parquet(?, filename = '$part', hive_partitioning = false) WHERE {condition}"

    def _fetch_number(self, query: str, parameters: Sequence[Any] = ()) -> int:
        """Return the one number that a query gives."""
        return int(self._fetch_row(query, parameters)[0])

    def _fetch_row(self, query: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
        """Return the one row that a query gives."""
        (row,) = self._connection.execute(query, list(parameters)).fetchall()
        return tuple(row)


def _has_value(row: LabelRow) -> bool:
    """Return whether a label says anything."""
    return any(one is not None for one in row.label) if isinstance(row.label, tuple) else row.label is not None


def _checked_id(row: LabelRow) -> str:
    """Return a label's correlation id; raise if it is none."""
    if isinstance(row.correlation_id, str) and 0 < len(row.correlation_id) <= LONGEST_ID:
        return row.correlation_id
    raise EvidenceUnavailableError(
        f"the correlation id of a label is empty, no text, or longer than {LONGEST_ID:,} characters: name the column "
        "with the request's x-ms-client-request-id, trace id or request id"
    )


def _microseconds(moment: datetime) -> int:
    """Return a time as microseconds since 1970."""
    return since_epoch(moment, MICROSECOND)


def _as_json(columns: PartColumns, column: str) -> str:
    """Return the SQL of a column's value as JSON, whatever its type is in the part."""
    name = columns.quoted(column)
    return {
        "missing": "NULL",
        "number": f"to_json({name}::DOUBLE)::VARCHAR",
        "truth value": f"to_json({name})::VARCHAR",
        "text": f"to_json({name})::VARCHAR",
        "json": name,
        "bytes": f"to_json(md5({name}))::VARCHAR",
    }[columns.type_of(column)]


def _from_json(text: str | None) -> Any:
    """Return a value from its JSON."""
    return None if text is None else json.loads(text)


def _label(text: str) -> Label | tuple[Label, ...]:
    """Return a label from its JSON."""
    label = json.loads(text)
    return tuple(label) if isinstance(label, list) else label


@contextmanager
def joined(
    files: PartFiles,
    endpoint: str,
    versions: tuple[str, str],
    labels: Labels,
    rows: Iterable[LabelRow],
    *,
    since: datetime,
    until: datetime,
) -> Iterator[Joined]:
    """Context manager: labels joined to the requests of two versions.

    Args:
        files: The storage, and how its parts become files of this machine.
        endpoint: The endpoint's name.
        versions: Control's name and the treatment's.
        labels: The settings.
        rows: The labels.
        since: Requests that arrived from then on.
        until: Requests that arrived before.

    Raises:
        EvidenceUnavailableError: The collected data or the labels cannot be read, or it takes too long.
        StorageError: The storage cannot be read.
    """
    with DuckDBEngine(timeout=TIMEOUT).connection() as connection:
        result = Joined(connection, labels, since, until)
        result.add_labels(rows, limit=labels.max_labels)
        for arm, version in enumerate(versions):
            parts = files.paths_since(endpoint, version, labels.collection, since=since, until=until)
            result.add_requests(version, arm, parts)
        result.join()
        yield result
