"""Labels from databases through Airflow's own hooks: SQLite, and PostgreSQL, both real."""

import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from airflow.providers.postgres.hooks import postgres

from controlled_rollout.errors import ArgumentError, EvidenceUnavailableError
from controlled_rollout.hooks import sql_labels
from controlled_rollout.hooks.sql_labels import SqlLabels
from controlled_rollout.labels import LabelRow
from tests.postgres import running_postgres

T0 = datetime(2026, 11, 1, 12, tzinfo=UTC)
END = T0 + timedelta(hours=10)
SELECT = "SELECT id AS correlation_id, outcome AS label, known AS arrived FROM outcomes"
# Endless rows, which a database makes as they are fetched.
MANY = "WITH RECURSIVE many(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many)"
LIMIT = 1000
SECRET = "a-pass-word"


def at(hour: float) -> datetime:
    return T0 + timedelta(hours=hour)


@dataclass
class Database:
    """A database with a table of outcomes; `known` is a time, in SQLite a text."""

    connection: dict[str, Any]
    execute: Callable[..., None]
    slow: str

    def fill(self, rows: list[tuple[Any, Any, Any]]) -> None:
        self.execute("DELETE FROM outcomes")
        for row in rows:
            values = ", ".join("'" + str(value).replace("'", "''") + "'" for value in row)
            self.execute(f"INSERT INTO outcomes VALUES ({values})")  # noqa: S608 - the test's own


def in_sqlite(folder: Path) -> Iterator[Database]:
    file = folder / "labels.db"

    def execute(statement: str) -> None:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute(statement)
            connection.commit()

    execute("CREATE TABLE outcomes (id TEXT, outcome TEXT, known TEXT)")
    slow = f"{MANY} SELECT count(*) AS correlation_id, 1 AS label, 1 AS arrived FROM many"  # noqa: S608 - a test's
    yield Database({"conn_type": "sqlite", "host": str(file)}, execute, slow)


def in_postgres(folder: Path) -> Iterator[Database]:
    with running_postgres() as socket:

        def execute(statement: str) -> None:
            with psycopg.connect(host=str(socket), user="postgres", dbname="postgres") as connection:
                connection.execute(statement.encode())

        execute("CREATE TABLE outcomes (id TEXT, outcome TEXT, known TIMESTAMPTZ)")
        slow = "SELECT pg_sleep(60)::text AS correlation_id, 1 AS label, now() AS arrived"
        connection = {"conn_type": "postgres", "host": str(socket), "login": "postgres", "password": SECRET}
        yield Database({**connection, "schema": "postgres"}, execute, slow)


@pytest.fixture(scope="module", params=[in_sqlite, in_postgres], ids=["sqlite", "postgres"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from request.param(tmp_path_factory.mktemp("labels"))


@pytest.fixture
def database(made: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setenv("AIRFLOW_CONN_OUTCOMES", json.dumps(made.connection))
    return made


def read(
    query: str, *, since: datetime = T0, until: datetime = END, limit: int = LIMIT, **settings: Any
) -> list[LabelRow]:
    source = SqlLabels(conn_id="outcomes", query=query, **settings).source("digits")
    return list(source.read(since=since, until=until, limit=limit))


def test_labels_are_those_that_arrived_in_the_time_also_where_the_query_finds_others(database: Database) -> None:
    database.fill([("a", "1", at(0)), ("b", "[2, 3]", at(1)), ("c", "3", at(10))])

    assert read(SELECT, until=at(1)) == [LabelRow("a", "1", at(0))]
    assert {row.correlation_id: row.label for row in read(SELECT)} == {"a": "1", "b": (2, 3)}


def test_the_parameters_are_bound_by_the_driver_and_are_no_part_of_the_text(database: Database) -> None:
    database.fill([("digits", "5%", at(1)), ("b';--", "x", at(2))])
    query = f"{SELECT} WHERE id = :endpoint AND known >= :since AND known < :until AND outcome LIKE '%'"

    assert [row.label for row in read(query)] == ["5%"]
    assert read(query, since=at(1.5)) == []
    hostile = SqlLabels(conn_id="outcomes", query=query).source("b';--")
    assert [row.label for row in hostile.read(since=at(0), until=at(9), limit=9)] == ["x"]


def test_more_labels_than_the_limit_are_refused_and_not_cut_off(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_labels, "ROWS_AT_ONCE", 2)
    database.fill([(f"r{number}", "1", at(1)) for number in range(5)])

    assert len(read(SELECT, limit=5)) == 5
    with pytest.raises(EvidenceUnavailableError, match="finds more than 4 labels: use :since and :until"):
        read(SELECT, limit=4)


def test_a_query_that_takes_too_long_is_ended(database: Database) -> None:
    with pytest.raises(EvidenceUnavailableError, match=r"has not ended within 0\.2 s"):
        read(database.slow, timeout=0.2)


def test_a_query_changes_nothing(database: Database) -> None:
    database.fill([("a", "1", at(0))])
    with pytest.raises(EvidenceUnavailableError):
        read("DELETE FROM outcomes")
    with pytest.raises(EvidenceUnavailableError):
        read(SELECT + "; DELETE FROM outcomes")  # noqa: S608 - a test's
    assert len(read(SELECT)) == 1


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        (
            "SELECT id AS correlation_id, outcome FROM outcomes",
            r"returns correlation_id, outcome: name them in it with AS",
        ),
        ("SELECT 'a' AS correlation_id, 1 AS label, 'soon' AS arrived", r"returns a str as arrived that is no time"),
        (f"{SELECT.replace('id AS', 'NULL AS')}", "finds a row without a correlation_id"),
        ("SELECT correlation_id FROM nowhere", "cannot be read: .*nowhere"),
    ],
)
def test_an_answer_that_is_none_is_refused_in_words(database: Database, query: str, problem: str) -> None:
    database.fill([("a", "1", at(0))])
    with pytest.raises(EvidenceUnavailableError, match=problem):
        read(query)


def test_no_label_and_no_password_is_in_a_message_or_a_log(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    database.fill([("a", "diagnosis-17", at(0))])
    assert len(read(SELECT)) == 1
    no_time = SELECT.replace("known", "CAST(outcome AS TIMESTAMP)" if "password" in database.connection else "outcome")
    with pytest.raises(EvidenceUnavailableError) as refused:
        read(no_time)
    monkeypatch.setenv("AIRFLOW_CONN_OUTCOMES", json.dumps(database.connection | {"host": "/dev/null/labels"}))
    with pytest.raises(EvidenceUnavailableError, match="connection 'outcomes' cannot be read") as away:
        read(SELECT)

    said = f"{caplog.text} {refused.value} {away.value}"
    assert SECRET not in said
    assert "diagnosis" not in said


@pytest.mark.parametrize("made", [in_postgres], indirect=True)
def test_the_older_driver_of_postgresql_reads_and_changes_nothing_either(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "USE_PSYCOPG3", False)
    database.fill([("a", "1", at(0))])

    assert read(f"{SELECT} WHERE known >= :since") == [LabelRow("a", "1", at(0))]
    with pytest.raises(EvidenceUnavailableError, match="cannot be read"):
        read("WITH gone AS (DELETE FROM outcomes RETURNING 1) SELECT 1")


def test_an_endless_answer_is_not_read_into_memory(database: Database) -> None:
    with pytest.raises(EvidenceUnavailableError, match="finds more than 1,000 labels"):
        read(f"{MANY} SELECT n AS correlation_id, 1 AS label, '2026-11-01' AS arrived FROM many")  # noqa: S608


def test_a_connection_without_a_database_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OUTCOMES", json.dumps({"conn_type": "controlled_rollout"}))
    with pytest.raises(EvidenceUnavailableError, match="hook WorkspaceHook, which is none of a database"):
        read(SELECT)
    monkeypatch.delenv("AIRFLOW_CONN_OUTCOMES")
    with pytest.raises(EvidenceUnavailableError, match="connection 'outcomes' cannot be read"):
        read(SELECT)


def test_a_parameter_that_is_not_known_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(ArgumentError, match=r"has the parameters :from, :to: known are :endpoint, :since, :until"):
        SqlLabels(conn_id="outcomes", query=f"{SELECT} WHERE known > :from AND known < :to").source("digits")


def test_a_query_may_be_in_a_file_beside_the_dag(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/outcomes.sql").write_text(SELECT)
    outside = tmp_path.parent / "outside.sql"
    outside.write_text(SELECT)

    assert SqlLabels(conn_id="a", query="labels/outcomes.sql").read_query(tmp_path).query == SELECT
    assert SqlLabels(conn_id="a", query=SELECT).read_query(tmp_path).query == SELECT
    for name, problem in (("../outside.sql", "is not in the folder"), ("none.sql", "cannot be read")):
        with pytest.raises(ArgumentError, match=problem):
            SqlLabels(conn_id="a", query=name).read_query(tmp_path)
    (tmp_path / "empty.sql").write_text(" ")
    with pytest.raises(ArgumentError, match="is empty, or longer"):
        SqlLabels(conn_id="a", query="empty.sql").read_query(tmp_path)
