"""Which positive facts let a run give its treatment more traffic; all else permits nothing."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.record import Decision
from controlled_rollout.steps.permission import reason_not_to_promote, reason_not_to_shift
from controlled_rollout.target.protocol import Change, Revision

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
RUN, OTHER = "weekly/run-2", "weekly/run-1"


def history(*states: Endpoint) -> list[Revision]:
    return [
        Revision(
            number=number,
            endpoint=endpoint.model_copy(update={"revision": number}),
            change=Change(who=f"{RUN}/task", reason=""),
            created=NOW,
        )
        for number, endpoint in enumerate(states, start=1)
    ]


FIRST = Endpoint(name="digits").create_version("v1a", is_control=True)
ROLLING = FIRST.claim("v2a", owner=RUN, at=NOW).create_version("v2a")
AT_10 = ROLLING.shift("v2a", 10)
AT_50 = AT_10.shift("v2a", 50)
ROLLOUT = history(FIRST, ROLLING, AT_10, AT_50)


def fact(step: Any = "go_on", *, at: int = 4, of: list[Revision] = ROLLOUT, **changes: Any) -> Decision:
    """Return a judgement made at a revision."""
    outcome = "pass" if step == "go_on" else None
    fields = {"outcome": outcome, "time": NOW, **changes}
    line = Decision.about(of[at - 1].endpoint, "v2a", step=step, who="somebody")
    return line.model_copy(update=fields)


def promotes(*oldest_first: Decision, of: list[Revision] = ROLLOUT, needs_approval: bool = False) -> bool:
    return reason_not_to_promote(of, reversed(oldest_first), "v2a", RUN, needs_approval=needs_approval) is None


def shifts(*oldest_first: Decision, to: float = 60, of: list[Revision] = ROLLOUT) -> bool:
    return reason_not_to_shift(of, reversed(oldest_first), "v2a", RUN, percentile=to) is None


def test_pass_or_approval_at_the_present_share_permits_promotion_and_shift() -> None:
    for step in ("go_on", "approve"):
        assert promotes(fact(step))
        assert shifts(fact(step))


def test_going_on_without_a_pass_permits_only_a_shift() -> None:
    unproven = fact(outcome="not_enough_evidence")
    assert shifts(unproven)
    assert not promotes(unproven)


NOT_ABOUT_THIS = {
    "nothing": [],
    "at another share": [fact(at=3)],
    "of another rollout of the same run and name": [fact(rollout=NOW - timedelta(days=1))],
    "of another run": [fact(run=OTHER)],
    "without a rollout": [fact(run=None, rollout=None)],
    "without a share": [fact(share=None)],
    "without a revision": [fact(revision=None)],
    "of another version": [fact(version="v3a")],
    "of another endpoint": [fact(endpoint="letters")],
    "a look that passed, which is not a gate's decision": [fact("look", outcome="pass")],
    "a question": [fact("ask")],
    "a pass, then a hold": [fact(), fact("hold")],
    "a pass, then a rejection": [fact(), fact("reject")],
    "a pass, then an open question": [fact(), fact("ask")],
    "an approval, then a look that failed": [fact("approve"), fact("look", outcome="fail")],
}


@pytest.mark.parametrize("lines", NOT_ABOUT_THIS.values(), ids=NOT_ABOUT_THIS.keys())
def test_nothing_else_permits_anything(lines: list[Decision]) -> None:
    assert not promotes(*lines)
    assert not shifts(*lines)


def test_later_looks_that_do_not_fail_take_no_permission_away() -> None:
    assert promotes(fact(), *(fact("look", outcome=outcome) for outcome in ("pass", "cannot_see", "split_is_wrong")))


def test_share_that_was_changed_and_set_back_needs_a_new_judgement() -> None:
    there_and_back = [*ROLLOUT, *history(FIRST, FIRST, FIRST, FIRST, AT_50.shift("v2a", 20), AT_50)[4:]]
    assert not promotes(fact(), of=there_and_back)
    assert promotes(fact(at=6, of=there_and_back), of=there_and_back)


def test_change_that_leaves_the_split_alone_needs_no_new_judgement() -> None:
    scaled = [*ROLLOUT, *history(FIRST, FIRST, FIRST, FIRST, AT_50.update_version("v2a", num_replicas=3))[4:]]
    assert promotes(fact(), of=scaled)


def test_another_image_or_control_at_the_same_split_needs_a_new_judgement() -> None:
    other_image = f"registry.example/models/digits@sha256:{'a' * 64}"
    third = AT_50.create_version("v3a")
    for changed in (
        [AT_50.update_version("v2a", image=other_image)],
        [AT_50.update_version("v1a", image=other_image)],
        [third, third.update_version("v3a", is_control=True)],
    ):
        replaced = [*ROLLOUT, *history(FIRST, FIRST, FIRST, FIRST, *changed)[4:]]
        assert not promotes(fact(), of=replaced)
        assert not shifts(fact(), of=replaced)
        assert promotes(fact(at=len(replaced), of=replaced), of=replaced)


@pytest.mark.parametrize("step", ["hold", "ask", "reject"])
def test_no_that_was_recorded_while_the_target_was_away_takes_the_permission_away(step: str) -> None:
    unknown: dict[str, Any] = {"run": None, "rollout": None, "share": None, "revision": 0}
    assert not promotes(fact(), fact(step, **unknown))
    assert not shifts(fact("approve"), fact(step, **unknown))
    assert promotes(fact(step, **unknown), fact())
    assert promotes(fact(), fact(step, **unknown, time=NOW - timedelta(days=1)))


def test_only_an_approval_permits_a_promotion_that_needs_one() -> None:
    assert not promotes(fact(), needs_approval=True)
    assert not promotes(fact("approve"), fact("ask"), needs_approval=True)
    assert promotes(fact("approve"), fact(outcome="not_enough_evidence"), needs_approval=True)
    assert not promotes(fact("approve"), fact("look", outcome="fail"), fact(), needs_approval=True)


def test_control_is_promoted_already() -> None:
    promoted = [*ROLLOUT, *history(FIRST, FIRST, FIRST, FIRST, AT_50.promote("v2a").release("v2a"))[4:]]
    assert promotes(of=promoted)


def test_first_shift_and_every_shift_down_need_no_judgement() -> None:
    assert shifts(of=history(FIRST, ROLLING), to=10)
    assert shifts(to=50) and shifts(to=10) and shifts(to=0)


def test_share_that_somebody_set_to_0_is_not_raised_again() -> None:
    stopped = history(FIRST, ROLLING, AT_10, AT_10.shift("v2a", 0))
    assert not shifts(of=stopped, to=10)
    assert not shifts(fact(at=3, of=stopped), of=stopped, to=50)
    # A new rollout of the same version begins anew.
    again = AT_10.shift("v2a", 0).release("v2a").claim("v2a", owner=RUN, at=NOW + timedelta(hours=1))
    assert shifts(of=history(FIRST, ROLLING, AT_10, again), to=10)


@given(
    lines=st.lists(
        st.builds(
            fact,
            st.sampled_from(["go_on", "hold", "ask", "approve", "reject", "look"]),
            at=st.integers(1, 4),
            outcome=st.sampled_from(["pass", "fail", "not_enough_evidence", None]),
        ),
        max_size=6,
    ),
    needs_approval=st.booleans(),
)
def test_promotion_is_permitted_only_after_a_yes_at_this_share_and_no_later_no(
    lines: list[Decision], needs_approval: bool
) -> None:
    if not promotes(*lines, needs_approval=needs_approval):
        return
    yes = max(
        index
        for index, line in enumerate(lines)
        if line.revision == 4 and (line.step == "approve" or (not needs_approval and line.step == "go_on"))
    )
    assert not [
        line
        for line in lines[yes + 1 :]
        if line.revision == 4 and (line.step in ("hold", "reject") or (line.step, line.outcome) == ("look", "fail"))
    ]
