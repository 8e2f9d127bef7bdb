"""A look of a gate task: what it logs, and what follows when target, endpoint, store or record are not there."""

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout import record
from controlled_rollout.errors import (
    AccessError,
    ControlledRolloutError,
    EvidenceUnavailableError,
    RecordUnavailableError,
    TargetUnavailableError,
)
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evaluation import next_action
from controlled_rollout.evaluation.next_action import FAULT_TIMEOUT, GateTerms, LookResult, NextAction, take_look
from controlled_rollout.evidence import Evidence, EvidenceQuery, EvidenceWindow
from controlled_rollout.gate import Bin, Counts, Gate
from controlled_rollout.target import connect as connect_module
from controlled_rollout.target.history import ON_SILENCE
from controlled_rollout.target.protocol import Change
from controlled_rollout.workspace import Workspace
from tests.unit.evaluation.one_endpoint import OneEndpoint

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
TERMS = GateTerms(
    endpoint="digits", version="v2a", who="dag/run/gate", owner=None, gate=Gate(latency_quantiles=()),
    bake=timedelta(0), min_requests=0, require_pass=True, decision_timeout=24 * HOUR, on_deadline="hold",
    interval=timedelta(minutes=1), waiting_since=NOW,
)  # fmt: skip


class Source:
    """Evidence of one bin; or none, because the store is away."""

    def __init__(
        self, *, errors: int = 0, slow: tuple[int, ...] = (), away: bool = False, fails: Exception | None = None
    ) -> None:
        self._errors, self._slow, self._away, self._fails = errors, slow, away, fails
        self.queries: list[EvidenceQuery] = []

    async def read(self, query: EvidenceQuery) -> Evidence:
        self.queries.append(query)
        if self._fails is not None:
            raise self._fails
        if self._away:
            raise EvidenceUnavailableError("the store does not answer")
        control, treatment = Counts(1_000, 5, self._slow), Counts(1_000, self._errors, self._slow)
        counts = Bin(NOW - HOUR, control, treatment, share=0.5)
        return Evidence((counts,), (), (), NOW - timedelta(minutes=3), ("AppRequests",))


class Gates:
    """Takes looks in a workspace whose target and evidence are those of the test."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.workspace = Workspace.local(root)
        self.messages: list[str] = []
        self._patch = patch

    def take(
        self,
        source: Source | None = None,
        *,
        fails: Exception | None = None,
        terms: GateTerms = TERMS,
        acts: bool = True,
    ) -> LookResult:
        target = OneEndpoint(before=NOW - 5 * HOUR, created=NOW - 2 * HOUR, counted=dict, fails=fails)
        self._patch.setattr(connect_module, "connect", target.connect)
        self._patch.setattr(looks, "evidence_source", lambda workspace: source or Source())
        return asyncio.run(take_look(self.workspace, terms, self.messages.append, acts=acts))


@pytest.fixture
def gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gates:
    return Gates(tmp_path, monkeypatch)


def test_look_logs_share_time_requests_and_claims_and_is_recorded(gates: Gates) -> None:
    result = gates.take(Source(errors=900))

    assert (result.action, result.outcome) == (NextAction.FAIL, "fail")
    assert re.match(
        r"v2a at 50 % for \d+ h( \d+ min)?, judged on 57 min and 1000 requests: fail\nclaim ", gates.messages[0]
    )
    assert gates.messages[1].startswith("fail: errors are higher")
    [decision] = record.read(gates.workspace, "digits", step="look")
    assert (decision.step, decision.outcome, decision.who) == ("look", "fail", "dag/run/gate")


@pytest.mark.parametrize(("baseline", "action"), [(HOUR / 2, NextAction.HOLD), (HOUR, NextAction.WAIT)])
def test_a_gate_whose_baseline_says_nothing_holds_long_before_its_deadline_and_the_record_has_why(
    baseline: timedelta, action: NextAction, gates: Gates
) -> None:
    window = EvidenceWindow(baseline_length=baseline)
    terms = TERMS.model_copy(update={"gate": Gate(latency_quantiles=(0.5,)), "window": window})

    result = gates.take(Source(slow=(0,)), terms=terms)

    assert result.action is action
    assert "control's p50 from before the rollout says nothing about its present latency" in result.reason
    [decision] = record.read(gates.workspace, "digits", step="look")
    assert [reason[:13] for reason in (decision.verdict or {})["needs_new_rollout"]] == ["control's p50"]


@pytest.mark.parametrize("acts", [True, False])
def test_a_look_of_a_person_who_asks_lets_no_run_go_on(gates: Gates, acts: bool) -> None:
    terms = TERMS.model_copy(update={"require_pass": False})

    assert gates.take(terms=terms, acts=acts).action is NextAction.GO_ON

    steps = [decision.step for decision in record.read(gates.workspace, "digits") if decision.version == "v2a"]
    assert steps[-2:] == (["look", "go_on"] if acts else ["deploy", "look"])


def test_what_is_away_is_said_in_a_sentence_without_a_stack_trace(gates: Gates) -> None:
    result = gates.take(fails=TargetUnavailableError("the supervisor does not answer"))

    assert (result.action, result.reason) == (NextAction.WAIT, "cannot see: the supervisor does not answer")
    assert gates.messages == ["wait: cannot see: the supervisor does not answer"]


@pytest.mark.parametrize("fails", [None, TargetUnavailableError("the note is not taken")])
def test_each_look_is_noted_beside_the_endpoint_and_one_that_cannot_be_is_a_look_all_the_same(
    fails: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also a look that could not see the evidence: somebody was there."""
    target = OneEndpoint(before=NOW - 5 * HOUR, created=NOW - 2 * HOUR, counted=dict)
    target.refuses_notes = fails
    monkeypatch.setattr(connect_module, "connect", target.connect)
    monkeypatch.setattr(looks, "evidence_source", lambda workspace: Source(errors=5))

    result = asyncio.run(take_look(Workspace.local(tmp_path), TERMS, print))

    assert result.action is NextAction.WAIT
    assert target.looked_at == ([] if fails else ["v2a"])
    assert ("the note is not taken" in caplog.text) == bool(fails)


def test_look_after_silence_ends_as_a_conflict_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = OneEndpoint(before=NOW - 5 * HOUR, created=NOW - 2 * HOUR, counted=dict)
    taken_back = target.newest.roll_back("v2a").release("v2a")
    asyncio.run(target.apply(taken_back, Change(who=ON_SILENCE, reason="nobody looked since noon")))
    monkeypatch.setattr(connect_module, "connect", target.connect)

    result = asyncio.run(take_look(Workspace.local(tmp_path), TERMS.model_copy(update={"owner": "dag/run"}), print))

    assert result.action is NextAction.CONFLICT
    assert "the traffic of 'v2a' was taken back from dag/run in revision 3 (nobody looked since noon)" in result.reason
    assert target.looked_at == []


@pytest.mark.parametrize(("prometheus_url", "outcome"), [(None, "cannot_see"), ("http://prometheus", "fail")])
def test_rows_are_compared_with_the_routers_counts_unless_they_are_these_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prometheus_url: str | None, outcome: str
) -> None:
    """A scrape covers the time before it: what Prometheus has of a bin may be of just before."""
    workspace = Workspace.local(tmp_path).model_copy(update={"prometheus_url": prometheus_url})
    target = OneEndpoint(
        before=NOW - 5 * HOUR,
        created=NOW - 2 * HOUR,
        counted=lambda: {"v1a": 5_000, "v2a": 900},
        routers={"envoy 1": NOW - 9 * HOUR},
    )
    monkeypatch.setattr(connect_module, "connect", target.connect)
    monkeypatch.setattr(looks, "evidence_source", lambda workspace: Source(errors=900))

    result = asyncio.run(take_look(workspace, TERMS, print))

    assert result.outcome == outcome


def test_gate_that_lets_the_rollout_go_on_records_it_about_this_share_of_this_rollout(gates: Gates) -> None:
    easy = TERMS.model_copy(update={"require_pass": False})
    assert gates.take(Source(errors=5), terms=easy).action is NextAction.GO_ON

    *created, look, going_on = record.read(gates.workspace, "digits")
    assert [decision.step for decision in created] == ["deploy", "deploy"]
    assert (look.step, going_on.step, going_on.who) == ("look", "go_on", "dag/run/gate")
    assert going_on.outcome == look.outcome
    for line in (look, going_on):
        assert (line.share, line.revision, line.run, line.rollout) == (50, 2, "dag/run", NOW - 2 * HOUR)


def test_no_step_goes_on_before_a_request_was_judged_after_the_warm_up(gates: Gates) -> None:
    warm = Gate(latency_quantiles=(), warm_up=timedelta(minutes=10))
    result = gates.take(Source(errors=900), terms=TERMS.model_copy(update={"require_pass": False, "gate": warm}))

    assert result.action is NextAction.WAIT
    assert "0 of 1 requests seen at 50 %" in result.reason


def test_gate_waits_while_the_record_does_not_take_that_the_rollout_goes_on(
    gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def append(workspace: Workspace, decision: record.Decision) -> None:
        raise RecordUnavailableError("the disk is full")

    monkeypatch.setattr(record, "append", append)
    result = gates.take(Source(errors=5), terms=TERMS.model_copy(update={"require_pass": False}))

    assert result.action is NextAction.WAIT
    assert result.reason == "it is not recorded that the rollout goes on: the disk is full"


def test_look_of_a_gate_that_begins_again_ends_the_hold(gates: Gates, monkeypatch: pytest.MonkeyPatch) -> None:
    target = OneEndpoint(before=NOW - 50 * HOUR, created=NOW - 40 * HOUR, counted=dict)
    held = target.newest.hold("v2a", owner="dag/run", at=NOW - HOUR)
    asyncio.run(target.apply(held, Change(who="dag/run/gate", reason="no decision")))
    monkeypatch.setattr(connect_module, "connect", target.connect)
    monkeypatch.setattr(looks, "evidence_source", lambda workspace: Source(away=True))

    def take(**changes: object) -> NextAction:
        terms = TERMS.model_copy(update=changes)
        return asyncio.run(take_look(gates.workspace, terms, gates.messages.append)).action

    # Another run's gate is refused, and the looks while a person is asked leave the hold to the person.
    assert take(owner="dag/other") is NextAction.CONFLICT
    take(only_alarms=True)
    assert target.newest.same_as(held)
    # Its decision_timeout has been over for hours, and counts anew.
    assert take(owner="dag/run") is NextAction.WAIT
    assert target.newest.rollout is not None and target.newest.rollout.held is None
    assert target.newest.rollout.resumed is not None


def test_look_asks_for_evidence_since_the_rollout_began_and_for_a_baseline_of_this_control(gates: Gates) -> None:
    source = Source()

    gates.take(source)

    [query] = source.queries
    assert query.started == NOW - 2 * HOUR
    assert query.baseline_from == NOW - 5 * HOUR


def test_store_that_is_away_is_recorded_as_cannot_see(gates: Gates) -> None:
    result = gates.take(Source(away=True))

    assert (result.action, result.outcome) == (NextAction.WAIT, "cannot_see")
    [decision] = record.read(gates.workspace, "digits", step="look")
    assert (decision.outcome, decision.evidence) == ("cannot_see", None)


def test_an_alarm_that_cannot_be_recorded_is_still_an_alarm(gates: Gates) -> None:
    gates.workspace.records_folder.parent.mkdir(parents=True, exist_ok=True)
    gates.workspace.records_folder.write_text("not a folder")

    result = gates.take(Source(errors=900))

    assert (result.action, result.outcome) == (NextAction.FAIL, "fail")
    assert re.search(r"errors are higher.*\(not in the record: .*records/digits.jsonl cannot be", result.reason)


def test_look_without_an_alarm_that_cannot_be_recorded_cannot_see(gates: Gates) -> None:
    gates.workspace.records_folder.parent.mkdir(parents=True, exist_ok=True)
    gates.workspace.records_folder.write_text("not a folder")

    for source in (Source(errors=5), Source(away=True)):
        result = gates.take(source)
        assert (result.action, result.outcome) == (NextAction.WAIT, "cannot_see")
        assert "the look cannot be recorded: " in result.reason


def test_target_that_does_not_answer_is_waited_for(gates: Gates) -> None:
    result = gates.take(fails=TargetUnavailableError("no socket"))

    assert (result.action, result.reason) == (NextAction.WAIT, "cannot see: no socket")


# What clients raise when a server answers 401, 403, 5xx, not at all, or with something that cannot be understood.
ANSWERS = [
    TargetUnavailableError("503"), AccessError("403: pods is forbidden"), ControlledRolloutError("418"),
    ConnectionResetError("reset"), TimeoutError(), json.JSONDecodeError("no value", "<html>", 0), KeyError("items"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), RuntimeError("odd"),
    ExceptionGroup("two", [OSError("a"), ValueError("b")]),
]  # fmt: skip


@pytest.mark.parametrize("error", ANSWERS, ids=lambda error: type(error).__name__)
def test_no_answer_of_a_target_or_a_store_ends_the_looks(gates: Gates, error: Exception) -> None:
    for result in (gates.take(fails=error), gates.take(Source(fails=error))):
        assert (result.action, result.outcome) == (NextAction.WAIT, "cannot_see")
        assert (str(error) or type(error).__name__) in result.reason


def test_look_that_never_ends_cannot_see(gates: Gates, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Source):
        async def read(self, query: EvidenceQuery) -> Evidence:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(next_action, "LOOK_TIMEOUT", timedelta(milliseconds=20))
    result = gates.take(Hanging())
    assert (result.action, result.reason) == (NextAction.WAIT, "cannot see: the look took longer than 0 s")


@pytest.mark.parametrize("error", [TypeError("NoneType"), AttributeError("x"), AssertionError()])
def test_what_looks_like_a_fault_in_the_software_holds_once_no_look_has_worked_for_a_while(
    gates: Gates, error: Exception
) -> None:
    # By the real clock: this file may have been imported long ago.
    now = datetime.now(UTC)
    short = TERMS.model_copy(update={"waiting_since": now})
    long = TERMS.model_copy(update={"waiting_since": now - FAULT_TIMEOUT})
    for terms, action in ((short, NextAction.WAIT), (long, NextAction.HOLD)):
        for result in (gates.take(fails=error, terms=terms), gates.take(Source(fails=error), terms=terms)):
            assert (result.action, result.outcome) == (action, "cannot_see")
            assert f"the look failed unexpectedly ({type(error).__name__}" in result.reason
    assert "Traceback" in gates.messages[0]

    gates.take()
    assert gates.take(fails=error, terms=long).action is NextAction.WAIT, "a look has worked just now"


@pytest.mark.parametrize(
    ("changes", "action", "reason"),
    [
        ({"version": "v1a"}, NextAction.NOTHING_TO_COMPARE, "is the control of endpoint 'digits' already"),
        ({"version": "v9z"}, NextAction.CONFLICT, "v9z"),
        ({"owner": "dag/other"}, NextAction.CONFLICT, "dag/other no longer holds"),
        ({"endpoint": "letters"}, NextAction.CONFLICT, "no endpoint 'letters'"),
    ],
)
def test_rollout_that_has_ended_needs_no_look(
    gates: Gates, changes: dict[str, str], action: NextAction, reason: str
) -> None:
    result = gates.take(terms=TERMS.model_copy(update=changes))

    assert result.action is action
    assert reason in result.reason
    assert list(record.read(gates.workspace, "digits")) == []


def test_a_hold_in_the_moment_in_which_the_gate_goes_on_keeps_the_rollout(
    gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the look reads its evidence, so the endpoint that was looked at has none."""
    target = OneEndpoint(before=NOW - 5 * HOUR, created=NOW - 2 * HOUR, counted=dict)

    class HeldMeanwhile(Source):
        async def read(self, query: EvidenceQuery) -> Evidence:
            if not self.queries:
                held = target.newest.hold("v2a", owner="dag/run", at=datetime.now(UTC))
                await target.apply(held, Change(who="Ada", reason="wait"))
            return await super().read(query)

    source = HeldMeanwhile(errors=5)
    monkeypatch.setattr(connect_module, "connect", target.connect)
    monkeypatch.setattr(looks, "evidence_source", lambda workspace: source)
    terms = TERMS.model_copy(update={"require_pass": False, "owner": "dag/run"})

    results = [asyncio.run(take_look(gates.workspace, terms, print)) for _ in range(2)]

    assert [result.action for result in results] == [NextAction.WAIT] * 2
    assert all(result.reason.startswith("on hold since") for result in results)
    assert target.newest.rollout is not None and target.newest.rollout.held is not None
    judgements = [line.step for line in record.read(gates.workspace, "digits") if line.step != "look"]
    assert judgements[-2:] == ["go_on", "hold"], "what is recorded last permits no step"


@pytest.mark.parametrize(
    ("errors", "version", "action"),
    [(5, "v2a", NextAction.HOLD), (900, "v2a", NextAction.FAIL), (5, "v3a", NextAction.WAIT)],
)
def test_a_person_who_asks_about_a_rollout_on_hold_is_told_that_unless_it_alarms(
    errors: int, version: str, action: NextAction, gates: Gates, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = OneEndpoint(before=NOW - 5 * HOUR, created=NOW - 2 * HOUR, counted=dict)
    newest = target.newest.hold("v2a", owner="dag/run", at=NOW - HOUR)
    if version != "v2a":  # another treatment, which is in no rollout
        newest = newest.create_version("v3a", traffic_percentile=10)
    asyncio.run(target.apply(newest, Change(who="Ada", reason="wait")))
    monkeypatch.setattr(connect_module, "connect", target.connect)
    monkeypatch.setattr(looks, "evidence_source", lambda workspace: Source(errors=errors))
    terms = TERMS.model_copy(update={"require_pass": False, "version": version})

    result = asyncio.run(take_look(gates.workspace, terms, print, acts=False))

    assert result.action is action
    assert result.reason.startswith("on hold since") == (action is NextAction.HOLD)
    assert target.newest.rollout == newest.rollout, "who asks ends no hold"
