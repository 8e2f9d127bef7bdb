"""Spools that are shipped to a folder: which rows are there, exactly once, whatever happens meanwhile."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlled_rollout_collector.progress import ProgressFile
from controlled_rollout_collector.settings import SpoolSettingError
from controlled_rollout_collector.shipping import SpoolShipper, SpoolState
from controlled_rollout_collector.storage import FolderStorage, StorageError
from tests.unit.collector.spools import NOON, SpoolWriter, exchange, make_spool, packed


class Place:
    """A spool, its worker, and the folder that it is shipped to."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.storage = folder / "storage"
        self.spool = make_spool(folder / "spools", **settings)
        self.writer = SpoolWriter(self.spool)

    def shipper(self, batch_bytes: int = 1 << 20) -> SpoolShipper:
        """A collector that has just been started."""
        return SpoolShipper(self.spool, FolderStorage(self.storage), batch_bytes=batch_bytes)

    def ship(self) -> SpoolState:
        """Ship what is there now."""
        return self.shipper().ship()

    def rows(self, collection: str) -> list[dict[str, Any]]:
        """All rows of a collection."""
        files = sorted((self.storage / "collected" / "digits" / "v1" / collection).rglob("*.parquet"))
        return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]

    def requests(self, collection: str) -> Counter[str]:
        """How often each request is in a collection."""
        return Counter(row["$request_id"] for row in self.rows(collection))

    def state(self) -> dict[str, Any]:
        """The replica's state in the storage."""
        content = (self.storage / "collected" / "digits" / "v1" / "_state" / "replica-1.json").read_text()
        state: dict[str, Any] = json.loads(content)
        return state


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.writer.end()


def once(count: int, first: int = 0) -> Counter[str]:
    return Counter({f"id-{number}": 1 for number in range(first, first + count)})


def test_each_captured_request_is_a_row_of_inputs_and_of_predictions(place: Place) -> None:
    place.writer.append_exchanges(3)

    place.ship()

    first, *_ = place.rows("inputs")
    assert (first["age"], first["name"]) == (0.0, "n0")
    assert (first["$request_id"], first["$correlation_id"]) == ("id-0", "correlation-0")
    assert (first["$row"], first["$rows"], first["$status"]) == (0, 1, 200)
    assert (first["$endpoint"], first["$version"], first["$replica"]) == ("digits", "v1", "replica-1")
    assert first["$time"].timestamp() == NOON
    assert [row["prediction"] for row in place.rows("predictions")] == [0.0, 1.0, 2.0]
    assert {row["$duration_ms"] for row in place.rows("predictions")} == {1.5}
    assert place.requests("inputs") == place.requests("predictions") == once(3)


def test_parts_are_by_collection_and_day_of_arrival(place: Place) -> None:
    place.writer.append_exchanges(1)
    place.writer.append_exchanges(1, first=1, time=NOON + 86_400)

    place.ship()

    folders = {str(path.parent.relative_to(place.storage)) for path in place.storage.rglob("*.parquet")}
    assert folders == {
        f"collected/digits/v1/{collection}/2026/11/{day}"
        for collection in ("inputs", "predictions")
        for day in ("28", "29")
    }


def test_what_is_shipped_is_not_shipped_again(place: Place) -> None:
    for first in range(0, 30, 10):
        place.writer.append_exchanges(10, first=first)
        place.ship()
        place.ship()

    assert place.requests("inputs") == once(30)


def test_a_segment_is_deleted_once_its_writer_has_left_it_and_all_is_shipped(place: Place) -> None:
    place.writer.append_exchanges(5)
    first = place.writer.segment
    place.ship()
    assert first.exists()

    place.writer.begin_segment()
    place.writer.append_exchanges(5, first=5)
    place.ship()

    assert not first.exists()
    assert place.writer.segment.exists()
    assert place.requests("inputs") == once(10)


def test_an_empty_segment_of_a_living_writer_stays(place: Place) -> None:
    place.writer.begin_segment()

    place.ship()
    assert place.writer.segment.exists()
    place.writer.append_exchanges(1)
    place.ship()

    assert place.requests("inputs") == once(1)


def test_half_a_record_of_a_killed_writer_is_no_record(place: Place) -> None:
    place.writer.append_exchanges(2)
    place.writer.append_bytes(packed(*exchange(2))[:-3])
    assert place.ship().pending_bytes > 0
    place.writer.end()

    state = place.ship()

    assert (state.shipped, state.unreadable, state.pending_bytes) == (2, 0, 0)
    assert place.requests("inputs") == once(2)


def test_a_damaged_record_is_counted_and_those_behind_it_are_shipped(place: Place) -> None:
    place.writer.append_exchanges(1)
    damaged = bytearray(packed(*exchange(99)))
    damaged[40] ^= 1
    place.writer.append_bytes(bytes(damaged))
    place.writer.append_exchanges(3, first=1)
    place.writer.append_bytes(packed({"kind": "unknown"}))
    place.writer.append_bytes(b"garbage that is no record")
    place.writer.end()

    state = place.ship()

    assert place.requests("inputs") == once(4)
    assert (state.shipped, state.unreadable) == (4, 3)


def test_the_state_says_how_far_the_replica_is_shipped_and_what_was_dropped(place: Place) -> None:
    place.writer.append_exchanges(4)
    place.writer.count(dropped=7, unreadable=2)
    shipper = SpoolShipper(place.spool, FolderStorage(place.storage), clock=lambda: 1234.0)

    shipper.ship()

    assert place.state() == {
        "replica": "replica-1",
        "shipped_until": 1234.0,
        "captured": 4,
        "dropped": 7,
        "unreadable": 2,
        "lost_at": None,
        "watched_since": 1234.0,
        "shipped": 4,
        "pending_bytes": 0,
        "final": False,
        "updated": 1234.0,
    }


def test_the_state_says_when_something_was_last_lost(place: Place) -> None:
    """What was dropped weeks ago must not keep today's gate from judging."""
    now = [1000.0]
    place.writer.count(dropped=7)
    shipper = SpoolShipper(place.spool, FolderStorage(place.storage), clock=lambda: now[0])
    shipper.ship()
    assert (place.state()["lost_at"], place.state()["watched_since"]) == (None, 1000.0)

    now[0] = 2000.0
    place.writer.count(dropped=8)
    shipper.ship()
    now[0] = 3000.0
    shipper.ship()
    assert (place.state()["lost_at"], place.state()["updated"]) == (2000.0, 3000.0)


def test_requests_that_named_their_version_are_marked(place: Place) -> None:
    head, asked, answered = exchange(0)
    place.writer.append({**head, "addressed": True}, asked, answered)
    place.writer.append_exchanges(1, first=1)
    place.ship()
    assert [row["$addressed"] for collection in ("inputs", "predictions") for row in place.rows(collection)] == [
        True, False, True, False,
    ]  # fmt: skip


def test_the_state_of_an_idle_replica_is_not_written_each_round(place: Place) -> None:
    now = [1000.0]
    shipper = SpoolShipper(place.spool, FolderStorage(place.storage), clock=lambda: now[0])
    for now[0] in (1000.0, 1005.0, 1010.0):
        shipper.ship()
    assert place.state()["shipped_until"] == 1000.0

    now[0] = 1031.0
    shipper.ship()
    assert place.state()["shipped_until"] == 1031.0

    now[0] = 1036.0
    place.writer.append_exchanges(1)
    shipper.ship()
    assert place.state()["shipped_until"] == 1036.0


def test_only_a_replica_that_has_ended_and_is_shipped_is_final(place: Place) -> None:
    place.writer.append_exchanges(2)
    place.writer.end()
    assert not place.ship().final

    (place.spool / "ended").touch()

    assert place.ship().final
    assert place.state()["final"]


def test_a_lock_that_a_scripts_process_holds_does_not_keep_the_spool_of_an_ended_replica(place: Place) -> None:
    place.writer.append_exchanges(2)
    place.writer.append_bytes(b"CRS1 half a record")
    (place.spool / "ended").touch()

    assert place.ship().final
    assert place.requests("inputs") == once(2)


def test_a_request_with_more_rows_is_read_as_one_request(place: Place) -> None:
    place.writer.append_exchanges(2, rows=3)

    place.ship()

    rows = place.rows("predictions")
    assert [(row["$request_id"], row["$row"], row["$rows"]) for row in rows[:4]] == [
        ("id-0", 0, 3),
        ("id-0", 1, 3),
        ("id-0", 2, 3),
        ("id-1", 0, 3),
    ]


def test_a_body_that_is_no_rows_is_one_row_with_its_bytes(place: Place) -> None:
    head, _, answered = exchange(0)
    head["request"] = {"type": "image/png", "size": 4, "kept": 4}
    place.writer.append(head, b"\x89PNG", answered)
    head, _, _ = exchange(1)
    head["request"] = {"type": "image/png", "size": 9_000_000, "sha256": "ab" * 32, "kept": 0}
    head["response"] = {"type": "", "size": 0, "kept": 0}
    place.writer.append(head)

    place.ship()

    picture, large = place.rows("inputs")
    assert (picture["$body"], picture["$size"], picture["$content_type"]) == (b"\x89PNG", 4, "image/png")
    assert picture["$sha256"] == "0f4636c78f65d3639ece5a064b5ae753e3408614a14fb18ab4d7540d2c248543"
    assert (picture["$row"], picture["$rows"], picture["$truncated"]) == (0, 1, False)
    assert (large["$body"], large["$size"], large["$sha256"], large["$truncated"]) == (None, 9_000_000, "ab" * 32, True)
    assert place.requests("predictions") == once(2)


def test_a_body_that_takes_too_much_memory_as_rows_is_one_row_without_them(place: Place) -> None:
    head, _, answered = exchange(0)
    asked = json.dumps([0] * 3_000_000).encode()
    head["request"] |= {"size": len(asked), "kept": len(asked)}
    place.writer.append(head, asked, answered)
    place.writer.append_exchanges(1, first=1)

    place.ship()

    large, small = place.rows("inputs")
    assert (large["$size"], large["$truncated"], large["$body"], small["age"]) == (9_000_000, True, None, 1)
    assert place.requests("predictions") == once(2)


def test_rules_for_columns_hold_in_all_collections_and_bytes_are_not_kept(tmp_path: Path) -> None:
    salt = tmp_path / "salt"
    salt.write_text("secret\n")
    place = Place(tmp_path, mask=["name"], hash=["inputs.age"], salt_file=str(salt))
    place.writer.append_exchanges(1)
    head, _, answered = exchange(1)
    head["request"] = {"type": "text/plain", "size": 3, "kept": 3}
    place.writer.append(head, b"Ada", answered)
    place.writer.end()

    place.ship()

    first, plain = place.rows("inputs")
    assert (first["name"], len(first["age"])) == ("***", 64)
    assert (plain["$body"], plain["$size"], plain["name"]) == (None, 3, None)


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "xml"},
        {"endpoint": ""},
        {"hash": ["age"]},
        {"hash": ["age"], "salt_file": "/nowhere/salt"},
        {"mask": "age"},
    ],
    ids=repr,
)
def test_a_spool_whose_settings_are_wrong_is_left_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    place = Place(tmp_path, **change)
    place.writer.append_exchanges(1)
    place.writer.end()

    with pytest.raises(SpoolSettingError, match=r"spool\.json cannot be used"):
        place.ship()
    assert place.writer.segment.exists()


def test_what_scripts_collect_is_a_collection_of_its_own(place: Place) -> None:
    head = {"kind": "collected", "collector": "v1", "id": "id-1", "correlation": "c", "time": NOON}
    place.writer.append({**head, "collection": "inputs", "columns": ["x", "y"]}, b"[[1, 2], [3, 4]]")
    place.writer.append({**head, "collection": "../scores", "columns": None}, b'[{"x": "a"}]')
    place.writer.append({**head, "collection": "empty", "columns": ["x"]}, b"[]")
    place.writer.append({**head, "collection": "no data", "columns": None}, b"{")

    place.ship()

    assert [(row["x"], row["y"], row["$row"]) for row in place.rows("script-inputs")] == [(1, 2, 0), (3, 4, 1)]
    assert [row["x"] for row in place.rows("..%2Fscores")] == ["a"]
    assert (place.rows("empty"), [row["$body"] for row in place.rows("no%20data")]) == ([], [b"{"])


def test_a_column_has_the_type_of_its_values_and_mixed_ones_are_json(place: Place) -> None:
    for number, body in enumerate(
        [
            {"n": 1, "b": True, "s": "a", "o": {"k": 1}, "m": 1, "$x": 1, "z": None, "big": 2**70},
            {"n": 2.5, "b": False, "s": None, "m": "1", "z": None},
        ]
    ):
        head, _, answered = exchange(number)
        asked = json.dumps(body).encode()
        head["request"] |= {"size": len(asked), "kept": len(asked)}
        place.writer.append(head, asked, answered)

    place.ship()

    (file,) = (place.storage / "collected/digits/v1/inputs").rglob("*.parquet")
    schema = pq.read_schema(file)
    assert {name: str(schema.field(name).type) for name in ("n", "b", "s", "o", "m", "z", "$$x")} == {
        "n": "double",
        "b": "bool",
        "s": "string",
        "o": "string",
        "m": "string",
        "z": "double",
        "$$x": "double",
    }
    assert json.loads(schema.metadata[b"controlled_rollout.json_columns"]) == ["m"]
    first, second = place.rows("inputs")
    assert (first["m"], second["m"], first["o"], first["big"]) == ("1", '"1"', '{"k": 1}', float(2**70))


class Killed(BaseException):
    """The collector was killed."""


class KillingStorage:
    """A storage in memory that kills the collector before or after a number of operations, or refuses one."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.left = 0
        self.when = "never"

    def put(self, name: str, content: bytes) -> None:
        self.left -= 1
        if self.left == 0 and self.when == "before":
            raise Killed
        if self.left == 0 and self.when == "refused":
            raise StorageError("the storage is away")
        self.files[name] = content
        if self.left == 0 and self.when == "after":
            raise Killed

    def requests(self, collection: str) -> Counter[str]:
        """How often each request is in a collection of the layout `jsonl`."""
        files = [content for name, content in self.files.items() if f"/{collection}/" in name]
        return Counter(json.loads(line)["xrequestid"] for content in files for line in content.splitlines())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 4),
            st.booleans(),
            st.integers(1, 6),
            st.sampled_from(["before", "after", "refused", "write", "never"]),
        ),
        min_size=1,
        max_size=6,
    ),
    batch_bytes=st.sampled_from([1, 700, 1 << 20]),
)
def test_whenever_the_collector_is_killed_each_request_is_there_once(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[int, bool, int, str]],
    batch_bytes: int,
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("os.fdatasync", lambda descriptor: None)
    place = Place(tmp_path_factory.mktemp("place"), layout="jsonl")
    storage = KillingStorage()
    written = 0
    for count, begins_segment, after, when in steps:
        if begins_segment:
            place.writer.begin_segment()
        place.writer.append_exchanges(count, first=written)
        written += count
        with monkeypatch.context() as patch:
            if when == "write":
                kill_at_write(patch, after)
            storage.left, storage.when = after, when
            try:
                SpoolShipper(place.spool, storage, batch_bytes=batch_bytes).ship()
            except (Killed, StorageError):
                # Later ones are new processes, which know what is on the disk.
                pass
        assert set(storage.requests("request").values()) <= {1}
    place.writer.end()
    (place.spool / "ended").touch()
    storage.when = "never"

    state = SpoolShipper(place.spool, storage, batch_bytes=batch_bytes).ship()

    assert storage.requests("request") == storage.requests("response") == once(written)
    assert (state.final, state.shipped, state.captured) == (True, written, written)
    assert not list(place.spool.glob("*.spool"))


def kill_at_write(patch: pytest.MonkeyPatch, after: int) -> None:
    """Kill the collector in the middle of a write of its progress."""
    write = ProgressFile.write
    left = after

    def killing(file: ProgressFile, progress: Any) -> None:
        nonlocal left
        left -= 1
        if left > 0:
            return write(file, progress)
        # Half of the slot is written.
        number = file._writes + 1
        content = bytearray(file._path.read_bytes())
        content[number % 2 * 65536 : number % 2 * 65536 + 30] = b"x" * 30
        file._path.write_bytes(content)
        raise Killed

    patch.setattr(ProgressFile, "write", killing)
