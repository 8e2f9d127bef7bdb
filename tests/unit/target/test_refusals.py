"""What every target refuses."""

import pytest

from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import ConflictError, EndpointError
from controlled_rollout.target import refusals
from controlled_rollout.target.protocol import Change, Revision
from controlled_rollout.tokens import TokenIssuer
from controlled_rollout.workspace import Workspace

FIRST = Endpoint(name="digits").create_version("one")
STORED = Revision.after(FIRST, Change(who="somebody", reason="of its own"))


def test_content_of_the_newest_revision_is_not_stored_again() -> None:
    assert refusals.already_stored(FIRST, None) is None
    assert refusals.already_stored(FIRST, STORED) == STORED.endpoint
    assert refusals.already_stored(STORED.endpoint.create_version("two"), STORED) is None


def test_change_of_an_older_revision_is_a_conflict_that_names_the_other_writer() -> None:
    with pytest.raises(ConflictError, match="revision 1 exists already: somebody stored it"):
        refusals.already_stored(FIRST.create_version("two"), STORED)
    with pytest.raises(ConflictError, match="has been deleted meanwhile"):
        refusals.already_stored(STORED.endpoint.create_version("two"), None)


def test_the_keys_of_an_issuer_on_this_machine_are_for_the_router_on_this_machine() -> None:
    issuer = TokenIssuer(issuer="mine", audience="digits", jwks_uri="http://127.0.0.1:8000/keys")

    for endpoint in (FIRST, Endpoint(name="digits", auth=Auth.TOKEN), Endpoint.new("digits", issuer)):
        refusals.check_supported(endpoint, "local")
    with pytest.raises(EndpointError, match="cannot reach: name an https address"):
        refusals.check_supported(Endpoint.new("digits", issuer), "Kubernetes")


def test_who_has_no_keys_or_issues_no_tokens_is_told_why() -> None:
    outside = TokenIssuer(issuer="https://login.example", audience="a", jwks_uri="https://login.example/keys")
    own = Endpoint(name="digits", auth=Auth.TOKEN)

    refusals.check_has_keys(FIRST)
    refusals.check_has_signing_keys(own)
    with pytest.raises(EndpointError, match="auth is 'token'; `controlled-rollout keys token digits` gives a token"):
        refusals.check_has_keys(own)
    with pytest.raises(EndpointError, match=r"auth is 'none'$"):
        refusals.check_has_keys(Endpoint(name="digits", auth=Auth.NONE))
    with pytest.raises(EndpointError, match="issues no tokens: its auth is 'key'"):
        refusals.check_has_signing_keys(FIRST)
    with pytest.raises(EndpointError, match="its callers get them from https://login"):
        refusals.check_has_signing_keys(Endpoint.new("digits", outside))


def test_a_new_version_that_collects_is_refused_where_nothing_could_collect_and_going_back_is_not() -> None:
    collecting = FIRST.update_version("one", collect_model_data=True)
    cluster = {"target": "kubernetes", "gateway": "edge/public"}
    with pytest.raises(EndpointError, match="has no collector_image: set it"):
        refusals.check_collection(collecting, None, Workspace.from_settings(cluster))
    cluster["collector_image"] = "registry.example/collector@sha256:" + "0" * 64
    # A pod has another disk, and another loopback.
    for unreachable in ("/shared", "http://127.0.0.1:10000/devstoreaccount1/data", "https://localhost:1/account/data"):
        with pytest.raises(EndpointError, match="has no storage, as an address in Blob Storage that pods reach"):
            refusals.check_collection(collecting, None, Workspace.from_settings({**cluster, "storage": unreachable}))
    refusals.check_collection(collecting, collecting, Workspace.from_settings(cluster))
    cluster["storage"] = "https://account.blob.core.windows.net/data"
    refusals.check_collection(collecting, None, Workspace.from_settings(cluster))
    refusals.check_collection(collecting, None, Workspace.local())


def test_only_1_to_1000_replicas_are_accepted() -> None:
    refusals.check_replicas("one", 1)
    refusals.check_replicas("one", 1_000)
    for replicas in (0, 1_001):
        with pytest.raises(EndpointError, match="ask for 1 to 1000"):
            refusals.check_replicas("one", replicas)
