"""Metrics whose values are collected columns, as an author writes them."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from controlled_rollout.gate import Category, Gate, Mean


def test_a_gate_names_the_columns_of_its_metrics() -> None:
    gate = Gate(
        means={"score": Mean(worse="lower", column="predictions.score", clip=0.01), "revenue": Mean(worse="lower")},
        categories={"age": Category(column="inputs.customer.age at entry", buckets=10), "country": Category(kql="T")},
    )
    assert gate.columns == {"score": "predictions.score", "age": "inputs.customer.age at entry"}


def test_a_gate_with_columns_is_read_back_from_its_record() -> None:
    gate = Gate(categories={"label": Category(column="predictions.label", tolerance=0.1, on_difference="fail")})
    assert Gate.model_validate_json(gate.model_dump_json()) == gate


@pytest.mark.parametrize(
    "column", ["score", "", ".score", "predictions.", "pre dictions.score", "../x.score", "a/b.c", "a.b\n", "a.\x00"]
)
def test_a_column_without_its_collection_is_refused(column: str) -> None:
    for metric in (Category, Mean):
        with pytest.raises(ValidationError, match="column"):
            metric.model_validate({"worse": "lower", "column": column} if metric is Mean else {"column": column})


def test_a_metric_has_one_source() -> None:
    with pytest.raises(ValidationError, match=r"column=.predictions\.score. and kql are both given"):
        Mean(worse="lower", column="predictions.score", kql="T")
    with pytest.raises(ValidationError, match="leave one out"):
        Category(column="predictions.label", kql="T")


def test_only_collected_columns_are_cut_into_buckets_or_clipped() -> None:
    with pytest.raises(ValidationError, match="buckets=10 without column"):
        Category(buckets=10, kql="T")
    with pytest.raises(ValidationError, match=r"clip=0\.01 without column"):
        Mean(worse="lower", clip=0.01)
    for buckets in (0, 1, 101):
        with pytest.raises(ValidationError, match="buckets"):
            Category(column="inputs.age", buckets=buckets)
    for clip in (0.0, 0.5, -0.1):
        with pytest.raises(ValidationError, match="clip"):
            Mean(worse="lower", column="predictions.score", clip=clip)


def test_the_gate_of_the_documentation_is_a_gate() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data-gate.md").read_text(encoding="utf-8")
    block, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102 - this repository's own documentation
    assert set(names["gate"].columns.values()) == {
        "predictions.prediction", "predictions.score", "inputs.age", "predictions.amount",
    }  # fmt: skip
