"""What every target refuses."""

import pytest

from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import ConflictError, EndpointError
from controlled_rollout.target import refusals
from controlled_rollout.target.protocol import Change, Revision

FIRST = Endpoint(name="digits").create_version("one")
STORED = Revision.after(FIRST, Change(who="somebody", why="of its own"))


def test_content_of_the_newest_revision_is_not_stored_again() -> None:
    assert refusals.already_stored(FIRST, None) is None
    assert refusals.already_stored(FIRST, STORED) == STORED.endpoint
    assert refusals.already_stored(STORED.endpoint.create_version("two"), STORED) is None


def test_change_of_an_older_revision_is_a_conflict_that_names_the_other_writer() -> None:
    with pytest.raises(ConflictError, match="revision 1 exists already: somebody stored it"):
        refusals.already_stored(FIRST.create_version("two"), STORED)
    with pytest.raises(ConflictError, match="has been deleted meanwhile"):
        refusals.already_stored(STORED.endpoint.create_version("two"), None)


def test_tokens_are_refused_and_collected_data_where_nothing_collects_it() -> None:
    refusals.check_supported(FIRST, "local")
    with pytest.raises(EndpointError, match="asks for tokens"):
        refusals.check_supported(Endpoint(name="digits", auth=Auth.TOKEN), "local")
    with pytest.raises(EndpointError, match="asks for collect_model_data"):
        refusals.check_supported(FIRST.update_version("one", collect_model_data=True), "Kubernetes")
    refusals.check_supported(FIRST.update_version("one", collect_model_data=True), "local")


def test_only_1_to_100_replicas_are_accepted() -> None:
    refusals.check_replicas("one", 1)
    refusals.check_replicas("one", 100)
    for replicas in (0, 101):
        with pytest.raises(EndpointError, match="ask for 1 to 100"):
            refusals.check_replicas("one", replicas)
