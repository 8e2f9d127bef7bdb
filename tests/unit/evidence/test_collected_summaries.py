"""Parts of collected data, summarised by bin: what is counted, what is a category, what is too much."""

import math
import random
from collections import Counter
from datetime import timedelta
from pathlib import Path
from statistics import mean, variance
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.collected.duckdb_engine import DuckDBEngine
from controlled_rollout.evidence.collected.engine import Observation, PartSummary
from controlled_rollout.evidence.collected.values import bucket_edges, bucket_name, category_of
from controlled_rollout.gate import Moments
from tests.unit.evidence.collected_parts import MINUTE, T0, Exchange, S, bin_of, counted, tally, write_part

LABEL = Observation("label", "label", "category")
SCORE = Observation("score", "score", "mean")
Kind = Literal["mean", "category"]
COLUMNS = {"label": "VARCHAR", "score": "DOUBLE"}
BIN = int(T0.timestamp() // 60)


def summary(part: str, *observations: Observation) -> PartSummary:
    """Return the summary of one part by minutes."""
    (only,) = DuckDBEngine().summaries([part], observations, since=T0, bin_width=MINUTE)
    return only


def rows_of(*values: Any, column: str = "label") -> list[Exchange]:
    return [Exchange(f"r{number}", number, [{column: value}]) for number, value in enumerate(values)]


def random_exchanges(seed: int, requests: int = 300) -> list[Exchange]:
    draw = random.Random(seed)
    return [
        Exchange(
            f"{seed}-{number}",
            draw.uniform(-60, 300),
            [
                {"label": draw.choice(["a", "b", None]), "score": draw.choice([draw.gauss(5, 2), None])}
                for _ in range(draw.choice([1, 1, 1, 2, 7]))
            ],
            addressed=draw.random() < 0.1,
        )
        for number in range(requests)
    ]


def test_each_request_is_one_observation_in_the_bin_of_its_arrival(tmp_path: Path) -> None:
    """Rows before the rollout, and requests that callers sent to one version by name, are left out."""
    parts = {write_part(tmp_path / f"{seed}.parquet", random_exchanges(seed), COLUMNS): seed for seed in range(3)}
    summaries = DuckDBEngine().summaries(list(parts), [LABEL, SCORE], since=T0, bin_width=MINUTE)
    for seed, found in zip(parts.values(), summaries, strict=True):
        exchanges = counted(random_exchanges(seed))
        assert found.requests == tally(exchanges)
        assert found.columns == {"label", "score"}
        for minute in found.requests:
            here = [one for one in exchanges if bin_of(one) == minute]
            drawn = Counter(category_of(one.drawn["label"]) for one in here)
            assert found.categories["label"][minute] == drawn
            values = [value for one in here if (value := one.mean("score")) is not None]
            moments = found.means["score"][minute]
            assert moments.count == len(values)
            assert math.isclose(moments.mean, mean(values), rel_tol=1e-11)
            assert math.isclose(moments.variance, variance(values), rel_tol=1e-10)


@pytest.mark.parametrize("kind", ["category", "mean"])
def test_a_column_is_not_taken_for_one_whose_name_differs_in_upper_case(tmp_path: Path, kind: Kind) -> None:
    """A caller who sends `Age` beside all others' `age` changes nothing of what is counted of them."""
    odd = Exchange("odd", 0, [{"first": "x", "second": None, "third": 3}])
    usual = [Exchange(f"r{number}", number + 1, [{"first": None, "second": 5.0, "third": None}]) for number in range(3)]
    parts = []
    for number, names in enumerate((["AGE", "age", "Age"], ["age_1", "age", "aGe"], ["other", "age", "another"])):
        types = {"first": "VARCHAR", "second": "DOUBLE", "third": "BIGINT"}
        part = write_part(tmp_path / f"{number}.parquet", [odd, *usual], types)
        table = parquet.read_table(part)
        parquet.write_table(table.rename_columns([*table.column_names[: -len(names)], *names]), part)
        parts.append(part)
    found = DuckDBEngine().summaries(parts, [Observation("age", "age", kind)], since=T0, bin_width=MINUTE)
    for one in found:
        if kind == "category":
            assert one.categories["age"] == {BIN: {"5": 3, "$null": 1}}
        else:
            assert (one.means["age"][BIN].count, one.means["age"][BIN].mean, one.not_numbers["age"]) == (3, 5.0, 0)


def test_of_a_callers_many_columns_only_some_are_remembered(tmp_path: Path) -> None:
    odd = [f"odd{number}" for number in range(300)]
    names = [*odd, "label"]
    part = write_part(
        tmp_path / "p.parquet", [Exchange("r", 0, [dict.fromkeys(names, "x")])], dict.fromkeys(names, "VARCHAR")
    )
    found = summary(part, LABEL)
    assert found.columns == {*odd[:20], "label"}
    assert found.categories["label"] == {BIN: {"x": 1}}


def test_columns_are_those_of_the_file_whatever_folder_it_is_in(tmp_path: Path) -> None:
    """In `label=ml/` too, which other programs take for a column and its value."""
    part = write_part(tmp_path / "label=ml" / "p.parquet", rows_of(1.0, 2.0), {"label": "DOUBLE"})
    assert summary(part, LABEL).categories["label"] == {BIN: {"1": 1, "2": 1}}


def test_columns_that_are_called_like_those_of_a_query_are_data(tmp_path: Path) -> None:
    names = ["c1", "c0", "bin", "part", "m0", "id", "value", "filename", "rowid"]
    rows = [Exchange("r", 0, [{name: f"of {name}" for name in names}])]
    part = write_part(tmp_path / "p.parquet", rows, dict.fromkeys(names, "VARCHAR"))
    found = summary(part, *(Observation(f"metric {name}", name, "category") for name in names))
    assert {name: found.categories[f"metric {name}"] for name in names} == {n: {BIN: {f"of {n}": 1}} for n in names}


def test_a_batch_of_many_rows_counts_once(tmp_path: Path) -> None:
    batch = Exchange("batch", 1, [{"label": "rare", "score": 100.0}] * 1_000)
    single = Exchange("single", 2, [{"label": "usual", "score": 0.0}])
    found = summary(write_part(tmp_path / "p.parquet", [batch, single], COLUMNS), LABEL, SCORE)
    assert found.categories["label"] == {BIN: {"rare": 1, "usual": 1}}
    assert (found.means["score"][BIN].count, found.means["score"][BIN].mean) == (2, 50.0)


@pytest.mark.parametrize(
    ("kind", "values", "names"),
    [
        ("VARCHAR", ["a", None, "1", "true", "", "$null", '"a"', "x" * 300], None),
        ("DOUBLE", [1.0, 1.5, None, -0.0, 1e300, math.nan, -math.inf], "1 1.5 $null 0 1e+300 nan -inf".split()),
        ("BOOLEAN", [True, False, None], ["true", "false", "$null"]),
        ("BIGINT", [1, 2**40], ["1", str(2**40)]),
    ],
)  # fmt: skip
def test_a_value_is_the_same_category_in_every_part(
    tmp_path: Path, kind: str, values: list[Any], names: list[str] | None
) -> None:
    """The text "1" is not the number 1, and null is not the text "$null"."""
    found = summary(write_part(tmp_path / "p.parquet", rows_of(*values), {"label": kind}), LABEL)
    expected = names or [category_of(value) for value in values]
    assert found.categories["label"] == {BIN: Counter(expected)}
    assert len(set(expected)) == len(values)


def test_a_column_of_mixed_types_gives_the_categories_of_its_values(tmp_path: Path) -> None:
    values = ["a", 1, "1", True, None, 2.5, {"b": 1}, [1, 2]]
    part = write_part(tmp_path / "p.parquet", rows_of(*values), {"label": "VARCHAR"}, json_columns=["label"])
    names = ["a", "1", '"1"', "true", "$null", "2.5", '{"b":1}', "[1,2]"]
    found = summary(part, LABEL, Observation("mean", "label", "mean"))
    assert found.categories["label"] == {BIN: Counter(names)}
    # Numbers, and nothing else, have a mean; null is not counted as something else.
    assert (found.means["mean"][BIN].count, found.means["mean"][BIN].mean) == (2, 1.75)
    assert found.not_numbers["mean"] == 5


def test_a_column_that_changes_its_type_between_parts_keeps_its_categories(tmp_path: Path) -> None:
    parts = [
        write_part(tmp_path / "1.parquet", rows_of(1.0, 2.0), {"label": "DOUBLE"}),
        write_part(tmp_path / "2.parquet", rows_of("1", "a"), {"label": "VARCHAR"}),
        write_part(tmp_path / "3.parquet", rows_of(True), {"label": "BOOLEAN"}),
        write_part(tmp_path / "4.parquet", rows_of("x", column="other"), {"other": "VARCHAR"}),
    ]
    found = DuckDBEngine().summaries(parts, [LABEL], since=T0, bin_width=MINUTE)
    assert [one.categories["label"][BIN] for one in found] == [
        {"1": 1, "2": 1}, {'"1"': 1, "a": 1}, {"true": 1}, {"$null": 1},
    ]  # fmt: skip
    assert found[3].columns == {"other"}


def test_numbers_that_are_none_are_counted(tmp_path: Path) -> None:
    values = [1.0, math.nan, math.inf, 1e200, None]
    found = summary(write_part(tmp_path / "p.parquet", rows_of(*values, column="score"), {"score": "DOUBLE"}), SCORE)
    assert found.means["score"][BIN].count == 1
    assert found.not_numbers["score"] == 3
    text = summary(write_part(tmp_path / "t.parquet", rows_of("1.0", "b", column="score"), {"score": "VARCHAR"}), SCORE)
    assert text.means["score"] == {}
    assert text.not_numbers["score"] == 2


def test_means_are_clipped_at_their_bounds(tmp_path: Path) -> None:
    part = write_part(tmp_path / "p.parquet", rows_of(-1e9, 1.0, 2.0, 1e9, column="score"), {"score": "DOUBLE"})
    found = summary(part, Observation("score", "score", "mean", bounds=(0.0, 3.0)))
    assert found.means["score"][BIN].mean == 1.5


def test_requests_without_a_number_are_in_no_clipped_mean(tmp_path: Path) -> None:
    """Neither as the lower bound nor as the upper one: they would pull the mean of a column with nulls to it."""
    part = write_part(tmp_path / "p.parquet", rows_of(1.0, None, 2.0, None, column="score"), {"score": "DOUBLE"})
    found = summary(part, Observation("score", "score", "mean", bounds=(-50.0, 50.0)))
    assert found.means["score"][BIN] == Moments(2, 1.5, 0.5)


def test_numbers_are_counted_in_buckets(tmp_path: Path) -> None:
    edges = (0.0, 1.0)
    values = [-5.0, 0.0, 0.5, 1.0, 1.5, None, math.nan]
    part = write_part(tmp_path / "p.parquet", rows_of(*values, column="score"), {"score": "DOUBLE"})
    found = summary(part, Observation("score", "score", "category", edges=edges))
    assert found.categories["score"][BIN] == {
        "01 up to 0": 2, "02 to 1": 2, "03 above 1": 1, "$null": 1, "$not a number": 1,
    }  # fmt: skip


def test_a_part_without_the_column_has_null_in_buckets(tmp_path: Path) -> None:
    """As a part has in which every answer failed."""
    part = write_part(tmp_path / "p.parquet", rows_of("x", "y"), {"label": "VARCHAR"})
    found = summary(part, Observation("score", "score", "category", edges=(0.0, 1.0)))
    assert found.categories["score"] == {BIN: {"$null": 2}}


def test_a_value_that_control_has_often_has_a_bucket_of_its_own() -> None:
    edges = bucket_edges([0.0, 0.0, 0.0, 3.0, 7.0])
    assert edges == (math.nextafter(0.0, -1.0), 0.0, 3.0)
    assert len({bucket_name(number, edges) for number in range(4)}) == 4
    assert bucket_edges([2.0, 2.0, 2.0]) == (math.nextafter(2.0, -1.0), 2.0)
    assert bucket_edges([1.0, 2.0, 3.0]) == (2.0,)


def test_quantiles_are_of_the_observations_before_the_rollout(tmp_path: Path) -> None:
    exchanges = random_exchanges(1, requests=500)
    part = write_part(tmp_path / "p.parquet", exchanges, COLUMNS)
    bucketed = Observation("drawn", "score", "category")
    means, drawn = DuckDBEngine().quantiles(
        [part], [(SCORE, [0.0, 0.5, 1.0]), (bucketed, [0.0, 1.0])], since=T0, until=T0 + 100 * S
    )
    before = [one for one in counted(exchanges) if one.at < 100]
    values = sorted(value for one in before if (value := one.mean("score")) is not None)
    assert means.count == len(values)
    assert means.values == pytest.approx((values[0], values[(len(values) - 1) // 2], values[-1]))
    observed = [one.drawn["score"] for one in before if one.drawn["score"] is not None]
    assert (drawn.count, drawn.values) == (len(observed), (min(observed), max(observed)))


def test_quantiles_of_many_requests_are_of_the_same_part_of_them_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controlled_rollout.evidence.collected.duckdb_engine.MOST_FOR_QUANTILES", 100)
    parts = [
        write_part(
            tmp_path / f"{seed}.parquet", rows_of(*map(float, range(1_000)), column="score"), {"score": "DOUBLE"}
        )
        for seed in range(2)
    ]
    found = [
        DuckDBEngine().quantiles(order, [(SCORE, [0.25, 0.5])], since=T0, until=T0 + 3_600 * S)
        for order in (parts, parts[::-1])
    ]
    assert found[0] == found[1]
    assert found[0][0].count == 2_000
    assert found[0][0].values == pytest.approx((250, 500), abs=150)


def test_names_of_parts_and_columns_are_taken_literally(tmp_path: Path) -> None:
    column = 'a"b?; DROP [x] %s'
    folder = tmp_path / "it's [ab]*?"
    plain = column.replace('"', "'")
    part = write_part(folder / "p.parquet", rows_of("x", column=plain), {plain: "VARCHAR"})
    write_part(tmp_path / "it's ax" / "p.parquet", rows_of("other"), {"label": "VARCHAR"})
    found = summary(part, Observation("m", plain, "category"), Observation("q", column, "category"))
    assert found.categories == {"m": {BIN: {"x": 1}}, "q": {BIN: {"$null": 1}}}


def test_a_part_that_cannot_be_read_says_which_one(tmp_path: Path) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(EvidenceUnavailableError, match=r"collected data cannot be read: .*torn\.parquet"):
        summary(str(tmp_path / "torn.parquet"), LABEL)


def test_a_column_that_hardly_repeats_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    part = write_part(tmp_path / "p.parquet", rows_of(*map(str, range(20_001))), {"label": "VARCHAR"})
    with pytest.raises(EvidenceUnavailableError, match=r"'label'.*more than 10,000 different values"):
        summary(part, LABEL)


def test_a_summary_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    part = write_part(tmp_path / "p.parquet", random_exchanges(1, requests=100), COLUMNS)
    with pytest.raises(EvidenceUnavailableError, match=r"within 0\.001 s"):
        for _ in range(1_000):
            DuckDBEngine(timeout=timedelta(milliseconds=1)).summaries([part], [LABEL], since=T0, bin_width=MINUTE)


JSON_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)


@given(st.lists(JSON_VALUES, min_size=2, max_size=2))
def test_two_values_are_one_category_only_if_they_are_equal(values: list[Any]) -> None:
    first, second = values
    number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    same = type(first) is type(second) and first == second
    if number:
        same = float(first) == float(second) or (first != first and second != second)
    assert (category_of(first) == category_of(second)) == same
