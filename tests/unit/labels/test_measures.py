"""What a label says of one request."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from controlled_rollout.errors import ArgumentError, EvidenceUnavailableError
from controlled_rollout.labels import Label, Labels
from controlled_rollout.labels.auc import auc_moments
from controlled_rollout.labels.measures import LabelledRequest, Measured, Measures
from tests.unit.labels.labelled_rollout import T0, UNTIL


def profit(prediction: Any, label: Any) -> float | None:
    """Return what an answer has earned; nothing is known of a refusal."""
    return None if prediction is None else 10.0 if prediction == label else -5.0


def measured(
    metrics: Sequence[str] | dict[str, Any],
    label: Label | tuple[Label, ...],
    *rows: Sequence[Any],
    request_id: str = "r1",
    **settings: Any,
) -> Measured:
    labels = Labels.model_validate({"metrics": metrics, **settings})
    return Measures(labels).of(LabelledRequest(True, request_id, T0, UNTIL, label, rows))


@pytest.mark.parametrize(
    ("prediction", "label", "wrong"),
    [
        ("cat", "cat", False),
        ("cat", "dog", True),
        (1.0, "1", False),
        (True, 1, False),
        ("false", 0, False),
        ("True", True, False),
        (0.5, "0.50", False),
        ("1 ", 1, False),
        (None, 1, True),
        ([1, 2], 1, True),
        ("07", "7", False),
    ],
)
def test_an_answer_is_right_if_it_is_the_class_of_the_label(prediction: Any, label: Label, wrong: bool) -> None:
    assert measured(["accuracy"], label, [prediction]).wrong == {"accuracy": wrong}


@pytest.mark.parametrize(
    ("prediction", "label", "wrong"),
    [
        (1, 1, {"precision": False, "recall": False}),
        (1, 0, {"precision": True}),
        (0, 1, {"recall": True}),
        (0, 0, {}),
    ],
)
def test_precision_is_of_what_was_predicted_positive_and_recall_of_what_was(
    prediction: int, label: int, wrong: dict[str, bool]
) -> None:
    assert measured(["precision", "recall"], label, [prediction], positive="1").wrong == wrong


def test_of_several_rows_one_is_drawn_by_the_request_s_id() -> None:
    """The rows of one request are not independent: a request is one observation."""
    right = [[1], [2], [3], [4]]
    drawn = {
        measured(["accuracy"], (1, 0, 0, 0), *right, request_id=f"r{number}").wrong["accuracy"] for number in range(40)
    }
    assert drawn == {True, False}
    again = [measured(["accuracy"], (1, 0, 0, 0), *right).wrong for _ in range(3)]
    assert again == [again[0]] * 3


def test_a_loss_is_the_mean_of_the_rows_and_one_label_is_of_all_rows() -> None:
    metrics = ["absolute_error", "squared_error"]
    assert measured(metrics, 2, [1], [4.0], [None]).losses == {"absolute_error": 1.5, "squared_error": 2.5}
    assert measured(metrics, (2, "4"), [1], [4.0]).losses == {"absolute_error": 0.5, "squared_error": 0.5}
    assert measured(metrics, 2, [None]).losses == {}


def test_a_row_without_a_label_says_nothing() -> None:
    assert measured(["accuracy"], (None, 4), [1], [4]).wrong == {"accuracy": False}
    assert measured(["accuracy"], (None, None), [1], [4]).problem == "no value"
    assert "another length" in measured(["accuracy"], (1, 2, 3), [1], [2]).problem


def test_the_log_loss_is_of_the_probability_that_the_right_class_had() -> None:
    def loss(label: Label, value: float | None, **settings: Any) -> float | None:
        """Return the log loss of one row with the prediction 1."""
        return measured(["log_loss"], label, [1, value], **settings).losses.get("log_loss")

    one: dict[str, Any] = {"probability": "predictions.p", "positive": 1}
    assert loss(1, 0.8, **one) == pytest.approx(-math.log(0.8))
    assert loss(0, 0.8, **one) == pytest.approx(-math.log(0.2))
    assert loss(0, 1.0, **one) == pytest.approx(-math.log(1e-6))
    assert loss(0, None, **one) is None
    several: dict[str, Any] = {"probability": {"a": "predictions.a", "b": "predictions.b"}}
    row = ["a", 0.9, 0.1]
    assert measured(["log_loss"], "b", row, **several).losses["log_loss"] == pytest.approx(-math.log(0.1))
    with pytest.raises(EvidenceUnavailableError, match="a label is another class than a, b, for which probability"):
        measured(["log_loss"], "c", row, **several)
    with pytest.raises(EvidenceUnavailableError, match=r"predictions.p of a labelled request is not between 0 and 1"):
        loss(1, 1.5, **one)


def test_a_loss_above_the_limit_counts_as_the_limit() -> None:
    assert measured({"squared_error": {"limit": 100}}, 50, [0]).losses == {"squared_error": 100}


def test_the_author_s_function_measures_a_row() -> None:
    own = {"profit": {"function": f"{__name__}:profit", "worse": "lower"}}
    assert measured(own, 1, [1], [2], [None]).losses == {"profit": 2.5}
    with pytest.raises(
        EvidenceUnavailableError,
        match=r"math:isqrt failed with TypeError .* for a text as prediction and a number as label",
    ):
        measured({"root": {"function": "math:isqrt"}}, 1, ["x"])


@pytest.mark.parametrize("function", ["no_such_module:f", "math:no_such", "math:pi"])
def test_a_function_that_is_not_there_is_refused_before_anything_is_read(function: str) -> None:
    with pytest.raises(ArgumentError, match="the metric 'own'"):
        Measures(Labels.model_validate({"metrics": {"own": {"function": function}}}))


@pytest.mark.parametrize(
    ("metric", "label", "prediction"),
    [("absolute_error", 1, "many"), ("absolute_error", "many", 1), ("squared_error", 1, math.nan)],
)
def test_what_is_no_number_cannot_be_seen_instead_of_being_left_out(metric: str, label: Label, prediction: Any) -> None:
    with pytest.raises(
        EvidenceUnavailableError, match=r"of a labelled request is a (text|number), .* one needs a finite number"
    ):
        measured([metric], label, [prediction])


def test_the_score_of_an_auc_is_that_of_the_drawn_row() -> None:
    settings = {"probability": "predictions.p", "positive": "yes"}
    assert measured(["auc"], "yes", [1, 0.7], **settings).score == (0.7, True)
    assert measured(["auc"], "no", [1, 0.7], **settings).score == (0.7, False)
    assert measured(["auc"], "no", [1, None], **settings).score is None


scores = st.lists(st.integers(0, 20).map(float), min_size=2, max_size=60)


@given(scores, scores)
def test_the_auc_is_that_of_sklearn(positive: list[float], negative: list[float]) -> None:
    moments = auc_moments(positive, negative)
    truth = [1] * len(positive) + [0] * len(negative)
    assert moments.mean == pytest.approx(roc_auc_score(truth, positive + negative))
    assert moments.count == len(truth)
    assert moments.variance > 0 or 0.05 < moments.mean < 0.95


def test_the_variance_of_an_auc_is_that_of_repeated_draws() -> None:
    import numpy as np

    random = np.random.default_rng(3)
    drawn = [auc_moments(list(random.normal(1, 1, 40)), list(random.normal(0, 1, 60))) for _ in range(600)]
    variance = float(np.var([one.mean for one in drawn]))
    assert float(np.mean([one.variance / one.count for one in drawn])) == pytest.approx(variance, rel=0.15)
