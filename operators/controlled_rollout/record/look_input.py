"""Everything that a look's verdict rests on: what the record keeps, and what a replay judges again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict

from controlled_rollout.evidence import CountedPeriod, Evidence, EvidenceWindow, RouterCounts, SplitChange
from controlled_rollout.gate import Gate

__all__ = ["LookInput", "LookSettings"]


class LookSettings(BaseModel):
    """What is the same for all looks of one gate on one rollout.

    Attributes:
        endpoint, treatment, control: The endpoint and the two versions.
        started: When the rollout began.
        window: How the evidence is read.
        gate: What the treatment has to show.
        queries: What gives the same numbers when the metric store is queried by hand.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    endpoint: str
    treatment: str
    control: str
    started: AwareDatetime
    window: EvidenceWindow
    gate: Gate
    queries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LookInput:
    """What one look's verdict rests on.

    Attributes:
        settings: What is the same for all looks of the gate.
        evidence: What was read from the metric store.
        router: What the router had counted, oldest first: at two earlier looks, if the record has them, and now.
        down: A sentence that says that the treatment is down; empty if it is not.
        periods: What the router had counted over the rollout, up to the end of the evidence, oldest first.
        splits: The splits that were set, oldest first; the record does not keep them, for the bins have their shares.
        served: By revision: the first look at which the router served its whole split.
    """

    settings: LookSettings
    evidence: Evidence
    router: tuple[RouterCounts, ...] = ()
    down: str = ""
    periods: tuple[CountedPeriod, ...] = ()
    splits: tuple[SplitChange, ...] = ()
    served: Mapping[int, datetime] = field(default_factory=dict)
