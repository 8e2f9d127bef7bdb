"""What two versions have answered, shipped by the collector's own code, judged by labels that arrive later."""

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

from controlled_rollout.evidence import SplitChange
from controlled_rollout.gate import Outcome, describe, judge
from controlled_rollout.labels import LabelRow
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
    assert judge(late.bins, ACCURACY.gate()).claims == late.verdict.claims
    assert "treatment " in describe(late.verdict)


def test_what_an_earlier_look_has_judged_stays_when_later_labels_arrive(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.1, "v2a": 0.1})
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
    assert "share of labelled requests differs" in look.verdict.reason


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
