"""What versions have collected, read by people: inputs beside predictions, from a folder and from Blob Storage."""

import csv
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from controlled_rollout import ArgumentError, EvidenceUnavailableError, read_collected
from controlled_rollout.cli import main
from controlled_rollout.storage import Storage, open_storage
from controlled_rollout.workspace import Workspace
from controlled_rollout_collector.entries import read_entries
from controlled_rollout_collector.layouts import ParquetLayout
from controlled_rollout_collector.parts import Replica, make_parts
from controlled_rollout_collector.selection import Selection
from tests.azurite import CONTAINER, signed_in_to_blobs

T0 = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with signed_in_to_blobs(tmp_path_factory.mktemp("blobs"), CONTAINER) as client:
        yield f"{client.url.rstrip('/')}/{CONTAINER}"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.from_settings({"root": str(tmp_path / "root"), "cache_folder": str(tmp_path / "cache")})


def exchange(number: int, asked: Any, answered: Any, *, at: datetime = T0, **changes: Any) -> list[bytes]:
    """Return the head and the two bodies of a request, as the scoring runtime writes them."""
    bodies = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in (asked, answered)]
    described = [{"type": "application/json", "size": len(body), "kept": len(body)} for body in bodies]
    head = {
        "kind": "exchange", "id": f"id-{number}", "correlation": f"correlation-{number}", "time": at.timestamp(),
        "duration_ms": 1.5, "status": 200, "method": "POST", "path": "/score", "request": described[0],
        "response": described[1],
    }  # fmt: skip
    return [json.dumps(head | changes).encode(), *bodies]


def collected(collection: str, request: int, rows: Any, *, at: datetime = T0) -> list[bytes]:
    """Return the head and the body of what a script has collected in a request."""
    head = {
        "kind": "collected", "collector": "v2", "collection": collection, "id": f"id-{request}",
        "correlation": f"correlation-{request}", "time": at.timestamp(), "columns": None, "rows": len(rows),
    }  # fmt: skip
    body = json.dumps(rows).encode()
    return [json.dumps(head | {"kept": len(body)}).encode(), body]


def ship(storage: Storage, *records: list[bytes], version: str = "v1", batch: str = "1") -> None:
    """Write records into a storage as the collector does."""
    replica = Replica("digits", version, "r1", subscription="sub", resource_group="group", workspace="ws")
    entries = [
        entry for head, *bodies in records for entry in read_entries(head, memoryview(b"".join(bodies)), Selection())
    ]
    for part in make_parts(entries, replica, ParquetLayout(), batch):
        storage.put(part.name, part.content)


def rows_of(workspace: Workspace, versions: str | Sequence[str] = "v1", **changes: Any) -> list[dict[str, Any]]:
    arguments: dict[str, Any] = {"since": T0 - HOUR, "until": T0 + 2 * HOUR} | changes
    with read_collected(workspace, "digits", versions, **arguments) as batches:
        found = [row for batch in batches for row in batch.to_pylist()]
    return sorted(found, key=lambda row: (row["$version"], row["$request_id"], row["$row"]))


@pytest.mark.parametrize("place", ["folder", "blobs"])
def test_inputs_are_beside_their_predictions(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    where = f"{request.getfixturevalue('blobs')}/team" if place == "blobs" else str(tmp_path / "data")
    settings = {"root": str(tmp_path / "root"), "cache_folder": str(tmp_path / "cache"), "storage": where}
    workspace = Workspace.from_settings(settings)
    data = [{"age": 30, "name": "a"}, {"age": 40, "name": "b"}]
    ship(open_storage(workspace), exchange(1, {"data": data}, [7, 8]))
    # The next day, in a part of its own.
    ship(open_storage(workspace), exchange(2, {"data": data[:1]}, [9], at=T0 + HOUR, status=500), version="v2")
    found = rows_of(workspace, ["v1", "v2"])
    keys = {
        "$version": "v1", "$request_id": "id-1", "$correlation_id": "correlation-1", "$time": T0, "$rows": 2,
        "$status": 200, "$addressed": False,
    }  # fmt: skip
    assert found[0] == keys | {"$row": 0, "inputs.age": 30.0, "inputs.name": "a", "predictions.prediction": 7.0}
    assert found[1] == keys | {"$row": 1, "inputs.age": 40.0, "inputs.name": "b", "predictions.prediction": 8.0}
    assert [(row["$version"], row["$status"], row["predictions.prediction"]) for row in found[2:]] == [("v2", 500, 9.0)]
    assert rows_of(workspace, "v1") == found[:2]
    assert rows_of(workspace, "v2", until=T0 + HOUR) == []


def test_other_numbers_of_rows_are_joined_by_request(workspace: Workspace) -> None:
    """One row is beside each of several; what has no counterpart stands alone, and nothing is lost or doubled."""
    storage = open_storage(workspace)
    ship(
        storage,
        exchange(1, {"data": [[1], [2]]}, {"label": "both"}),
        exchange(2, {"data": [[3]]}, [4, 5]),
        exchange(3, {"data": [[6], [7]]}, [8, 9, 10]),
        exchange(4, b"\xff no rows", {"error": "no"}, status=400),
    )
    found = [
        (row["$request_id"], row["$row"], row["inputs.c0"], row["predictions.prediction"], row["predictions.label"])
        for row in rows_of(workspace, columns=["inputs.c0", "predictions.prediction", "predictions.label"])
    ]
    assert found[:4] == [
        ("id-1", 0, 1.0, None, "both"), ("id-1", 1, 2.0, None, "both"), ("id-2", 0, 3.0, 4.0, None),
        ("id-2", 1, 3.0, 5.0, None),
    ]  # fmt: skip
    assert sorted(found[4:9], key=str) == sorted(
        [("id-3", number, value, None, None) for number, value in enumerate((6.0, 7.0))]
        + [("id-3", number, None, value, None) for number, value in enumerate((8.0, 9.0, 10.0))],
        key=str,
    )
    assert found[9:] == [("id-4", 0, None, None, None)]


def test_an_id_that_is_sent_again_is_another_request(workspace: Workspace) -> None:
    storage = open_storage(workspace)
    ship(storage, exchange(1, {"data": [[1]]}, [10]), exchange(1, {"data": [[2]]}, [20], at=T0 + timedelta(seconds=1)))
    ship(storage, exchange(1, {"data": [[3]]}, [30]), version="v2")
    found = rows_of(workspace, ["v1", "v2"])
    assert sorted((row["inputs.c0"], row["predictions.prediction"]) for row in found) == [(1, 10), (2, 20), (3, 30)]


def test_what_a_script_collects_is_beside_its_request(workspace: Workspace) -> None:
    late = T0 + timedelta(milliseconds=20)
    ship(
        open_storage(workspace),
        exchange(1, {"data": [[1]]}, [10]),
        exchange(2, {"data": [[2]]}, [20]),
        collected("features", 1, [{"x": 0.5}], at=late),
        collected("features", 3, [{"x": 0.7}], at=late),
    )
    for collections in (["features", "inputs"], ["inputs", "predictions", "features"]):
        found = rows_of(workspace, collections=collections, columns=["inputs.c0", "features.x"])
        assert [(row["$request_id"], row["inputs.c0"], row["features.x"]) for row in found] == [
            ("id-1", 1.0, 0.5), ("id-2", 2.0, None), ("id-3", None, 0.7),
        ]  # fmt: skip


def test_a_column_of_several_types_is_json(workspace: Workspace) -> None:
    storage = open_storage(workspace)
    ship(storage, exchange(1, {"data": [{"x": 1, "Age": 1}]}, [1]), batch="1")
    ship(storage, exchange(2, {"data": [{"x": "1", "age": 2}]}, [1]), batch="2")
    ship(storage, exchange(3, {"data": [{"x": [1], "Age": 3, "age": 4}, {"x": True}]}, [1, 2]), batch="3")
    found = rows_of(workspace, columns=["inputs.x", "inputs.Age", "inputs.age"])
    assert [row["inputs.x"] for row in found] == ["1.0", '"1"', "[1]", "true"]
    assert [(row["inputs.Age"], row["inputs.age"]) for row in found] == [(1, None), (None, 2), (3, 4), (None, None)]
    with read_collected(workspace, "digits", "v1", since=T0 - HOUR, until=T0 + HOUR) as batches:
        assert json.loads(batches.schema.metadata[b"controlled_rollout.json_columns"]) == ["inputs.x"]


def test_rows_come_in_batches(workspace: Workspace) -> None:
    ship(open_storage(workspace), *(exchange(number, {"data": [[number]]}, [number]) for number in range(5_000)))
    with read_collected(workspace, "digits", "v1", since=T0 - HOUR, until=T0 + HOUR, batch_rows=1_000) as batches:
        sizes = [batch.num_rows for batch in batches]
    assert sum(sizes) == 5_000
    assert len(sizes) > 1


def test_what_cannot_be_read_is_refused(workspace: Workspace) -> None:
    storage = open_storage(workspace)
    assert rows_of(workspace, columns=["inputs.age"]) == []
    ship(storage, exchange(1, {"data": [{"age": 1}]}, [1]))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"columns": ["inputs.size"]}, r"inputs\.size is not in the data .*the columns of inputs: age"),
        ({"columns": ["age"]}, "'age' names no column"),
        ({"columns": ["labels.age"]}, "names no column.*inputs, predictions"),
        ({"versions": []}, "needs one version"),
        ({"since": datetime(2026, 3, 1)}, "need a time zone"),
        ({"since": T0, "until": T0}, "is not before"),
    ]
    for changes, message in refused:
        with pytest.raises(ArgumentError, match=message):
            rows_of(workspace, **({"versions": "v1"} | changes))
    (part,) = [part.name for part in storage.list("collected/") if "/inputs/" in part.name]
    whole = storage.get(part)
    storage.put(part, whole[:4] + bytes(len(whole) // 2) + whole[len(whole) // 2 + 4 :])
    with pytest.raises(EvidenceUnavailableError, match="cannot be read"):
        rows_of(workspace)
    storage.put(part, b"PAR1 torn")
    with pytest.raises(EvidenceUnavailableError, match="cannot be read"):
        rows_of(workspace)


def test_json_lines_have_the_values_that_were_collected(workspace: Workspace, tmp_path: Path) -> None:
    """Of columns with several types, too; bytes are base64, and what is no finite number is null."""
    now = datetime.now(UTC) - timedelta(minutes=1)
    ship(
        open_storage(workspace),
        exchange(1, {"data": [{"x": 1, "y": 1}, {"x": "1", "y": float("nan")}, {"x": [1]}, {}]}, [1, 2, 3, 4], at=now),
        exchange(2, b"\xff\x00", [1], at=now),
    )
    output = tmp_path / "rows.jsonl"
    columns = [option for name in ("x", "y", "$body") for option in ("--column", f"inputs.{name}")]
    arguments = ["--root", str(workspace.root), "--collection", "inputs", *columns, "--file", str(output)]
    assert main(["data", "digits", "v1", *arguments]) == 0
    rows = sorted(map(json.loads, output.read_text().splitlines()), key=lambda row: (row["$request_id"], row["$row"]))
    assert [(row["inputs.x"], row["inputs.y"], row["inputs.$body"]) for row in rows] == [
        (1, 1, None), ("1", None, None), ([1], None, None), (None, None, None), (None, None, "/wA="),
    ]  # fmt: skip
    as_csv = ["--root", str(workspace.root), "--column", "inputs.$body", "--file", str(tmp_path / "rows.csv")]
    assert main(["data", "digits", "v1", *as_csv]) == 0
    assert '"/wA="' in (tmp_path / "rows.csv").read_text()
    with pytest.raises(SystemExit):
        main(["data", "digits", "v1", "--file", "rows.xlsx"])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_command_writes_a_file(
    workspace: Workspace, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime.now(UTC) - timedelta(minutes=1)
    ship(open_storage(workspace), exchange(1, {"data": [{"age": 30, "é": 'a,"b'}]}, [{"x": [1]}], at=now))
    output = tmp_path / f"rows.{suffix}"
    options = ["--column", "inputs.age", "--column", "inputs.é", "--column", "predictions.x", "--file", str(output)]
    assert main(["data", "digits", "v1", "--root", str(workspace.root), *options]) == 0
    assert capsys.readouterr().out == f"1 rows in {output}\n"
    assert output.stat().st_mode & 0o777 == 0o600
    if suffix == "csv":
        (row,) = csv.DictReader(output.read_text().splitlines())
        assert (row["inputs.age"], row["inputs.é"], row["predictions.x"]) == ("30", 'a,"b', "[1]")
    elif suffix == "jsonl":
        row = json.loads(output.read_text())
        assert (row["inputs.age"], row["inputs.é"]) == (30, 'a,"b')
        assert datetime.fromisoformat(row["$time"]) == now
    else:
        assert parquet.read_table(output).column("inputs.é").to_pylist() == ['a,"b']


def test_a_file_that_is_there_stays_where_a_column_is_wrong(workspace: Workspace, tmp_path: Path) -> None:
    ship(open_storage(workspace), exchange(1, {"data": [[1]]}, [1], at=datetime.now(UTC) - timedelta(minutes=1)))
    output = tmp_path / "rows.csv"
    output.write_text("before")
    options = ["--root", str(workspace.root), "--column", "inputs.nothing", "--file", str(output)]
    assert main(["data", "digits", "v1", *options]) == 1
    assert output.read_text() == "before"
