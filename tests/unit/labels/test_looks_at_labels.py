"""A look at labels as a step: what is compared is in the endpoint's history, the look in the record."""

from datetime import timedelta
from typing import Any, cast

import pytest

from controlled_rollout import record
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ArgumentError, ConflictError, EndpointError
from controlled_rollout.evaluation.replay import replay
from controlled_rollout.gate import Outcome
from controlled_rollout.labels import LabelSource
from controlled_rollout.labels.judgement import LabelLook
from controlled_rollout.labels.look import look_at_labels
from controlled_rollout.record.summary import summarize
from controlled_rollout.target.protocol import Change, Revision, Target
from tests.unit.labels.labelled_rollout import (
    ACCURACY,
    HOUR,
    T0,
    UNTIL,
    LabelledRollout,
    Rows,
    answered_requests,
)


class PromotedEndpoint:
    """An endpoint whose version v2a had half of v1a's traffic from T0 to UNTIL, and is control since then."""

    def __init__(self, **collects: Any) -> None:
        kept: dict[str, Any] = {"collect_model_data": True}
        first = Endpoint(name="digits").create_version("v1a", is_control=True, is_default=True, **kept)
        claimed = first.claim("v2a", owner="dag/run", at=T0)
        shared = claimed.create_version("v2a", traffic_percentile=50, **(kept | collects))
        states = [(first, T0 - 24 * HOUR), (shared, T0), (shared.promote("v2a"), UNTIL)]
        self.revisions = [
            Revision(
                number=number,
                endpoint=endpoint.model_copy(update={"revision": number}),
                change=Change(who="a", reason="b"),
                created=moment,
            )
            for number, (endpoint, moment) in enumerate(states, start=1)
        ]

    async def history(self, name: str) -> list[Revision]:
        return self.revisions


async def look(
    rollout: LabelledRollout, source: LabelSource, endpoint: PromotedEndpoint | None = None, **changes: Any
) -> LabelLook:
    arguments: dict[str, Any] = {"labels": ACCURACY, "who": "dag/run/task", "now": UNTIL + timedelta(days=3)} | changes
    target = cast(Target, endpoint or PromotedEndpoint())
    return await look_at_labels(rollout.workspace, target, "digits", "v2a", source=source, **arguments)


async def test_a_version_is_compared_with_the_control_that_it_shared_the_traffic_with(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.05, "v2a": 0.5})
    found = await look(rollout, Rows(rows))
    assert found.verdict.outcome is Outcome.FAIL
    assert (found.since, found.until) == (T0, UNTIL)
    assert found.counts.treatment <= 400  # requests while the split changed are left out


async def test_looks_are_in_the_record_and_a_replay_concludes_the_same(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.05, "v2a": 0.5})
    looks = [await look(rollout, Rows(rows), now=UNTIL + hours * HOUR) for hours in (1, 20, 50, 51)]
    decisions = list(record.read(rollout.workspace, "digits"))
    of_labels = [one for one in decisions if one.step == "judge_labels"]
    assert [one.outcome for one in of_labels] == [one.verdict.outcome.value for one in looks]
    assert [one.reason for one in of_labels] == [one.verdict.reason for one in looks]
    replayed = list(replay(decisions))
    assert [one.difference for one in replayed] == [""] * 4
    assert [one.look.evidence.bins for one in replayed if one.look] == [one.bins for one in looks]


async def test_labels_that_are_added_with_an_earlier_arrival_are_said(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.1, "v2a": 0.1})
    kept = [row for number, row in enumerate(rows) if number % 5]
    first, again, backdated = [
        await look(rollout, Rows(some), now=UNTIL + hours * HOUR)
        for some, hours in ((kept, 20), (kept, 30), (rows, 40))
    ]
    for one in (first, again):
        assert "earlier arrival" not in one.verdict.reason
    assert "no longer what the look at 2026-03-02 16:00 judged: labels were added with" in backdated.verdict.reason


async def test_a_look_that_cannot_see_is_recorded_with_why(rollout: LabelledRollout) -> None:
    found = await look(rollout, Rows([]))
    assert found.verdict.outcome is Outcome.CANNOT_SEE
    (decision,) = [one for one in record.read(rollout.workspace, "digits") if one.step == "judge_labels"]
    assert "version 'v1a' has no answered request in 'predictions'" in decision.reason
    assert [one.difference for one in replay([decision])] == [""]


async def test_the_report_of_a_rollout_is_not_that_of_its_labels(rollout: LabelledRollout) -> None:
    await look(rollout, Rows([]))
    with pytest.raises(Exception, match="the record holds no look"):
        summarize(record.read(rollout.workspace, "digits"))


async def test_while_both_versions_have_traffic_the_look_waits_for_its_end(rollout: LabelledRollout) -> None:
    endpoint = PromotedEndpoint()
    del endpoint.revisions[-1]
    found = await look(rollout, Rows([]), endpoint)
    assert found.verdict.outcome is Outcome.CANNOT_SEE
    assert "both still have traffic" in found.verdict.reason


async def test_a_version_that_never_had_traffic_beside_a_control_cannot_be_judged(rollout: LabelledRollout) -> None:
    endpoint = PromotedEndpoint()
    alone = Endpoint(name="digits").create_version("v2a", is_control=True, is_default=True)
    endpoint.revisions = [endpoint.revisions[0].model_copy(update={"endpoint": alone})]
    with pytest.raises(ConflictError, match="'v2a' had no traffic beside a control"):
        await look(rollout, Rows([]), endpoint)
    with pytest.raises(ConflictError, match="beside version 'v9a'"):
        await look(rollout, Rows([]), control="v9a")


async def test_labels_of_a_sticky_endpoint_are_refused(rollout: LabelledRollout) -> None:
    """Labels are of requests, and requests of one user hang together."""
    endpoint = PromotedEndpoint()
    sticky = endpoint.revisions[-1].endpoint.model_copy(update={"sticky": "header:x-user"})
    endpoint.revisions[-1] = endpoint.revisions[-1].model_copy(update={"endpoint": sticky})
    with pytest.raises(EndpointError, match="is sticky by header:x-user: labels are judged by request"):
        await look(rollout, Rows([]), endpoint)


SALT = {"secret": "salts", "key": "one"}


@pytest.mark.parametrize(
    ("collects", "problem"),
    [
        ({"collect_model_data": False}, "does not collect"),
        ({"collection": {"layout": "csv"}}, "collects in the layout 'csv'"),
        ({"collection": {"mask": ["prediction"]}}, "masks predictions.prediction"),
        ({"collection": {"hash": ["predictions.prediction"], "salt": SALT}}, "hashes predictions.prediction"),
        ({"collection": {"keep": ["age"]}}, "does not keep predictions.prediction"),
    ],
)
async def test_a_version_that_has_not_kept_its_predictions_is_refused(
    rollout: LabelledRollout, collects: dict[str, Any], problem: str
) -> None:
    """A version whose predictions are masked would be wrong in every answer, and be taken back."""
    with pytest.raises(ConflictError, match=f"version 'v2a' {problem}"):
        await look(rollout, Rows([]), PromotedEndpoint(**collects))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"since": T0.replace(tzinfo=None)}, "since = 2026-03-01T00:00:00 has no time zone"),
        ({"since": UNTIL, "until": T0}, "`since` before `until`"),
        ({"since": T0, "until": T0 + timedelta(days=400)}, "at most 366 days"),
    ],
)
async def test_a_time_that_is_none_is_refused(rollout: LabelledRollout, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        await look(rollout, Rows([]), **changes)


async def test_without_the_record_an_alarm_is_one_and_nothing_else_is_concluded(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.05, "v2a": 0.5}, each=200)
    rollout.workspace.records_folder.mkdir(parents=True)
    (rollout.workspace.records_folder / "digits.jsonl").mkdir()
    failed = await look(rollout, Rows(rows))
    assert failed.verdict.outcome is Outcome.FAIL
    assert "not in the record" in failed.verdict.reason
    early = await look(rollout, Rows(rows[:40]))
    assert early.verdict.outcome is Outcome.CANNOT_SEE
    assert "the look cannot be recorded" in early.verdict.reason


async def test_what_is_compared_can_be_named(rollout: LabelledRollout) -> None:
    rows = answered_requests(rollout, wrong={"v1a": 0.1, "v2a": 0.1}, each=100)
    half = T0 + (UNTIL - T0) / 2
    found = await look(rollout, Rows(rows), control="v1a", since=T0 + HOUR, until=half)
    assert (found.since, found.until) == (T0 + HOUR, half)
    assert 0 < found.counts.control < 60
