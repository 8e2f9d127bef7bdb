"""What an action would do is shown before it is done, also where it is refused."""

from datetime import UTC, datetime
from typing import Final

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.protocol import Change, EndpointStatus, Revision, VersionStatus
from controlled_rollout.view.actions import actions
from controlled_rollout.view.models import ActionName, ActionPreview

T0 = datetime(2026, 1, 5, 12, tzinfo=UTC)
RUN = "weekly/run-1"
DAGS: Final[dict[ActionName, str]] = {"promote": "promote", "roll_back": "undo", "hold": "hold", "shift": "shift"}


def history(*endpoints: Endpoint) -> list[Revision]:
    change = Change(who="maria@laptop", reason="see")
    return [
        Revision.after(endpoint.model_copy(update={"revision": number}), change)
        for number, endpoint in enumerate(endpoints)
    ]


def first() -> Endpoint:
    return Endpoint(name="digits").create_version("v1a", is_control=True)


def rolling_out(percent: float = 10.0) -> Endpoint:
    return first().claim("v2a", owner=RUN, at=T0).create_version("v2a").shift("v2a", percent)


def preview(
    revisions: list[Revision],
    action: ActionName,
    version: str,
    *,
    percentile: float = 25.0,
    failed: bool = False,
    hold_refusal: str | None = None,
) -> ActionPreview:
    status = EndpointStatus(
        name="digits", url="", revision=3, served_revision=3,
        versions={"v2a": VersionStatus(name="v2a", ready=False, failed=failed, cause="it crashes\x1b[2J")},
    )  # fmt: skip
    found = actions("ml", revisions, status, DAGS, percentile=percentile, at=T0, hold_refusal=hold_refusal)
    [one] = [one for one in found.actions if (one.action, one.version) == (action, version)]
    assert one.allowed is (one.refusal is None)
    assert one.before == revisions[-1].endpoint.effective_traffic()
    assert one.dag_id == DAGS[action]
    return one


def test_a_promotion_shows_the_traffic_before_and_after_and_whose_rollout_it_ends() -> None:
    shown = preview(history(first(), rolling_out()), "promote", "v2a")
    assert (shown.before, shown.after) == ({"v1a": 90, "v2a": 10}, {"v1a": 0, "v2a": 100})
    assert shown.ends_rollout_of == RUN
    assert shown.conf == {"conn_id": "ml", "endpoint": "digits", "version": "v2a"}


def test_a_treatment_goes_back_to_nothing_and_a_control_to_the_control_before_it() -> None:
    treatment = preview(history(first(), rolling_out()), "roll_back", "v2a")
    assert (treatment.after, treatment.conf.get("to")) == ({"v1a": 100, "v2a": 0}, None)
    promoted = rolling_out().promote("v2a").release("v2a")
    control = preview(history(first(), rolling_out(), promoted), "roll_back", "v2a")
    assert (control.after, control.conf["to"]) == ({"v1a": 100, "v2a": 0}, "v1a")


def test_a_hold_leaves_the_traffic() -> None:
    shown = preview(history(first(), rolling_out()), "hold", "v2a")
    assert shown.allowed
    assert shown.after == shown.before
    assert shown.ends_rollout_of is None


def test_a_shift_by_hand_ends_the_rollout_and_has_its_share() -> None:
    shown = preview(history(first(), rolling_out()), "shift", "v2a")
    assert (shown.after, shown.ends_rollout_of) == ({"v1a": 75, "v2a": 25}, RUN)
    assert shown.conf["percentile"] == 25


@pytest.mark.parametrize(
    ("action", "version", "reason"),
    [
        ("roll_back", "v1a", "first control"),
        ("hold", "v1a", "in no rollout"),
        ("promote", "v1a", "nothing would change"),
    ],
)
def test_what_is_refused_says_why(action: ActionName, version: str, reason: str) -> None:
    shown = preview(history(first()), action, version)
    assert reason in (shown.refusal or "")
    assert shown.after is None


def test_a_hold_needs_traffic_and_is_not_repeated() -> None:
    assert "has no traffic" in (preview(history(first(), rolling_out(0)), "hold", "v2a").refusal or "")
    held = rolling_out().hold("v2a", owner=None, at=T0)
    assert "nothing would change" in (preview(history(first(), held), "hold", "v2a").refusal or "")


def test_a_share_too_small_to_show_anything_is_refused() -> None:
    shown = preview(history(first(), rolling_out()), "shift", "v2a", percentile=0.001)
    assert "least share" in (shown.refusal or "")


def test_a_version_that_does_not_become_ready_gets_no_traffic_but_may_lose_it() -> None:
    revisions = history(first(), rolling_out())
    for action in ("promote", "shift"):
        assert r"it crashes\x1b[2J" in (preview(revisions, action, "v2a", failed=True).refusal or "")
    assert preview(revisions, "shift", "v2a", percentile=0, failed=True).allowed
    assert preview(revisions, "roll_back", "v2a", failed=True).allowed


def test_a_hold_that_no_gate_would_act_on_is_refused_before_it_is_tried() -> None:
    revisions = history(first(), rolling_out())
    assert preview(revisions, "hold", "v2a").allowed
    refused = preview(revisions, "hold", "v2a", hold_refusal="no gate has looked at its present share yet")
    assert refused.refusal == "no gate has looked at its present share yet"
    assert preview(revisions, "promote", "v2a", hold_refusal="no gate has looked").allowed
