from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from controlled_rollout.gate import Bin, Category, Counts, Event, Gate, Mean, Moments, Outcome, describe, judge

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
GATE = Gate(judges_traffic=False, latency_quantiles=(), events={"accuracy": Event(counted="wrong answers")})


def answer_counts(wrong: int, total: int) -> Counts:
    return Counts(total, 0, categories={"accuracy": {"yes": wrong, "no": total - wrong}})


def hours(treatment: Counts, control: Counts, n: int) -> list[Bin]:
    return [Bin(BEGIN + timedelta(hours=hour), control, treatment) for hour in range(n)]


def test_more_wrong_answers_than_controls_are_an_alarm_that_names_both_rates() -> None:
    verdict = judge(hours(answer_counts(12, 40), answer_counts(36, 360), 20), GATE)
    assert verdict.outcome is Outcome.FAIL
    assert "accuracy is worse: e-value" in verdict.reason
    assert "wrong answers: 30 % against control's 10 %, difference +20 points" in verdict.reason
    assert [claim.name for claim in verdict.claims] == ["accuracy is worse", "accuracy is not worse"]


def test_as_many_wrong_answers_pass_when_there_are_enough_of_them() -> None:
    bins = hours(answer_counts(4, 40), answer_counts(36, 360), 60)
    assert judge(bins[:2], GATE).outcome is Outcome.NOT_ENOUGH_EVIDENCE
    verdict = judge(bins, GATE)
    assert verdict.outcome is Outcome.PASS
    assert "errors" not in describe(verdict)


def test_a_version_without_a_wrong_answer_passes_by_its_own_rate() -> None:
    assert judge(hours(answer_counts(0, 40), answer_counts(0, 360), 20), GATE).outcome is Outcome.PASS


def test_a_rate_within_the_margin_is_no_alarm() -> None:
    gate = GATE.model_copy(update={"events": {"accuracy": Event(margin=0.05)}})
    bins = hours(answer_counts(18, 360), answer_counts(7, 360), 60)
    assert judge(bins, GATE).outcome is Outcome.FAIL
    assert judge(bins, gate).outcome is not Outcome.FAIL


def test_alpha_is_shared_over_events_and_means_and_not_with_errors() -> None:
    gate = Gate(
        judges_traffic=False,
        latency_quantiles=(),
        events={"accuracy": Event()},
        means={"loss": Mean(worse="higher")},
        weights={"accuracy": 3.0},
    )
    counts = Counts(10, 0, means={"loss": Moments(10, 1.0, 1.0)}, categories={"accuracy": {"yes": 1, "no": 9}})
    thresholds = {claim.name: claim.threshold for claim in judge(hours(counts, counts, 30), gate).claims}
    assert thresholds["accuracy is worse"] == pytest.approx(4 / 3 / 0.05)
    assert thresholds["loss is higher"] == pytest.approx(4 / 0.05)


def test_without_anything_to_rule_out_nothing_passes() -> None:
    gate = Gate(judges_traffic=False, latency_quantiles=(), means={"loss": Mean(worse="higher")})
    counts = Counts(10, 0, means={"loss": Moments(10, 1.0, 1.0)})
    verdict = judge(hours(counts, counts, 30), gate)
    assert verdict.outcome is Outcome.NOT_ENOUGH_EVIDENCE
    assert "give a metric a pass_margin" in verdict.reason


def test_bins_without_a_value_of_an_event_say_so_and_pass_nothing() -> None:
    verdict = judge(hours(Counts(10, 0), Counts(10, 0), 3), GATE)
    assert verdict.outcome is Outcome.NOT_ENOUGH_EVIDENCE
    assert "accuracy is not judged: the bins carry no values of it" in verdict.reason


def test_an_event_is_judged_beside_errors_and_latency_as_well() -> None:
    gate = Gate(events={"refused": Event(counted="refusals")}, latency_quantiles=())
    verdict = judge(
        hours(
            Counts(100, 0, categories={"refused": {"yes": 40, "no": 60}}),
            Counts(100, 0, categories={"refused": {"yes": 10, "no": 90}}),
            10,
        ),
        gate,
    )
    assert verdict.outcome is Outcome.FAIL
    assert {"errors are higher", "refused is worse"} <= {claim.name for claim in verdict.claims}


@pytest.mark.parametrize("other", ["means", "categories"])
def test_an_event_is_not_called_like_another_metric(other: str) -> None:
    metric = {"means": Mean(worse="higher"), "categories": Category()}[other]
    with pytest.raises(ValueError, match="score would name two metrics"):
        Gate.model_validate({"events": {"score": Event()}, other: {"score": metric}})


def test_healthy_events_alarm_at_most_as_often_as_alpha_allows() -> None:
    """60 looks at each of 150 pairs with 10 % wrong answers; more runs are in the benchmark of the gate."""
    random = np.random.default_rng(1)
    runs = 150
    false = 0
    for _ in range(runs):
        wrong = random.binomial([5, 45], 0.1, size=(60, 2))
        bins = [
            Bin(BEGIN + timedelta(hours=hour), answer_counts(int(control), 45), answer_counts(int(treatment), 5))
            for hour, (treatment, control) in enumerate(wrong)
        ]
        false += judge(bins, GATE).outcome is Outcome.FAIL
    assert false / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
