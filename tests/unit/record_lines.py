"""Looks for the tests of the record: bins of a made-up rollout, judged and appended as a gate does."""

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from controlled_rollout import record
from controlled_rollout.evaluation.conclusion import conclude
from controlled_rollout.evidence import Evidence, EvidenceWindow, RouterCounts
from controlled_rollout.gate import Bin, Counts, Gate, verdict_to_dict
from controlled_rollout.record import Decision, LookInput, LookSettings
from controlled_rollout.workspace import Workspace

T0 = datetime(2026, 1, 5, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
WINDOW = EvidenceWindow(bin_width=MINUTE, allowed_lag=3 * MINUTE)
GATE = Gate(latency_quantiles=(0.5, 0.95))


def bins(number: int, *, seed: int = 1, treatment_errors: float = 0.01, start: datetime = T0) -> tuple[Bin, ...]:
    chance = random.Random(seed)

    def counts(requests: int, rate: float) -> Counts:
        errors = sum(chance.random() < rate for _ in range(requests))
        return Counts(requests, errors, slow=(requests // 2, requests // 20))

    return tuple(
        Bin(start + n * MINUTE, control=counts(90, 0.01), treatment=counts(10, treatment_errors), share=0.1)
        for n in range(number)
    )


def append(
    workspace: Workspace,
    bins: Sequence[Bin],
    *,
    version: str = "v2a",
    gate: Gate = GATE,
    baseline: Sequence[Bin] = (),
    at: datetime | None = None,
    lag: timedelta | None = None,
    router: tuple[RouterCounts, ...] = (),
    down: str = "",
    thresholds_ms: tuple[float, ...] = (10.0, 50.0),
    cuts: Mapping[str, tuple[float, ...]] | None = None,
    unseen: str = "",
) -> Decision:
    """Judge a look and append it, as a gate does."""
    until = at or (bins[-1].start + MINUTE if bins else T0)
    settings = LookSettings(
        endpoint="digits", treatment=version, control="v1a", started=T0, window=WINDOW, gate=gate,
        queries=("AppRequests",),
    )  # fmt: skip
    evidence = Evidence(tuple(bins), tuple(baseline), thresholds_ms, until, settings.queries, lag, cuts or {}, unseen)

    def decide(look: LookInput) -> Decision:
        verdict = conclude(look)
        return Decision(
            time=until + 3 * MINUTE, endpoint="digits", version=version, step="look", who="weekly/run-1/gate",
            reason=verdict.reason, outcome=verdict.outcome.value, verdict=verdict_to_dict(verdict), share=10.0,
        )  # fmt: skip

    return record.append_look(workspace, LookInput(settings, evidence, router, down), decide)
