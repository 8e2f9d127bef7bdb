"""Envoy's counters: parsing, and the load between two readings."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.sizing import Load
from controlled_rollout.target.counters import Counters, counter_growth, loads_between, parse_counters, total_counters

# As Envoy 1.40 writes it: the histogram is merged later than the counter.
TEXT = """\
# TYPE envoy_cluster_upstream_rq counter
envoy_cluster_upstream_rq{envoy_response_code="200",envoy_cluster_name="digits/one"} 300
# TYPE envoy_cluster_upstream_rq_total counter
envoy_cluster_upstream_rq_total{envoy_cluster_name="digits/one"} 300
envoy_cluster_upstream_rq_total{envoy_cluster_name="telemetry"} 12
# TYPE envoy_cluster_upstream_rq_active gauge
envoy_cluster_upstream_rq_active{envoy_cluster_name="digits/one"} 2
envoy_cluster_upstream_rq_active{envoy_cluster_name="telemetry"} 0
# TYPE envoy_cluster_external_upstream_rq_time histogram
envoy_cluster_external_upstream_rq_time_sum{envoy_cluster_name="digits/one"} 996.00673553058845755003858357668
envoy_cluster_external_upstream_rq_time_count{envoy_cluster_name="digits/one"} 288
# TYPE envoy_cluster_upstream_rq_time histogram
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="digits/one",le="0.5"} 0
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="digits/one",le="+Inf"} 288
envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="digits/one"} 996.00673553058845755003858357668
envoy_cluster_upstream_rq_time_count{envoy_cluster_name="digits/one"} 288
"""

counters = st.builds(
    Counters,
    requests=st.integers(0, 10**12),
    active=st.integers(0, 10**6),
    time_ms=st.floats(0, 1e12),
    answered=st.integers(0, 10**12),
)
names = st.text(min_size=1, max_size=40)


def test_the_counters_of_every_cluster_are_read_from_envoys_text() -> None:
    clusters = parse_counters(TEXT)

    assert clusters.keys() == {"digits/one", "telemetry"}
    digits = clusters["digits/one"]
    assert digits.time_ms == pytest.approx(996.0067)
    assert replace(digits, time_ms=0) == Counters(requests=300, active=2, answered=288)
    assert clusters["telemetry"] == Counters(requests=12)
    assert parse_counters("") == parse_counters("# nothing counted yet\n") == {}


def test_requests_that_wait_for_a_connection_are_counted_apart_as_they_are_now() -> None:
    text = (
        'envoy_cluster_upstream_rq_active{envoy_cluster_name="x/y"} 3\n'
        'envoy_cluster_upstream_rq_pending_active{envoy_cluster_name="x/y"} 4\n'
        'envoy_cluster_upstream_rq_pending_total{envoy_cluster_name="x/y"} 900\n'
    )

    clusters = parse_counters(text)

    assert clusters == {"x/y": Counters(active=3, waiting=4)}
    assert total_counters([clusters, clusters]) == {"x/y": Counters(active=6, waiting=8)}
    assert counter_growth({"x/y": Counters(active=9, waiting=9)}, clusters) == clusters


def test_other_labels_the_order_of_labels_and_large_numbers_are_understood() -> None:
    text = (
        'envoy_cluster_upstream_rq_total{pod="a}b",envoy_cluster_name="x/y",zone=""} 1.5e+06 1700000000000\n'
        'envoy_cluster_upstream_rq_active{not_envoy_cluster_name="z",envoy_cluster_name="x/y"} 3\n'
        'envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="x/y"} NaN\n'
        'envoy_cluster_upstream_rq_total{pod="nameless"} 7\n'
    )

    assert parse_counters(text) == {"x/y": Counters(requests=1_500_000, active=3)}


@given(names)
def test_a_name_is_read_as_it_was_before_it_was_escaped(name: str) -> None:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    assert parse_counters(f'envoy_cluster_upstream_rq_total{{envoy_cluster_name="{escaped}"}} 5\n') == {
        name: Counters(5)
    }


def test_a_load_is_requests_by_time_and_the_mean_of_what_was_answered() -> None:
    before = {"one": Counters(requests=100, time_ms=500.0, answered=90), "gone": Counters(requests=5)}
    after = {"one": Counters(requests=300, time_ms=1300.0, answered=250), "new": Counters(requests=10)}

    assert loads_between(before, after, 10.0) == {
        "one": Load(requests_per_s=20.0, request_time_s=0.005),
        "new": Load(requests_per_s=1.0, request_time_s=None),
    }


def test_earlier_times_are_used_until_envoy_merges_its_histograms() -> None:
    before = {"one": Counters(requests=100, time_ms=400.0, answered=80), "idle": Counters(5, 0, 10.0, 5)}
    after = {"one": Counters(requests=120, time_ms=400.0, answered=80), "idle": Counters(5, 0, 10.0, 5)}

    assert counter_growth(before, after)["one"] == Counters(requests=20, time_ms=100.0, answered=20)
    assert loads_between(before, after, 1.0) == {
        "one": Load(requests_per_s=20.0, request_time_s=0.005),
        "idle": Load(requests_per_s=0.0, request_time_s=None),
    }


def test_restarted_router_counts_from_zero() -> None:
    before = {"one": Counters(requests=10_000, time_ms=50_000.0, answered=10_000)}
    after = {"one": Counters(requests=40, time_ms=80.0, answered=20)}

    assert loads_between(before, after, 4.0) == {"one": Load(requests_per_s=10.0, request_time_s=0.004)}


def test_the_loads_of_several_routers_add_up_each_with_its_own_restarts() -> None:
    steady = ({"one": Counters(100, 0, 100.0, 100)}, {"one": Counters(200, 1, 300.0, 200)})
    restarted = ({"one": Counters(900, 0, 900.0, 900)}, {"one": Counters(50, 2, 100.0, 50)})

    together = total_counters(counter_growth(before, after) for before, after in (steady, restarted))

    assert together == {"one": Counters(requests=150, active=3, time_ms=300.0, answered=150)}
    assert loads_between({}, together, 10.0) == {"one": Load(requests_per_s=15.0, request_time_s=0.002)}


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_time_between_two_readings_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="needs time between two readings"):
        loads_between({}, {"one": Counters(1)}, seconds)


@given(counters, counters, st.floats(0.1, 1000))
def test_no_load_is_ever_negative(before: Counters, after: Counters, seconds: float) -> None:
    load = loads_between({"one": before}, {"one": after}, seconds)["one"]

    assert load.requests_per_s >= 0
    assert load.request_time_s is None or load.request_time_s >= 0


def test_requests_that_could_not_be_sent_are_counted_apart() -> None:
    """No healthy replica, no connection (each try counts), too many open."""
    numbers = {"upstream_cx_none_healthy": 3, "upstream_rq_pending_failure_eject": 6, "upstream_rq_pending_overflow": 1}
    lines = [f'envoy_cluster_{name}{{envoy_cluster_name="x/y"}} {number}' for name, number in numbers.items()]
    before = parse_counters("\n".join([*lines, 'envoy_cluster_upstream_rq_total{envoy_cluster_name="x/y"} 7', ""]))

    assert before == {"x/y": Counters(requests=7, unsent=10)}
    assert total_counters([before, before])["x/y"].unsent == 20
    assert counter_growth(before, {"x/y": Counters(requests=9, unsent=12)})["x/y"].unsent == 2
