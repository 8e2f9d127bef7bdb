"""Which version may have which share while not all of them are ready: the same decision for every target."""

from hypothesis import assume, given
from hypothesis import strategies as st

from controlled_rollout.endpoint import WEIGHT_TOTAL, Endpoint
from controlled_rollout.target.transition import CLOSED, Split, allowed_split, sends_more

NAMES = ("one", "two", "three", "four")


def endpoint(*percentiles: float, default: str = "one") -> Endpoint:
    made = Endpoint(name="digits")
    for name, percentile in zip(NAMES, percentiles, strict=False):
        made = made.create_version(name, traffic_percentile=percentile)
    return made.update_version(default, is_default=True)


def split(*percent: float, default: str = "one") -> Split:
    """Return a complete split with these percentages."""
    weights = {name: round(share * WEIGHT_TOTAL / 100) for name, share in zip(NAMES, percent, strict=False)}
    return Split(weights, default, complete=True)


def allowed(wanted: Endpoint, served: Split, *ready: str, live: set[str] | None = None) -> tuple[dict[str, float], str]:
    """Return the allowed shares in per cent, without zeros, and the default."""
    result = allowed_split(wanted, served=served, ready=ready, live=set(ready) if live is None else live)
    return {
        name: weight * 100 / WEIGHT_TOTAL for name, weight in result.weights.items() if weight
    }, result.default or ""


# What a version that is not ready does to itself and to the others


def test_ready_versions_get_what_the_revision_asks_for() -> None:
    result = allowed_split(endpoint(0, 40), served=split(100), ready=("one", "two"), live=())

    assert result == Split({"one": 600_000, "two": 400_000}, "one", complete=True)
    assert result.waiting_for is None


def test_the_default_serves_the_share_of_a_version_that_is_not_ready_and_the_others_get_theirs() -> None:
    result = allowed_split(endpoint(0, 20, 20), served=split(90, 10, 0), ready=("one", "two"), live=())

    assert result == Split({"one": 800_000, "two": 200_000, "three": 0}, "one", ("three",), complete=False)
    assert result.waiting_for == "version 'three' is not ready: 'one' serves the rest of the traffic meanwhile"


def test_a_version_that_fails_keeps_its_share() -> None:
    assert allowed(endpoint(0, 40), split(60, 40), "one") == ({"one": 60, "two": 40}, "one")


def test_a_version_that_is_not_ready_keeps_what_it_has_when_it_is_to_get_more() -> None:
    assert allowed(endpoint(0, 50), split(90, 10), "one") == ({"one": 90, "two": 10}, "one")


def test_a_default_without_a_share_and_without_a_replica_gets_nothing_and_the_others_keep_what_it_cannot_take() -> None:
    """Its requests would all fail: nothing is switched to a version that has nothing to answer with."""
    wanted, served = endpoint(0, 50, 30), split(0, 100, 0)

    waiting = allowed_split(wanted, served=served, ready=("two", "three"), live=("two", "three"))

    assert waiting == Split({"one": 0, "two": 700_000, "three": 300_000}, "one", ("one",))
    assert waiting.waiting_for == "version 'one' is not ready: the other versions keep their traffic meanwhile"
    with_replica = allowed_split(wanted, served=waiting, ready=("two", "three"), live=("one", "two", "three"))
    assert with_replica.weights == {"one": 200_000, "two": 500_000, "three": 300_000}
    # One that has a share keeps it, and takes the rest at once: going back never waits.
    assert allowed(endpoint(0, 0), split(10, 90), "two") == ({"one": 100}, "one")


def test_a_version_without_a_share_delays_nothing() -> None:
    assert allowed_split(endpoint(0, 0), served=CLOSED, ready=("one",), live=("one",)).complete


# Going back


def test_a_roll_back_needs_no_version_to_be_ready() -> None:
    assert allowed(endpoint(0, 0, 20), split(50, 30, 20)) == ({"one": 80, "three": 20}, "one")


def test_a_roll_back_while_a_third_version_is_not_ready_takes_effect() -> None:
    assert allowed(endpoint(0, 0, 20), split(50, 50, 0), "one", "two") == ({"one": 100}, "one")


def test_a_promotion_that_is_taken_back_before_it_was_served_changes_nothing() -> None:
    held = allowed_split(endpoint(0, 0, default="two"), served=split(90, 10), ready=("one",), live=("one", "two"))

    assert allowed(endpoint(0, 0), held) == ({"one": 100}, "one")


# A new default


def test_while_a_new_default_is_not_ready_the_served_one_takes_the_rest() -> None:
    result = allowed_split(endpoint(0, 0, default="two"), served=split(90, 10), ready=("one",), live=("one", "two"))

    assert result == Split({"one": 900_000, "two": 100_000}, "one", ("two",), complete=False)


def test_a_new_default_that_is_not_ready_does_not_keep_a_third_version_from_going_to_nothing() -> None:
    assert allowed(endpoint(0, 0, 0, default="two"), split(80, 10, 10), "one") == ({"one": 90, "two": 10}, "one")


def test_a_deleted_default_is_served_until_its_successor_is_ready() -> None:
    successor = endpoint(0, 0).delete_version("one", successor="two")

    assert allowed(successor, split(90, 10), "one") == ({"one": 90, "two": 10}, "one")
    assert allowed(successor, split(90, 10), "one", "two") == ({"two": 100}, "two")


def test_a_new_default_that_needs_no_more_than_it_has_need_not_be_ready() -> None:
    assert allowed(endpoint(50, 0, default="two"), split(50, 50), "one") == ({"one": 50, "two": 50}, "two")


def test_a_new_default_with_one_replica_replaces_a_served_one_that_has_none() -> None:
    wanted = endpoint(0, 0, default="two")

    assert allowed(wanted, split(100, 0), live={"two"}) == ({"two": 100}, "two")
    assert allowed(wanted, split(100, 0), live={"one", "two"}) == ({"one": 100}, "one")
    assert allowed(wanted, split(100, 0), live=set()) == ({"one": 100}, "one")


# What comes and goes


def test_a_deleted_version_loses_its_share_at_once() -> None:
    assert allowed(endpoint(0), split(50, 50), "one", "two") == ({"one": 100}, "one")


def test_no_requests_are_admitted_before_the_first_version_has_a_replica() -> None:
    result = allowed_split(endpoint(0), served=CLOSED, ready=(), live=())

    assert result == Split(waits_for=("one",))
    assert result.waiting_for == "version 'one' is not ready: all requests are answered 503 meanwhile"
    assert allowed(endpoint(0), CLOSED, live={"one"}) == ({"one": 100}, "one")


def test_no_requests_are_admitted_while_the_router_does_not_check_keys() -> None:
    assert allowed_split(endpoint(0), served=split(100), ready=("one",), live=("one",), closed=True) == CLOSED


def test_endpoint_without_versions_is_complete_and_admits_no_requests() -> None:
    assert allowed_split(Endpoint(name="digits"), served=split(100), ready=(), live=()) == Split(complete=True)


# What holds for every endpoint, whatever was served and whatever is ready


@st.composite
def endpoints(draw: st.DrawFn) -> Endpoint:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    made = Endpoint(name="digits")
    for name in names:
        made = made.create_version(name, traffic_percentile=draw(st.sampled_from((0, 0.0001, 7, 25))))
    return made.update_version(draw(st.sampled_from(names)), is_default=True)


@st.composite
def splits(draw: st.DrawFn) -> Split:
    """Draw the split that was served before: of some other revision, or none."""
    before = draw(st.none() | endpoints())
    return CLOSED if before is None else split_of(before)


def split_of(revision: Endpoint) -> Split:
    assert revision.default is not None
    return Split(revision.weight_ppm(), revision.default.name, complete=True)


SETS = st.sets(st.sampled_from(NAMES))


@given(wanted=endpoints(), served=splits(), ready=SETS, others_live=SETS)
def test_the_weights_add_up_and_no_version_grows_that_is_not_ready(
    wanted: Endpoint, served: Split, ready: set[str], others_live: set[str]
) -> None:
    live = ready | others_live
    result = allowed_split(wanted, served=served, ready=ready, live=live)

    assert sum(result.weights.values()) == (WEIGHT_TOTAL if result.default else 0)
    grown = {name for name, weight in result.weights.items() if weight > served.weights.get(name, 0)}
    assert grown - ready <= {result.default}
    if result.default in grown - ready:
        assert result.default == served.default or served.default not in live


@given(wanted=endpoints(), served=splits(), ready=SETS)
def test_complete_means_that_the_newest_revision_is_served_and_else_it_says_what_is_missing(
    wanted: Endpoint, served: Split, ready: set[str]
) -> None:
    result = allowed_split(wanted, served=served, ready=ready, live=ready)

    assert result.complete == (dict(result.weights) == wanted.weight_ppm())
    assert result.complete == (not result.waits_for)
    assert set(result.waits_for) <= set(wanted.versions) - ready
    if result.complete:
        assert wanted.default is not None
        assert result.default == wanted.default.name


@given(wanted=endpoints(), served=splits(), ready=SETS, closed=st.booleans())
def test_ready_versions_are_served_as_requested(wanted: Endpoint, served: Split, ready: set[str], closed: bool) -> None:
    all_versions = {*wanted.versions, *ready}
    result = allowed_split(wanted, served=served, ready=all_versions, live=all_versions, closed=closed)

    assert result.complete != closed
    assert dict(result.weights) == ({} if closed else wanted.weight_ppm())


@given(served=endpoints(), ready=SETS, live=SETS, name=st.sampled_from(NAMES))
def test_a_roll_back_to_nothing_is_always_possible(
    served: Endpoint, ready: set[str], live: set[str], name: str
) -> None:
    assume(name in served.versions and not served.versions[name].is_default)
    rolled_back = served.update_version(name, traffic_percentile=0)

    result = allowed_split(rolled_back, served=split_of(served), ready=ready, live=live)

    assert result.complete
    assert result.weights[name] == 0


@given(wanted=endpoints(), served=splits(), ready=SETS, live=SETS)
def test_asking_again_once_it_is_served_changes_nothing(
    wanted: Endpoint, served: Split, ready: set[str], live: set[str]
) -> None:
    result = allowed_split(wanted, served=served, ready=ready, live=live | ready)

    assert allowed_split(wanted, served=result, ready=ready, live=live | ready) == result


@given(wanted=endpoints(), served=splits(), orders=st.permutations(NAMES))
def test_versions_that_become_ready_in_any_order_end_in_the_split_that_was_asked_for(
    wanted: Endpoint, served: Split, orders: list[str]
) -> None:
    for count in range(len(orders) + 1):
        ready = set(orders[:count])
        served = allowed_split(wanted, served=served, ready=ready, live=ready)

    assert dict(served.weights) == wanted.weight_ppm()


# Which changes go forward: only they are refused for what somebody has edited


def test_a_new_version_a_bigger_share_and_another_default_go_forward_and_all_else_goes_back() -> None:
    two = endpoint(0, 20)

    assert sends_more(two, two.create_version("three"))
    assert sends_more(two, two.shift("two", 30))
    assert sends_more(two, two.promote("two"))
    assert not sends_more(two, two.shift("two", 10))
    assert not sends_more(two, two.roll_back("two"))
    assert not sends_more(two.roll_back("two"), two.roll_back("two").delete_version("two"))
    assert not sends_more(
        endpoint(0, 20, default="two"), endpoint(0, 20, default="two").delete_version("two", successor="one")
    )
    assert not sends_more(two, two)
