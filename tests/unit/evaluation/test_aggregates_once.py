"""Expectations about all rows together are evaluated once at a share: by whom, when, and what a restart finds."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout import record
from controlled_rollout.errors import EvidenceUnavailableError, RecordUnavailableError
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evaluation.next_action import GateTerms, LookResult, NextAction, take_look
from controlled_rollout.evaluation.replay import replay
from controlled_rollout.evidence import Evidence, EvidenceQuery
from controlled_rollout.evidence.collected import source
from controlled_rollout.gate import AggregateResult, Aggregates, Bin, Counts, Gate
from controlled_rollout.record import storage, tail
from controlled_rollout.target import connect as connect_module
from controlled_rollout.target.protocol import Change
from controlled_rollout.workspace import Workspace
from tests.unit.evaluation.one_endpoint import OneEndpoint

NOW = datetime.now(UTC).replace(second=0, microsecond=0)
HOUR = timedelta(hours=1)
MEAN = {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "predictions.score", "max_value": 0.5}}
GATE: dict[str, Any] = {"latency_quantiles": (), "expectations": {"expectations": [MEAN]}}
TERMS = GateTerms(
    endpoint="digits", version="v2a", who="dag/run/gate", owner=None, gate=Gate.model_validate(GATE),
    bake=timedelta(0), min_requests=0, require_pass=True, decision_timeout=24 * HOUR, on_deadline="hold",
    interval=timedelta(minutes=1), waiting_since=NOW,
)  # fmt: skip
SOON = TERMS.model_copy(update={"require_pass": False, "bake": timedelta(minutes=90)})


class Rollout:
    """A rollout since two hours, whose evidence grows by a bin a minute.

    Attributes:
        until: Where the newest closed bin ends.
        evaluated: The times of the rows of each evaluation, until it raised or answered.
        answers: The treatment's results, one for each evaluation; an error is raised.
        unseen: What of the collected data is missing.
        errors: The treatment's errors in each bin.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.workspace = Workspace.local(root)
        self.began = NOW - 2 * HOUR
        self.until = NOW - timedelta(minutes=3)
        self.evaluated: list[tuple[datetime, datetime]] = []
        self.answers: list[bool | Exception | None] = []
        self.unseen, self.errors = "", 0
        self.target = OneEndpoint(before=NOW - 5 * HOUR, created=self.began, counted=dict)
        patch.setattr(connect_module, "connect", self.target.connect)
        patch.setattr(looks, "evidence_source", lambda workspace: self)
        patch.setattr(source, "evaluate_aggregates", self._evaluate)

    async def read(self, query: EvidenceQuery) -> Evidence:
        minutes = (self.until - query.started) // timedelta(minutes=1)
        starts = [query.started + minute * timedelta(minutes=1) for minute in range(minutes + 1)]
        shares = [[split.share for split in query.splits if split.at <= start][-1] for start in starts]
        bins = tuple(
            Bin(start, Counts(200, 1), Counts(200, self.errors), share=share)
            for start, share in zip(starts, shares, strict=True)
            if start < self.until
        )
        return Evidence(bins, (), (), self.until, ("AppRequests",), unseen=self.unseen)

    async def _evaluate(
        self, workspace: Workspace, query: EvidenceQuery, *, since: datetime, until: datetime
    ) -> Aggregates:
        self.evaluated.append((since, until))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        result = AggregateResult("mean", answer, True, "observed 0.9", "observed 0.4")
        return Aggregates(query.splits[-1].at, since, until, (result,))

    def look(self, terms: GateTerms = TERMS, *, minutes: int = 1) -> LookResult:
        self.until += minutes * timedelta(minutes=1)
        return asyncio.run(take_look(self.workspace, terms, lambda text: None))

    def restart(self) -> None:
        """Forget what this process knows of the record, as a new process does."""
        tail._tails.clear()

    def differences(self) -> list[str]:
        """Return how the looks of the record differ when they are judged again, part by part."""
        return [
            one.difference
            for part in record.storage_of(self.workspace, "digits").parts()
            for one in replay(record.read_part(part))
            if one.difference
        ]

    def outcomes(self) -> list[str | None]:
        return [decision.outcome for decision in record.read(self.workspace, "digits", step="look")]


@pytest.fixture
def rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rollout:
    return Rollout(tmp_path, monkeypatch)


def test_they_are_evaluated_at_the_first_look_at_which_all_else_passes_on_the_rows_until_then(
    rollout: Rollout,
) -> None:
    rollout.answers = [True]
    results = [rollout.look(SOON, minutes=0).action]  # all of the bake was not seen yet
    rollout.until -= timedelta(minutes=60)
    results += [rollout.look(SOON).action for _ in range(3)]

    assert NextAction.GO_ON in results
    assert len(rollout.evaluated) == 1
    assert rollout.differences() == []


def test_while_anything_else_is_missing_they_are_not_evaluated(rollout: Rollout) -> None:
    late = TERMS.model_copy(update={"bake": 3 * HOUR})
    busy = TERMS.model_copy(update={"min_requests": 10**6})
    for terms in (late, busy, TERMS.model_copy(update={"only_alarms": True})):
        assert rollout.look(terms).action is NextAction.WAIT
    rollout.unseen = "the storage is away"
    assert rollout.look().action is NextAction.WAIT
    rollout.unseen, rollout.errors = "", 150
    assert rollout.look().action is NextAction.FAIL

    assert rollout.evaluated == []


def test_one_that_only_control_fulfils_keeps_the_rollout_where_it_is_after_a_restart_too(rollout: Rollout) -> None:
    rollout.answers = [False]
    for _ in range(3):
        result = rollout.look()
        assert result.action is NextAction.WAIT
        assert "fulfilled by control and not by the treatment" in result.reason
        assert "mean: treatment observed 0.9, control observed 0.4" in result.reason
        rollout.restart()

    assert rollout.evaluated == [(rollout.began, NOW - timedelta(minutes=2))]
    assert rollout.outcomes() == ["not_enough_evidence"] * 4
    assert rollout.differences() == []
    # Their text is in the record once, and again only where a part begins.
    lines = [json.loads(line) for line in _record(rollout) if b'"step":"look"' in line]
    assert ["aggregates" in line["evidence"] for line in lines] == [False, True, False, False]


def test_the_author_may_have_it_rolled_back(rollout: Rollout) -> None:
    rollout.answers = [False]
    terms = TERMS.model_copy(update={"gate": Gate.model_validate({**GATE, "on_aggregate": "fail"})})

    assert [rollout.look(terms).action for _ in range(2)] == [NextAction.FAIL] * 2
    assert len(rollout.evaluated) == 1
    assert rollout.differences() == []


def test_a_deadline_decides_as_without_them(rollout: Rollout) -> None:
    rollout.answers = [False]

    assert rollout.look(TERMS.model_copy(update={"decision_timeout": HOUR})).action is NextAction.HOLD


def test_what_could_not_be_read_is_evaluated_again_and_what_raised_is_not(rollout: Rollout) -> None:
    rollout.answers = [EvidenceUnavailableError("the storage is away"), None]

    assert rollout.look().reason.startswith("cannot see: the storage is away")
    assert "could not be evaluated" in rollout.look().reason
    assert "could not be evaluated" in rollout.look().reason
    assert len(rollout.evaluated) == 2
    assert rollout.differences() == []


def test_another_share_is_evaluated_anew_on_its_own_rows(rollout: Rollout) -> None:
    rollout.answers = [True, True]
    assert rollout.look().action is NextAction.GO_ON
    _shift(rollout, at=NOW)

    # The bins of the new share begin once a look has seen that the router serves it; `NOW` may be long ago by then.
    minutes_since = (datetime.now(UTC) - NOW) // timedelta(minutes=1)
    assert rollout.look(minutes=40 + minutes_since).action is NextAction.GO_ON
    [_, (since, until)] = rollout.evaluated
    assert NOW < since <= datetime.now(UTC) + timedelta(minutes=1)
    assert until == rollout.until
    assert rollout.differences() == []


def test_a_result_that_is_not_in_the_record_decides_nothing(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout.answers = [False, True]
    fails = TERMS.model_copy(update={"gate": Gate.model_validate({**GATE, "on_aggregate": "fail"})})
    with monkeypatch.context() as patch:
        _fail_when_evaluated(rollout, patch)
        assert rollout.look(fails).action is NextAction.WAIT

    assert rollout.look(fails).action is NextAction.GO_ON


def test_a_new_part_of_the_record_has_the_result_too(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout.answers = [False]
    rollout.look()
    monkeypatch.setattr(storage, "MAX_PART_BYTES", 1)  # each line begins a part
    for _ in range(3):
        rollout.restart()
        assert rollout.look().action is NextAction.WAIT

    assert len(rollout.evaluated) == 1
    assert rollout.differences() == []


def _record(rollout: Rollout) -> list[bytes]:
    return [line for part in record.storage_of(rollout.workspace, "digits").parts() for line in part.lines()]


def _shift(rollout: Rollout, *, at: datetime) -> None:
    """Give the treatment another share from a moment on, one that equal requests still fit."""
    changed = rollout.target.newest.shift("v2a", 51)
    asyncio.run(rollout.target.apply(changed, Change(who="a", reason="b")))
    rollout.target.set_time_of_newest(at)


def _fail_when_evaluated(rollout: Rollout, patch: pytest.MonkeyPatch) -> None:
    """Let the record refuse every look after an evaluation."""
    append: Callable[..., Any] = record.append_look

    def refused(*arguments: Any, **more: Any) -> Any:
        if rollout.evaluated:
            raise RecordUnavailableError("the disk is full")
        return append(*arguments, **more)

    patch.setattr(record, "append_look", refused)
