"""What two versions have answered, shipped by the collector's own code, judged by labels that arrive later."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence import SplitChange
from controlled_rollout.gate import Outcome, describe, judge
from controlled_rollout.labels import LabelRow, Labels, LabelSource
from tests.unit.labels.labelled_rollout import ACCURACY, HOUR, T0, UNTIL, LabelledRollout, Rows, S, answered_requests

EVEN = (SplitChange(T0 - HOUR, 0.5),)


def test_a_version_that_is_wrong_more_often_fails_once_enough_labels_have_arrived(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.05, "v2a": 0.4})
    early = rollout.look(Rows(rows), splits=EVEN, now=UNTIL + HOUR)
    late = rollout.look(Rows(rows), splits=EVEN)
    assert early.verdict.outcome is Outcome.FAIL or early.counts.treatment_labelled < 200
    assert late.verdict.outcome is Outcome.FAIL
    assert "accuracy is worse: e-value" in late.verdict.reason
    assert late.counts.treatment == late.counts.control == 400
    assert late.counts.treatment_labelled + late.counts.control_labelled + late.counts.waiting == 800
    again = judge(late.bins, ACCURACY.gate())
    assert [(one.name, one.e_value) for one in again.claims] == [(one.name, one.e_value) for one in late.verdict.claims]
    assert "treatment " in describe(late.verdict)


def test_what_an_earlier_look_has_judged_stays_when_later_labels_arrive(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.1, "v2a": 0.1})
    corrections = [replace(row, label=99, arrived=row.arrived + HOUR) for row in rows[::3]]
    rows = sorted([*rows, *corrections, *rows[::7]], key=lambda row: row.arrived)
    looks = [rollout.look(Rows(rows), splits=EVEN, now=UNTIL + hours * HOUR) for hours in (1, 5, 20, 60)]
    assert all(look.unseen == "" for look in looks)
    for earlier, later in pairwise(looks):
        assert later.bins[: len(earlier.bins)] == earlier.bins
        assert len(later.bins) > len(earlier.bins)
    assert rollout.look(Rows(rows[::-1]), splits=EVEN, now=UNTIL + 20 * HOUR) == looks[2]


def test_labels_that_say_nothing_new_are_counted_and_change_nothing(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.1, "v2a": 0.1})
    plain = rollout.look(Rows(rows), splits=EVEN)
    added = [
        replace(rows[0], arrived=rows[0].arrived + S),
        replace(rows[1], label=99, arrived=rows[1].arrived + S),
        LabelRow("c-nobody", 1, UNTIL),
        LabelRow(rows[2].correlation_id, 99, T0),
        LabelRow(rows[3].correlation_id, None, T0 + S),
    ]
    look = rollout.look(Rows([*added, *rows]), splits=EVEN)
    assert look.bins == plain.bins
    labels = look.counts.labels
    assert (labels.repeated, labels.corrections, labels.unknown, labels.early) == (1, 1, 1, 1)
    assert labels.read == len(rows) + 4
    for text in ("1 labels repeat", "1 labels correct", "1 labels name no such request", "1 labels are older than"):
        assert text in look.verdict.reason


def test_versions_whose_requests_are_not_labelled_alike_are_not_compared(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.1, "v2a": 0.1})
    hidden = [row for number, row in enumerate(rows) if not row.correlation_id.startswith("c-v2a") or number % 3 == 0]
    look = rollout.look(Rows(hidden), splits=EVEN)
    assert look.verdict.outcome is Outcome.SPLIT_IS_WRONG
    assert "share of labelled requests differs: e-value" in look.verdict.reason
    assert re.search(r"\(\d[\d.]* % of the treatment's 400 requests are labelled, 9\d[\d.]* % of", look.verdict.reason)


def test_no_label_at_all_waits_until_there_should_be_one_and_then_cannot_be_seen(rollout: LabelledRollout) -> None:
    answered_requests(rollout, wrong={"v1a": 0.1, "v2a": 0.1}, each=20)
    early = rollout.look(Rows([]), now=UNTIL + timedelta(days=6))
    late = rollout.look(Rows([]), now=UNTIL + timedelta(days=8))
    assert (early.verdict.outcome, late.verdict.outcome) == (Outcome.NOT_ENOUGH_EVIDENCE, Outcome.CANNOT_SEE)
    assert "no label has arrived yet" in early.verdict.reason
    assert "not one label has arrived" in late.verdict.reason
    strangers = [LabelRow(f"other-{number}", 1, UNTIL) for number in range(9)]
    look = rollout.look(Rows(strangers), now=UNTIL + timedelta(days=8))
    assert "9 labels were read, and none of them names one of the 40 requests" in look.verdict.reason


def test_of_requests_with_one_correlation_id_the_first_counts(rollout: LabelledRollout) -> None:
    rollout.collect("v1a", [("a", T0 + 5 * S, [1]), ("b", T0 + 6 * S, [1])], correlation="shared")
    rollout.collect("v2a", [("c", T0 + 4 * S, [2])], correlation="shared")
    look = rollout.look(Rows([LabelRow("shared", 2, UNTIL)]))
    assert look.counts.labels.shared_ids == 2
    assert "no request of both versions" in look.unseen  # v2's was the first


def change_state(rollout: LabelledRollout, **changes: Any) -> None:
    """Change what v2a's replica says of what it has shipped."""
    (path,) = (rollout.storage / "collected/digits/v2a/_state").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dropped": 3, "lost_at": (T0 + HOUR).timestamp()}, "3 records of version 'v2a' were dropped"),
        ({"dropped": 3, "lost_at": (UNTIL + HOUR).timestamp()}, ""),
        ({"unreadable": 1, "lost_at": None}, "1 were unreadable"),
        (
            {
                "final": False,
                "pending_bytes": 9,
                "shipped_until": (UNTIL - HOUR).timestamp(),
                "updated": (UNTIL + 72 * HOUR).timestamp(),
            },
            "collected data of version 'v2a' is late",
        ),
    ],
)
def test_what_was_collected_in_the_time_has_to_be_all_there(
    rollout: LabelledRollout, changes: dict[str, Any], problem: str
) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.05, "v2a": 0.5}, each=200)
    change_state(rollout, watched_since=T0.timestamp(), **changes)
    look = rollout.look(Rows(rows))
    assert problem in look.unseen
    assert look.verdict.outcome is (Outcome.CANNOT_SEE if problem else Outcome.FAIL)


def test_a_replica_that_is_silent_counts_as_lost_a_day_after_the_requests(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.05, "v2a": 0.5}, each=200)
    earlier = (UNTIL - HOUR).timestamp()
    change_state(rollout, final=False, shipped_until=earlier, updated=earlier)
    early, late = (rollout.look(Rows(rows), now=UNTIL + hours * HOUR) for hours in (20, 60))
    assert "replica v2a-one of version 'v2a' has not said that it shipped" in early.unseen
    assert late.verdict.outcome is Outcome.FAIL


def test_requests_that_no_caller_got_an_answer_to_by_the_split_are_left_out(rollout: LabelledRollout) -> None:
    at = [T0 + number * S for number in range(4)]
    rollout.collect("v1a", [("c", at[0], [1])])
    rollout.collect("v2a", [("t", at[0], [1])])
    heads: list[dict[str, Any]] = [{"addressed": True}, {"status": 500}, {"status": 401}]
    for number, head in enumerate(heads):
        rollout.collect("v2a", [(f"left-out-{number}", at[1], [0])], name=f"more-{number}", **head)
    look = rollout.look(Rows([LabelRow(f"c-left-out-{number}", 1, UNTIL) for number in range(3)]), splits=EVEN)
    assert (look.counts.control, look.counts.treatment, look.counts.labels.unknown) == (1, 1, 3)


def test_a_request_of_several_rows_is_one_observation_and_may_have_a_label_for_each(rollout: LabelledRollout) -> None:
    rows = []
    for version, answer in (("v1a", [1, 2, 3]), ("v2a", [9, 9, 9])):
        requests = [(f"{version}-{number}", T0 + number * S, answer) for number in range(200)]
        rollout.collect(version, requests)
        rows += [LabelRow(f"c-{id_}", (1, 2, 3), at + HOUR) for id_, at, _ in requests]
    labels = Labels.model_validate({"metrics": ["accuracy", "absolute_error"]})
    look = rollout.look(Rows(rows), labels, splits=EVEN)
    assert look.verdict.outcome is Outcome.FAIL
    assert sum(bin_.treatment.categories["accuracy"]["yes"] for bin_ in look.bins) == 200
    means = [bin_.treatment.means["absolute_error"] for bin_ in look.bins]
    assert {one.mean for one in means} == {7.0}
    assert sum(one.count for one in means) == 200


def test_answers_of_several_types_are_compared_one_by_one(rollout: LabelledRollout) -> None:
    answers: list[Any] = ["1", 1, True, None, {"class": 1}]
    rows = []
    for version in ("v1a", "v2a"):
        requests = [(f"{version}-{number}", T0 + number * S, [answers[number % 5]]) for number in range(100)]
        rollout.collect(version, requests)
        rows += [LabelRow(f"c-{id_}", 1, at + HOUR) for id_, at, _ in requests]
    look = rollout.look(Rows(rows), splits=EVEN)
    right = [sum(bin_.control.categories["accuracy"][name] for bin_ in look.bins) for name in ("no", "yes")]
    assert right == [60, 40]


def test_not_one_right_answer_of_either_version_is_a_fault_of_the_settings(rollout: LabelledRollout) -> None:
    answered_requests(rollout, wrong={"v1a": 0.1, "v2a": 0.1}, each=100)
    rows = [LabelRow(id_, "digit", UNTIL) for id_ in rollout.truth]
    look = rollout.look(Rows(rows), splits=EVEN)
    assert look.verdict.outcome is Outcome.CANNOT_SEE
    assert "not one of 200 answers is right, of neither version" in look.unseen


@dataclass
class Unbounded(Rows):
    """A source that yields all labels, whatever is asked."""

    def read(self, *, since: datetime, until: datetime, limit: int) -> Iterator[LabelRow]:
        return iter(self.rows)


def test_labels_of_another_time_that_a_source_gives_are_not_used(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.1, "v2a": 0.1}, each=100)
    now = UNTIL + 10 * HOUR
    assert rollout.look(Unbounded(rows), now=now) == rollout.look(Rows(rows), now=now)
    look = rollout.look(Unbounded([replace(rows[0], arrived=T0.replace(tzinfo=None))]))
    assert "a label of labels in memory has an arrival without a time zone" in look.unseen


@dataclass
class Broken:
    """A source that fails after its first label."""

    description: str = "a database"

    def read(self, *, since: datetime, until: datetime, limit: int) -> Iterator[LabelRow]:
        yield LabelRow("c-v1a-0", 1, since)
        raise EvidenceUnavailableError("the database does not answer")


@pytest.mark.parametrize(
    ("source", "changes", "problem"),
    [
        (Broken(), {}, "the database does not answer"),
        (Rows([LabelRow("x" * 1_001, 1, UNTIL)]), {}, "the correlation id of a label is empty, no text, or longer"),
        (
            Rows([LabelRow("a", 1, UNTIL)] * 11),
            {"labels": ACCURACY.model_copy(update={"max_labels": 10})},
            "more than 10",
        ),
        (Rows([]), {"now": UNTIL + S}, "and that is not over"),
        (Rows([]), {"splits": (SplitChange(T0, 1.0),)}, "had no traffic at the same time"),
        (Rows([]), {"treatment": "v9a"}, "version 'v9a' has no answered request in 'predictions'"),
        (
            Rows([]),
            {"labels": Labels.model_validate({"metrics": ["accuracy"], "prediction": "predictions.label"})},
            "column predictions.label is not in the data that version 'v1a' has collected .*; the columns there: pred",
        ),
        (
            Rows([]),
            {"labels": Labels.model_validate({"metrics": ["accuracy"], "prediction": "scores.label"})},
            "no answered request in 'scores'",
        ),
    ],
)
def test_what_cannot_be_read_cannot_be_seen(
    rollout: LabelledRollout, source: LabelSource, changes: dict[str, Any], problem: str
) -> None:
    answered_requests(rollout, wrong={"v1a": 0.1, "v2a": 0.1}, each=5)
    look = rollout.look(source, **changes)
    assert look.verdict.outcome is Outcome.CANNOT_SEE
    assert re.search(problem, look.unseen)
    assert look.bins == ()
