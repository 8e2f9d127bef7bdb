"""The Lease of the agents: who may take it when, by the clock of whoever looks at it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.target.kubernetes.agent_lease import (
    DURATION_S,
    claimed,
    new_lease,
    released,
    sighted,
)

NOW = datetime(2026, 11, 28, 23, 0, tzinfo=UTC)


def lease(holder: str = "a", now: datetime = NOW) -> dict[str, Any]:
    return new_lease("models", holder, now)


def claim(found: dict[str, Any], identity: str, seen_for_s: float) -> dict[str, Any] | None:
    seen = sighted(found, None, 100.0)
    return claimed(found, seen, identity, now=NOW, now_s=100.0 + seen_for_s)


def test_a_lease_is_taken_only_when_it_was_not_renewed_for_its_whole_duration() -> None:
    assert claim(lease("a"), "b", DURATION_S - 0.1) is None
    taken = claim(lease("a"), "b", DURATION_S)

    assert taken is not None
    assert taken["spec"]["holderIdentity"] == "b"
    assert taken["spec"]["leaseTransitions"] == 1
    assert claim({**lease("a"), "spec": {**lease("a")["spec"], "leaseDurationSeconds": 60}}, "b", DURATION_S) is None


def test_its_holder_renews_it_at_any_time_and_keeps_the_time_since_when_it_has_it() -> None:
    renewed = claim(lease("a"), "a", 0)

    assert renewed is not None
    assert renewed["spec"].keys() == {"holderIdentity", "leaseDurationSeconds", "renewTime"}


def test_what_was_given_up_or_never_held_is_taken_at_once() -> None:
    given_up = {**lease("a"), "spec": {**lease("a")["spec"], **released(NOW)["spec"]}}

    assert claim(given_up, "b", 0) is not None
    assert claim({"metadata": {}}, "b", 0) is not None


@given(moved=st.timedeltas(min_value=timedelta(days=-400), max_value=timedelta(days=400)))
def test_a_wrong_clock_of_the_holder_neither_prolongs_nor_shortens_its_lease(moved: timedelta) -> None:
    found = lease("a", NOW + moved)

    assert claim(found, "b", DURATION_S - 0.1) is None
    assert claim(found, "b", DURATION_S) is not None


def test_every_renewal_that_is_seen_starts_the_duration_again() -> None:
    first = sighted(lease("a"), None, 100.0)
    same = sighted(lease("a"), first, 110.0)
    renewed = sighted(lease("a", NOW + timedelta(seconds=2)), same, 112.0)

    assert same.since_s == 100.0
    assert renewed.since_s == 112.0
