"""The kinds of rollouts whose data the gate and other rules judge, in families that have a table each."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import JsonValue

from controlled_rollout.expectations import Expectation, Suite
from controlled_rollout.gate import Category, Gate, Mean
from tests.benchmarks.gate.data import rollouts
from tests.benchmarks.gate.data.clusters import (
    HOW,
    ROWS,
    SPLITS,
    TIMES,
    USERS_REQUESTS,
    batches_of_labels,
    batches_of_numbers,
    users_labels,
    users_numbers,
)
from tests.benchmarks.gate.data.late_labels import LATE_GATE, Late, late_labels
from tests.benchmarks.gate.data.rollouts import LOOKS, Distribution, Draw, Floats, log_normal, normal, pareto
from tests.benchmarks.gate.data.rules import COMPARISONS, LABELLED_RULES, VALIDATIONS, Rule

__all__ = ["CELLS", "FAMILIES", "TOLERANCE", "Cell", "Family"]

Kind = Literal["healthy", "bad", "not valid"]
Worse = Literal["higher", "lower"]

TOLERANCE = 0.1
# By so many standard deviations a normal number is shifted whose total variation is the tolerance.
AT_THE_TOLERANCE = 0.25
CLIP = 0.01
WORSE: tuple[Worse, ...] = ("higher", "lower")
RATES = (30, 300, 3_000)


@dataclass(frozen=True)
class Cell:
    """One kind of rollout.

    Attributes:
        name: What the table calls it.
        family: In which table it is.
        kind: `healthy`: nothing is wrong by what the gate tolerates; `bad`; or `not valid`: healthy, but the gate's
            condition that its observations are independent, or have a mean that can be known, is not met.
        draw: How its rollouts are drawn.
        gate: The gate, with one metric beside errors.
    """

    name: str
    family: str
    kind: Kind
    draw: Draw
    gate: Gate

    @property
    def level(self) -> float:
        """The part of healthy rollouts that may be stopped: half of alpha, errors have the other; labels have all."""
        if self.gate.events:
            return self.gate.alpha + self.gate.split_alpha
        holds = any(category.on_difference == "hold" for category in self.gate.categories.values())
        return self.gate.split_alpha if holds else self.gate.alpha / 2


@dataclass(frozen=True)
class Family:
    """Cells that are judged by the same rules.

    Attributes:
        title: The heading.
        words: What it is about.
        rules: The rules beside the gate.
    """

    title: str
    words: str
    rules: Mapping[str, Rule]


def failing(tolerance: float = TOLERANCE, buckets: int | None = None) -> Gate:
    """Return a gate that takes back a treatment whose predictions differ by more than is tolerated."""
    column = "predictions.label" if buckets is None else "predictions.score"
    category = Category(column=column, tolerance=tolerance, on_difference="fail", buckets=buckets)
    return Gate(latency_quantiles=(), categories={"predicted": category})


def holding(buckets: int | None = None) -> Gate:
    """Return a gate that holds where inputs differ at all."""
    return Gate(latency_quantiles=(), categories={"input": Category(column="inputs.age", buckets=buckets)})


def mean_of(worse: Worse = "higher", clip: float | None = None) -> Gate:
    """Return a gate that takes back a treatment whose mean is worse."""
    return Gate(latency_quantiles=(), means={"score": Mean(worse=worse, column="predictions.score", clip=clip)})


def expecting(expectation: Expectation) -> Gate:
    """Return a gate with one expectation."""
    return Gate(latency_quantiles=(), expectations=Suite(name="scores", expectations=(expectation,)))


def expectation(kind: str, mostly: float) -> Expectation:
    """Return an expectation on a column."""
    kwargs: dict[str, JsonValue] = {"column": "score", "mostly": mostly}
    return Expectation(name=kind, collection="predictions", type=kind, kwargs=kwargs)


def predictions() -> list[Cell]:
    """Labels and bucketed numbers that versions predict."""
    cells = [
        Cell(
            f"labels, total variation {variation:g}, {rate:,}/min",
            "predictions",
            "healthy" if variation <= TOLERANCE else "bad",
            rollouts.labels(variation, rate, "predicted"),
            failing(),
        )
        for variation in (0.0, 0.05, 0.1, 0.15, 0.4)
        for rate in RATES
    ]
    growing = np.repeat([0.1, 0.25, 0.5], LOOKS // 3)
    for name, shares in (("", rollouts.SHARE), (", split changes", growing)):
        draw = rollouts.labels(0.0, 300, "predicted", drift=0.2, shares=shares)
        cells.append(Cell(f"labels of both drift by 0.2{name}, 300/min", "predictions", "healthy", draw, failing()))
    for shift in (0.0, 0.25, 0.5, 1.0):
        draw = rollouts.buckets(normal, shift, 300, "predicted")
        name = f"numbers in ten buckets, {shift:g} sd higher, 300/min"
        kind: Kind = "healthy" if shift <= AT_THE_TOLERANCE else "bad"
        cells.append(Cell(name, "predictions", kind, draw, failing(buckets=10)))
    return cells


def inputs() -> list[Cell]:
    """Inputs, which are drawn by the same split: any difference holds the rollout."""
    cells = []
    for variation, rates in ((0.0, RATES), (0.05, (3_000,)), (0.15, (300, 3_000))):
        for rate in rates:
            draw = rollouts.labels(variation, rate, "input")
            name = f"labels, total variation {variation:g}, {rate:,}/min"
            cells.append(Cell(name, "inputs", "bad" if variation else "healthy", draw, holding()))
    for shift, rates in ((0.0, RATES), (0.1, (300, 3_000)), (0.3, (300, 3_000))):
        for rate in rates:
            draw = rollouts.buckets(normal, shift, rate, "input")
            name = f"numbers in ten buckets, {shift:g} sd higher, {rate:,}/min"
            cells.append(Cell(name, "inputs", "bad" if shift else "healthy", draw, holding(buckets=10)))
    return cells


def numbers() -> list[Cell]:
    """Means of normal numbers and of heavy tails, as they are and clipped, in both directions."""
    cells = [
        Cell(
            f"normal, {shift:g} sd higher, {rate:,}/min",
            "means",
            "bad" if shift else "healthy",
            rollouts.means(normal, shift, rate, "score"),
            mean_of(),
        )
        for shift in (0.0, 0.1, 0.3)
        for rate in RATES
    ]
    tails: dict[str, Distribution] = {
        "log-normal, sigma 1": log_normal(1.0),
        "log-normal, sigma 2": log_normal(2.0),
        "Pareto, shape 2.5": pareto(2.5),
        "Pareto, shape 1.5": pareto(1.5),
    }
    for name, distribution in tails.items():
        for clip in (None, CLIP):
            for worse in WORSE:
                words = f"{name}{', clipped' if clip else ''}, worse: {worse}, 300/min"
                draw = rollouts.means(distribution, 0.0, 300, "score", clip)
                kind: Kind = "healthy" if clip else "not valid"
                cells.append(Cell(words, "means", kind, draw, mean_of(worse, clip)))
    for shift in (0.3, 1.0):
        for clip in (None, CLIP):
            words = f"log-normal, sigma 1, {shift:g} higher{', clipped' if clip else ''}, 300/min"
            draw = rollouts.means(log_normal(1.0), shift, 300, "score", clip)
            cells.append(Cell(words, "means", "bad", draw, mean_of(clip=clip)))
    return cells


def expectations() -> list[Cell]:
    """Expectations with counts: unexpected rows of the treatment against control's and against `mostly`."""
    between = expectation("expect_column_values_to_be_between", 0.99)
    not_null = expectation("expect_column_values_to_not_be_null", 0.97)
    bad_day = np.where((np.arange(LOOKS) >= LOOKS // 3) & (np.arange(LOOKS) < 2 * LOOKS // 3), 0.3, 0.005)
    kinds: list[tuple[str, Kind, Expectation, float | Floats, float | Floats]] = [
        ("0.5 % unexpected, mostly 99 %", "healthy", between, 0.005, 0.005),
        ("3 % unexpected in both, mostly 99 %", "healthy", between, 0.03, 0.03),
        ("30 % unexpected in both for 20 min, mostly 99 %", "healthy", between, bad_day, bad_day),
        ("null 1 %, mostly 97 %", "healthy", not_null, 0.01, 0.01),
        ("unexpected 0.5 -> 3 %, mostly 99 %", "bad", between, 0.005, 0.03),
        ("unexpected 1 -> 10 %, mostly 99 %", "bad", between, 0.01, 0.1),
        ("unexpected 0.5 -> 50 %, mostly 99 %", "bad", between, 0.005, 0.5),
    ]
    return [
        Cell(
            f"{name}, {rate:,}/min",
            "expectations",
            kind,
            rollouts.expected_rows(one, rate, control=control, treatment=treatment),
            expecting(one),
        )
        for name, kind, one, control, treatment in kinds
        for rate in RATES
    ]


def clusters() -> list[Cell]:
    """Rows that are not independent: of one request, and of one user."""
    cells = []
    for how in HOW:
        valid: Kind = "healthy" if how == "one row of each request" else "not valid"
        for variation in (0.0, 0.05, 0.4):
            kind: Kind = valid if variation <= TOLERANCE else "bad"
            draw = batches_of_labels(variation, 30, "predicted", how)
            name = f"batches, labels, total variation {variation:g}, {how}, 30/min"
            cells.append(Cell(name, "clusters", kind, draw, failing()))
        draw = batches_of_labels(0.0, 30, "input", how)
        cells.append(Cell(f"batches, inputs alike, {how}, 30/min", "clusters", valid, draw, holding()))
        for shift in (0.0, 1.0):
            kind = valid if not shift else "bad"
            counted = "mean of each request" if valid == "healthy" else how
            draw = batches_of_numbers(shift, 30, "score", how)
            name = f"batches, mean {shift:g} sd higher, {counted}, 30/min"
            cells.append(Cell(name, "clusters", kind, draw, mean_of()))
    for split in SPLITS:
        for times in TIMES:
            kind = "healthy" if split == "by request" else "not valid"
            words = f"split {split}, {times}, 300/min"
            for name, metric, gate in (
                ("predictions alike", "predicted", failing()),
                ("inputs alike", "input", holding()),
            ):
                draw = users_labels(300, metric, split, times)
                cells.append(Cell(f"users, {name}, {words}", "clusters", kind, draw, gate))
            draw = users_numbers(300, "score", split, times)
            cells.append(Cell(f"users, means alike, {words}", "clusters", kind, draw, mean_of()))
    return cells


def labels_with_delay() -> list[Cell]:
    """Labels that trickle in over days and are looked at each hour."""
    rising = np.linspace(0.05, 0.25, 24)
    growing = Late(shares=(0.1, 0.25, 0.5), wrong=(rising, rising), delay=(36.0, 6.0))
    kinds: list[tuple[str, Kind, Late]] = [
        ("10 % wrong in both", "healthy", Late()),
        ("10 % wrong in both, wrong ones known sooner", "healthy", Late(delay=(36.0, 6.0))),
        ("10 and 10.9 % wrong (odds 1.1, tolerated)", "healthy", Late(wrong=(0.1089, 0.1))),
        ("5 to 25 % wrong in both over the day, known sooner, split changes", "healthy", growing),
        ("the same, and all requests of the day together", "not valid", replace(growing, by_period=False)),
        ("wrong 10 -> 13 %", "bad", Late(wrong=(0.13, 0.1))),
        ("wrong 10 -> 20 %", "bad", Late(wrong=(0.2, 0.1))),
        ("wrong 2 -> 6 %", "bad", Late(wrong=(0.06, 0.02))),
        ("wrong 10 -> 20 %, 120 requests an hour", "bad", Late(wrong=(0.2, 0.1), per_hour=120)),
        ("the treatment's labelled 50 -> 40 %", "bad", Late(labelled=(0.4, 0.5))),
        ("wrong 10 -> 20 %, half of them never labelled", "bad", Late(wrong=(0.2, 0.1), wrong_labelled=(0.25, 0.5))),
    ]
    return [Cell(name, "late labels", kind, late_labels(late), LATE_GATE) for name, kind, late in kinds]


FAMILIES = {
    "predictions": Family(
        "Predictions",
        f"A total variation of {TOLERANCE:g} is tolerated; more takes the treatment back. Labels are ten, equally "
        "frequent with control, and half of them more frequent with the treatment. A shift of a normal number by 0.25 "
        "standard deviations is a total variation of 0.1, by 0.5 of 0.2.",
        COMPARISONS,
    ),
    "means": Family(
        "Means",
        f"Clipped: at control's {100 * CLIP:g} and {100 - 100 * CLIP:g} % quantiles of "
        f"{rollouts.BASELINE_VALUES:,} values from before. The gate judges the direction that is worse; the other "
        "rules know none, and judge the numbers as they are.",
        COMPARISONS,
    ),
    "inputs": Family(
        "Inputs",
        "The split draws them alike, so any difference is a fault of the routing or of the capture: the rollout is "
        "held, at a level of 0.1 %.",
        COMPARISONS,
    ),
    "expectations": Family(
        "Expectations",
        "One row of each request is judged. The gate alarms where the treatment has more unexpected rows than control, "
        "and more than `mostly` allows.",
        VALIDATIONS,
    ),
    "late labels": Family(
        "Labels that come late",
        "The requests of a day, 1,200 an hour, half of which get a label, a day later on average. From the end of the "
        f"day on there is a look each hour, {LOOKS} in all: the brackets have hours, not minutes. The gate's bins are "
        "by the label's arrival, and each has requests of a time within which the split did not change. It also holds "
        "the rollout where another part of the treatment's requests is labelled.",
        LABELLED_RULES,
    ),
    "clusters": Family(
        "Rows of one request, requests of one user",
        f"Requests have {' or '.join(f'{rows:,} rows ({100 * part:g} %)' for rows, part in ROWS.items())}. Labels of "
        "one request are drawn from shares of its own (a correlation of a third), numbers have half of their variance "
        "in common. The gate takes one observation of each request; *every row* is what would be if it did not. The "
        f"other rules see every row. A user sends {USERS_REQUESTS} requests that are alike in the same way.",
        COMPARISONS,
    ),
}
CELLS = [*predictions(), *numbers(), *inputs(), *expectations(), *clusters(), *labels_with_delay()]
