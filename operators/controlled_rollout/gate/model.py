"""The gate's vocabulary: what is asked, what was counted, what is concluded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Bin", "Claim", "Counts", "Gate", "Outcome", "Verdict"]


class Gate(BaseModel):
    """What a treatment has to show, and how sure the gate has to be.

    Attributes:
        alpha: Most probability, over all looks together, of stopping a treatment that is as good as control.
        beta: Most probability of passing a treatment whose odds of an error are `pass_ratio` times control's.
        error_ratio: Odds ratio of errors that is still tolerated (r0).
        error_difference: Absolute difference of error rates that is still tolerated, as a fraction.
        pass_ratio: Odds ratio that a pass has to rule out (r1).
        acceptable_error_rate: Where errors are too rare for a ratio, an upper bound at or below this rate passes.
        latency_tolerance: Relative slow-down that is still tolerated (m).
        latency_quantiles: Control's quantiles, frozen before the rollout, whose exceedances are counted.
        warm_up: Evidence this soon after the treatment's first traffic is left out.
        split_alpha: Like `alpha`, for the alarm that the split served is not the split set.
        burst_cap: Largest likelihood ratio that one bin may contribute, instead of dividing by the baseline's
            burstiness; None divides.
        treatments: How many treatments are judged against the same control at the same time.
        weights: How `alpha` is shared out over the metrics `errors` and `latency`, as parts of their sum; a metric that
            is not named has 1, and one that is not judged gives its part to the other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.05
    error_ratio: Annotated[float, Field(ge=1)] = 1.1
    error_difference: Annotated[float, Field(ge=0, lt=1)] = 0.002
    pass_ratio: Annotated[float, Field(gt=1)] = 2.0
    acceptable_error_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01
    latency_tolerance: Annotated[float, Field(ge=0)] = 0.05
    latency_quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.9, 0.95, 0.99)
    warm_up: Annotated[timedelta, Field(ge=timedelta(0))] = timedelta(0)
    split_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001
    burst_cap: Annotated[float, Field(gt=1)] | None = None
    treatments: Annotated[int, Field(ge=1, le=5)] = 1
    weights: Mapping[Literal["errors", "latency"], Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}


@dataclass(frozen=True, slots=True)
class Counts:
    """What callers saw of one version in one bin.

    Attributes:
        requests: All requests.
        errors: Those answered with a code of 500 or more, time-outs and the router's own 503 and 504 included.
        slow: For each latency quantile, the requests slower than control's frozen quantile (for the treatment:
            slower than the quantile times 1 + tolerance). Empty where latency is not judged.
    """

    requests: int
    errors: int
    slow: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Bin:
    """The evidence of one closed time bin.

    Attributes:
        start: When the bin begins.
        control: Control's counts.
        treatment: The treatment's counts.
        share: The treatment's set part of the two versions' traffic, 0 to 1; None where the split changed within the
            bin or is not known: the split is then not checked.
    """

    start: datetime
    control: Counts
    treatment: Counts
    share: float | None = None


class Outcome(StrEnum):
    """What a look at the evidence concludes; the text is what `Verdict.outcome` compares with."""

    PASS = "pass"  # noqa: S105 - an outcome, not a password
    FAIL = "fail"
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"
    CANNOT_SEE = "cannot_see"
    SPLIT_IS_WRONG = "split_is_wrong"


@dataclass(frozen=True, slots=True)
class Claim:
    """One question asked of the evidence, and how far it is answered.

    Attributes:
        name: What is claimed, such as `errors are higher` or `latency is not twice as often exceeded`.
        kind: `alarm` (reaching the threshold fails), `pass` (needed for a pass) or `split` (the split is wrong).
        e_value: The most evidence for the claim after any bin; at least 1, may be infinite.
        threshold: The claim is established once the e-value has reached this at any look.
        reached: Whether it ever has.
        needed_requests: About how many more treatment requests a `pass` claim needs at the present rates; 0 when
            reached, None when it cannot be said.
        detail: The numbers behind it in words.
    """

    name: str
    kind: Literal["alarm", "pass", "split"]
    e_value: float
    threshold: float
    reached: bool
    needed_requests: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one look concludes.

    Attributes:
        outcome: One of five; compares equal to its text, such as "pass".
        claims: Every claim, alarms first.
        reason: The outcome in a sentence, with the deciding claim's numbers.
        control_requests, treatment_requests: How many requests were counted, warm-up left out.
    """

    outcome: Outcome
    claims: tuple[Claim, ...] = field(default=())
    reason: str = ""
    control_requests: int = 0
    treatment_requests: int = 0
