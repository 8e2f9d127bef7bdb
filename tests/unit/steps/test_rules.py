"""Which versions a run may roll back or retire."""

from datetime import UTC, datetime

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import EndpointError, NothingToDoError
from controlled_rollout.steps.rules import (
    check_is_treatment,
    check_replacement,
    has_created_endpoint,
    reason_not_promoted,
    reason_not_to_retire,
    reason_not_to_roll_back,
    replaced_by,
)
from controlled_rollout.target.protocol import Change, Revision

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
MINE = "weekly/run-2"
OTHERS = "weekly/run-1"


def history(*states: tuple[Endpoint, str]) -> list[Revision]:
    return [
        Revision(
            number=number,
            endpoint=endpoint.model_copy(update={"revision": number}),
            change=Change(who=who, reason=""),
            created=NOW,
        )
        for number, (endpoint, who) in enumerate(states, start=1)
    ]


def numbered(*revisions: Revision) -> list[Revision]:
    """Return the revisions with consecutive numbers."""
    return [revision.model_copy(update={"number": number}) for number, revision in enumerate(revisions, start=1)]


FIRST = Endpoint(name="digits").create_version("v1a", is_control=True)
ROLLING = FIRST.claim("v2a", owner=MINE, at=NOW).create_version("v2a")
SHIFTED = ROLLING.update_version("v2a", traffic_percentile=10)
PROMOTED = SHIFTED.promote("v2a").release("v2a")
MY_ROLLOUT = history((FIRST, f"{OTHERS}/deploy"), (ROLLING, f"{MINE}/deploy"), (SHIFTED, f"{MINE}/shift_10"))


def reason_to_leave(revisions: list[Revision], *, run: str = MINE) -> str:
    """Return why the run's roll-back leaves version v2a alone."""
    reason = reason_not_to_roll_back(revisions, "v2a", run)
    assert reason is not None
    return reason


def test_this_runs_treatment_is_rolled_back() -> None:
    assert reason_not_to_roll_back(MY_ROLLOUT, "v2a", MINE) is None


def test_a_retry_after_the_roll_back_finds_it_done_and_still_its_own() -> None:
    done = history(
        (FIRST, "x/y/z"), (ROLLING, f"{MINE}/deploy"), (SHIFTED.roll_back("v2a").release("v2a"), f"{MINE}/x")
    )
    assert reason_not_to_roll_back(done, "v2a", MINE) is None


@pytest.mark.parametrize("revisions", [[], history((FIRST, f"{OTHERS}/deploy"))])
def test_version_that_was_never_rolled_out_is_not_touched(revisions: list[Revision]) -> None:
    assert "was not rolled out" in reason_to_leave(revisions)


def test_another_runs_rollout_of_the_same_name_is_left() -> None:
    assert f"in the rollout of {MINE}" in reason_to_leave(MY_ROLLOUT, run="weekly/run-3")


def test_a_warm_version_of_the_same_name_that_another_run_made_is_left() -> None:
    warm = history((FIRST, f"{OTHERS}/deploy"), (FIRST.create_version("v2a"), f"{OTHERS}/deploy"))
    assert "was created by weekly/run-1/deploy" in reason_to_leave(warm)


def test_run_with_a_common_name_prefix_is_another_run() -> None:
    warm = history((FIRST, "x/y/z"), (FIRST.create_version("v2a"), f"{MINE}0/deploy"))
    assert reason_to_leave(warm)


def test_a_version_that_was_promoted_stays() -> None:
    promoted = [*MY_ROLLOUT, *history((PROMOTED, f"{MINE}/promote"))]
    assert "is the control" in reason_to_leave(promoted)


def test_a_rollout_on_hold_whose_task_has_failed_is_rolled_back() -> None:
    held = SHIFTED.hold("v2a", owner=MINE, at=NOW)
    states = history((FIRST, "x/y/z"), (ROLLING, f"{MINE}/a"), (SHIFTED, f"{MINE}/b"), (held, f"{MINE}/gate"))
    assert reason_not_to_roll_back(states, "v2a", MINE) is None


def test_only_the_run_that_created_an_endpoint_may_undo_it_and_only_while_it_is_alone() -> None:
    created = history((FIRST, f"{MINE}/deploy"))
    assert has_created_endpoint(created, "v1a", MINE)
    assert not has_created_endpoint(created, "v1a", OTHERS)
    assert not has_created_endpoint([], "v1a", MINE)
    assert not has_created_endpoint(history((FIRST, f"{MINE}/a"), (ROLLING, f"{OTHERS}/b")), "v1a", MINE)
    kept_short = [revision.model_copy(update={"number": revision.number + 5}) for revision in created]
    assert not has_created_endpoint(kept_short, "v1a", MINE)


def test_rolling_back_a_control_names_the_version_before_it() -> None:
    promoted = [*MY_ROLLOUT, *history((PROMOTED, f"{MINE}/promote"))]
    with pytest.raises(EndpointError, match=r"name the version that takes its place in `to` \('v1a' was control"):
        check_is_treatment(promoted, "v2a")
    check_is_treatment(promoted, "v1a")


def test_a_replacement_is_for_controls_only_and_may_be_asked_for_again() -> None:
    promoted = history((SHIFTED.promote("v2a"), "x/y/z"))
    check_replacement(promoted, "v2a", "v1a")
    check_replacement(history((SHIFTED.promote("v1a"), "x/y/z")), "v2a", "v1a")
    with pytest.raises(EndpointError, match="is a treatment: leave `to` out"):
        check_replacement(history((SHIFTED.create_version("v3a"), "x/y/z")), "v2a", "v3a")
    with pytest.raises(EndpointError, match="has no version 'v9a'"):
        check_replacement(promoted, "v2a", "v9a")
    with pytest.raises(EndpointError, match="no such endpoint"):
        check_replacement([], "v2a", "v1a")


def test_a_former_control_that_is_used_again_is_not_retired() -> None:
    after = PROMOTED
    assert reason_not_to_retire(after, "v1a") is None
    assert reason_not_to_retire(after, "gone") is None
    shared = after.update_version("v2a", traffic_percentile=90).update_version("v1a", traffic_percentile=10)
    assert "10 % of the traffic" in (reason_not_to_retire(shared, "v1a") or "")
    assert "rolled out again by" in (reason_not_to_retire(after.claim("v1a", owner=OTHERS, at=NOW), "v1a") or "")


def test_the_former_control_of_a_promoted_version_is_retired() -> None:
    promoted = [*MY_ROLLOUT, *history((PROMOTED, f"{MINE}/promote"))]
    name, promotion = replaced_by(promoted, "v2a")
    assert (name, promotion.former_control, promotion.at) == ("v1a", "v1a", NOW)


@pytest.mark.parametrize(
    ("revisions", "promoted", "reason"),
    [
        (MY_ROLLOUT, "v2a", "is not the control"),
        (MY_ROLLOUT, "v1a", "is the first control"),
        (
            [*MY_ROLLOUT, *history((PROMOTED.claim("v1a", owner=OTHERS, at=NOW), "x"))],
            "v2a",
            "again by",
        ),
    ],
)
def test_without_a_former_control_that_is_out_of_use_there_is_nothing_to_retire(
    revisions: list[Revision], promoted: str, reason: str
) -> None:
    with pytest.raises(NothingToDoError, match=reason):
        replaced_by(revisions, promoted)


def test_result_of_a_rollout_is_whether_its_version_became_control() -> None:
    promoted = [*MY_ROLLOUT, *history((PROMOTED, f"{MINE}/promote"))]
    replaced = [*promoted, *history((PROMOTED.create_version("v3a").promote("v3a"), f"{OTHERS}/promote"))]
    first = history((FIRST, f"{MINE}/deploy"))
    assert reason_not_promoted(promoted, "v2a", MINE) is None
    assert reason_not_promoted(replaced, "v2a", MINE) is None
    assert reason_not_promoted(first, "v1a", MINE) is None
    # A run that was cleared finds its version as control, and changes nothing.
    assert reason_not_promoted(promoted, "v2a", "weekly/run-3") is None


def test_result_of_a_rollout_that_was_not_promoted_names_who_ended_it_and_why() -> None:
    back = SHIFTED.roll_back("v2a").release("v2a")
    rolled_back = numbered(*MY_ROLLOUT, *history((back, f"{MINE}/roll_back")))
    reason = reason_not_promoted(rolled_back, "v2a", MINE)
    assert reason and reason.endswith(f"{MINE}/roll_back ended the rollout of 'v2a' by {MINE} in revision 4")
    deleted = numbered(*rolled_back, *history((back.delete_version("v2a"), f"{MINE}/retire_treatment")))
    assert "weekly/run-2/roll_back ended" in (reason_not_promoted(deleted, "v2a", MINE) or "")
    assert "has 10 % of the traffic, and no task of" in (reason_not_promoted(MY_ROLLOUT, "v2a", MINE) or "")
    for revisions in ([], history((FIRST, f"{OTHERS}/deploy"))):
        assert "has not rolled it out" in (reason_not_promoted(revisions, "v2a", MINE) or "")


def test_earlier_promotion_of_the_same_name_is_not_the_runs() -> None:
    earlier = history((FIRST.create_version("v2a").promote("v2a"), "x"), (FIRST, "x"))
    rolled_back = (SHIFTED.roll_back("v2a").release("v2a"), f"{MINE}/roll_back")
    again = numbered(*earlier, *history((ROLLING, f"{MINE}/deploy"), rolled_back))
    assert "was not promoted" in (reason_not_promoted(again, "v2a", MINE) or "")


def test_rollout_that_somebody_else_has_ended_is_not_the_runs_to_roll_back() -> None:
    taken = numbered(*MY_ROLLOUT, *history((SHIFTED.shift("v2a", 30).release("v2a"), "ada")))
    assert reason_to_leave(taken).startswith("ada ended the rollout of 'v2a' by weekly/run-2 in revision 4")


def test_former_control_is_retired_only_by_the_run_that_has_promoted() -> None:
    promoted = [*MY_ROLLOUT, *history((PROMOTED, f"{MINE}/promote"))]
    assert replaced_by(promoted, "v2a", MINE)[0] == "v1a"
    by_hand = [*MY_ROLLOUT, *history((PROMOTED, "ada"))]
    with pytest.raises(NothingToDoError, match="was promoted by ada"):
        replaced_by(by_hand, "v2a", MINE)
    assert replaced_by(by_hand, "v2a")[0] == "v1a"
