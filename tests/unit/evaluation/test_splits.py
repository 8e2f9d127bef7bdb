"""Since when a rollout's evidence counts, and when its split changed, from the endpoint's history."""

from datetime import UTC, datetime, timedelta

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.evaluation.splits import compared_since, rollout_started, splits_since
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
    splits = splits_since(history(first, created, tenth, tenth, half, promoted), at(1), control="old", treatment="new")
    assert splits == (
        SplitChange(at(1), 0),
        SplitChange(at(2), 0.1, revision=2),
        SplitChange(at(4), 0.5, revision=4),
        SplitChange(at(5), 1, revision=5),
    )


def test_the_split_that_was_in_force_when_the_rollout_began_is_known() -> None:
    revisions = history(first, created, tenth, half)
    splits = splits_since(revisions, at(2.5), control="old", treatment="new")
    assert splits == (SplitChange(at(2.5), 0.1), SplitChange(at(3), 0.5, revision=3))
    other = tenth.create_version("third", traffic_percentile=80)
    assert splits_since(history(other), at(0), control="old", treatment="new") == (SplitChange(at(0), 0.5),)


rolled_back = half.update_version("new", traffic_percentile=0)


def test_evidence_of_a_version_that_is_rolled_out_again_counts_from_the_present_rollout_on() -> None:
    again = rolled_back.claim("new", owner="dag/second", at=at(4))
    assert rollout_started(history(first, created, tenth, half, again, again), "new") == at(4)
    # The run claims the endpoint before it creates the version.
    claimed = first.claim("new", owner="dag/run", at=at(1)).create_version("new")
    assert rollout_started(history(first, first, claimed), "new") == at(2)


def test_without_a_run_evidence_counts_from_when_the_share_last_rose_from_0() -> None:
    assert rollout_started(history(first, created, tenth, half), "new") == at(2)
    assert rollout_started(history(first, created), "new") == at(1)
    assert rollout_started(history(first, created, tenth, rolled_back, half, tenth), "new") == at(4)


def test_a_name_that_was_deleted_and_made_anew_is_another_version() -> None:
    deleted = rolled_back.delete_version("new")
    assert rollout_started(history(first, created, tenth, rolled_back, deleted, created), "new") == at(5)


OTHER_IMAGE = f"registry.example/models/digits@sha256:{'a' * 64}"


def test_version_whose_image_was_replaced_is_another_version() -> None:
    replaced = tenth.update_version("new", image=OTHER_IMAGE)
    assert rollout_started(history(first, created, tenth, replaced, replaced), "new") == at(3)
    claimed = replaced.claim("new", owner="dag/run", at=at(1))
    assert rollout_started(history(first, created, tenth, claimed), "new") == at(3)


def test_versions_are_compared_since_control_got_its_present_image() -> None:
    claimed = created.claim("new", owner="dag/run", at=at(1)).update_version("new", traffic_percentile=10)
    replaced = claimed.update_version("old", image=OTHER_IMAGE)
    assert compared_since(history(first, claimed, claimed), control="old", treatment="new") == at(1)
    assert compared_since(history(first, claimed, replaced, replaced), control="old", treatment="new") == at(2)
