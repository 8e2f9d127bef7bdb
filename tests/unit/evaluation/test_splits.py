"""When the treatment's part of the traffic changed, from the endpoint's history."""

from datetime import UTC, datetime, timedelta

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.evaluation.splits import splits_since
from controlled_rollout.evidence import SplitChange
from controlled_rollout.target.protocol import Change, Revision

START = datetime(2026, 1, 5, tzinfo=UTC)


def at(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


def history(*endpoints: Endpoint) -> list[Revision]:
    return [
        Revision(number=n, endpoint=e, change=Change(who="somebody"), created=at(n)) for n, e in enumerate(endpoints)
    ]


first = Endpoint(name="digits").create_version("old", is_control=True)
created = first.create_version("new")
tenth = created.update_version("new", traffic_percentile=10)
half = tenth.update_version("new", traffic_percentile=50)
promoted = half.promote("new")


def test_the_split_is_the_treatments_part_of_the_two_and_unchanged_revisions_do_not_count() -> None:
    other = tenth.create_version("third", traffic_percentile=80)
    splits = splits_since(history(first, created, tenth, tenth, half, promoted), at(1), control="old", treatment="new")
    assert splits == (SplitChange(at(1), 0), SplitChange(at(2), 0.1), SplitChange(at(4), 0.5), SplitChange(at(5), 1))
    assert splits_since(history(other), at(0), control="old", treatment="new") == (SplitChange(at(0), 0.5),)
