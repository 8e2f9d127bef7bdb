"""Summaries of Parquet parts by Spark, for data that is too much for one machine; the numbers are those of DuckDB."""

import re
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from posixpath import normpath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.collected.dialects import SPARK
from controlled_rollout.evidence.collected.engine import BaselineQuantiles, Observation, PartSummary
from controlled_rollout.evidence.collected.part_columns import PartColumns
from controlled_rollout.evidence.collected.part_footers import columns_of_parts, end_of_file
from controlled_rollout.evidence.collected.part_sums import (
    MOST_FOR_QUANTILES,
    Alike,
    PartSums,
    alike_parts,
    quantiles_of,
)
from controlled_rollout.evidence.collected.parts_sql import categories_sql, means_sql, observed_sql, values_sql

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["SparkEngine"]

# Each query names its parts.
PARTS_PER_QUERY: Final = 5_000
REACHED_WITHIN_S: Final = 5.0
DEFAULT_PORT: Final = 15_002
# A server that went away is asked again for some 20 seconds; by itself the client would for ten minutes.
RETRIES: Final = 6
LONGEST_PAUSE_MS: Final = 8_000
INTERRUPT_EVERY_S: Final = 1.0
# The collector's columns that summaries read.
OWN_COLUMNS: Final = ("$request_id", "$row", "$rows", "$time", "$addressed", "$status")
# A file that is missing or damaged is an error, whatever the cluster's own settings say: evidence is all or nothing.
READ_OPTIONS: Final = {
    "mergeSchema": "false",
    "recursiveFileLookup": "true",  # no name of a folder becomes a column
    "ignoreCorruptFiles": "false",
    "ignoreMissingFiles": "false",
}
SETTINGS: Final = {"spark.sql.caseSensitive": "true", "spark.sql.ansi.enabled": "true"}
INSTALL: Final = (
    "summaries by Spark need pyspark 4: install airflow-provider-controlled-rollout with the extra spark, or the "
    "client of your cluster; or set data_engine to 'duckdb'"
)


@dataclass(frozen=True)
class SparkEngine:
    """Summaries by Spark; see `SummaryEngine`.

    Every call has a session of its own, so it changes no setting of others, and a server that was restarted is no
    matter.

    Attributes:
        remote: The address of a Spark Connect server, `sc://host:port`; its token is read from
            `SPARK_CONNECT_AUTHENTICATE_TOKEN`. None for `session`.
        session: The author's session. None for the one of this process, which Spark's own configuration describes.
        read_end: Returns the last bytes of a part, for its footer.
        timeout: The most time that a call takes.
    """

    remote: str | None = None
    session: "SparkSession | None" = field(default=None, repr=False)
    read_end: Callable[[str, int], bytes] = end_of_file
    timeout: timedelta = timedelta(minutes=5)

    def version(self) -> str:
        """Return the version of the Spark that answers.

        Raises:
            EvidenceUnavailableError: None does, or this process has no PySpark.
        """
        with self._isolated_session() as session:
            ((version,),) = session.sql("SELECT version()").collect()
        return str(version).partition(" ")[0]

    def summaries(
        self, parts: Sequence[str], observations: Sequence[Observation], *, since: datetime, bin_width: timedelta
    ) -> list[PartSummary]:
        """Return the summary of each part; see `SummaryEngine.summaries`."""
        if not parts:
            return []
        results: dict[str, PartSummary] = {}
        with self._isolated_session() as session:
            for start in range(0, len(parts), PARTS_PER_QUERY):
                for alike in self._groups(session, parts[start : start + PARTS_PER_QUERY], observations):
                    results.update(_summaries(session, alike, observations, since, bin_width))
        return [results[part] for part in parts]

    def quantiles(
        self,
        parts: Sequence[str],
        wanted: Sequence[tuple[Observation, Sequence[float]]],
        *,
        since: datetime,
        until: datetime,
    ) -> list[BaselineQuantiles]:
        """Return each observation's quantiles over all parts; see `SummaryEngine.quantiles`."""
        if not parts or not wanted:
            return [BaselineQuantiles(0, ()) for _ in wanted]
        with self._isolated_session() as session:
            groups = list(self._groups(session, parts, [observation for observation, _ in wanted]))
            results = []
            for observation, quantiles in wanted:
                observed = [observed_sql(columns, observation, since=since, until=until)[0] for _, columns, _ in groups]
                results.append(_quantiles(session, observed, quantiles))
            return results

    def _groups(
        self, session: "SparkSession", parts: Sequence[str], observations: Sequence[Observation]
    ) -> Iterator[Alike]:
        """Yield the parts in groups in which each observed column has one type, each as a view of the session."""
        columns_of = columns_of_parts(parts, self.read_end)
        for alike, columns, data in alike_parts(columns_of, [one.column for one in observations]):
            view = f"parts_{uuid.uuid4().hex}"
            wanted = dict.fromkeys((*OWN_COLUMNS, *(one.column for one in observations)))
            _rows_of(session, alike, [name for name in wanted if name in columns.types]).createOrReplaceTempView(view)
            yield alike, PartColumns(columns.types, dialect=replace(SPARK, source=view)), data

    @contextmanager
    def _isolated_session(self) -> "Iterator[SparkSession]":
        """Context manager: a session of its own; its errors become EvidenceUnavailableError."""
        try:
            from pyspark.errors import PySparkException
        except ImportError as error:
            raise EvidenceUnavailableError(INSTALL) from error
        late = threading.Event()
        try:
            with self._open_session() as session, _stopped_after(session, self.timeout, late):
                yield session
        except (PySparkException, OSError) as error:
            if late.is_set():
                raise EvidenceUnavailableError(
                    f"collected data could not be summarised by Spark within {self.timeout.total_seconds():g} s: see "
                    "what else the cluster does, judge fewer columns, or collect a smaller share of the requests"
                ) from error
            raise EvidenceUnavailableError(
                f"collected data cannot be read by Spark{f' at {self.remote}' if self.remote else ''}: "
                f"{_text_of(error)}; the gate waits until it can"
            ) from error

    @contextmanager
    def _open_session(self) -> "Iterator[SparkSession]":
        """Context manager: open a session that shares no settings with others."""
        try:
            with warnings.catch_warnings():
                # It warns of what its frames of pandas cannot do, and none is used.
                warnings.filterwarnings("ignore", message="PySpark does not yet", category=FutureWarning)
                session = self._new_session() if self.remote is not None else self._own_session()
        except ImportError as error:
            raise EvidenceUnavailableError(f"{INSTALL} ({error})") from error
        try:
            for name, value in SETTINGS.items():
                session.conf.set(name, value)
            yield session
        finally:
            # A classic session shares its context with the author's, which `stop` would end.
            if _is_connect(session):
                session.stop()

    def _new_session(self) -> "SparkSession":
        """Return a new session of the Spark Connect server."""
        from pyspark.sql.connect.client.retries import DefaultPolicy
        from pyspark.sql.connect.session import SparkSession

        remote = self.remote or ""
        place = urlsplit(remote)
        # The client would try for minutes to find a server that is not there.
        with socket.create_connection((place.hostname or "", place.port or DEFAULT_PORT), timeout=REACHED_WITHIN_S):
            pass
        session: SparkSession = SparkSession(connection=remote)
        session.client.set_retry_policies([DefaultPolicy(max_retries=RETRIES, max_backoff=LONGEST_PAUSE_MS)])
        return session

    def _own_session(self) -> "SparkSession":
        """Return a new session beside the author's, or beside the one that Spark's own configuration describes."""
        from pyspark.sql import SparkSession

        session = self.session or SparkSession.builder.getOrCreate()
        if not _is_connect(session):
            new: SparkSession = session.newSession()
            return new
        clone: SparkSession = session.cloneSession()
        # PySpark 4.2 forgets it in clones, and cannot end them then.
        clone.release_session_on_close = True
        return clone


def _is_connect(session: "SparkSession") -> bool:
    """Return whether a session is one of Spark Connect."""
    return type(session).__module__.startswith("pyspark.sql.connect.")


@contextmanager
def _stopped_after(session: "SparkSession", timeout: timedelta, late: threading.Event) -> Iterator[None]:
    """Context manager: end what the block has Spark do when its time is over, and say so by an event."""
    tag, done = f"summaries-{uuid.uuid4().hex}", threading.Event()

    def watch() -> None:
        """End the session's work again and again: it may just be between two queries."""
        wait_s = timeout.total_seconds()
        while not done.wait(wait_s):
            late.set()
            session.interruptTag(tag)
            wait_s = INTERRUPT_EVERY_S

    session.addTag(tag)
    watcher = threading.Thread(target=watch, name="summaries", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        session.removeTag(tag)


def _rows_of(session: "SparkSession", parts: Sequence[str], columns: Sequence[str]) -> "DataFrame":
    """Return columns of parts, and in `$part` the name of each row's part."""
    rows = session.read.options(**READ_OPTIONS).parquet(*map(_as_pattern, parts))
    part = rows.metadataColumn("_metadata").getField("file_path").alias("$part")
    return rows.select(part, *(rows[SPARK.quoted(name)] for name in columns))


def _as_pattern(part: str) -> str:
    """Return a name as Hadoop's pattern that matches itself."""
    return re.sub(r"([\\*?{}\[\]])", r"\\\1", part)


def _comparable_name(part: str) -> str:
    """Return a part's name as it is compared: files of the machine without `file:`, no doubled slash, no `..`."""
    scheme, colon, rest = part.partition(":/")
    if not colon or scheme == "file":
        return normpath(f"/{(rest if colon else part).lstrip('/')}")
    return f"{scheme}:{normpath('/' + rest.lstrip('/'))}"


def _summaries(
    session: "SparkSession", group: Alike, observations: Sequence[Observation], since: datetime, bin_width: timedelta
) -> dict[str, PartSummary]:
    """Return the summaries of parts whose columns have the same types."""
    parts, columns, data = group
    sums = PartSums(data, columns, observations)
    names = {_comparable_name(part): part for part in parts}

    def rows_of(query: str) -> Iterator[tuple[Any, ...]]:
        """Yield a query's rows with the part's name as it was given."""
        for read_part, *values in session.sql(query).toLocalIterator():
            part = names.get(_comparable_name(unquote(read_part)))
            if part is None:
                raise EvidenceUnavailableError(f"Spark has read {read_part} and was asked for {parts[0]} and the like")
            yield part, *values

    sums.add_categories(rows_of(categories_sql(columns, sums.categories, since=since, bin_width=bin_width)))
    if sums.means:
        sums.add_means(rows_of(means_sql(columns, sums.means, since=since, bin_width=bin_width)))
    return sums.summaries()


def _quantiles(session: "SparkSession", observed: Sequence[str], quantiles: Sequence[float]) -> BaselineQuantiles:
    """Return the quantiles of what queries find, of a million requests at most."""
    counting, _ = values_sql(SPARK, observed, part=1.0)
    ((count,),) = session.sql(counting).collect()
    if not count:
        return BaselineQuantiles(0, ())
    _, query = values_sql(SPARK, observed, part=MOST_FOR_QUANTILES / count)
    values = session.sql(query).toArrow()["value"].to_numpy()
    return BaselineQuantiles(int(count), quantiles_of(values, quantiles))


def _text_of(error: Exception) -> str:
    """Return what an error says in one line, without the server's own stack."""
    return " ".join(str(error).partition("JVM stacktrace:")[0].split())[:400]
