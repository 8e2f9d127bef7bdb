"""The creation and the promotion of a version, from the endpoint's revisions."""

from datetime import UTC, datetime, timedelta

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.history import Promotion, SharedTraffic, creation_of, promotion_of, shared_traffic
from controlled_rollout.target.protocol import Change, Revision

START = datetime(2026, 1, 5, tzinfo=UTC)


def at(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


def history(*endpoints: Endpoint) -> list[Revision]:
    return [
        Revision(number=n, endpoint=e, change=Change(who="somebody", reason="test"), created=at(n))
        for n, e in enumerate(endpoints)
    ]


first = Endpoint(name="digits").create_version("old", is_control=True)
created = first.create_version("new")
tenth = created.update_version("new", traffic_percentile=10)
half = created.update_version("new", traffic_percentile=50)
promoted = half.promote("new")


def test_a_version_was_created_by_the_revision_that_brought_its_name_back_last() -> None:
    again = history(first, created, tenth, first, created, tenth)
    assert creation_of(again, "new").created == at(4)
    assert creation_of(history(first, created, tenth), "old").created == at(0)


def test_a_promotion_names_the_version_that_it_replaced_and_going_back_ends_it() -> None:
    assert promotion_of(history(first, created, half, promoted), "new") == Promotion(at(3), "old", "somebody")
    assert promotion_of(history(first), "old") == Promotion(at(0), None, "somebody")
    assert promotion_of(history(first, created, promoted, promoted.promote("old")), "new") is None


def test_a_promotion_names_the_rollout_that_it_ended_and_no_other_version_s() -> None:
    held = half.claim("new", owner="weekly/run-1", at=at(1))
    by_run = promotion_of(history(first, held, held.promote("new").release("new")), "new")
    assert by_run is not None
    assert by_run.rollout == held.rollout
    other = promoted.create_version("other").claim("other", owner="weekly/run-2", at=at(2))
    back = promotion_of(history(first, promoted, other, other.promote("old").release("other")), "old")
    assert back is not None
    assert back.rollout is None


def test_a_version_was_compared_with_the_control_beside_which_it_had_traffic() -> None:
    beside_old = history(first, created, tenth, half, promoted, promoted.delete_version("old"))
    assert shared_traffic(beside_old, "new") == SharedTraffic("old", at(2), at(4))
    assert shared_traffic(history(first, created, tenth), "new") == SharedTraffic("old", at(2), None)
    assert shared_traffic(history(first, created, promoted), "new") is None
    assert shared_traffic(history(first, created, tenth), "old") is None


def test_a_pause_at_0_percent_is_within_the_time_of_both() -> None:
    assert shared_traffic(history(first, tenth, created, tenth), "new") == SharedTraffic("old", at(1), None)


def test_a_new_control_and_a_name_that_is_used_again_begin_anew() -> None:
    other = tenth.create_version("other", image="a@sha256:2").promote("other")
    beside_other = other.update_version("new", traffic_percentile=10)
    assert shared_traffic(history(first, tenth, other, beside_other), "new") == SharedTraffic("other", at(3), None)
    assert shared_traffic(history(first, tenth, first, created), "new") is None
