"""The replicas that a load needs, and the versions that are too small for their next share."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.sizing import Load, autoscaler_limits, replicas_for, required_replicas

rates = st.floats(0, 10_000)
times = st.floats(0, 60)
utilisations = st.integers(1, 100).map(lambda per_cent: per_cent / 100)
slot_numbers = st.integers(1, 64)
shares = st.floats(0, 100)


def endpoint(share: float = 0.0, **settings: Any) -> Endpoint:
    """Return an endpoint with a control `old`, and `new` with a share of the traffic."""
    made = Endpoint(name="digits").create_version("old", is_control=True)
    return made.create_version("new", traffic_percentile=share, **settings)


def needed(after: Endpoint, loads: dict[str, Load], running: dict[str, int], version: str = "new") -> int | None:
    requirement = required_replicas(endpoint(), after, loads, running).get(version)
    return requirement.required if requirement else None


@pytest.mark.parametrize(
    ("requests_per_s", "request_time_s", "target_utilisation", "slots", "replicas"),
    [
        (100, 0.1, 0.7, 1, 15),
        (20, 10, 0.7, 1, 286),  # the example of the retired service's documentation
        (20, 10, 0.7, 10, 29),
        (1000, 0.007, 0.7, 1, 10),
        (0, 0.1, 0.7, 1, 1),
        (1, 0.0, 0.7, 1, 1),
        (5, 1, 1.0, 5, 1),
        (5.001, 1, 1.0, 5, 2),
    ],
)
def test_the_replicas_of_a_load(
    requests_per_s: float, request_time_s: float, target_utilisation: float, slots: int, replicas: int
) -> None:
    assert replicas_for(requests_per_s, request_time_s, target_utilisation=target_utilisation, slots=slots) == replicas


@given(st.integers(1, 100_000), utilisations, slot_numbers, st.floats(0.0001, 60))
def test_a_load_that_fills_its_replicas_exactly_needs_not_one_more(
    replicas: int, utilisation: float, slots: int, request_time_s: float
) -> None:
    requests_per_s = replicas * utilisation * slots / request_time_s

    assert replicas_for(requests_per_s, request_time_s, target_utilisation=utilisation, slots=slots) == (replicas)


@given(rates, times, utilisations, slot_numbers)
def test_the_replicas_hold_the_load_at_the_utilisation_asked_for_and_one_less_would_not(
    requests_per_s: float, request_time_s: float, utilisation: float, slots: int
) -> None:
    replicas = replicas_for(requests_per_s, request_time_s, target_utilisation=utilisation, slots=slots)

    busy = requests_per_s * request_time_s
    assert busy <= replicas * slots * utilisation * (1 + 1e-8)
    assert replicas == 1 or busy > (replicas - 1) * slots * utilisation


@given(rates, rates, times, times, utilisations, slot_numbers)
def test_more_requests_or_longer_ones_never_need_fewer_replicas(
    rate: float, other_rate: float, time: float, other_time: float, utilisation: float, slots: int
) -> None:
    (low, high), (short, long) = sorted([rate, other_rate]), sorted([time, other_time])

    small = replicas_for(low, short, target_utilisation=utilisation, slots=slots)
    assert small <= replicas_for(high, long, target_utilisation=utilisation, slots=slots)


@pytest.mark.parametrize(
    ("requests_per_s", "request_time_s", "target_utilisation", "slots"),
    [(-1, 1, 0.7, 1), (math.inf, 1, 0.7, 1), (1, math.nan, 0.7, 1), (1, 1, 0, 1), (1, 1, 1.01, 1), (1, 1, 0.7, 0)],
)
def test_an_impossible_load_or_replica_is_refused(
    requests_per_s: float, request_time_s: float, target_utilisation: float, slots: int
) -> None:
    with pytest.raises(ValueError, match=r"is not possible|cannot be busy"):
        replicas_for(requests_per_s, request_time_s, target_utilisation=target_utilisation, slots=slots)


def test_a_version_gets_what_its_share_of_the_whole_endpoints_load_needs() -> None:
    loads = {"old": Load(requests_per_s=180, request_time_s=0.01), "new": Load(requests_per_s=20, request_time_s=0.02)}

    required = required_replicas(endpoint(10), endpoint(50), loads, {"old": 3, "new": 1})

    assert list(required) == ["new"]
    version = required["new"]
    assert (version.required, version.fewest, version.is_short) == (3, 3, True)
    assert version.is_allowed
    assert version.gets_more
    assert (version.traffic_percent, version.requests_per_s, version.request_time_s) == (50, 100, 0.02)


def test_a_version_that_keeps_or_loses_its_share_and_is_too_small_already_is_seen_too() -> None:
    loads = {"old": Load(requests_per_s=400, request_time_s=0.01)}

    required = required_replicas(endpoint(0), endpoint(10), loads, {"old": 1, "new": 1})

    assert (required["old"].required, required["old"].gets_more) == (6, False)
    assert list(required_replicas(endpoint(0), endpoint(10), loads, {"old": 6, "new": 1})) == ["new"]
    assert required_replicas(endpoint(10), endpoint(0), loads, {"old": 1, "new": 1})["old"].gets_more


def test_a_promotion_sizes_for_all_the_traffic_by_the_time_of_the_control_before() -> None:
    before = endpoint(0)
    loads = {"old": Load(requests_per_s=100, request_time_s=0.1), "gone": Load(requests_per_s=0, request_time_s=9.0)}

    required = required_replicas(before, before.promote("new"), loads, {"old": 15, "new": 1})

    assert {name: (version.required, version.limit, version.fewest) for name, version in required.items()} == {
        "new": (15, 10, 10)
    }
    assert not required["new"].is_allowed


def test_without_a_time_of_its_own_or_of_a_control_the_slowest_known_is_taken() -> None:
    before = endpoint(0).update_version("old", is_control=False)
    loads = {
        "old": Load(requests_per_s=100),
        "gone": Load(requests_per_s=0, request_time_s=0.02),
        "away": Load(requests_per_s=0, request_time_s=0.05),
    }

    assert required_replicas(before, before.shift("new", 50), loads, {"old": 9, "new": 1})["new"].request_time_s == 0.05


@pytest.mark.parametrize("running", [3, 4, 9])
def test_version_that_gets_more_and_should_have_enough_replicas_already_is_sized_all_the_same(running: int) -> None:
    loads = {"old": Load(requests_per_s=20, request_time_s=0.2)}

    version = required_replicas(endpoint(10), endpoint(50), loads, {"old": 9, "new": running})["new"]

    assert (version.required, version.fewest, version.is_short) == (3, 3, False)
    assert version.summary().startswith(
        f"version 'new' keeps at least 3 of its {running} replicas for 50 % of the load"
    )


@pytest.mark.parametrize(
    ("workers", "concurrent", "replicas"), [(1, 1, 10), (2, 1, 5), (1, 2, 5), (2, 2, 3), (4, 4, 1)]
)
def test_each_process_of_a_replica_has_its_slots(workers: int, concurrent: int, replicas: int) -> None:
    loads = {"old": Load(requests_per_s=35, request_time_s=0.2)}
    after = endpoint(100, worker_count=workers, replica_max_concurrent_requests=concurrent)
    version = after.version("new")

    assert version.slots == workers * concurrent
    assert needed(after, loads, {"old": 10, "new": 1}) == replicas
    assert autoscaler_limits(version).slots == version.slots


@pytest.mark.parametrize(
    "loads",
    [{}, {"old": Load(requests_per_s=0, request_time_s=0.5)}, {"old": Load(requests_per_s=50)}],
)
def test_without_a_measured_load_there_is_nothing_to_do(loads: dict[str, Load]) -> None:
    assert required_replicas(endpoint(), endpoint(90), loads, {"old": 1, "new": 1}) == {}


def test_a_fixed_number_of_replicas_is_left_alone_and_a_minimum_kept() -> None:
    loads = {"old": Load(requests_per_s=1000, request_time_s=1.0)}
    light = {"old": Load(requests_per_s=0.1, request_time_s=0.001)}

    assert needed(endpoint(50, num_replicas=2), loads, {"old": 10, "new": 2}) is None
    assert needed(endpoint(50, autoscale_min_replicas=3), light, {"old": 1, "new": 2}) == 3
    assert needed(endpoint(0, autoscale_min_replicas=3), light, {"old": 1, "new": 1}) is None


@given(rates, times, shares, shares, st.integers(1, 10), st.integers(0, 20), utilisations)
def test_no_version_is_sized_beyond_its_maximum_and_only_what_grows_or_is_too_small_is_sized(
    rate: float, time: float, share: float, before: float, most: int, running: int, utilisation: float
) -> None:
    settings = {"autoscale_max_replicas": most, "autoscale_target_utilization": round(utilisation * 100)}
    loads = {"old": Load(requests_per_s=rate, request_time_s=time)}

    required = required_replicas(
        endpoint(before, **settings), endpoint(share, **settings), loads, {"old": 10, "new": running}
    )

    for version in required.values():
        assert 1 <= version.fewest <= version.limit
        assert version.gets_more or version.required > version.running


def test_a_share_that_differs_by_rounding_only_does_not_grow() -> None:
    loads = {"old": Load(requests_per_s=100, request_time_s=1.0)}
    before, after = endpoint(33.3), endpoint(33.3 + 1e-12)

    assert not any(
        version.gets_more for version in required_replicas(before, after, loads, {"old": 1, "new": 1}).values()
    )


@given(rates, rates, times, shares, shares)
def test_more_load_or_a_larger_share_never_needs_fewer_replicas(
    rate: float, other_rate: float, time: float, share: float, other_share: float
) -> None:
    (low, high), (small, large) = sorted([rate, other_rate]), sorted([share, other_share])

    def replicas_of(rate: float, share: float) -> int:
        loads = {"old": Load(requests_per_s=rate, request_time_s=time)}
        return needed(endpoint(share), loads, {"old": 1, "new": 0}) or 0

    assert replicas_of(low, small) <= replicas_of(high, small) <= replicas_of(high, large)
