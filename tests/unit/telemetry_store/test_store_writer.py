"""The buffer before the disk: accepted rows are written, visible, bounded, and deleted after the retention."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from controlled_rollout.telemetry_store.database import FILE_NAME, Database
from controlled_rollout.telemetry_store.database_errors import DatabaseError, MachineError
from controlled_rollout.telemetry_store.schema import TABLES, Row
from controlled_rollout.telemetry_store.writer import BufferFullError, NotWrittenError, Writer
from tests.polling import wait_until

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MAX_BYTES = 2**40


def event(age: timedelta = timedelta(0), name: str = "e") -> Row:
    stamp = int((NOW - age).timestamp() * 1e6)
    values: dict[str, Any] = {"TimeGenerated": stamp, "_TimeReceived": stamp, "Name": name, "ItemCount": 1}
    empty = {"dynamic": "{}"}
    return tuple(values.get(c.name, empty.get(c.type, "")) for c in TABLES["AppEvents"].stored)


def events(*ages: timedelta) -> dict[str, list[Row]]:
    return {"AppEvents": [event(age) for age in ages]}


def count(database: Database) -> int:
    with database.cursor() as cursor:
        row = cursor.execute('SELECT count(*) FROM main."AppEvents"').fetchone()
    assert row
    return int(row[0])


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path)
    yield database
    database.close()


@pytest.fixture
def start(database: Database) -> Iterator[Callable[..., Writer]]:
    started: list[Writer] = []

    def start_writer(**settings: Any) -> Writer:
        defaults: dict[str, Any] = {"retention": timedelta(days=30), "max_bytes": MAX_BYTES, "clock": lambda: NOW}
        writer = Writer(database, **{**defaults, **settings})
        writer.start()
        started.append(writer)
        return writer

    yield start_writer
    for writer in started:
        writer.stop(5.0)


def test_accepted_rows_are_visible_after_a_flush(database: Database, start: Callable[..., Writer]) -> None:
    writer = start(delay_s=3_600.0)

    writer.add(events(*[timedelta(0)] * 3), 10)
    writer.flush(10.0)

    assert count(database) == 3


def test_rows_are_written_without_a_flush_after_the_delay(database: Database, start: Callable[..., Writer]) -> None:
    writer = start(delay_s=0.05)

    writer.add(events(timedelta(0)), 10)

    wait_until(lambda: count(database) == 1, "the rows are on disk")


def test_stopping_writes_what_was_accepted_and_takes_nothing_more(
    database: Database, start: Callable[..., Writer]
) -> None:
    writer = start(delay_s=3_600.0)
    writer.add(events(timedelta(0)), 10)

    assert writer.stop(10.0)

    assert count(database) == 1
    with pytest.raises(BufferFullError, match="shutting down"):
        writer.add(events(timedelta(0)), 10)


def test_uploads_from_many_threads_lose_no_row(database: Database, start: Callable[..., Writer]) -> None:
    writer = start(delay_s=0.001)

    def upload() -> None:
        for _ in range(20):
            writer.add(events(timedelta(0), timedelta(0)), 10)
            writer.flush(10.0)

    threads = [threading.Thread(target=upload) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)

    assert count(database) == 200


class Faulty:
    """A database that cannot write while `broken`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.broken = threading.Event()
        self.tried_again = threading.Event()
        self._tries = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def insert(self, rows: Any) -> None:
        if self.broken.is_set():
            self._tries += 1
            if self._tries > 1:
                self.tried_again.set()
            raise MachineError("no space left on device")
        self._database.insert(rows)


def test_full_disk_bounds_the_buffer_and_loses_no_accepted_row(database: Database) -> None:
    faulty = Faulty(database)
    faulty.broken.set()
    writer = Writer(
        faulty,
        retention=timedelta(days=30),
        max_bytes=MAX_BYTES,
        delay_s=0.01,
        max_rows=4,
        clock=lambda: NOW,
    )
    writer.start()
    writer.add(events(*[timedelta(0)] * 3), 10)
    # By the second attempt the writer has noted why the first one failed.
    assert faulty.tried_again.wait(10.0)

    with pytest.raises(BufferFullError, match="no space left"):
        writer.add(events(*[timedelta(0)] * 2), 10)
    with pytest.raises(NotWrittenError, match="no space left"):
        writer.flush(0.01)
    faulty.broken.clear()
    writer.flush(10.0)

    assert count(database) == 3
    assert writer.stop(10.0)


def test_uploads_of_others_leave_half_of_the_buffer_to_the_router(database: Database) -> None:
    writer = Writer(database, retention=timedelta(days=30), max_bytes=MAX_BYTES, max_rows=8)  # never started
    writer.add(events(*[timedelta(0)] * 4), 10, may_fill=False)

    with pytest.raises(BufferFullError):
        writer.add(events(timedelta(0)), 10, may_fill=False)

    writer.add(events(*[timedelta(0)] * 4), 10)


def test_row_that_the_database_refuses_does_not_affect_the_others(
    database: Database, start: Callable[..., Writer]
) -> None:
    writer = start()
    poison = (*event()[:-1], "{not json")

    writer.add({"AppEvents": [event(), poison, event(), event()]}, 10)
    writer.flush(10.0)

    assert count(database) == 3


def test_rows_older_than_the_retention_are_deleted_and_the_others_are_kept(
    database: Database, start: Callable[..., Writer]
) -> None:
    day = timedelta(days=1)
    database.insert(events(31 * day, 29 * day, 400 * day, 0 * day))

    start(retention=30 * day)

    wait_until(lambda: count(database) == 2, "the rows are on disk")


def test_oldest_rows_are_deleted_above_the_size_limit(database: Database, start: Callable[..., Writer]) -> None:
    hour = timedelta(hours=1)
    noise = [event(number * hour, name=f"{number:08d}" * 100) for number in range(500)]
    database.insert({"AppEvents": noise})
    database.checkpoint()
    used = database.used_bytes()

    start(max_bytes=used // 2)

    wait_until(lambda: count(database) < 500, "the rows are on disk")
    with database.cursor() as cursor:
        row = cursor.execute('SELECT max("TimeGenerated"), min("TimeGenerated") FROM main."AppEvents"').fetchone()
    assert row
    assert row[0] == NOW.replace(tzinfo=None)
    assert row[1] > (NOW - 400 * hour).replace(tzinfo=None)


def test_a_folder_keeps_its_rows_and_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    first = Database(tmp_path)
    first.insert(events(timedelta(0)))
    first.close()
    again = Database(tmp_path)
    assert count(again) == 1
    again.close()
    with duckdb.connect(str(tmp_path / FILE_NAME)) as connection:
        connection.execute('ALTER TABLE "AppEvents" ADD COLUMN "Other" INTEGER')

    with pytest.raises(DatabaseError, match="another version"):
        Database(tmp_path)


def test_file_that_is_not_a_database_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database" * 1_000)

    with pytest.raises(DatabaseError, match=r"telemetry\.duckdb cannot be opened"):
        Database(tmp_path)
