"""What a DAG's author writes about labels, and values of files and databases as labels."""

import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.labels import LabelMetric, Labels, StoredLabels, arrival_of, label_of


def labels(**settings: Any) -> Labels:
    return Labels.model_validate({"metrics": ["accuracy"], **settings})


def test_settings_are_the_same_after_json() -> None:
    one = labels(
        metrics={"recall": {"ratio": 1.2}, "log_loss": {"pass_margin": 0.1}},
        probability={"a": "predictions.a", "b": "predictions.b"},
        positive="a",
        bin_width="6 h",
    )
    assert Labels.model_validate(json.loads(json.dumps(one.model_dump(mode="json")))) == one
    assert one.columns == ("predictions.prediction", "predictions.a", "predictions.b")


def test_the_gate_has_an_event_or_a_mean_for_each_metric_and_shares_alpha_over_them() -> None:
    gate = labels(
        metrics={"accuracy": {}, "auc": {"margin": 0.02}, "own": {"function": "m:f", "worse": "lower"}},
        probability="predictions.p",
        positive=1,
        weights={"accuracy": 2.0},
    ).gate()
    assert set(gate.events) == {"accuracy"}
    assert {name: mean.worse for name, mean in gate.means.items()} == {"auc": "lower", "own": "lower"}
    assert gate.means["auc"].margin == 0.02
    assert not gate.judges_traffic


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": []}, "at least 1"),
        ({"metrics": "accuracy"}, r"give \['accuracy'\]"),
        ({"metrics": ["acuracy"]}, "'acuracy' is not known: give one of absolute_error"),
        ({"metrics": {"auc": {"function": "m:f"}}}, "choose another name for your function"),
        ({"metrics": {"own": {"function": "no colon"}}}, "function"),
        ({"metrics": ["recall"]}, "recall needs positive"),
        ({"metrics": ["log_loss"], "positive": 1}, "log_loss needs probability"),
        ({"metrics": ["log_loss"], "probability": "predictions.p"}, "log_loss needs positive"),
        (
            {"metrics": ["auc"], "positive": "c", "probability": {"a": "predictions.a", "b": "predictions.b"}},
            "for the positive class 'c'",
        ),
        ({"prediction": "label"}, "prediction"),
        ({"metrics": ["auc"], "positive": 1, "probability": "scores.p"}, "columns of several collections"),
        ({"metrics": {"accuracy": {"margin": 2}}}, "it is a fraction, not per cent"),
        ({"metrics": {"accuracy": {"pass_margin": 0.1}}}, "accuracy has pass_margin=0.1, which says nothing about it"),
        ({"metrics": {"absolute_error": {"ratio": 2}}}, "it has limit, margin, pass_margin"),
        ({"metrics": {"squared_error": {"worse": "lower"}}}, "squared_error has worse='lower'"),
        ({"weights": {"recall": 2}}, "weights for recall"),
        ({"bin_width": "7 h"}, "does not divide a day"),
        ({"metrics": {"share of labelled requests": {"function": "m:f"}}}, "cannot be the name of a metric"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels(**settings)


def test_a_metric_is_given_as_an_object_as_well() -> None:
    assert Labels(metrics={"accuracy": LabelMetric(margin=0.01)}).metrics["accuracy"].margin == 0.01


@pytest.mark.parametrize("prefix", ["", "/labels", "a\nb"])
def test_a_prefix_that_no_file_can_have_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        StoredLabels(prefix=prefix)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1, 1),
        (True, True),
        ("cat", "cat"),
        (Decimal("1.50"), 1.5),
        (float("nan"), None),
        (None, None),
        ([1, None, "a"], (1, None, "a")),
        ("[1, 2]", (1, 2)),
        ("[not json]", "[not json]"),
        (date(2026, 3, 1), "2026-03-01"),
        (np.float64(0.5), 0.5),
        (np.array([1, 2]), (1, 2)),
    ],
)
def test_a_value_of_a_file_or_a_database_is_a_label(value: Any, label: Any) -> None:
    found = label_of(value)
    assert (type(found), found) == (type(label), label)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"bytes", "a label is a bytes"),
        ({"a": 1}, "a label is a dict"),
        ("x" * 1_001, "a text of 1,001 characters"),
        ([0] * 100_001, "a list of 100,001 values"),
    ],
)
def test_what_cannot_be_a_label_is_said(value: Any, message: str) -> None:
    with pytest.raises(EvidenceUnavailableError, match=message):
        label_of(value)


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        NOON,
        NOON.replace(tzinfo=None),
        NOON.astimezone(timezone(timedelta(hours=2))),
        "2026-03-01T12:00:00Z",
        "2026-03-01 12:00:00",
        "2026-03-01 14:00:00+02:00",
        NOON.timestamp(),
        Decimal(int(NOON.timestamp())),
    ],
)
def test_an_arrival_without_a_time_zone_is_utc(value: Any) -> None:
    assert arrival_of(value) == NOON


def test_a_day_is_an_arrival_at_its_begin() -> None:
    assert arrival_of(date(2026, 3, 1)) == NOON - timedelta(hours=12)


@pytest.mark.parametrize("value", ["soon", True, None, 1e30, "12.3.2026"])
def test_an_arrival_that_is_no_time_is_said(value: Any) -> None:
    with pytest.raises(EvidenceUnavailableError, match="no time: name a column"):
        arrival_of(value)
