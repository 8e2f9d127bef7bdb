"""A rollout on hold: what ends it, what the endpoint says of it, and how long nobody has seen its evidence."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout import record
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ConflictError, EvidenceUnavailableError, TargetUnavailableError
from controlled_rollout.evaluation import hold
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evaluation.look import Look
from controlled_rollout.evaluation.next_action import (
    GateTerms,
    LookResult,
    NextAction,
    decide,
    decide_after_error,
    take_look,
)
from controlled_rollout.evidence import Evidence, EvidenceQuery
from controlled_rollout.gate import Bin, Counts, Gate, Outcome, Verdict
from controlled_rollout.record import Decision
from controlled_rollout.target import connect as connect_module
from controlled_rollout.workspace import Workspace
from tests.unit.evaluation.one_endpoint import OneEndpoint

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
DAY = 24 * HOUR
ROLLING = (
    Endpoint(name="digits")
    .create_version("v1a", is_control=True)
    .claim("v2a", owner="dag/run", at=NOW - 9 * DAY)
    .create_version("v2a", traffic_percentile=10)
)
SEEN_OUTCOMES = ["pass", "not_enough_evidence", "split_is_wrong"]


def terms(**changes: Any) -> GateTerms:
    """The terms of a gate that began to wait eight days ago."""
    return GateTerms(
        **{
            "endpoint": "digits", "version": "v2a", "who": "dag/run/gate", "owner": "dag/run",
            "gate": Gate(latency_quantiles=()), "bake": HOUR, "min_requests": 0, "require_pass": True,
            "decision_timeout": DAY, "on_deadline": "hold", "interval": timedelta(minutes=1),
            "waiting_since": NOW - 8 * DAY, **changes,
        }
    )  # fmt: skip


def look(outcome: str, endpoint: Endpoint = ROLLING, *, since: timedelta = 8 * DAY) -> Look:
    verdict = Verdict(Outcome(outcome), reason=f"because of {outcome}")
    return Look(
        verdict,
        started=NOW - 9 * DAY,
        since_shift=since,
        seen_at_share=since,
        requests_at_share=9,
        share=10.0,
        document=endpoint,
    )


# By the mark in the endpoint, as in a worker; by what the task has done itself, as in the triggerer.
HELD = [(ROLLING.hold("v2a", owner=None, at=NOW - 7 * DAY), terms()), (ROLLING, terms(held=NOW - 7 * DAY))]


@pytest.mark.parametrize(("endpoint", "held"), HELD)
@given(
    outcome=st.sampled_from([*SEEN_OUTCOMES, "cannot_see"]),
    on_deadline=st.sampled_from(["hold", "roll_back", "ask"]),
    require_pass=st.booleans(),
)
def test_on_hold_no_look_lets_the_rollout_go_on_and_only_an_alarm_ends_it(
    endpoint: Endpoint, held: GateTerms, outcome: str, on_deadline: str, require_pass: bool
) -> None:
    of = held.model_copy(update={"on_deadline": on_deadline, "require_pass": require_pass})
    waits = decide(look(outcome, endpoint), of, now=NOW)
    assert waits.action is NextAction.WAIT
    assert waits.reason.startswith("on hold since")
    assert decide(look("fail", endpoint), of, now=NOW).action is NextAction.FAIL


def test_look_on_hold_says_that_the_gate_would_go_on_now() -> None:
    passes = decide(look("pass"), terms(held=NOW - HOUR), now=NOW)
    assert "a person decides; the gate would go on now: because of pass" in passes.reason


@pytest.mark.parametrize("error", [TargetUnavailableError("no socket"), TypeError("a fault")])
def test_error_on_hold_changes_nothing(error: Exception) -> None:
    assert decide_after_error(terms(held=NOW - 7 * DAY), error, now=NOW).action is NextAction.WAIT


def test_hold_of_friday_that_is_cleared_on_monday_waits_another_whole_deadline() -> None:
    friday, monday = NOW - 4 * DAY, NOW - HOUR
    cleared, held = terms(waiting_since=monday), ROLLING.hold("v2a", owner=None, at=friday)
    assert decide(look("not_enough_evidence", held), cleared, now=NOW).action is NextAction.WAIT
    assert decide(look("pass", held), cleared, now=NOW).action is NextAction.GO_ON

    resumed = hold.marked(held, cleared)
    assert resumed.rollout is not None
    assert (resumed.rollout.held, resumed.rollout.resumed) == (None, monday)
    # The task is killed and runs again: that does not move the deadline.
    again = terms(waiting_since=monday + 22 * HOUR)
    late = decide(look("not_enough_evidence", resumed), again, now=monday + DAY)
    assert late.action is NextAction.HOLD
    assert "no decision 1 d after the last hold ended" in late.reason


def test_hold_of_an_earlier_step_does_not_lengthen_a_later_one() -> None:
    resumed = ROLLING.hold("v2a", owner=None, at=NOW - 5 * DAY).resume("v2a", owner=None, at=NOW - 4 * DAY)
    later = look("not_enough_evidence", resumed, since=23 * HOUR)
    assert decide(later, terms(), now=NOW).action is NextAction.WAIT
    assert decide(look("not_enough_evidence", resumed, since=DAY), terms(), now=NOW).action is NextAction.HOLD


@pytest.mark.parametrize(("endpoint", "held"), HELD)
def test_hold_that_nobody_sees_for_as_long_as_the_author_allows_is_rolled_back(
    endpoint: Endpoint, held: GateTerms
) -> None:
    limited = held.model_copy(update={"unseen_timeout": 2 * DAY})
    blind = look("cannot_see", endpoint)
    ended = decide(blind, limited, now=NOW, unseen_for=2 * DAY)
    assert ended.action is NextAction.FAIL
    assert "no look has seen the evidence for 2 d (unseen_timeout 2 d)" in ended.reason
    for unseen_for in (2 * DAY - timedelta(seconds=1), None):
        assert decide(blind, limited, now=NOW, unseen_for=unseen_for).action is NextAction.WAIT
    assert decide(blind, held, now=NOW, unseen_for=300 * DAY).action is NextAction.WAIT, "None keeps it"


def test_the_mark_of_a_hold_is_written_once_and_taken_away_once() -> None:
    assert hold.marked(ROLLING, terms()) is ROLLING
    held = hold.marked(ROLLING, terms(held=NOW - HOUR))
    assert held.rollout is not None and held.rollout.held == NOW - HOUR
    assert held.effective_traffic() == ROLLING.effective_traffic()
    assert hold.marked(held, terms(held=NOW - HOUR)) is held
    assert hold.marked(held, terms()) is held, "the triggerer was restarted before the task knew of the hold"
    ended = ROLLING.release("v2a")
    assert hold.marked(ended, terms(held=NOW, owner=None)) is ended
    assert held.rollout.is_same(ROLLING.rollout)


class Source:
    """Healthy evidence; or none, because the store is away."""

    def __init__(self, *, away: bool = False, errors: int = 5) -> None:
        self._away, self._errors = away, errors

    async def read(self, query: EvidenceQuery) -> Evidence:
        if self._away:
            raise EvidenceUnavailableError("the store does not answer")
        counts = Bin(NOW - 2 * HOUR, Counts(1_000, 5), Counts(1_000, self._errors), share=0.5)
        return Evidence((counts,), (), (), NOW - timedelta(minutes=3), ("AppRequests",))


class HeldRollout:
    """A rollout that its gate has put on hold, in a workspace of the test."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.workspace = Workspace.local(root)
        self.target = OneEndpoint(before=NOW - 9 * DAY, created=NOW - 8 * DAY, counted=dict)
        self.messages: list[str] = []
        self.source = Source()
        self.terms = terms(held=NOW - 3 * DAY)
        patch.setattr(connect_module, "connect", self.target.connect)
        patch.setattr(looks, "evidence_source", lambda workspace: self.source)

    def take(self, **changes: Any) -> LookResult:
        of = self.terms.model_copy(update=changes)
        return asyncio.run(take_look(self.workspace, of, self.messages.append))

    def seen(self, ago: timedelta, outcome: str) -> None:
        """Append a look to the record."""
        decision = Decision(
            time=NOW - ago, endpoint="digits", version="v2a", step="look", who="dag/run/gate", outcome=outcome
        )
        record.append(self.workspace, decision)

    @property
    def held(self) -> datetime | None:
        return self.target.newest.rollout.held if self.target.newest.rollout else None


@pytest.fixture
def rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HeldRollout:
    return HeldRollout(tmp_path, monkeypatch)


def test_hold_is_in_the_endpoint_and_in_the_record(rollout: HeldRollout) -> None:
    asyncio.run(hold.put_on_hold(rollout.workspace, rollout.terms, "too few requests", rollout.messages.append))
    assert rollout.held == NOW - 3 * DAY
    assert asyncio.run(rollout.target.history("digits"))[-1].change.reason == "too few requests"
    [line] = record.read(rollout.workspace, "digits")
    assert (line.step, line.who, line.reason, line.run) == ("hold", "dag/run/gate", "too few requests", "dag/run")


def test_hold_that_cannot_be_written_is_written_by_a_later_look(rollout: HeldRollout) -> None:
    rollout.target.refuses = ConflictError("another writer was faster")
    asyncio.run(hold.put_on_hold(rollout.workspace, rollout.terms, "too few requests", rollout.messages.append))
    assert rollout.held is None
    assert "not written into the endpoint yet: another writer was faster" in rollout.messages[0]

    assert rollout.take().action is NextAction.WAIT
    rollout.target.refuses = None
    assert rollout.take().action is NextAction.WAIT
    assert rollout.held == NOW - 3 * DAY


def test_a_hold_that_only_the_record_has_is_one_for_a_gate_whose_looks_are_processes_of_their_own(
    rollout: HeldRollout,
) -> None:
    """Its target was away when it was put on hold; then the evidence would let it go on."""
    rollout.terms = terms(require_pass=False, forgets_hold=True)
    line = {"endpoint": "digits", "version": "v2a", "who": "dag/run/gate"}
    record.append(rollout.workspace, Decision.model_validate({"step": "hold", "time": NOW - DAY, **line}))
    result = rollout.take()
    assert (result.action, rollout.held) == (NextAction.WAIT, NOW - DAY)
    assert "a person decides; the gate would go on now" in result.reason


def line(step: str, ago: timedelta, **fields: Any) -> Decision:
    """A line of the record."""
    known = {"endpoint": "digits", "version": "v2a", "who": "dag/run/gate", "time": NOW - ago, "step": step}
    return Decision.model_validate({**known, **fields})


BEGIN = NOW - 8 * DAY


@pytest.mark.parametrize(
    ("newest_first", "held"),
    [
        ([line("look", HOUR, gate_since=BEGIN), line("hold", DAY)], NOW - DAY),
        ([line("look", HOUR, gate_since=BEGIN), line("hold", DAY, who="Ada")], None),
        ([line("look", HOUR, gate_since=BEGIN), line("hold", 9 * DAY)], None),
        # Before it was cleared.
        (
            [line("look", HOUR, gate_since=BEGIN), line("look", 9 * DAY, gate_since=BEGIN - DAY), line("hold", DAY)],
            None,
        ),
        (
            [
                line("look", HOUR, gate_since=BEGIN),
                line("hold", 9 * DAY),
                line("look", 9 * DAY, gate_since=BEGIN - DAY),
            ],
            None,
        ),
        # Its clock was set back behind its begin.
        ([line("look", 9 * DAY, gate_since=BEGIN), line("hold", 9 * DAY), line("look", DAY, gate_since=BEGIN)], BEGIN),
    ],
)
def test_a_task_finds_its_own_hold_in_the_record(newest_first: list[Decision], held: datetime | None) -> None:
    assert hold.hold_of(newest_first, terms()) == held


def test_the_record_tells_a_gates_look_from_one_that_ignores_holds(rollout: HeldRollout) -> None:
    rollout.take()
    rollout.take(only_alarms=True)
    asyncio.run(take_look(rollout.workspace, rollout.terms, rollout.messages.append, acts=False))
    looked = [line.gate_since for line in record.read(rollout.workspace, "digits", step="look")]
    assert looked == [NOW - 8 * DAY, None, None]


def test_looks_go_on_during_a_hold_and_an_alarm_ends_it(rollout: HeldRollout) -> None:
    assert rollout.take().action is NextAction.WAIT
    rollout.source = Source(errors=900)
    assert rollout.take().action is NextAction.FAIL
    assert [line.outcome for line in record.read(rollout.workspace, "digits", step="look")][-1] == "fail"


def test_cleared_gate_takes_the_hold_away_and_passes(rollout: HeldRollout) -> None:
    rollout.take()
    assert rollout.held is not None
    rollout.terms = terms(waiting_since=NOW, require_pass=False)
    assert rollout.take().action is NextAction.GO_ON
    assert rollout.held is None


@pytest.mark.parametrize(
    ("seen_before", "action"), [(3 * DAY, NextAction.FAIL), (2 * DAY, NextAction.FAIL), (DAY, NextAction.WAIT)]
)
def test_unseen_timeout_counts_from_the_last_look_that_could_see(
    rollout: HeldRollout, seen_before: timedelta, action: NextAction
) -> None:
    rollout.seen(5 * DAY, "not_enough_evidence")
    rollout.seen(seen_before, "not_enough_evidence")
    rollout.seen(HOUR, "cannot_see")
    rollout.source = Source(away=True)
    assert rollout.take(unseen_timeout=2 * DAY).action is action
    assert rollout.take(unseen_timeout=None).action is NextAction.WAIT


def test_without_the_record_unseen_timeout_takes_no_treatment_back(rollout: HeldRollout) -> None:
    rollout.workspace.records_folder.parent.mkdir(parents=True, exist_ok=True)
    rollout.workspace.records_folder.write_text("not a folder")
    rollout.source = Source(away=True)
    assert rollout.take(unseen_timeout=timedelta(seconds=1)).action is NextAction.WAIT
