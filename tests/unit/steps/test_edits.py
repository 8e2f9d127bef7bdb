"""The edits of each step: the next endpoint, or a refusal."""

from datetime import UTC, datetime
from typing import Any

import pytest

from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import ConflictError, EndpointError, EndpointNotFoundError, NothingToDoError
from controlled_rollout.steps import edits
from controlled_rollout.tokens import TokenIssuer

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
RUN, OTHER = "weekly/run-2", "weekly/run-1"

EMPTY = Endpoint(name="digits")
FIRST = EMPTY.create_version("old", is_control=True, image="a@sha256:1")
ROLLING = FIRST.claim("new", owner=RUN, at=NOW).create_version("new", image="b@sha256:2")
SHIFTED = ROLLING.shift("new", 10)
PROMOTED = SHIFTED.promote("new").release("new")


def deploy(endpoint: Endpoint, version: str, *, owner: str = RUN, image: str = "b@sha256:2") -> Endpoint:
    return edits.deploy(endpoint, version, image=image, owner=owner, at=NOW, settings={"cpu_cores": 0.5})


def test_first_version_is_control_with_all_the_traffic_and_no_rollout() -> None:
    first = deploy(EMPTY, "old")
    assert first.control == first.default == first.version("old")
    assert first.version("old").cpu_cores == 0.5
    assert first.rollout is None
    assert deploy(first, "old") is first


@pytest.mark.parametrize("endpoint", [EMPTY, FIRST, ROLLING])
@pytest.mark.parametrize(
    "settings",
    [
        {"traffic_percentile": 50},
        {"is_default": True},
        {"is_control": True},
        {"is_control": True, "is_default": True},
        {"image": "other@sha256:3"},
        {"name": "other"},
        {1: 2},
    ],
)
def test_settings_cannot_move_traffic_or_roles_past_the_steps(endpoint: Endpoint, settings: dict[str, Any]) -> None:
    with pytest.raises(EndpointError, match=str(next(iter(settings)))):
        edits.deploy(endpoint, "new", image="b@sha256:2", owner=RUN, at=NOW, settings=settings)


@pytest.mark.parametrize("percentile", [0.00005, 0.009, 99.995])
def test_share_that_cannot_be_served_is_refused(percentile: float) -> None:
    with pytest.raises(EndpointError, match=r"the least share of a version is 0\.01 %"):
        edits.shift(ROLLING, "new", percentile=percentile, owner=RUN)
    for served in (0, 0.01, 99.99, 100):
        assert edits.shift(ROLLING, "new", percentile=served, owner=RUN).effective_traffic()["new"] == served


def test_a_further_version_is_at_0_and_its_run_holds_the_endpoint() -> None:
    rolling = deploy(FIRST, "new")
    assert rolling.effective_traffic() == {"old": 100, "new": 0}
    assert rolling.rollout is not None
    assert (rolling.rollout.owner, rolling.rollout.version) == (RUN, "new")
    assert deploy(rolling, "new") is rolling


def test_a_deployment_is_refused_while_another_run_holds_the_endpoint_or_for_another_image() -> None:
    with pytest.raises(ConflictError, match=f"held by {RUN}"):
        deploy(ROLLING, "third", owner=OTHER)
    with pytest.raises(ConflictError, match="choose another name"):
        deploy(ROLLING, "new", image="c@sha256:3")


def test_an_endpoint_s_own_fields_are_set_with_its_control_and_not_beside_another_rollout() -> None:
    def of_control(endpoint: Endpoint, about: dict[str, Any]) -> Endpoint:
        return edits.deploy(endpoint, "old", image="a@sha256:1", owner=OTHER, at=NOW, settings={}, about=about)

    assert not of_control(FIRST, {"enable_app_insights": False}).enable_app_insights
    assert of_control(ROLLING, {"enable_app_insights": True}) is ROLLING, "what is as the file says is no change"
    with pytest.raises(ConflictError, match=f"held by {RUN}"):
        of_control(ROLLING, {"enable_app_insights": False})


@pytest.mark.parametrize("version", ["old", "new"])
def test_a_version_that_exists_with_other_settings_is_refused_and_not_taken_for_the_one_that_is_asked_for(
    version: str,
) -> None:
    image, asked = ROLLING.versions[version].image, {"num_replicas": 3, "scoring_timeout_ms": 60_000}
    with pytest.raises(ConflictError, match=rf"'{version}' with other settings \(num_replicas\): choose another name"):
        edits.deploy(ROLLING, version, image=image, owner=RUN, at=NOW, settings=asked)


ISSUER = TokenIssuer(issuer="https://login.example", audience="digits", jwks_uri="https://login.example/keys")


@pytest.mark.parametrize(
    ("created", "asked"),
    [
        (Endpoint.new("digits"), {"auth": Auth.TOKEN}),
        (Endpoint.new("digits", Auth.NONE), {"auth": Auth.KEY}),
        (Endpoint.new("digits", Auth.TOKEN), {"auth": ISSUER}),
        (Endpoint.new("digits", ISSUER), {"auth": ISSUER.model_copy(update={"audience": "other"})}),
        (Endpoint.new("digits"), {"sticky": "header:x-user"}),
        (Endpoint.new("digits", sticky="header:x-user"), {"sticky": "cookie:x-user"}),
    ],
    ids=["token", "key", "issuer", "audience", "sticky", "cookie"],
)
def test_an_endpoint_keeps_how_its_callers_authenticate_and_stay_and_another_wish_is_refused(
    created: Endpoint, asked: dict[str, Any]
) -> None:
    existing = created.create_version("old", is_control=True, image="a@sha256:1")

    with pytest.raises(EndpointError, match=r"was created with.*an endpoint of another name"):
        edits.deploy(existing, "new", image="b@sha256:2", owner=RUN, at=NOW, settings={}, **asked)


def test_what_an_endpoint_has_may_be_asked_for_again_in_any_case_of_a_header() -> None:
    existing = Endpoint.new("digits", ISSUER, sticky="header:x-user").create_version("old", is_control=True, image="a")

    wishes: tuple[dict[str, Any], ...] = ({}, {"auth": ISSUER, "sticky": "header:X-User"})
    for wish in wishes:
        changed = edits.deploy(existing, "new", image="b@sha256:2", owner=RUN, at=NOW, settings={}, **wish)
        assert list(changed.versions) == ["old", "new"]


def test_the_default_is_not_retired_and_the_advice_can_be_followed() -> None:
    with pytest.raises(EndpointError, match="promote the version that takes its place first, or delete the endpoint"):
        edits.retire(PROMOTED, "new")


def test_a_warm_version_is_taken_up_again() -> None:
    warm = FIRST.create_version("new", image="b@sha256:2", cpu_cores=0.5, num_replicas=2)
    rolling = deploy(warm, "new").rollout
    assert rolling is not None
    assert rolling.owner == RUN


def test_a_shift_needs_the_rollout_of_its_run() -> None:
    shifted = edits.shift(ROLLING, "new", percentile=10, owner=RUN)
    assert shifted.effective_traffic() == {"old": 90, "new": 10}
    for who in (RUN, f"{RUN}/shift"):  # one's own rollout goes on
        assert edits.shift(ROLLING, "new", percentile=10, owner=None, who=who) == shifted
    by_hand = edits.shift(ROLLING, "new", percentile=10, owner=None, who="ada")
    assert by_hand == shifted.release("new")
    assert edits.shift(shifted, "new", percentile=10, owner=None, who="ada") is shifted
    with pytest.raises(ConflictError, match="no longer holds"):
        edits.shift(ROLLING, "new", percentile=10, owner=OTHER)


def test_a_runs_shift_to_another_share_leaves_no_mark_of_a_hold_behind() -> None:
    held = SHIFTED.hold("new", owner=None, at=NOW)
    share = SHIFTED.version("new").traffic_percentile
    shifted = edits.shift(held, "new", percentile=share + 1, owner=RUN)
    assert shifted.rollout == SHIFTED.rollout
    assert edits.shift(held, "new", percentile=share, owner=RUN) is held, "the gate of this share may be on hold"


def test_a_run_has_nothing_to_shift_to_a_version_that_is_control_already() -> None:
    with pytest.raises(NothingToDoError, match="first version, nothing to compare with"):
        edits.shift(FIRST, "old", percentile=10, owner=RUN)
    with pytest.raises(NothingToDoError, match="has the traffic already"):
        edits.shift(PROMOTED, "new", percentile=10, owner=RUN)


def test_a_promotion_ends_the_rollout_whichever_it_was() -> None:
    assert edits.promote(SHIFTED, "new", owner=RUN) == PROMOTED
    assert edits.promote(SHIFTED, "old", owner=None).rollout is None
    with pytest.raises(ConflictError, match="no longer holds"):
        edits.promote(SHIFTED, "new", owner=OTHER)
    with pytest.raises(EndpointError, match="has no version"):
        edits.promote(SHIFTED, "third", owner=None)


def test_a_promotion_that_is_done_already_leaves_a_later_rollout_alone() -> None:
    later = PROMOTED.claim("third", owner=OTHER, at=NOW).create_version("third")
    assert edits.promote(later, "new", owner=RUN) is later
    assert edits.promote(later, "new", owner=None) is later


def test_a_roll_back_sets_0_and_releases_the_endpoint_and_may_be_repeated() -> None:
    rolled_back = edits.roll_back(SHIFTED, "new", owner=RUN)
    assert rolled_back.effective_traffic() == {"old": 100, "new": 0}
    assert rolled_back.rollout is None
    assert edits.roll_back(rolled_back, "new", owner=RUN) == rolled_back


def test_a_roll_back_is_refused_for_another_runs_rollout_and_for_what_is_not_there() -> None:
    with pytest.raises(ConflictError, match="no longer holds"):
        edits.roll_back(SHIFTED, "new", owner=OTHER)
    with pytest.raises(EndpointNotFoundError, match="no version 'third'"):
        edits.roll_back(SHIFTED, "third", owner=None)
    with pytest.raises(EndpointError, match="is the default"):
        edits.roll_back(PROMOTED, "new", owner=None)


def test_only_a_version_without_traffic_and_rollout_is_retired() -> None:
    assert list(edits.retire(PROMOTED, "old").versions) == ["new"]
    assert edits.retire(PROMOTED, "gone") is PROMOTED
    with pytest.raises(ConflictError, match="10 % of the traffic"):
        edits.retire(SHIFTED, "new")
    with pytest.raises(ConflictError, match=f"rolled out by {RUN}"):
        edits.retire(ROLLING, "new")
    with pytest.raises(EndpointError, match="is the default"):
        edits.retire(PROMOTED, "new")
