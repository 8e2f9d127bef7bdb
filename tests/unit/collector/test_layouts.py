"""The layouts of the old service, as its readers find and read them."""

import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout_collector.entries import Entry
from controlled_rollout_collector.layouts import LAYOUTS, CsvLayout, JsonLinesLayout
from controlled_rollout_collector.parts import MAX_ELEMENT, Layout, Part, Replica, make_parts, path_element
from controlled_rollout_collector.rows import Nested, Row
from tests.unit.collector.spools import entry

REPLICA = Replica("digits", "v1", "r1", subscription="sub", resource_group="group", workspace="ws")


def parts(layout: Layout, *entries: Entry) -> list[Part]:
    return list(make_parts(entries, REPLICA, layout, "1f2e3d4c-00000007"))


def test_version_1_has_its_path_and_its_columns() -> None:
    rows: tuple[Row, ...] = ({"age": 30, "name": "a,b"}, {"age": None, "x": float("nan"), "o": Nested("[1]")})

    (part,) = parts(CsvLayout(), entry(rows=rows))

    assert part.name == (
        "modeldata/sub/group/ws/digits/digits/v1/inputs/2026/11/28/data-1795867200250-r1-1f2e3d4c-00000007.csv"
    )
    header, first, second = csv.reader(io.StringIO(part.content.decode()))
    trailer = [
        "mine",
        "2026-11-28T12:00:00.250000",
        "1440",
        "ws",
        "digits",
        "digits",
        "v1",
        "6f9d8bb8-8e54-4d53-8f9e-5f4d8a2f0001",
    ]
    assert header == [
        "age",
        "name",
        "x",
        "o",
        "$aml_dc_correlation_id",
        "$aml_dc_scoring_timestamp",
        "$aml_dc_boundary",
        "$aml_workspace",
        "$aml_service_name",
        "$aml_model_name",
        "$aml_model_version",
        "$aml_request_id",
    ]
    assert first == ["30", "a,b", "", "", *trailer]
    assert second == ["", "", "", "[1]", *trailer]


@pytest.mark.parametrize(
    ("layout", "pattern"),
    [
        (CsvLayout(), "modeldata/sub/group/ws/digits/digits/v1/inputs/*/*/*/data*.csv"),
        (CsvLayout(), "modeldata/**/inputs/2026/11/28/*.csv"),
        (JsonLinesLayout(), "modelDataCollector/digits/v1/request/*/*/*/*/*.jsonl"),
    ],
)
def test_a_listing_as_the_old_service_s_readers_make_it_finds_each_row_of_all_replicas_and_rounds_once(
    layout: Layout, pattern: str, tmp_path: Path
) -> None:
    asked = [f"{replica}-{batch}-{row}" for replica in ("r1", "r2") for batch in (1, 2, 3) for row in (1, 2)]
    for replica, batch in itertools.product(("r1", "r2"), (1, 2, 3)):
        entries = [dataclasses.replace(entry(), request_id=f"{replica}-{batch}-{row}") for row in (1, 2)]
        for part in make_parts(entries, dataclasses.replace(REPLICA, name=replica), layout, f"id-{batch:08d}"):
            (tmp_path / part.name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / part.name).write_bytes(part.content)

    found = []
    for file in tmp_path.glob(pattern):
        text = file.read_text()
        is_csv = isinstance(layout, CsvLayout)
        found += [row["$aml_request_id"] for row in csv.DictReader(io.StringIO(text))] if is_csv else []
        found += [] if is_csv else [json.loads(line)["xrequestid"] for line in text.splitlines()]

    assert sorted(found) == sorted(asked)


def test_no_value_of_a_caller_begins_a_line_of_its_own() -> None:
    values = ["a\rb,c", "\r", "a\nb", "a\r\nb", '"', '\r"', "a\u2028b", ""]

    (part,) = parts(CsvLayout(), entry(rows=tuple({"x\r": value} for value in values)))

    header, *lines = csv.reader(io.StringIO(part.content.decode(), newline=""))
    assert (header[0], [line[0] for line in lines]) == ("x\r", values)
    assert {line[-1] for line in lines} == {entry().request_id}


def test_a_scripts_own_names_are_in_the_path_of_version_1() -> None:
    given_names: dict[str, Any] = {"model_name": "m", "model_version": "3", "designation": "predictions"}

    (part,) = parts(CsvLayout(), entry("script-predictions", collector="v1", collection="predictions", **given_names))

    assert part.name.startswith("modeldata/sub/group/ws/digits/m/3/predictions/2026/11/28/")


def test_version_2_is_a_cloud_event_for_each_request() -> None:
    rows: tuple[Row, ...] = ({"age": 30, "o": Nested('{"a": NaN}')}, {"age": float("inf")})

    (part,) = parts(JsonLinesLayout(), entry(rows=rows))

    assert part.name == "modelDataCollector/digits/v1/request/2026/11/28/12/1795867200250-r1-1f2e3d4c-00000007.jsonl"
    (line,) = part.content.splitlines()
    assert json.loads(line) == {
        "specversion": "1.0",
        "id": "6f9d8bb8-8e54-4d53-8f9e-5f4d8a2f0001-request-1795867200250000",
        "source": "/endpoints/digits/deployments/v1",
        "type": "azureml.inference.request",
        "datacontenttype": "application/json",
        "time": "2026-11-28T12:00:00.250000Z",
        "data": [{"age": 30, "o": {"a": None}}, {"age": None}],
        "correlationid": "mine",
        "xrequestid": "6f9d8bb8-8e54-4d53-8f9e-5f4d8a2f0001",
        "modelversion": "v1",
        "collectdatatype": "pandas.core.frame.DataFrame",
        "agent": "controlled-rollout",
        "contentrange": "bytes 0-16/17",
    }


def test_a_scripts_collection_keeps_its_name_in_version_2() -> None:
    (part,) = parts(JsonLinesLayout(), entry("model_inputs", collector="v2", collection="model_inputs"))

    assert part.name.startswith("modelDataCollector/digits/v1/model_inputs/2026/11/28/12/")
    assert json.loads(part.content)["type"] == "azureml.inference.model_inputs"


def test_requests_with_columns_of_their_own_are_several_parts() -> None:
    entries = [entry(rows=({f"{number}-{column}": 1 for column in range(900)},)) for number in range(5)]

    names = [part.name.rpartition("/")[2] for part in parts(CsvLayout(), *entries)]

    assert names == [
        "data-1795867200250-r1-1f2e3d4c-00000007.csv",
        "data-1795867200250-r1-1f2e3d4c-00000007-1.csv",
        "data-1795867200250-r1-1f2e3d4c-00000007-2.csv",
    ]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_that_cannot_be_written_keep_no_others_from_the_storage(layout: Layout) -> None:
    """Nothing should be so. One request that stopped its batch would stop all that come after it, too."""
    impossible = entry(rows=({"\ud800": 1},))

    (part,) = parts(layout, entry(), impossible, entry())

    (expected,) = parts(layout, entry(), dataclasses.replace(entry(rows=({},)), truncated=True), entry())
    assert part == expected


def test_of_a_batch_only_so_many_rows_are_in_memory() -> None:
    taken = 0

    def entries() -> Iterator[Entry]:
        nonlocal taken
        for taken in range(1, 6):
            row = {f"k{column}": 1 for column in range(1_000)}
            yield entry("inputs" if taken % 2 else "predictions", rows=(row,) * 1_000)

    made = make_parts(entries(), REPLICA, CsvLayout(), "1f2e3d4c-00000007")

    assert [(part.name.split("/")[-5], taken) for part in made] == [("inputs", 3), ("predictions", 5), ("inputs", 5)]


@given(st.text(), st.text())
def test_names_of_scripts_are_elements_of_a_path_and_differ_where_the_names_do(name: str, other: str) -> None:
    element = path_element(name)

    assert element and not element.endswith(".") and "/" not in element and "\0" not in element
    assert len(element) <= MAX_ELEMENT
    assert (element == path_element(other)) == (name == other)
