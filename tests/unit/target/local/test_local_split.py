"""Which version gets which share while not all of them are ready."""

from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.local.split import split

TOTAL = 1_000_000
NAMES = ["one", "two", "three"]


def endpoint(*shares: float, default: str = "one") -> Endpoint:
    made = Endpoint(name="digits")
    for name, share in zip(NAMES, shares, strict=False):
        made = made.create_version(name, traffic_percentile=share)
    return made.update_version(default, is_default=True)


def test_ready_versions_get_what_is_asked_for() -> None:
    found = split(endpoint(60, 40), proven={"one", "two"}, served={})

    assert (found.weights, found.complete) == ({"one": 600_000, "two": 400_000}, True)


def test_the_share_of_a_version_that_was_never_ready_stays_with_the_default() -> None:
    found = split(endpoint(60, 40), proven={"one"}, served={"one": TOTAL})

    assert (found.weights, found.complete) == ({"one": TOTAL, "two": 0}, False)


def test_a_version_without_a_share_keeps_nobody_waiting() -> None:
    assert split(endpoint(100, 0), proven={"one"}, served={}).complete


def test_while_a_new_default_is_not_ready_the_old_split_is_served_on() -> None:
    served = {"one": 900_000, "two": 100_000, "gone": 0}

    found = split(endpoint(0, 0, 0, default="three"), proven={"one", "two"}, served=served)

    assert (found.weights, found.complete) == (served, False)


def test_a_first_version_that_is_not_ready_is_routed_to_all_the_same() -> None:
    assert split(endpoint(0), proven=set(), served={}).weights == {"one": TOTAL}


def test_an_endpoint_without_versions_has_nothing_to_split() -> None:
    found = split(Endpoint(name="digits"), proven=set(), served={})

    assert (found.weights, found.complete) == ({}, True)


@given(
    st.lists(st.integers(0, 33), min_size=1, max_size=3),
    st.sets(st.sampled_from(NAMES)),
    st.sampled_from(NAMES),
)
def test_whatever_is_ready_the_weights_add_up_and_no_unready_version_gets_any(
    shares: list[int], proven: set[str], default: str
) -> None:
    wanted = endpoint(*map(float, shares), default=default if NAMES.index(default) < len(shares) else "one")

    found = split(wanted, proven=proven, served={})

    assert sum(found.weights.values()) == TOTAL
    assert found.complete == all(name in proven for name, weight in wanted.weights().items() if weight)
    starving = {name for name, weight in found.weights.items() if weight and name not in proven}
    assert starving <= {wanted.default.name if wanted.default else ""}
