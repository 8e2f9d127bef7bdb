"""The key of a sticky split, and the ranges of its hash: callers only move to a version that grows."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import WEIGHT_TOTAL, Endpoint
from controlled_rollout.errors import EndpointError
from controlled_rollout.sticky import MAX_RANGES, StickyKey, UserRange, arranged

TREATMENTS = ("treatment-1", "treatment-2", "treatment-3", "treatment-4", "treatment-5")


def weights_of(shares: Sequence[int]) -> dict[str, int]:
    """Return parts of a hundred for treatments, the rest for the control."""
    return {"control": 100 - sum(shares), **dict(zip(TREATMENTS, shares, strict=False))}


def owners(ranges: Sequence[UserRange]) -> list[str]:
    """Return the version of each hash, in order."""
    return [one.version for one in ranges for _ in range(one.width)]


@st.composite
def rising_shares(draw: st.DrawFn) -> list[list[int]]:
    """Return the shares of one to five treatments over the steps of their rollouts; none ever falls."""
    shares = [0] * draw(st.integers(1, 5))
    steps = [list(shares)]
    for _ in range(draw(st.integers(1, 8))):
        grown = draw(st.integers(0, len(shares) - 1))
        shares[grown] += draw(st.integers(0, 100 - sum(shares)))
        steps.append(list(shares))
    return steps


@given(rising_shares())
def test_a_caller_only_moves_from_control_to_a_treatment_that_grows(steps: list[list[int]]) -> None:
    """A treatment that grows moves nobody of another treatment, however many there are and in whatever order."""
    ranges: tuple[UserRange, ...] = ()
    before = ["control"] * 100
    for shares in steps:
        ranges = arranged(ranges, weights_of(shares), "control")
        now = owners(ranges)
        assert all(old in (new, "control") for old, new in zip(before, now, strict=True))
        assert {name: now.count(name) for name in weights_of(shares)} == weights_of(shares)
        before = now


@given(st.lists(st.lists(st.integers(0, 20), min_size=5, max_size=5), min_size=1, max_size=12))
def test_only_as_many_callers_move_as_the_shares_ask_for(steps: list[list[int]]) -> None:
    """Whatever rises and falls: a caller leaves a version only if it shrinks or is the default."""
    ranges: tuple[UserRange, ...] = ()
    before, old_weights = ["control"] * 100, weights_of([0] * 5)
    for shares in steps:
        weights = weights_of(shares)
        ranges = arranged(ranges, weights, "control")
        now = owners(ranges)
        moved = [(old, new) for old, new in zip(before, now, strict=True) if old != new]
        assert all(old == "control" or weights[old] < old_weights[old] for old, _ in moved)
        assert all(new == "control" or weights[new] > old_weights[new] for _, new in moved)
        assert len(ranges) <= MAX_RANGES
        before, old_weights = now, weights


@given(st.lists(st.tuples(st.sampled_from(TREATMENTS), st.integers(0, 150))), st.sampled_from(TREATMENTS))
def test_any_ranges_from_before_give_the_weights_asked_for(before: list[tuple[str, int]], default: str) -> None:
    """Ranges of versions that are gone, too many or too few: the result always covers all hashes."""
    old = [UserRange(version=version, width=width) for version, width in before if width]
    weights = {"treatment-1": 30, "treatment-2": 0, "treatment-3": 70} | {default: 0}
    weights[default] = 100 - sum(weights.values())
    if weights[default] >= 0:
        now = owners(arranged(old, weights, default))
        assert {name: now.count(name) for name in weights} == weights


def test_one_treatment_has_one_range_at_every_step() -> None:
    """A usual rollout needs two ranges, and going back to a share gives back the same callers."""
    first = arranged((), weights_of([10]), "control")
    assert [(one.version, one.width) for one in first] == [("treatment-1", 10), ("control", 90)]
    assert arranged(arranged(first, weights_of([50]), "control"), weights_of([10]), "control") == first


def test_a_second_treatment_grows_from_the_other_end_and_back() -> None:
    """Two treatments grow towards each other, and a smaller share keeps those who had it first."""
    both = arranged(arranged((), weights_of([10]), "control"), weights_of([10, 5]), "control")
    assert [(one.version, one.width) for one in both] == [("treatment-1", 10), ("control", 85), ("treatment-2", 5)]
    assert arranged(arranged(both, weights_of([10, 40]), "control"), weights_of([10, 5]), "control") == both


def test_an_endpoints_document_has_the_ranges_through_a_whole_rollout() -> None:
    """Creating, shifting and promoting keep the ranges in step with the traffic; without `sticky` there are none."""
    endpoint = Endpoint(name="digits", sticky="header:X-User").create_version("one", is_control=True, image="i")
    endpoint = endpoint.create_version("two", image="i")
    assert endpoint.sticky == "header:x-user"
    assert endpoint.user_ranges == (UserRange(version="one", width=WEIGHT_TOTAL),)
    endpoint = endpoint.shift("two", 5).shift("two", 25)
    assert [(one.version, one.width) for one in endpoint.user_ranges] == [("two", 250_000), ("one", 750_000)]
    assert Endpoint.model_validate_json(endpoint.model_dump_json()) == endpoint
    assert endpoint.promote("two").user_ranges == (UserRange(version="two", width=WEIGHT_TOTAL),)
    assert Endpoint(name="digits").create_version("one", image="i").user_ranges == ()


@pytest.mark.parametrize("text", ["header:x-user", "cookie:SessionId", "header:X_User-9"])
def test_a_key_is_a_header_or_a_cookie(text: str) -> None:
    """Names of headers are of no case, names of cookies are."""
    key = StickyKey.parse(text)
    assert str(key) == (text.lower() if key.kind == "header" else text)


@pytest.mark.parametrize(
    "text",
    [
        "", "x-user", "header:", "header", "query:user", "Header:x-user", "header:x user", "header:x-user\n",
        "cookie:a=b", "cookie:a;b", "header:x:user", "header:" + "x" * 65, "header:é", " header:x-user",
    ],
)  # fmt: skip
def test_what_names_no_key_is_refused(text: str) -> None:
    """The message says which forms there are."""
    with pytest.raises(EndpointError, match="header:<name>"):
        Endpoint(name="digits", sticky=text)


@pytest.mark.parametrize(
    "name", ["Authorization", "cookie", "host", "X-Request-Id", "x-envoy-anything", "azureml-model-deployment"]
)
def test_a_header_that_tells_no_caller_from_another_is_refused(name: str) -> None:
    """Keys of the endpoint, ids of requests and what the router sets are not ids of callers."""
    with pytest.raises(EndpointError, match="does not tell one caller from another"):
        Endpoint(name="digits", sticky=f"header:{name}")
