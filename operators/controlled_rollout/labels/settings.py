"""What labels are compared with, and what a treatment has to show by them: `Labels`."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from controlled_rollout.duration import parse_duration
from controlled_rollout.gate import Category, Event, Gate, Mean
from controlled_rollout.labels.source import Label, class_of

__all__ = ["ANSWERS", "AUC", "LABELLED", "LabelMetric", "Labels"]

COLUMN: Final = r"^[A-Za-z0-9_-]{1,64}\.[^\x00-\x1f\x7f]{1,200}$"
FUNCTION: Final = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
DAY: Final = timedelta(days=1)
MILLISECOND: Final = timedelta(milliseconds=1)
# What is right or wrong for a request, and what the wrong ones are called.
ANSWERS: Final = {
    "accuracy": "wrong answers",
    "precision": "false alarms among what was predicted positive",
    "recall": "misses among what was positive",
}
LOSSES: Final = frozenset({"log_loss", "absolute_error", "squared_error"})
AUC: Final = "auc"
# The test that the same share of requests is labelled in both versions.
LABELLED: Final = "share of labelled requests"


class LabelMetric(BaseModel):
    """What is tolerated of one metric of a model's quality, and what a pass has to rule out.

    Attributes:
        ratio: For accuracy, precision and recall: the odds ratio of a wrong answer that is still tolerated.
        margin: How much worse than control's may be the rate of wrong answers (as a fraction), the mean loss (in its
            unit), or the AUC.
        pass_ratio: For accuracy, precision and recall: the odds ratio of a wrong answer that a pass has to rule out.
        pass_margin: For losses, AUC and the author's own functions: a pass has to rule out that the mean is worse by
            so much; None: a pass does not depend on this metric.
        limit: A loss above this counts as this, because the mean of a heavy tail is hard to know; None: as it is.
        function: For a metric of the author's own: a function `module:name` that takes the prediction and the label of
            a row, and returns a number.
        worse: With `function`: the direction that is worse.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.1
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    pass_ratio: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 1.5
    pass_margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    limit: Annotated[float, Field(allow_inf_nan=False)] | None = None
    function: Annotated[str, Field(pattern=FUNCTION)] | None = None
    worse: Literal["lower", "higher"] = "higher"


def _metrics(value: Any) -> Any:
    """Return metrics as a mapping; a list of names has the defaults."""
    if isinstance(value, str):
        raise ValueError(f"a list of metrics is expected, or a mapping: give [{value!r}]")
    if isinstance(value, Sequence):
        return {name: {} for name in value}
    return value


class Labels(BaseModel):
    """How a version is judged by labels that come late: what they are compared with, and what it has to show.

    Attributes:
        metrics: What is judged, by name: `accuracy`, `precision`, `recall`, `log_loss`, `absolute_error`,
            `squared_error`, `auc`, or a name of the author's own with a `function`. A list of names takes the defaults.
        prediction: The collected column with the prediction, as `<collection>.<column>`.
        probability: The collected column with the probability of `positive`, or the columns by class; for `log_loss`,
            and for `auc`, which takes any score.
        positive: The class that is positive, for `precision`, `recall`, `auc`, and `log_loss` with one column.
        alpha: Most probability, over all looks together, of an alarm about a treatment that is as good as control.
        beta: Most probability of passing a treatment that is worse by what a pass has to rule out.
        split_alpha: Like `alpha`, for the alarm that the versions' requests are not labelled alike.
        weights: How `alpha` is shared out over the metrics, as parts of their sum; one that is not named has 1.
        bin_width: Labels that arrive within this time are judged together: a part of a day.
        allowed_lag: How long after its arrival a label may appear in its source at most.
        expected_within: How long labels take at most: if no request that is older has one, the gate cannot see.
        max_labels: The most labels that are read at one look.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: Annotated[Mapping[str, LabelMetric], BeforeValidator(_metrics), Field(min_length=1, max_length=20)]
    prediction: Annotated[str, Field(pattern=COLUMN)] = "predictions.prediction"
    probability: (
        Annotated[str, Field(pattern=COLUMN)]
        | Annotated[Mapping[str, Annotated[str, Field(pattern=COLUMN)]], Field(min_length=2, max_length=200)]
        | None
    ) = None
    positive: bool | int | float | str | None = None
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.05
    split_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001
    weights: Mapping[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    bin_width: Annotated[timedelta, BeforeValidator(parse_duration)] = timedelta(hours=1)
    allowed_lag: Annotated[timedelta, BeforeValidator(parse_duration), Field(ge=timedelta(0))] = timedelta(minutes=3)
    expected_within: Annotated[timedelta, BeforeValidator(parse_duration), Field(gt=timedelta(0))] = timedelta(days=7)
    max_labels: Annotated[int, Field(ge=1, le=20_000_000)] = 2_000_000

    @model_validator(mode="after")
    def _check_metrics(self) -> Self:
        """Raise if a metric is not known, or lacks the columns or the class that it needs."""
        known = {*ANSWERS, *LOSSES, AUC}
        for name, metric in self.metrics.items():
            own = metric.function is not None
            if own == (name in known):
                raise ValueError(
                    f"the metric {name!r} is measured by the package: choose another name for your function"
                    if own
                    else f"the metric {name!r} is not known: give one of {', '.join(sorted(known))}, or give it a "
                    "function='module:name'"
                )
            if name == LABELLED or re.search(r"[\x00-\x1f\x7f]", name) or not 0 < len(name) <= 100:
                raise ValueError(f"{name[:100]!r} cannot be the name of a metric: choose another one")
            if metric.margin >= 1 and (name in ANSWERS or name == AUC):
                raise ValueError(f"{name}: margin={metric.margin:g} is not below 1: it is a fraction, not per cent")
            self._check_needs(name)
            self._check_used(name, metric)
        if unknown := self.weights.keys() - self.metrics.keys():
            raise ValueError(f"weights for {', '.join(sorted(unknown))}, which is not among the metrics")
        return self

    def _check_needs(self, name: str) -> None:
        """Raise ValueError if a metric lacks what it is computed from."""
        if name in ("precision", "recall", AUC) and self.positive is None:
            raise ValueError(f"{name} needs positive=…, the class that is positive")
        if name in ("log_loss", AUC) and self.probability is None:
            raise ValueError(
                f"{name} needs probability='<collection>.<column>', the column with the probability of the positive "
                "class"
            )
        if name == "log_loss" and isinstance(self.probability, str) and self.positive is None:
            raise ValueError(
                "log_loss needs positive=…, the class that probability is of, or a column for each class as "
                "probability={class: column}"
            )
        if name == AUC and isinstance(self.probability, Mapping) and class_of(self.positive) not in self.classes:
            raise ValueError(f"auc needs a column in probability for the positive class {self.positive!r}")

    def _check_used(self, name: str, metric: LabelMetric) -> None:
        """Raise ValueError if a setting of a metric says nothing about that metric."""
        used = {"margin"}
        if name in ANSWERS:
            used |= {"ratio", "pass_ratio"}
        else:
            used |= {
                "pass_margin",
                *(() if name == AUC else ("limit",)),
                *(("function", "worse") if metric.function else ()),
            }
        standard = LabelMetric()
        for field in LabelMetric.model_fields.keys() - used:
            if getattr(metric, field) != getattr(standard, field):
                raise ValueError(
                    f"{name} has {field}={getattr(metric, field)!r}, which says nothing about it: it has "
                    f"{', '.join(sorted(used))}"
                )

    @model_validator(mode="after")
    def _check_columns(self) -> Self:
        """Raise if the columns are of several collections: the rows of two collections need not be the same."""
        if len({column.partition(".")[0] for column in self.columns}) > 1:
            raise ValueError(
                f"{', '.join(self.columns)} are columns of several collections: the predictions and their "
                "probabilities have to be of one"
            )
        return self

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        """Raise unless `bin_width` divides a day."""
        if self.bin_width <= timedelta(0) or DAY % self.bin_width or self.bin_width % MILLISECOND:
            raise ValueError(f"bin_width {self.bin_width} does not divide a day: give a part of a day, such as 1 h")
        return self

    @property
    def classes(self) -> Mapping[Label, str]:
        """The column of each class's probability, by the class as it is compared."""
        if isinstance(self.probability, Mapping):
            return {class_of(name): column for name, column in self.probability.items()}
        return {} if self.probability is None else {class_of(self.positive): self.probability}

    @property
    def columns(self) -> tuple[str, ...]:
        """All collected columns that are needed, as `<collection>.<column>`; the prediction is the first."""
        return tuple(dict.fromkeys([self.prediction, *self.classes.values()]))

    @property
    def collection(self) -> str:
        """The collection that the columns are of."""
        return self.prediction.partition(".")[0]

    def gate(self) -> Gate:
        """Return the gate for bins of labelled requests: each metric, and that both versions are labelled alike."""
        events: dict[str, Event] = {}
        means: dict[str, Mean] = {}
        for name, metric in self.metrics.items():
            if name in ANSWERS:
                events[name] = Event(
                    ratio=metric.ratio, margin=metric.margin, pass_ratio=metric.pass_ratio, counted=ANSWERS[name]
                )
            else:
                worse = "lower" if name == AUC else metric.worse if metric.function else "higher"
                means[name] = Mean(worse=worse, margin=metric.margin, pass_margin=metric.pass_margin)
        return Gate(
            alpha=self.alpha,
            beta=self.beta,
            split_alpha=self.split_alpha,
            weights=self.weights,
            latency_quantiles=(),
            means=means,
            events=events,
            categories={LABELLED: Category()},
            judges_traffic=False,
        )
