"""Labels in files of the workspace's storage."""

import gzip
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.gate import Outcome
from controlled_rollout.labels import LabelRow, StoredLabels, stored
from tests.unit.labels.labelled_rollout import T0, UNTIL, LabelledRollout, answered_requests

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)


def write(rollout: LabelledRollout, name: str, content: str | bytes, *, written: datetime = LATER) -> Path:
    """Write a file into the storage as if at some time."""
    path = rollout.storage / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.utime(path, (written.timestamp(), written.timestamp()))
    return path


def read(rollout: LabelledRollout, **settings: Any) -> list[LabelRow]:
    limit = settings.pop("limit", 100)
    since, until = settings.pop("since", T0), settings.pop("until", T0 + timedelta(days=30))
    source = StoredLabels.model_validate({"prefix": "labels/", **settings}).source(rollout.workspace)
    return list(source.read(since=since, until=until, limit=limit))


CSV = 'correlation_id,label,at\n007,1,2026-03-01T12:00:00Z\nb,"[1, 2]",2026-03-01 14:00:00+02:00\nc,,\n'


def test_csv_keeps_texts_as_they_are(rollout: LabelledRollout) -> None:
    write(rollout, "labels/label=9/a.csv", CSV)
    assert read(rollout, arrived="at") == [LabelRow("007", "1", NOON), LabelRow("b", (1, 2), NOON)]
    assert [row.arrived for row in read(rollout)] == [LATER, LATER]


@pytest.mark.parametrize("end", ["jsonl", "jsonl.gz", "ndjson"])
def test_json_lines_keep_their_types(rollout: LabelledRollout, end: str) -> None:
    lines = [
        {"correlation_id": "6F9D8BB8-8E54-4D53-8F9E-5F4D8A2F0001", "label": "2026-01-01", "at": "2026-03-01T12:00:00Z"},
        {"correlation_id": "b", "label": [1, None], "at": NOON.timestamp(), "more": {"x": 1}},
        {"correlation_id": "c", "label": True, "at": "2026-03-01 12:00:00"},
        {"correlation_id": "d", "label": None, "at": "2026-03-01 12:00:00"},
        {"correlation_id": "e", "at": "2026-03-01 12:00:00"},
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    write(rollout, f"labels/label=9/a.{end}", gzip.compress(content) if end.endswith("gz") else content)
    assert read(rollout, arrived="at") == [
        LabelRow("6F9D8BB8-8E54-4D53-8F9E-5F4D8A2F0001", "2026-01-01", NOON),
        LabelRow("b", (1, None), NOON),
        LabelRow("c", True, NOON),
    ]


def test_parquet_has_times_with_and_without_a_zone(rollout: LabelledRollout, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "id": ["a", "b"],
            "truth": pyarrow.array([0.5, None]),
            "zoned": pyarrow.array([NOON, NOON], pyarrow.timestamp("us", "Europe/Berlin")),
            "plain": pyarrow.array([NOON.replace(tzinfo=None)] * 2, pyarrow.timestamp("ms")),
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    write(rollout, "labels/truth=9/t.parquet", (tmp_path / "t.parquet").read_bytes())
    for column in ("zoned", "plain"):
        found = read(rollout, correlation_id="id", label="truth", arrived=column)
        assert found == [LabelRow("a", 0.5, NOON)]


def test_only_labels_of_the_time_are_read_and_files_of_other_kinds_are_left_alone(rollout: LabelledRollout) -> None:
    write(rollout, "labels/a.csv", CSV)
    write(rollout, "labels/readme.txt", "no labels")
    write(rollout, "other/b.csv", "nothing,of,it\n")
    assert read(rollout, since=LATER + timedelta(seconds=1)) == []
    assert read(rollout, until=LATER) == []
    assert read(rollout, arrived="at", until=NOON) == []
    assert len(read(rollout, arrived="at", since=NOON, until=NOON + timedelta(seconds=1))) == 2


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (CSV, {"label": "truth"}, "labels/a.csv has no column 'truth'; its columns: at, correlation_id, label"),
        (CSV.replace("2026-03-01T12", "soon"), {"arrived": "at"}, "the arrival of a label is a str that is no time"),
        (CSV, {"limit": 1}, r"labels/\* has more than 1 labels"),
        (b"\xff\xfe\x00" * 99, {}, "cannot be read"),
    ],
)
def test_labels_that_cannot_be_read_are_said_and_not_left_out(
    rollout: LabelledRollout, content: str | bytes, settings: dict[str, Any], message: str
) -> None:
    write(rollout, "labels/a.csv", content)
    with pytest.raises(EvidenceUnavailableError, match=message):
        read(rollout, **settings)


def test_a_look_at_labels_in_files_judges_and_one_at_damaged_files_cannot_see(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.05, "v2a": 0.5}, each=200)
    text = "correlation_id,label\n" + "".join(f"{row.correlation_id},{row.label}\n" for row in rows)
    write(rollout, "labels/all.csv", text, written=UNTIL + timedelta(hours=1))
    source = StoredLabels(prefix="labels/").source(rollout.workspace)
    assert str(rollout.storage) in source.description
    assert rollout.look(source).verdict.outcome is Outcome.FAIL
    write(rollout, "labels/more.jsonl", '{"correlation_id": "a", "label": {"b": 1}}', written=UNTIL)
    look = rollout.look(source)
    assert look.verdict.outcome is Outcome.CANNOT_SEE
    assert "a label is a dict" in look.verdict.reason


def test_an_empty_file_has_no_labels_and_too_many_files_are_refused(
    rollout: LabelledRollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(rollout, "labels/a.jsonl", "")
    assert read(rollout) == []
    monkeypatch.setattr(stored, "MOST_FILES", 1)
    for name in ("b", "c"):
        write(rollout, f"labels/{name}.csv", CSV)
    with pytest.raises(EvidenceUnavailableError, match=r"there are 2 files labels/\* with labels, and 1 are read"):
        read(rollout)


def test_a_storage_that_cannot_be_read_cannot_be_seen(rollout: LabelledRollout) -> None:
    rollout.storage.write_text("not a folder")
    look = rollout.look(StoredLabels(prefix="labels/").source(rollout.workspace))
    assert look.verdict.outcome is Outcome.CANNOT_SEE
