"""Taking back a version that is control: the control before it takes its place again."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlled_rollout import RollBackOperator, steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import EndpointError
from controlled_rollout.operators.new_control import NEW_CONTROL
from controlled_rollout.steps.rules import former_control_to_restore
from controlled_rollout.target.protocol import Change, Revision
from controlled_rollout.workspace import Workspace
from tests.local.task_lab import TaskInstance, context
from tests.unit.steps.memory_target import MemoryTarget

FIRST = Endpoint(name="digits").create_version("old", is_control=True, image="a@sha256:1")
ROLLED_OUT = FIRST.create_version("new", image="a@sha256:2", traffic_percentile=10)
PROMOTED = ROLLED_OUT.promote("new")


def history(*endpoints: Endpoint) -> list[Revision]:
    created = datetime(2026, 1, 5, tzinfo=UTC)
    change = Change(who="somebody", reason="test")
    return [Revision(number=n, endpoint=e, change=change, created=created) for n, e in enumerate(endpoints, start=1)]


def test_the_control_before_a_version_takes_its_place_again_and_a_treatment_needs_none() -> None:
    assert former_control_to_restore(history(FIRST, ROLLED_OUT, PROMOTED), "new") == "old"
    assert former_control_to_restore(history(FIRST, ROLLED_OUT), "new") is None
    assert former_control_to_restore([], "new") is None


@pytest.mark.parametrize(
    ("newest", "version", "problem"),
    [
        (PROMOTED.delete_version("old"), "new", "'old', has been deleted. Roll the image 'a@sha256:1' out again"),
        (
            PROMOTED.delete_version("old").create_version("old", image="a@sha256:3"),
            "new",
            "'old', is another model now, with image 'a@sha256:3'. Roll the image 'a@sha256:1' out again",
        ),
        (FIRST, "old", "it is the first control, and there is none before it"),
    ],
)
def test_a_version_without_its_former_control_keeps_its_traffic(newest: Endpoint, version: str, problem: str) -> None:
    revisions = history(FIRST, newest) if newest is FIRST else history(FIRST, ROLLED_OUT, PROMOTED, newest)
    with pytest.raises(EndpointError, match="it keeps its traffic") as refused:
        former_control_to_restore(revisions, version)
    assert problem in str(refused.value)


async def test_a_roll_back_to_the_former_control_updates_the_endpoints_asset_and_may_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = MemoryTarget()
    monkeypatch.setattr(steps, "connect", target.open)
    for endpoint in (FIRST, ROLLED_OUT, PROMOTED):
        await target.apply(endpoint.model_copy(update={"revision": len(target.calls)}), Change(who="weekly/run-1"))
    back = RollBackOperator(
        task_id="back", endpoint="digits", version="new", to_former_control=True, own_rollout=False, reason="labels"
    )

    for _ in range(2):
        given = context(TaskInstance("run-2", "back"))
        assert await back.step(given, Workspace.local(tmp_path)) == {"old": 100, "new": 0}
        [event] = given["outlet_events"][NEW_CONTROL].asset_alias_events
        assert event.extra["version"] == "old"

    assert target.newest("digits").control == target.newest("digits").version("old")


def test_a_promotion_that_the_history_no_longer_has_is_not_taken_for_a_first_control() -> None:
    kept = [revision for revision in history(FIRST, ROLLED_OUT, PROMOTED, PROMOTED) if revision.number > 2]
    with pytest.raises(EndpointError, match=r"older than the 2 revisions that are kept.*in `to`"):
        former_control_to_restore(kept, "new")
