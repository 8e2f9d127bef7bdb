"""Every engine gives the same summaries of the same parts: DuckDB in this process, Spark on a real server."""

import asyncio
import json
import math
import pickle
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.checks.connectivity import check_connectivity
from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.collected.duckdb_engine import DuckDBEngine
from controlled_rollout.evidence.collected.engine import BaselineQuantiles, Observation, PartSummary, SummaryEngine
from controlled_rollout.evidence.collected.source import CollectedEvidence
from controlled_rollout.evidence.collected.spark_engine import SparkEngine
from controlled_rollout.storage import storage_at
from controlled_rollout.workspace import Workspace
from controlled_rollout_collector.entries import Entry
from controlled_rollout_collector.layouts import ParquetLayout
from controlled_rollout_collector.parts import Replica, make_parts
from controlled_rollout_collector.rows import Nested, Row
from tests.azurite import signed_in_to_blobs
from tests.spark_server import VERSION, classic_environment, serving_spark
from tests.unit.collector.spools import NOON, entry
from tests.unit.evidence.test_collected_evidence import LABELS, Rollout, question, requests

# One server for all of them.
pytestmark = pytest.mark.xdist_group("spark")

T0 = datetime.fromtimestamp(NOON, UTC)
MINUTE = timedelta(minutes=1)
BINS = 5
# What a column is often enough, and what it never should be.
HOSTILE: dict[str, list[Any]] = {
    "number": [0.0, -0.0, 1.0, 0.1, -3.5, 5e-324, 1e100, 1.1e100, -1e300, 2**53 + 1, None],
    "odd": [math.nan, math.inf, -math.inf, 1.0, None],
    "text": ["", "a", "1", "true", "null", "$null", '"a"', "é" * 300, "\U0001f600" * 250, "a`b\"c'd\\", "x\0y", None],
    "truth": [True, False, None],
    "mixed": [1, 1.5, "1", "NaN", True, None, Nested('{"b":[1,null]}'), 10**30, math.nan, math.inf, "é"],
    "deep": ["a", Nested("[" * 4_000 + "]" * 4_000), 1],
    "long": ["b", Nested(json.dumps(["c" * 20_000])), 2],
    "nested": [Nested('{"a": 1}'), Nested("[]"), Nested('{"a":1}')],
    "Age": [1.0, 2.0],
    "age": ["old", None],
    'a`b"c.d; --{x} %s': [1.0, 3.0],
    "_metadata": ["mine", None],
}  # fmt: skip
COLUMNS = [*HOSTILE, "never"]
CATEGORIES = [Observation(f"category {name}", name, "category") for name in COLUMNS]
NUMBERS = ["number", "odd", "truth", "mixed", "text", "never"]
BUCKETS = [Observation(f"bucket {name}", name, "category", edges=(-1.0, 0.0, 1.0)) for name in NUMBERS]
MEANS = [Observation(f"mean {name}", name, "mean") for name in [*NUMBERS, "Age"]]
CLIPPED = [Observation(f"clipped {name}", name, "mean", bounds=(-2.0, 0.5)) for name in ("number", "mixed")]
OWN = [Observation("type", "$content_type", "category"), Observation("size", "$size", "mean")]
OBSERVATIONS = [*CATEGORIES, *BUCKETS, *MEANS, *CLIPPED, *OWN]
# No name of a folder is a column or a pattern.
FOLDER = "it's [a]b*? {x,y} 100%41 é age=1/#;&+"


def entries_of(draw: random.Random, columns: list[str], requests: int) -> list[Entry]:
    """Return requests with values of some columns, each with one row or several."""
    entries = []
    for number in range(requests):
        rows: tuple[Row, ...] = tuple(
            {name: draw.choice(HOSTILE[name]) for name in columns if draw.random() < 0.9}
            for _ in range(draw.choice([1, 1, 1, 2, 3, 50]))
        )
        at = T0 + draw.uniform(-2, BINS) * MINUTE
        made = replace(
            entry(rows=rows),
            # Callers may send an id again, also one that is none.
            request_id=draw.choice([f"r{number}", f"r{number}", "again", "", "é\0"]),
            time_us=round(at.timestamp() * 1e6),
            status=draw.choice([200, 200, 200, 500, 401, 403]),
            is_addressed=draw.random() < 0.1,
            content_type=draw.choice(["application/json", ""]),
            size=draw.choice([17, 18]),
        )
        entries.append(made)
    return entries


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Parts as the collector writes them: with all columns, with one each, with changing types, and with none."""
    draw, written = random.Random(14), []
    folder = tmp_path_factory.mktemp("parts") / FOLDER
    replica = Replica("digits", "v1", "r1", subscription="sub", resource_group="group", workspace="ws")
    contents = [
        entries_of(draw, list(HOSTILE), 400),
        [
            # Text is a number here, and columns are missing.
            replace(one, rows=tuple({**row, "text": 1.0} for row in one.rows))
            for one in entries_of(draw, [name for name in HOSTILE if name not in ("age", "mixed", "deep")], 60)
        ],
        [replace(one, rows=({},)) for one in entries_of(draw, [], 20)],
        [replace(one, rows=({},), is_addressed=True) for one in entries_of(draw, [], 5)],
    ]
    for number, entries in enumerate(contents):
        for part in make_parts(entries, replica, ParquetLayout(), f"{number:08}"):
            path = folder / part.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(part.content)
            written.append(str(path))
    return written


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkEngine]:
    with serving_spark(tmp_path_factory.mktemp("spark")) as address:
        yield SparkEngine(address)


@pytest.fixture
def rollout(tmp_path: Path) -> Rollout:
    """Two versions that have collected."""
    (tmp_path / "other").mkdir()
    # As a setting such as ../data names it: each engine has a name of its own for that.
    made = Rollout(tmp_path / "other" / ".." / "data", {"v1": requests("v1"), "v2": requests("v2", "a")})
    for version, exchanges in made.exchanges.items():
        made.write(version, exchanges)
        made.state(version)
    return made


def same(one: PartSummary, other: PartSummary) -> None:
    """Check that two summaries are alike: counts exactly, moments in all digits that do not depend on an order."""
    assert one.requests == other.requests
    assert one.categories == other.categories
    assert one.not_numbers == other.not_numbers
    assert one.columns == other.columns
    assert {metric: set(bins) for metric, bins in one.means.items()} == {
        metric: set(bins) for metric, bins in other.means.items()
    }
    for metric, bins in one.means.items():
        for number, moments in bins.items():
            compared = other.means[metric][number]
            assert moments.count == compared.count
            assert math.isclose(moments.mean, compared.mean, rel_tol=1e-11), metric
            assert math.isclose(moments.variance, compared.variance, rel_tol=1e-9), metric


def quantiles(engine: SummaryEngine, parts: list[str]) -> list[BaselineQuantiles]:
    wanted = [number / 10 for number in range(11)]
    observations = [Observation("drawn", "number", "category"), Observation("mean", "mixed", "mean")]
    return engine.quantiles(parts, [(one, wanted) for one in observations], since=T0, until=T0 + 3 * MINUTE)


def test_every_engine_summarises_the_same_parts_alike(parts: list[str], spark: SparkEngine) -> None:
    expected = DuckDBEngine().summaries(parts, OBSERVATIONS, since=T0, bin_width=MINUTE)
    found = spark.summaries(parts, OBSERVATIONS, since=T0, bin_width=MINUTE)
    assert sum(sum(one.requests.values()) for one in expected) > 200
    for one, other in zip(expected, found, strict=True):
        same(one, other)


def test_every_engine_finds_the_same_quantiles(parts: list[str], spark: SparkEngine) -> None:
    """They are values themselves, so they are the same in all digits, but for means of several rows."""
    expected = quantiles(DuckDBEngine(), parts)
    assert expected[0].count > 50
    for one, other in zip(expected, quantiles(spark, parts), strict=True):
        assert one.count == other.count
        assert other.values == pytest.approx(one.values, rel=1e-12)


def test_a_gate_reads_the_parts_of_a_folder_by_spark(rollout: Rollout, spark: SparkEngine) -> None:
    """The setting chooses it; parts are read where they are."""
    found = [
        asyncio.run(rollout.source(engine=engine, spark_remote=spark.remote).read(question(LABELS)))
        for engine in ("duckdb", "spark")
    ]
    assert found[0].unseen == ""
    assert found[0].bins == found[1].bins
    assert not (rollout.folder / "cache").exists()


def test_a_gate_reads_copies_by_spark_where_it_has_no_name_for_the_parts(
    rollout: Rollout, spark: SparkEngine, tmp_path: Path
) -> None:
    with signed_in_to_blobs(tmp_path / "azurite", "data") as client:
        place = f"{client.url.rstrip('/')}/data"
        folder, container = storage_at(str(rollout.folder)), storage_at(place)
        for file in folder.list("collected/"):
            container.put(file.name, folder.get(file.name))
        expected = rollout.source()
        source = CollectedEvidence(
            expected.metric_store, place, tmp_path / "copies", engine="spark", spark_remote=spark.remote
        )
        found = asyncio.run(source.read(question(LABELS)))
    assert found.unseen == ""
    assert found.bins == asyncio.run(expected.read(question(LABELS))).bins
    assert len(list((tmp_path / "copies").iterdir())) == 2


def test_the_authors_own_session_keeps_its_settings(parts: list[str], spark: SparkEngine) -> None:
    with spark._open_session() as session:
        session.conf.set("spark.sql.caseSensitive", "false")
        engine = SparkEngine(session=session)
        found = engine.summaries(parts[:1], [Observation("age", "Age", "mean")], since=T0, bin_width=MINUTE)
        assert found[0].means["age"]
        assert session.conf.get("spark.sql.caseSensitive") == "false"
        assert not session.is_stopped


def test_a_session_of_classic_spark_gives_the_same(parts: list[str], tmp_path: Path) -> None:
    """In a process of its own: the two kinds of PySpark cannot be installed beside each other."""
    observations = [CATEGORIES[0], MEANS[0]]
    expected = DuckDBEngine().summaries(parts, observations, since=T0, bin_width=MINUTE)
    asked = pickle.dumps({"parts": parts, "observations": observations, "since": T0, "bin_width": MINUTE})
    answer = subprocess.run(
        [sys.executable, "-m", "tests.local.classic_spark"],
        input=asked, stdout=subprocess.PIPE, check=True, timeout=240, cwd=tmp_path, env=classic_environment(),
    )  # fmt: skip
    for one, other in zip(expected, pickle.loads(answer.stdout), strict=True):  # noqa: S301
        same(one, other)


def test_a_part_that_is_torn_missing_or_no_part_is_named(tmp_path: Path, spark: SparkEngine) -> None:
    for content in (b"", b"PAR1", b"PAR1 torn \xff\xff\xff\xffPAR1", b"PAR1 torn \x00\x10\x00\x00PAR1"):
        (tmp_path / "torn.parquet").write_bytes(content)
        with pytest.raises(EvidenceUnavailableError, match=r"cannot be read.*torn\.parquet"):
            spark.summaries([str(tmp_path / "torn.parquet")], MEANS[:1], since=T0, bin_width=MINUTE)
    with pytest.raises(EvidenceUnavailableError, match=r"cannot be read.*absent\.parquet"):
        spark.summaries([str(tmp_path / "absent.parquet")], MEANS[:1], since=T0, bin_width=MINUTE)


def test_the_check_of_a_workspace_asks_spark(tmp_path: Path, spark: SparkEngine) -> None:
    settings = {"root": str(tmp_path), "data_engine": "spark", "spark_remote": spark.remote}
    results = asyncio.run(check_connectivity(Workspace.from_settings(settings), {}))
    assert {one.name: one.message for one in results}["data engine"] == f"{spark.remote}: Spark {VERSION} answers"


def test_without_pyspark_the_extra_is_named(parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.errors", None)
    with pytest.raises(EvidenceUnavailableError, match=r"need pyspark 4: install .* with the extra spark"):
        SparkEngine("sc://127.0.0.1:1").summaries(parts, MEANS[:1], since=T0, bin_width=MINUTE)


def test_a_server_that_is_not_there_is_named_within_seconds(parts: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(EvidenceUnavailableError, match=rf"by Spark at sc://127\.0\.0\.1:{port}: .*refused"):
        SparkEngine(f"sc://127.0.0.1:{port}").summaries(parts, MEANS[:1], since=T0, bin_width=MINUTE)


def test_a_summary_that_takes_spark_too_long_is_stopped(parts: list[str], spark: SparkEngine) -> None:
    hasty = replace(spark, timeout=timedelta(milliseconds=1))
    with pytest.raises(EvidenceUnavailableError, match=r"by Spark within 0\.001 s"):
        hasty.summaries(parts, OBSERVATIONS, since=T0, bin_width=MINUTE)
    assert spark.summaries(parts[:1], CATEGORIES[:1], since=T0, bin_width=MINUTE)
