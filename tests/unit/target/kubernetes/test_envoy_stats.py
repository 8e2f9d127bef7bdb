"""Envoy's counters compared with the split."""

from controlled_rollout.target.kubernetes.envoy_stats import contradiction


def test_counters_that_contradict_the_split_are_detected_and_chance_is_not() -> None:
    split = {"one": 900_000, "two": 100_000}

    assert contradiction(split, {}) is None
    assert contradiction(split, {"one": 2, "two": 1}) is None
    assert contradiction(split, {"one": 880, "two": 120}) is None
    assert contradiction(split, {"one": 1000, "two": 0}) == (
        "the Envoys have sent 1000 of 1000 requests to version 'one'; the split that they were given asks for about 900"
    )
    assert contradiction({"one": 1_000_000}, {"one": 5}) is None
