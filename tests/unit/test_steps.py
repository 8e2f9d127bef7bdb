"""What the steps conclude from an endpoint's history and from what the router has counted."""

from datetime import UTC, datetime, timedelta

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.evaluation.rollout import created_at, splits_since
from controlled_rollout.evidence import SplitChange
from controlled_rollout.steps import Promotion, promotion_of
from controlled_rollout.target.protocol import Change, Revision

START = datetime(2026, 1, 5, tzinfo=UTC)


def at(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


def history(*endpoints: Endpoint) -> list[Revision]:
    return [
        Revision(number=n, endpoint=e, change=Change(who="somebody", why="test"), created=at(n))
        for n, e in enumerate(endpoints)
    ]


first = Endpoint(name="digits").create_version("old", is_control=True)
created = first.create_version("new")
tenth = created.update_version("new", traffic_percentile=10)
half = tenth.update_version("new", traffic_percentile=50)
promoted = half.promote("new")


def test_a_rollout_begins_when_its_version_was_created_last() -> None:
    again = history(first, created, tenth, first, created, tenth)
    assert created_at(again, "new") == at(4)
    assert created_at(history(first, created, tenth), "old") == at(0)


def test_the_split_is_the_treatments_part_of_the_two_and_unchanged_revisions_do_not_count() -> None:
    other = tenth.create_version("third", traffic_percentile=80)
    splits = splits_since(history(first, created, tenth, tenth, half, promoted), at(1), control="old", treatment="new")
    assert splits == (SplitChange(at(1), 0), SplitChange(at(2), 0.1), SplitChange(at(4), 0.5), SplitChange(at(5), 1))
    assert splits_since(history(other), at(0), control="old", treatment="new") == (SplitChange(at(0), 0.5),)


def test_a_promotion_names_the_version_that_it_replaced_and_going_back_ends_it() -> None:
    assert promotion_of(history(first, created, half, promoted), "new") == Promotion(at(3), "old")
    assert promotion_of(history(first), "old") == Promotion(at(0), None)
    assert promotion_of(history(first, created, promoted, promoted.promote("old")), "new") is None
