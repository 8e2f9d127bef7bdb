"""The autoscaler beside the rules of HorizontalPodAutoscaler and Knative: a sample of what `make bench` simulates."""

import math

from tests.benchmarks.autoscaling.page import complaints, picture, rows
from tests.benchmarks.autoscaling.rules import RULES
from tests.benchmarks.autoscaling.simulation import CURVES, simulate

SAMPLE = ("step, 1 → 8", "spike, 1 → 8 for 20 s")


def test_fewer_requests_are_refused_in_a_step_and_a_spike_than_under_either_rule() -> None:
    outcomes = {
        name: {rule: [simulate(make(), CURVES[name], seed) for seed in (0, 1)] for rule, make in RULES.items()}
        for name in SAMPLE
    }
    assert list(complaints(outcomes)) == []
    for by_rule in outcomes.values():
        ours = by_rule["ours"]
        assert all(outcome.decided_s is not None and outcome.decided_s <= 1 for outcome in ours)
        assert sum(outcome.refused for outcome in ours) < sum(outcome.refused for outcome in by_rule["KPA"])
    assert len(list(rows(outcomes))) == len(SAMPLE) * len(RULES)
    assert picture(outcomes).count("<polyline") == len(SAMPLE) * (len(RULES) + 1)


def test_traffic_moved_by_a_shift_meets_replicas_that_are_ready() -> None:
    curve = CURVES["a shift from 10 to 80 %"]
    outcome = simulate(RULES["ours"](), curve, 0)
    assert outcome.refused == 0
    assert min(outcome.wanted[int(curve.changes_at) :]) >= math.ceil(8 / 0.7)
