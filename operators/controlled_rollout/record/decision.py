"""One line of the record: what was decided, when, by whom and why; of a look, also what it saw."""

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

__all__ = ["Counted", "Decision", "LookEvidence", "Stretch"]

Step = Literal["roll_out", "shift", "look", "hold", "ask", "approve", "reject", "promote", "roll_back", "retire"]


class Stretch(BaseModel):
    """The bins of one look, said by what changed since the look before it in the same series.

    Attributes:
        keep: How many of the bins of the look before stand first.
        add: The bins after those, as JSON.
        digest: Of all bins together: tells whether a line between the two looks is missing.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    keep: int
    add: tuple[dict[str, Any], ...] = ()
    digest: str


class Counted(BaseModel):
    """What the router had counted at one moment: requests sent to each version since it started."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: AwareDatetime
    requests: dict[str, int]


class LookEvidence(BaseModel):
    """What a look saw: with the lines before it, everything that its verdict can be recomputed from.

    Attributes:
        series: Names the looks that build on each other: those of one gate on one rollout, in one file.
        until: How far the evidence reaches.
        thresholds_ms: Control's latency quantiles before the rollout, in milliseconds.
        bins: Closed bins since the rollout began.
        baseline: Control's bins before it.
        lag_s: How late telemetry has come, in seconds; None where the store does not tell.
        router: What the router had counted, at the moments that the verdict rests on, oldest first.
        down: That the treatment was down, in a sentence; empty if it was not.
        settings: What is the same for the whole series (gate, control, how evidence is read, the queries); only on its
            first line.
        software: The version of this package that judged; likewise.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    series: str
    until: AwareDatetime
    thresholds_ms: tuple[float, ...] = ()
    bins: Stretch
    baseline: Stretch
    lag_s: float | None = None
    router: tuple[Counted, ...] = ()
    down: str = ""
    settings: dict[str, Any] | None = None
    software: str | None = None


class Decision(BaseModel):
    """One line of the record.

    Attributes:
        time: When it was decided.
        endpoint, version: What it is about.
        step: Which step decided.
        who: The person, or the task as `dag/run/task`.
        why: The reason in a sentence.
        outcome: Of a look: pass, fail, not_enough_evidence, cannot_see or split_is_wrong.
        verdict: Of a look: the claims with their numbers.
        evidence: Of a look that could read the metric store: a `LookEvidence` as JSON.
        share: The version's effective per cent of the traffic, at a look or after a step.
        revision: The endpoint's revision that the step led to, or looked at.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: AwareDatetime
    endpoint: str
    version: str
    step: Step
    who: str
    why: str = ""
    outcome: str | None = None
    verdict: dict[str, Any] | None = None
    evidence: dict[str, Any] | None = None
    share: float | None = None
    revision: int | None = None

    @property
    def look(self) -> LookEvidence | None:
        """What a look saw; None for other steps, and for looks that could not read the metric store."""
        complete = self.evidence is not None and "series" in self.evidence
        return LookEvidence.model_validate(self.evidence) if complete else None
