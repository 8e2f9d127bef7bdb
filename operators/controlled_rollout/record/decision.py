"""One line of the record: what was decided, when, by whom and why; of a look, also its evidence."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.evidence import CountedPeriod, RouterCounts
from controlled_rollout.gate import Aggregates, Verdict, verdict_to_dict
from controlled_rollout.record.look_input import LookSettings

__all__ = ["BinDelta", "Decision", "LookEvidence"]

Step = Literal[
    "deploy", "shift", "look", "go_on", "hold", "ask", "approve", "reject", "promote", "roll_back", "retire",
    "judge_labels", "confirm",
]  # fmt: skip


class BinDelta(BaseModel):
    """The bins of one look, as the difference to the previous look of the same series.

    Attributes:
        keep: How many of the previous look's bins stay, from the first.
        add: The bins after those, as JSON.
        digest: Of all bins together: shows whether a line between the two looks is missing.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    keep: int
    add: tuple[dict[str, Any], ...] = ()
    digest: str


class LookEvidence(BaseModel):
    """The evidence of a look: with the lines before it, its verdict can be computed again.

    Attributes:
        series: Names the looks that build on each other: those of one gate on one rollout, in one part of the record.
        until: How far the evidence reaches.
        thresholds_ms: Control's latency quantiles before the rollout, in milliseconds.
        bins: Closed bins since the rollout began.
        baseline: Control's bins before it.
        lag: How late telemetry came; None where the store does not tell.
        router: What the router had counted, oldest first: at two earlier looks, if there were any, and at this one.
        down: A sentence that says that the treatment was down; empty if it was not.
        periods: What the router had counted over the rollout up to `until`, without the times of a router's restarts.
        served: By revision: the first look at which the router served its whole split.
        cuts: By metric that is a collected column, the frozen edges of its buckets or bounds of its values.
        unseen: What of the collected data could not be seen, in a sentence; empty if all was seen.
        aggregates: What the expectations about all rows together found at the present share; only where it is new, and
            on the first line of a series in a part.
        aggregates_stay: Whether what they found at an earlier look still is about the present share.
        settings: What is the same for the whole series; only on its first line.
        software: The version of this package that judged; likewise.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    series: str
    until: AwareDatetime
    thresholds_ms: tuple[float, ...] = ()
    bins: BinDelta
    baseline: BinDelta
    lag: timedelta | None = None
    router: tuple[RouterCounts, ...] = ()
    down: str = ""
    periods: tuple[CountedPeriod, ...] = ()
    served: dict[int, AwareDatetime] = {}
    cuts: dict[str, tuple[float, ...]] = {}
    unseen: str = ""
    aggregates: Aggregates | None = None
    aggregates_stay: bool | None = None
    settings: LookSettings | None = None
    software: str | None = None

    def aggregates_after(self, before: Aggregates | None) -> Aggregates | None:
        """Return what the expectations about all rows together have found at the share of this look.

        Args:
            before: The same after the look before it in the series.
        """
        return self.aggregates or (before if self.aggregates_stay else None)


class Decision(BaseModel):
    """One line of the record.

    Attributes:
        time: When it was decided.
        endpoint, version: What it is about.
        step: Which step decided; `go_on`: a gate let the rollout go on from its present share; `judge_labels`: a look
            at labels that came late; `confirm`: such labels have shown that the version is good enough.
        who: The person, or the task as `dag/run/task`.
        reason: The reason in a sentence.
        outcome: Of a look, or of a gate that lets the rollout go on: pass, fail, not_enough_evidence, cannot_see or
            split_is_wrong.
        verdict: Of a look: the claims with their numbers.
        evidence: Of a look that could read the metric store: a `LookEvidence` as JSON.
        share: The version's effective per cent of the traffic, at a look or after a step.
        revision: The endpoint's revision that the step led to, or looked at.
        run: The run that held the endpoint for the version then; None if no run did.
        rollout: When that rollout began: together with endpoint and version it says which rollout this is about.
        gate_since: Of a gate's look: since when its task waits; it ignores earlier holds. None for looks of others.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: AwareDatetime
    endpoint: str
    version: str
    step: Step
    who: str
    reason: str = ""
    outcome: str | None = None
    verdict: dict[str, Any] | None = None
    evidence: dict[str, Any] | None = None
    share: float | None = None
    revision: int | None = None
    run: str | None = None
    rollout: AwareDatetime | None = None
    gate_since: AwareDatetime | None = None

    @classmethod
    def about(cls, endpoint: Endpoint, version: str, *, step: Step, who: str, **fields: Any) -> Self:
        """Return a decision about a version as the endpoint has it: with its share, the revision, run and rollout.

        Args:
            endpoint: The endpoint, as it was read or stored.
            version: The version.
            step: Which step decided.
            who: Who decided.
            **fields: Any other field; `time` is the present if it is not given.
        """
        held = endpoint.rollout if endpoint.rollout and endpoint.rollout.version == version else None
        known = {
            "time": datetime.now(UTC),
            "share": endpoint.effective_traffic().get(version),
            "revision": endpoint.revision,
            "run": held.owner if held else None,
            "rollout": held.started if held else None,
        }
        return cls(**{**known, **fields, "endpoint": endpoint.name, "version": version, "step": step, "who": who})

    def with_verdict(self, verdict: Verdict) -> Self:
        """Return a copy of the decision with a verdict, its outcome and its reason."""
        return self.model_copy(
            update={"reason": verdict.reason, "outcome": verdict.outcome.value, "verdict": verdict_to_dict(verdict)}
        )

    def look_evidence(self) -> LookEvidence | None:
        """Return a look's evidence; None for other steps, and for looks that could not read the metric store.

        Raises:
            ValidationError: The evidence is damaged.
        """
        complete = self.evidence is not None and "series" in self.evidence
        return LookEvidence.model_validate(self.evidence) if complete else None
