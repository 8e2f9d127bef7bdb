"""The loop over all spools: what stops it, what does not, and what it says."""

import json
import logging
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout_collector.collector import Collector, PauseAfterFailures
from controlled_rollout_collector.settings import SpoolSettings
from controlled_rollout_collector.storage import StorageError
from controlled_rollout_scoring.spool import Spool
from tests.unit.collector.spools import SpoolWriter, exchange, make_spool


class MemoryStorage:
    """A storage in memory that takes nothing while `problem` is set."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.problem: str | None = None

    def __str__(self) -> str:
        return "the memory"

    def put(self, name: str, content: bytes) -> None:
        if self.problem:
            raise StorageError(self.problem)
        self.files[name] = content

    def requests(self) -> Counter[str]:
        """How often each request is in the storage."""
        files = [content for name, content in self.files.items() if "/request/" in name]
        return Counter(json.loads(line)["xrequestid"] for content in files for line in content.splitlines())


def status(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "collector.json").read_text())
    return content


def filled_spool(folder: Path, replica: str, *, first: int = 0, **settings: Any) -> SpoolWriter:
    writer = SpoolWriter(make_spool(folder, replica=replica, layout="jsonl", **settings))
    writer.append_exchanges(3, first=first)
    return writer


def test_what_the_scoring_runtime_appends_is_shipped(tmp_path: Path) -> None:
    spool = make_spool(tmp_path, layout="jsonl")
    writer = Spool(str(spool), max_bytes=1_000_000)
    for number in range(3):
        head, asked, answered = exchange(number)
        assert writer.append(json.dumps(head).encode(), asked, answered)
    writer.count_dropped("a test")
    storage = MemoryStorage()
    collector = Collector(tmp_path, storage)

    assert collector.ship_all() is None
    (shipped,) = status(tmp_path)["spools"]
    assert (shipped["captured"], shipped["dropped"], shipped["shipped"], shipped["final"]) == (3, 1, 3, False)
    writer.close()
    (spool / "ended").touch()
    collector.ship_all()

    assert storage.requests() == {"id-0": 1, "id-1": 1, "id-2": 1}
    assert not spool.exists()
    assert json.loads((spool.parent / "replica-1.json").read_text())["dropped"] == 1


def test_the_spool_of_an_ended_replica_is_deleted_once_it_is_shipped(tmp_path: Path) -> None:
    ended, living = filled_spool(tmp_path, "a"), filled_spool(tmp_path, "b", first=3)
    ended.end()
    (ended.spool / "ended").touch()
    storage = MemoryStorage()
    storage.problem = "the memory is away"
    collector = Collector(tmp_path, storage)

    assert collector.ship_all() == "the memory is away"
    assert ended.spool.exists()
    storage.problem = None
    collector.ship_all()
    living.end()
    collector.ship_all()

    assert (ended.spool.exists(), living.spool.exists()) == (False, True)
    assert set(storage.requests().values()) == {1} and storage.requests().total() == 6


def test_a_storage_that_is_away_is_named_once_a_minute_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = filled_spool(tmp_path, "a")
    storage = MemoryStorage()
    storage.problem = "the memory is away"
    now = [0.0]
    collector = Collector(tmp_path, storage, clock=lambda: now[0])

    for now[0] in (0.0, 20.0, 40.0, 61.0):
        collector.ship_all()
    lines = [record.getMessage() for record in caplog.records]
    pending = writer.segment.stat().st_size
    assert lines == [f"the memory is away; {pending:,} bytes wait in the spools, and nothing is lost"] * 2
    assert status(tmp_path)["problem"] == "the memory is away"

    storage.problem = None
    collector.ship_all()
    writer.end()
    assert storage.requests().total() == 3
    assert status(tmp_path)["problem"] is None


def test_a_long_round_is_seen_to_be_at_work_after_each_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlled_rollout_collector.shipping.BATCH_SEGMENTS", 1)
    writer = filled_spool(tmp_path, "a")
    for first in (3, 6):
        writer.begin_segment()
        writer.append_exchanges(3, first=first)
    storage = MemoryStorage()
    seen: list[bool] = []
    put = storage.put

    def watched_put(name: str, content: bytes) -> None:
        seen.append((tmp_path / "collector.json").exists())
        put(name, content)

    monkeypatch.setattr(storage, "put", watched_put)

    Collector(tmp_path, storage).ship_all()
    writer.end()

    # Of each batch two parts, and the state.
    assert seen == [False, False, True, True, True, True, True]


def test_the_pauses_grow_while_the_storage_is_away() -> None:
    pause = PauseAfterFailures(5.0)

    assert [pause.next_s(has_failed=True) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pause.next_s(has_failed=False) == 5
    assert pause.next_s(has_failed=True) == 1


def test_a_spool_that_cannot_be_shipped_does_not_stop_the_others(tmp_path: Path) -> None:
    broken = filled_spool(tmp_path, "a", mask="no list")
    fine = filled_spool(tmp_path, "b", first=3)
    storage = MemoryStorage()

    assert Collector(tmp_path, storage).ship_all() is None

    broken.end()
    fine.end()
    assert storage.requests().total() == 3
    assert "has to be a list of column names" in str(status(tmp_path)["faults"])


def test_a_fault_of_the_collector_itself_is_logged_and_stops_no_other_spool(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers = [filled_spool(tmp_path, "a"), filled_spool(tmp_path, "b", first=3)]
    storage = MemoryStorage()
    put = storage.put

    def put_of_one(name: str, content: bytes) -> None:
        if "-a-" in name:
            raise RuntimeError("a fault")
        put(name, content)

    monkeypatch.setattr(storage, "put", put_of_one)

    assert Collector(tmp_path, storage).ship_all() is None

    for writer in writers:
        writer.end()
    assert storage.requests().total() == 3
    assert status(tmp_path)["faults"] == [f"{writers[0].spool}: RuntimeError: a fault"]
    assert "cannot be shipped" in caplog.text


def test_dropped_requests_are_logged_once_a_minute(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = filled_spool(tmp_path, "a")
    now = [0.0]
    collector = Collector(tmp_path, MemoryStorage(), clock=lambda: now[0])

    for now[0], dropped in ((0.0, 0), (5.0, 2), (10.0, 4), (70.0, 4), (140.0, 4)):
        writer.count(dropped=dropped)
        collector.ship_all()
    writer.end()

    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.partition(": ")[2].split()[0] for line in lines] == ["2", "4"]


def test_a_collector_that_is_told_to_end_ships_what_is_there(tmp_path: Path) -> None:
    writer = filled_spool(tmp_path, "a")
    storage = MemoryStorage()
    end = threading.Event()
    end.set()

    Collector(tmp_path, storage, end=end).run()

    writer.end()
    assert storage.requests().total() == 3


def test_the_end_is_bounded_while_the_storage_is_away(tmp_path: Path) -> None:
    writer = filled_spool(tmp_path, "a")
    storage = MemoryStorage()
    storage.problem = "the memory is away"
    end = threading.Event()
    end.set()

    Collector(tmp_path, storage, end=end, grace_s=0.0).run()

    assert writer.segment.exists()
    writer.end()


def test_in_a_pod_the_last_state_is_final(tmp_path: Path) -> None:
    writer = filled_spool(tmp_path, "a")
    storage = MemoryStorage()
    end = threading.Event()
    end.set()

    Collector(writer.spool, storage, end=end, of_pod=SpoolSettings.read(writer.spool)).run()

    writer.end()
    assert json.loads(storage.files["collected/digits/v1/_state/a.json"])["final"]


def test_in_a_pod_nothing_that_the_model_writes_into_its_spool_makes_its_data_another_versions(tmp_path: Path) -> None:
    writer = filled_spool(tmp_path, "a")
    described = {
        "COLLECTOR_SPOOL": json.dumps({"endpoint": "digits", "version": "v1", "mask": ["age"]}),
        "COLLECTOR_REPLICA": "pod-1",
    }
    forged = {"endpoint": "digits", "version": "control", "replica": "a"}
    make_spool(writer.spool / "digits")
    for folder in (writer.spool, writer.spool / "digits" / "digits" / "v1" / "replica-1"):
        (folder / "spool.json").write_text(json.dumps(forged))
    (writer.spool / "ended").touch()
    storage = MemoryStorage()

    assert Collector(writer.spool, storage, of_pod=SpoolSettings.from_environment(described)).ship_all() is None

    assert writer.spool.exists()
    assert {name.split("/")[2] for name in storage.files} == {"v1"}
    assert "collected/digits/v1/_state/pod-1.json" in storage.files
    writer.end()
