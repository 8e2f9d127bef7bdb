"""The gate's values: its settings, the counts that it judges, and the verdict."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from controlled_rollout.duration import Duration
from controlled_rollout.errors import ArgumentError
from controlled_rollout.expectations import Expectation, Suite, read_suite

__all__ = [
    "Bin",
    "Category",
    "Claim",
    "Counts",
    "Event",
    "Gate",
    "MaxLatency",
    "Mean",
    "Moments",
    "Outcome",
    "UserCounts",
    "Verdict",
]

ALWAYS: Final = frozenset({"errors", "latency"})
# An alarm is near when its evidence is its threshold divided by this, or more.
NEAR: Final = 10
# A collection and one of its columns, such as `predictions.label`; the column may have dots and spaces.
COLUMN: Final = r"^[A-Za-z0-9_-]{1,64}\.[^\x00-\x1f\x7f]{1,200}$"
MAX_BUCKETS: Final = 100
# How rows are counted that an expectation was asked of, as the categories of a metric of the expectation's name.
EXPECTED: Final = "expected"
UNEXPECTED: Final = "unexpected"
# How requests are counted of which an event is known, as the categories of a metric of the event's name.
HAPPENED: Final = "yes"
NOT_HAPPENED: Final = "no"


def _suite(value: Any) -> Any:
    """Return what an author gave as expectations as a suite; raise ValueError if it is none."""
    try:
        return None if value is None else read_suite(value)
    except ArgumentError as error:
        raise ValueError(str(error)) from error


def _check_source(column: str | None, kql: str | None) -> None:
    """Raise ValueError if a metric names a collected column and a query of the metric store."""
    if column is not None and kql is not None:
        raise ValueError(f"column={column!r} and kql are both given: the values come from one of them, leave one out")


class Mean(BaseModel):
    """A numeric metric of the author's, such as a score or a price: its mean must not become worse.

    Attributes:
        worse: The direction that is worse.
        margin: How much worse the treatment's mean may be, in the metric's unit.
        pass_margin: A pass has to rule out that the mean is worse by so much, in the metric's unit; None: the metric
            can stop a rollout, and a pass does not depend on it.
        kql: The query that yields the values, for the evidence source; the gate does not read it.
        column: The collected column that has the values, as `<collection>.<column>` such as `predictions.score`,
            instead of a query; a request with several rows is one value, their mean.
        clip: With `column`: values beyond control's quantiles `clip` and `1 - clip` from before the rollout count as
            those quantiles (a winsorised mean), because the mean of a heavy tail is hard to know; None: as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    worse: Literal["lower", "higher"]
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    pass_margin: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    kql: str | None = None
    column: Annotated[str, Field(pattern=COLUMN)] | None = None
    clip: Annotated[float, Field(gt=0, lt=0.5)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Raise if the values come from two sources, or are clipped without being a collected column."""
        _check_source(self.column, self.kql)
        if self.clip is not None and self.column is None:
            raise ValueError(f"clip={self.clip:g} without column: only the values of a collected column are clipped")
        return self


class Category(BaseModel):
    """A categorical metric of the author's, such as an input's country or the class that was predicted.

    Attributes:
        tolerance: The total variation between the two versions (half the sum of the absolute differences of the
            categories' shares, 0 to 1) that is tolerated. 0 is for inputs: they are randomised, any difference is a
            fault of the routing or of the capture.
        on_difference: `hold`: the verdict is that the split is wrong, and the rollout is held; `fail`: an alarm.
        kql: The query that yields the categories, for the evidence source; the gate does not read it.
        column: The collected column that has the categories, as `<collection>.<column>` such as `predictions.label`,
            instead of a query; of a request with several rows one is taken, drawn by the request's id.
        buckets: With a numeric `column`: its values count in so many buckets, whose edges are control's quantiles from
            before the rollout; None: each value is a category.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.0
    on_difference: Literal["hold", "fail"] = "hold"
    kql: str | None = None
    column: Annotated[str, Field(pattern=COLUMN)] | None = None
    buckets: Annotated[int, Field(ge=2, le=MAX_BUCKETS)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Raise if the categories come from two sources, or there are buckets of something that is no column."""
        _check_source(self.column, self.kql)
        if self.buckets is not None and self.column is None:
            raise ValueError(f"buckets={self.buckets} without column: only a collected column is cut into buckets")
        return self


class Event(BaseModel):
    """A metric that is an event or none for each request, such as a wrong answer: its rate must not become higher.

    `Counts.categories` has how many requests are known to be such events, as `yes`, and to be none, as `no`.

    Attributes:
        ratio: The odds ratio of the event that is still tolerated.
        margin: The absolute difference of the rates that is still tolerated, as a fraction.
        pass_ratio: The odds ratio that a pass has to rule out.
        acceptable_rate: Where events are too rare for a ratio, an upper bound at or below this rate passes.
        counted: What the events are called in the claim's text, such as `wrong answers`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.1
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    pass_ratio: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 1.5
    acceptable_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01
    counted: str = "events"


class MaxLatency(BaseModel):
    """The longest duration that a treatment may take at a quantile, whatever control takes.

    Attributes:
        duration: The duration, such as `0.3 s`.
        quantile: At most one minus this of the treatment's requests may take longer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    duration: Annotated[Duration, Field(gt=timedelta(0))]
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.95


class Gate(BaseModel):
    """What a treatment has to show, and how sure the gate has to be.

    Attributes:
        alpha: Most probability, over all looks together, of stopping a treatment that is as good as control.
        beta: Most probability of passing a treatment whose odds of an error are `pass_ratio` times control's.
        error_ratio: Odds ratio of errors that is still tolerated (r0).
        error_difference: Absolute difference of error rates that is still tolerated, as a fraction.
        pass_ratio: Odds ratio that a pass has to rule out (r1).
        acceptable_error_rate: Where errors are too rare for a ratio, an upper bound at or below this rate passes.
        max_error_rate: A pass has to show that the treatment's error rate is below this, whatever control's is; 1: any.
        overload: What requests are that a version has refused because it had no room: `hold`, no errors of its model,
            but a pass has to show that there are few; `fail`: errors like all others.
        max_overload_rate: With `hold`: a pass has to show that the treatment refuses less than this of its requests for
            lack of room, if it has refused any; 1: any.
        latency_tolerance: Relative slow-down that is still tolerated (m).
        latency_quantiles: Control's quantiles, frozen before the rollout, whose exceedances are counted.
        max_latency: A pass has to show that the treatment is faster than this, whatever control is; None: it need not.
        warm_up: Evidence this soon after the treatment's first traffic is left out.
        split_alpha: Like `alpha`, for the alarm that the split served is not the split set.
        burst_cap: Largest likelihood ratio that one bin may contribute, instead of dividing by the baseline's
            burstiness; None divides.
        treatments: How many treatments are judged against the same control at the same time.
        weights: How `alpha` is shared out over `errors`, `latency`, the means and the categories that can fail, as
            parts of their sum; one that is not named has 1; latency gives its part to the others where not judged. All
            expectations together are `expectations`.
        means: The author's numeric metrics, by name.
        categories: The author's categorical metrics, by name.
        events: Metrics that are an event or none for each request, by name.
        unit: What counts as one observation: a `request`; or, for an endpoint whose split goes by a key of its callers
            (`sticky`), a `user`: then errors, latency and the split are judged by each user's first request of a step.
        judges_traffic: Whether errors, latency and the split are judged; False where the bins count something else than
            the requests of callers, such as labelled requests.
        expectations: A suite of Great Expectations on what both versions collect: an object, its JSON, or the path of a
            file with it; columns are `<collection>.<column>`, or the suite is `{"inputs": suite}`. None for none.
        expectations_against: What the treatment's unexpected rows are compared with: `control`, and an alarm needs more
            of them than control has and than `mostly` allows; or only what is `allowed` by `mostly`, whatever control
            does. Of an expectation about all rows together, such as a mean: whether control has to fulfil it.
        on_aggregate: What happens when the treatment does not fulfil an expectation about all rows together: `hold`,
            and the rollout does not go on from its present share by itself; or `fail`. It is evaluated once at a share,
            when everything else lets the rollout go on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.05
    error_ratio: Annotated[float, Field(ge=1)] = 1.1
    error_difference: Annotated[float, Field(ge=0, lt=1)] = 0.002
    pass_ratio: Annotated[float, Field(gt=1)] = 2.0
    acceptable_error_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01
    max_error_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    overload: Literal["hold", "fail"] = "hold"
    max_overload_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    latency_tolerance: Annotated[float, Field(ge=0)] = 0.05
    latency_quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.9, 0.95, 0.99)
    max_latency: MaxLatency | None = None
    warm_up: Duration = timedelta(0)
    split_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001
    burst_cap: Annotated[float, Field(gt=1)] | None = None
    treatments: Annotated[int, Field(ge=1, le=5)] = 1
    weights: Mapping[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    means: Mapping[str, Mean] = {}
    categories: Mapping[str, Category] = {}
    events: Mapping[str, Event] = {}
    unit: Literal["request", "user"] = "request"
    judges_traffic: bool = True
    expectations: Annotated[
        Suite | None, BeforeValidator(_suite, json_schema_input_type=str | dict[str, Any] | None)
    ] = None
    expectations_against: Literal["control", "allowed"] = "control"
    on_aggregate: Literal["hold", "fail"] = "hold"

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Raise with all that contradicts itself, such as two metrics of the same name."""
        if faults := [*self._faults_of_names(), *self._faults_of_the_unit()]:
            raise ValueError("; ".join(faults))
        return self

    def _faults_of_names(self) -> Iterator[str]:
        """Yield that two metrics have the same name, or that a setting names a metric that does not exist."""
        metrics = [*self.means, *self.categories, *self.events]
        twice = ALWAYS.intersection(metrics) | {name for name in metrics if metrics.count(name) > 1}
        if twice:
            yield f"{', '.join(sorted(twice))} would name two metrics: choose another name"
        failing = {name for name, category in self.categories.items() if category.on_difference == "fail"}
        if self.expectation_names:
            failing.add("expectations")
        unknown = self.weights.keys() - ALWAYS - self.means.keys() - self.events.keys() - failing
        if unknown:
            yield f"weights for {', '.join(sorted(unknown))}, which name no metric that can fail a rollout"
        if self.max_latency is not None and not self.latency_quantiles:
            yield "max_latency without latency_quantiles: latency is not read then, give at least one quantile"
        expectations = () if self.expectations is None else self.expectations.expectations
        names = {"expectations", *(one.name for one in expectations)} if expectations else set()
        if names & (ALWAYS | self.means.keys() | self.categories.keys() | self.events.keys()):
            yield "an expectation is called like another metric of the gate: choose another name"

    def _faults_of_the_unit(self) -> Iterator[str]:
        """Yield that users are to be counted, and something is judged of which only requests are known."""
        if self.unit != "user":
            return
        metrics = [*self.means, *self.categories, *self.events]
        metrics += ["expectations"] if self.expectations is not None else []
        if metrics or not self.judges_traffic:
            yield (
                f"unit='user' with {', '.join(metrics) or 'judges_traffic=False'}: users are counted for errors, "
                "latency and the split only, and requests of one user are not independent; leave the others out"
            )
        if self.overload == "fail":
            # A user counts by a scored request.
            yield "overload='fail' with unit='user': users count by requests that were scored; leave one out"

    @property
    def expectation_names(self) -> tuple[str, ...]:
        """The names of the expectations whose rows are counted."""
        return () if self.expectations is None else tuple(one.name for one in self.expectations.row_wise)

    @property
    def aggregates(self) -> tuple[Expectation, ...]:
        """The expectations about all rows together."""
        return () if self.expectations is None else self.expectations.aggregates

    @property
    def collections(self) -> tuple[str, ...]:
        """The collections that the gate judges something of, in order of appearance."""
        collections = [column.partition(".")[0] for column in self.columns.values()]
        if self.expectations is not None:
            collections += self.expectations.collections
        return tuple(dict.fromkeys(collections))

    @property
    def judged_columns(self) -> tuple[tuple[str, str], ...]:
        """Each collected column that a metric or an expectation is about, as its name and `<collection>.<column>`."""
        expectations = () if self.expectations is None else self.expectations.expectations
        return (
            *self.columns.items(),
            *((one.name, f"{one.collection}.{column}") for one in expectations for column in one.columns),
        )

    @property
    def columns(self) -> Mapping[str, str]:
        """The collected column of each metric that has one, by the metric's name."""
        metrics: Mapping[str, Mean | Category] = {**self.means, **self.categories}
        return {name: metric.column for name, metric in metrics.items() if metric.column is not None}


@dataclass(frozen=True, slots=True)
class Moments:
    """The values of one numeric metric that one version had in one bin: what their mean and its error need.

    Attributes:
        count: How many values.
        mean: Their mean, in the metric's unit.
        variance: Their sample variance (the sum of squared deviations over count - 1), in the unit squared; 0 for fewer
            than two values.
    """

    count: int
    mean: float = 0.0
    variance: float = 0.0


@dataclass(frozen=True, slots=True)
class UserCounts:
    """The users of one version in one bin who count there: by their first request since the split was set.

    Attributes:
        users: How many users.
        errors: Those whose first request was an error.
        slow: As in `Counts`, of their first requests.
        above: What is known of how they were drawn: at an earlier split, at which the treatment had this part of the
            traffic, they were in control. 0: they are new, or were in control before the treatment had traffic.
        overloaded: As in `Counts`: those whose first request was refused without scoring it. They say something of the
            split alone.
    """

    users: int
    errors: int
    slow: tuple[int, ...] = ()
    above: float = 0.0
    overloaded: int = 0


# One for all: a look may carry tens of thousands of counts.
NO_MEANS: Final[Mapping[str, Moments]] = {}
NO_CATEGORIES: Final[Mapping[str, Mapping[str, int]]] = {}


@dataclass(frozen=True, slots=True)
class Counts:
    """What callers saw of one version in one bin.

    Attributes:
        requests: All requests.
        errors: Those answered with a code of 500 or more, time-outs and the router's own 503 and 504 included, without
            those that are `overloaded`.
        slow: For each latency quantile, the requests slower than control's frozen quantile (for the treatment:
            slower than the quantile times 1 + tolerance); after them, if the gate has a `max_latency`, the requests
            slower than that. Empty where latency is not judged.
        means: The values of the author's numeric metrics, by name; one without values may be left out.
        categories: How often each category of the author's categorical metrics was seen, by name and category. They
            need not add up to the requests.
        represented: How many requests these stand for, where telemetry is sampled; 0: each for itself. The requests
            are the observations: the gate judges by them alone.
        users: The users among them, by how they were drawn, where the gate counts users.
        overloaded: Those that the version has refused because it had no room, without scoring them. They are neither
            errors nor slow.
        scoring: In a bin in which a version refused requests: for how many of the others it is known how long they were
            scored, any wait left out; then for each count in `slow` how many of them were slower by that time. Empty
            where it is not known.
    """

    requests: int
    errors: int
    slow: tuple[int, ...] = ()
    means: Mapping[str, Moments] = field(default_factory=lambda: NO_MEANS)
    categories: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: NO_CATEGORIES)
    represented: int = 0
    users: tuple[UserCounts, ...] = ()
    overloaded: int = 0
    scoring: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Bin:
    """The evidence of one closed time bin.

    Attributes:
        start: When the bin begins.
        control: Control's counts.
        treatment: The treatment's counts.
        share: The treatment's set part of the two versions' traffic, 0 to 1; None where the split changed within the
            bin or is not known: the split is then not checked.
        checks_split: Whether what is counted fell to the treatment with that part. False for users who were in control
            at an earlier split: fewer of them come to the treatment than of new ones.
    """

    start: datetime
    control: Counts
    treatment: Counts
    share: float | None = None
    checks_split: bool = True


class Outcome(StrEnum):
    """What a look at the evidence concludes; the text is what `Verdict.outcome` compares with."""

    PASS = "pass"  # noqa: S105 - an outcome, not a password
    FAIL = "fail"
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"
    CANNOT_SEE = "cannot_see"
    SPLIT_IS_WRONG = "split_is_wrong"


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim about the treatment or the split, and the evidence for it.

    Attributes:
        name: What is claimed, such as `errors are higher` or `latency is not twice as often exceeded`.
        kind: `alarm` (reaching the threshold fails), `pass` (needed for a pass) or `split` (the split is wrong).
        e_value: The most evidence for the claim after any bin; at least 1, may be infinite.
        threshold: The claim is established once the e-value has reached this at any look.
        reached: Whether it ever has.
        needed_requests: About how many more treatment requests a `pass` claim needs at the present rates; 0 when
            reached, None when it cannot be said.
        detail: The numbers behind it in words.
        present: For an alarm the evidence after the newest bin, as far as it could establish the claim; 1 for others.
    """

    name: str
    kind: Literal["alarm", "pass", "split"]
    e_value: float
    threshold: float
    reached: bool
    needed_requests: int | None = None
    detail: str = ""
    present: float = 1.0

    @property
    def is_near(self) -> bool:
        """Whether this is an alarm whose present evidence is a tenth of its threshold or more."""
        return self.kind == "alarm" and self.present >= self.threshold / NEAR


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one look concludes.

    Attributes:
        outcome: One of five; compares equal to its text, such as "pass".
        claims: Every claim, alarms first.
        reason: The outcome in a sentence, with the deciding claim's numbers.
        control_requests, treatment_requests: How many requests were counted, warm-up left out.
        waits: Why no step goes on now, whatever it asks for: the treatment or control is broken, there is nothing to
            compare with, or an alarm is near in the treatment's newest requests.
        no_pass: Why nothing passes now, however many more requests there will be, such as a treatment without room.
        needs_new_rollout: Those of `waits` and `no_pass` that time does not change either, as far as can be seen now:
            only a new rollout does.
    """

    outcome: Outcome
    claims: tuple[Claim, ...] = field(default=())
    reason: str = ""
    control_requests: int = 0
    treatment_requests: int = 0
    waits: tuple[str, ...] = ()
    no_pass: tuple[str, ...] = ()
    needs_new_rollout: tuple[str, ...] = ()
