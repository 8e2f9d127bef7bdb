"""A split is stored before it is served: until a look finds it served, the share of the bins is not known."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout import record
from controlled_rollout.evaluation.conclusion import conclude
from controlled_rollout.evaluation.replay import replay
from controlled_rollout.evidence import Evidence, EvidenceWindow, RouterCounts, SplitChange
from controlled_rollout.evidence.bins import with_served_shares
from controlled_rollout.gate import Bin, Counts, Gate, verdict_to_dict
from controlled_rollout.record import Decision, LookInput, LookSettings, tail
from controlled_rollout.workspace import Workspace

START = datetime(2026, 1, 5, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SETTINGS = LookSettings(
    endpoint="digits",
    treatment="new",
    control="old",
    started=START,
    window=EvidenceWindow(bin_width=MINUTE, allowed_lag=timedelta(0)),
    gate=Gate(latency_quantiles=()),
)
# Revision 2 was stored in the third minute, and is served from the sixth on.
SPLITS = (SplitChange(START, 0.1), SplitChange(START + 2 * MINUTE, 0.5, revision=2))
SERVED_AFTER = 6


def at(minute: float) -> datetime:
    return START + minute * MINUTE


def bins(until: int) -> tuple[Bin, ...]:
    """Bins with the share that was set, and 1,000 requests as the router served them."""
    return tuple(
        Bin(
            at(minute),
            Counts(900 if minute < SERVED_AFTER else 500, 0),
            Counts(100 if minute < SERVED_AFTER else 500, 0),
            share=0.1 if minute < 2 else 0.5,
        )
        for minute in range(until)
    )


def look(workspace: Workspace, minute: int, *, knows: bool = True) -> str:
    """Look at the end of a minute, and return the outcome."""
    served = (2 if minute > SERVED_AFTER else 1) if knows else 0
    present = RouterCounts(at(minute), {"old": 1, "new": 1}, served=served)
    evidence = Evidence(bins(minute), (), (), at(minute), ())

    def decide(look: LookInput) -> Decision:
        verdict = conclude(look)
        return Decision(
            time=at(minute), endpoint="digits", version="new", step="look", who="a test",
            outcome=verdict.outcome.value, verdict=verdict_to_dict(verdict),
        )  # fmt: skip

    decision = record.append_look(workspace, LookInput(SETTINGS, evidence, (present,), splits=SPLITS), decide)
    return str(decision.outcome)


@pytest.mark.parametrize("process", ["the same", "a fresh one for each look"])
def test_a_split_that_is_served_late_is_not_called_wrong(tmp_path: Path, process: str) -> None:
    workspace = Workspace.local(tmp_path)
    outcomes = []
    for minute in range(1, 13):
        if process != "the same":
            tail._tails.clear()
        outcomes.append(look(workspace, minute))

    assert "split_is_wrong" not in outcomes
    looks = list(replay(record.read(workspace, "digits")))
    assert [one.difference for one in looks] == [""] * 12
    assert looks[-1].look is not None
    shares = [one.share for one in looks[-1].look.evidence.bins]
    assert shares == [0.1, 0.1, *[None] * 5, *[0.5] * 5]


def test_without_knowing_what_is_served_it_would_be_called_wrong(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)

    assert [look(workspace, minute, knows=False) for minute in range(1, 7)][-1] == "split_is_wrong"


def test_a_split_that_nobody_has_found_served_before_the_next_one_stays_unknown() -> None:
    splits = (*SPLITS, SplitChange(at(5), 0.8, revision=3))

    known = with_served_shares(bins(9), splits, {1: at(1), 3: at(7)}, width=MINUTE)

    assert [one.share for one in known] == [0.1, 0.1, *[None] * 5, 0.5, 0.5]
