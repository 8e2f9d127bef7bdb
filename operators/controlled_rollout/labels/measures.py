"""What a label says of one request: whether the answer was right, how large the loss is, which score it had. Pure."""

import hashlib
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePath
from typing import Any, Final, TypeAlias

from pydantic import ImportString, TypeAdapter, ValidationError

from controlled_rollout.errors import ArgumentError, EvidenceUnavailableError
from controlled_rollout.labels.settings import ANSWERS, AUC, Labels
from controlled_rollout.labels.source import Label, class_of

__all__ = ["LabelledRequest", "Measured", "Measures"]

# A probability of 0 for what came true would be an infinite loss.
LEAST_PROBABILITY: Final = 1e-6
# Squares of losses have to be numbers too.
LARGEST_LOSS: Final = 1e100

Row: TypeAlias = Sequence[Any]
Function: TypeAlias = Callable[[Any, Label], Any]


@dataclass(frozen=True, slots=True)
class LabelledRequest:
    """A request whose first label is known.

    Attributes:
        is_treatment: Whether the treatment has answered it; else control has.
        request_id: Its id.
        time: When it arrived.
        known: When its first label arrived.
        label: That label: one for all rows, or one for each.
        rows: For each row of the answer the values of `Labels.columns`.
    """

    is_treatment: bool
    request_id: str
    time: datetime
    known: datetime
    label: Label | tuple[Label, ...]
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a label says of one request.

    Attributes:
        wrong: By metric whether the answer was wrong; a request that does not count for a metric is left out.
        losses: By metric the mean of the rows' losses.
        score: For AUC: the score, and whether the label was positive; None if there is none.
        problem: Why nothing could be measured, in a few words; empty if it could.
    """

    wrong: Mapping[str, bool] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)
    score: tuple[float, bool] | None = None
    problem: str = ""


class Measures:
    """Measures labelled requests as settings say.

    Args:
        labels: The settings.

    Raises:
        ArgumentError: A function of the author's cannot be imported.
    """

    def __init__(self, labels: Labels) -> None:
        """Import the author's functions."""
        self._labels = labels
        self._positive = class_of(labels.positive)
        self._classes = {name: labels.columns.index(column) for name, column in labels.classes.items()}
        self._functions = {
            name: _import_function(name, metric.function) for name, metric in labels.metrics.items() if metric.function
        }

    def of(self, request: LabelledRequest) -> Measured:
        """Return what the label says of a request: one observation for each metric, however many rows it has.

        Whether an answer was right, and the score, are those of one row, drawn by the request's id; a loss is the mean
        of all rows.

        Raises:
            EvidenceUnavailableError: A prediction, a probability or a label is nothing that a metric can be made of.
        """
        labels = request.label if isinstance(request.label, tuple) else (request.label,) * len(request.rows)
        if len(labels) != len(request.rows):
            return Measured(problem="a list of another length than the request has rows")
        pairs = [(row, label) for row, label in zip(request.rows, labels, strict=True) if label is not None]
        if not pairs:
            return Measured(problem="no value")
        wrong: dict[str, bool] = {}
        losses: dict[str, float] = {}
        score: tuple[float, bool] | None = None
        draw = int(hashlib.md5(request.request_id.encode(), usedforsecurity=False).hexdigest()[:8], 16)
        for name in self._labels.metrics:
            if name in ANSWERS:
                counted = [pair for pair in pairs if self._counts(name, *pair)]
                if counted:
                    row, label = counted[draw % len(counted)]
                    wrong[name] = class_of(_class_value(row[0])) != class_of(label)
            elif name == AUC:
                row, label = pairs[draw % len(pairs)]
                value = self._number(row[self._classes[self._positive]], "probability")
                score = None if value is None else (value, class_of(label) == self._positive)
            else:
                values = [loss for pair in pairs if (loss := self._loss(name, *pair)) is not None]
                if values:
                    losses[name] = math.fsum(values) / len(values)
        return Measured(wrong, losses, score)

    def _counts(self, name: str, row: Row, label: Label) -> bool:
        """Return whether a row counts: for precision what was predicted positive, for recall what was positive."""
        if name == "accuracy":
            return True
        return class_of(_class_value(row[0]) if name == "precision" else label) == self._positive

    def _loss(self, name: str, row: Row, label: Label) -> float | None:
        """Return the loss of one row; None if the model has predicted nothing."""
        metric = self._labels.metrics[name]
        if name in self._functions:
            value = self._author_value(name, row[0], label)
        elif name == "log_loss":
            probability = self._probability(row, label)
            value = None if probability is None else -math.log(max(probability, LEAST_PROBABILITY))
        else:
            predicted = self._number(row[0], "prediction")
            value = None
            if predicted is not None:
                right = self._number(label, "label")
                error = abs(predicted - (right or 0.0))
                value = error if name == "absolute_error" else error * error
        if value is None:
            return None
        if not abs(value) <= LARGEST_LOSS:
            raise EvidenceUnavailableError(
                f"{name} of a labelled request is above {LARGEST_LOSS:g} or not a number, and cannot be averaged: "
                "check which columns prediction and label name, or give the metric a limit"
            )
        return value if metric.limit is None else min(value, metric.limit)

    def _author_value(self, name: str, prediction: Any, label: Label) -> float | None:
        """Return what a function of the author's gives for a row."""
        function = self._labels.metrics[name].function
        try:
            value = self._functions[name](prediction, label)
            return None if value is None else float(value)
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            raise EvidenceUnavailableError(
                f"the metric {name!r}: {function} failed with {type(error).__name__} in line {at.lineno} of "
                f"{PurePath(at.filename).name} for {_describe_type(prediction)} as prediction and "
                f"{_describe_type(label)} as label; it has to return a number, or None for a row that does not count"
            ) from error

    def _probability(self, row: Row, label: Label) -> float | None:
        """Return the probability that a row gave to the class that was right; None if it gave none."""
        right, negative = class_of(label), False
        if isinstance(self._labels.probability, str):
            negative, right = right != self._positive, self._positive
        if right not in self._classes:
            raise EvidenceUnavailableError(
                f"log_loss: a label is another class than {', '.join(map(str, self._classes))}, for which probability "
                "has columns: name the column of each class"
            )
        value = self._number(row[self._classes[right]], "probability")
        if value is None:
            return None
        if not 0 <= value <= 1:
            raise EvidenceUnavailableError(
                f"log_loss: {self._labels.classes[right]} of a labelled request is not between 0 and 1: name a column "
                "with probabilities"
            )
        return 1 - value if negative else value

    def _number(self, value: Any, what: str) -> float | None:
        """Return a value as a number, None for none; raise if it is something else."""
        if value is None:
            return None
        number = class_of(_class_value(value))
        if isinstance(number, int | float) and abs(number) <= LARGEST_LOSS:
            return float(number)
        raise EvidenceUnavailableError(
            f"the {what} of a labelled request is {_describe_type(value)}, and of the metrics "
            f"{', '.join(self._labels.metrics)} one needs a finite number"
        )


def _import_function(name: str, function: str) -> Function:
    """Return a function of the author's by `module:name`; raise ArgumentError if there is none."""
    try:
        found = TypeAdapter(ImportString[Any]).validate_python(function)
    except ValidationError as error:
        raise ArgumentError(
            f"the metric {name!r}: {function} cannot be imported ({error.errors()[0]['msg']}): give the function as "
            "'module:name' of a module that the worker has"
        ) from error
    if not callable(found):
        raise ArgumentError(f"the metric {name!r}: {function} is no function: give 'module:name' of one")
    return found  # type: ignore[no-any-return]


def _class_value(value: Any) -> Any:
    """Return a predicted value as a class can be compared: lists and objects are none."""
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _describe_type(value: Any) -> str:
    """Return what a value is, for a message that must not show it: it may be a person's."""
    return {bool: "true or false", int: "a number", float: "a number", str: "a text", type(None): "nothing"}.get(
        type(value), "a list or an object"
    )
