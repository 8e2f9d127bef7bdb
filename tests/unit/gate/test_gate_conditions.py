"""What is no pass however like control the treatment is: broken versions, cuts that say nothing, nothing to compare."""

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from controlled_rollout.gate import Bin, Gate, MaxLatency, judge
from tests.unit.gate.rollouts import BEGIN, MINUTE, claim, minute, simulated

GATE = Gate(latency_quantiles=())
QUANTILES = Gate(latency_quantiles=(0.5, 0.9))
BEFORE = [minute(-1 - index, (0, 0), (300, index % 3)) for index in range(60)]


def one_after_the_other(*parts: Sequence[Bin]) -> list[Bin]:
    bins = [bin_ for part in parts for bin_ in part]
    return [replace(bin_, start=BEGIN + index * MINUTE) for index, bin_ in enumerate(bins)]


# The absolute floor


def test_two_broken_versions_are_no_pass_though_neither_is_worse() -> None:
    broken = [minute(index, (300, 160), (300, 198), share=0.5) for index in range(60)]

    for before in (BEFORE, []):
        verdict = judge(broken, GATE, baseline=before)
        assert claim(verdict, "errors are not worse").reached
        assert not claim(verdict, "errors are below 10 %").reached
        assert verdict.outcome == "not_enough_evidence"
        assert "control itself is broken, and nothing to compare with: 66 % errors" in verdict.reason


def test_an_author_may_allow_more_errors() -> None:
    bins = [minute(index, (300, 60), (300, 60), share=0.5) for index in range(60)]

    assert judge(bins, GATE).outcome == "not_enough_evidence"
    for allowed in (0.3, 1.0):
        assert judge(bins, Gate(latency_quantiles=(), max_error_rate=allowed)).outcome == "pass"


def test_four_per_cent_errors_in_both_versions_still_pass() -> None:
    bins = simulated(random.Random(1), 90, share=0.5, control_rate=0.04, treatment_rate=0.04)

    assert judge(bins, GATE).outcome == "pass"


def test_a_treatment_that_became_broken_together_with_control_does_not_pass_by_its_past() -> None:
    healthy = [minute(index, (150, 1), (150, 1), share=0.5) for index in range(600)]
    broken = simulated(random.Random(3), 2, share=0.5, control_rate=0.6, treatment_rate=0.6)

    assert judge(healthy, GATE).outcome == "pass"
    verdict = judge(one_after_the_other(healthy, broken), GATE)
    assert verdict.outcome == "not_enough_evidence"
    assert "of the treatment's newest requests are errors, 10 % are allowed (max_error_rate)" in verdict.reason


def test_regression_that_begins_shortly_before_the_end_of_a_long_step_does_not_pass_by_its_past() -> None:
    healthy = [minute(index, (900, 4 + index % 2), (900, 4 + index % 2), share=0.5) for index in range(200)]
    worse = [minute(index, (150, 6), (150, 1), share=0.5) for index in range(5)]

    assert judge(healthy, GATE).outcome == "pass"
    verdict = judge(one_after_the_other(healthy, worse), GATE)
    assert verdict.outcome == "not_enough_evidence"
    assert "an alarm is near in the treatment's newest" in verdict.reason
    recovered = one_after_the_other(healthy, worse, healthy[:20])
    assert judge(recovered, GATE).outcome == "pass"


def test_regression_that_begins_shortly_before_the_end_of_a_long_step_lets_no_step_go_on() -> None:
    healthy = [minute(index, (30, int(index % 7 == 0)), (270, 1 + index % 2), share=0.1) for index in range(1440)]
    worse = [minute(index, (30, 2), (270, 1 + index % 2), share=0.1) for index in range(10)]

    assert judge(healthy, GATE).waits == ()
    verdict = judge(one_after_the_other(healthy, worse), GATE)
    assert not any(result.is_near for result in verdict.claims)
    assert "an alarm is near in the treatment's newest" in " ".join(verdict.waits)
    recovered = one_after_the_other(healthy, worse, healthy[:300])
    assert judge(recovered, GATE).waits == ()


def test_broken_versions_let_no_step_go_on_and_quantiles_of_another_time_only_no_pass() -> None:
    broken = [minute(index, (30, 16), (270, 180), share=0.1) for index in range(5)]
    stale = [minute(index, (150, 0), (150, 0), share=0.5, slow=((0, 0), (0, 0))) for index in range(60)]

    assert len(judge(broken, GATE).waits) == 2
    assert judge(stale, QUANTILES).waits == ()
    assert judge([], GATE).waits == ()


def test_a_good_treatment_beside_a_control_that_is_broken_by_its_own_baseline_is_held() -> None:
    bins = [minute(index, (300, 3), (300, 24), share=0.5) for index in range(60)]

    verdict = judge(bins, GATE, baseline=BEFORE)
    assert verdict.outcome == "not_enough_evidence"
    assert "8 % errors, 0.333 % before the rollout" in verdict.reason
    # An endpoint that has always been like that is not broken by its own baseline.
    assert judge(bins, GATE, baseline=[minute(-1 - i, (0, 0), (300, 20)) for i in range(60)]).outcome == "pass"


LIMIT = Gate(latency_quantiles=(0.5, 0.9), max_latency=MaxLatency(duration=timedelta(seconds=0.3), quantile=0.95))


@pytest.mark.parametrize(("over_limit", "outcome"), [(2, "pass"), (9, "not_enough_evidence")])
def test_pass_needs_the_treatment_to_be_faster_than_max_latency_however_slow_control_is(
    over_limit: int, outcome: str
) -> None:
    slow = (75, 15, over_limit)
    bins = [minute(index, (150, 0), (150, 0), share=0.5, slow=(slow, slow)) for index in range(100)]

    verdict = judge(bins, LIMIT)

    assert verdict.outcome == outcome
    assert claim(verdict, "p95 is below 0.3 s").reached == (outcome == "pass")


def test_max_latency_that_is_not_counted_is_no_pass() -> None:
    bins = [minute(index, (1000, 0), (1000, 0), share=0.5) for index in range(10)]

    verdict = judge(bins, LIMIT)

    assert verdict.outcome == "not_enough_evidence"
    assert "max_latency cannot be shown" in verdict.reason
    assert verdict.needs_new_rollout == verdict.no_pass
    with pytest.raises(ValueError, match="max_latency without latency_quantiles"):
        Gate(latency_quantiles=(), max_latency=MaxLatency(duration=timedelta(seconds=1)))


def test_max_latency_is_read_from_a_dags_plain_values() -> None:
    gate = Gate.model_validate({"max_latency": {"duration": "0.3 s"}})

    assert gate.max_latency == MaxLatency(duration=timedelta(seconds=0.3), quantile=0.95)
    assert Gate.model_validate(gate.model_dump(mode="json")) == gate


# Control's frozen quantiles


@pytest.mark.parametrize(
    ("control", "treatment", "name"),
    [
        ((0, 0), (0, 0), "p50"),  # control was slow before: nobody exceeds its quantiles, however slow
        ((75, 0), (75, 0), "p90"),
        ((149, 15), (149, 15), "p50"),
        ((150, 150), (150, 150), "p90"),
    ],
)
def test_no_pass_comes_from_a_quantile_that_says_nothing_about_controls_present(
    control: tuple[int, int], treatment: tuple[int, int], name: str
) -> None:
    bins = [minute(index, (150, 0), (150, 0), share=0.5, slow=(treatment, control)) for index in range(60)]

    verdict = judge(bins, QUANTILES)

    assert verdict.outcome == "not_enough_evidence"
    assert f"control's {name} from before the rollout says nothing about its present latency" in verdict.reason


def test_quantiles_that_said_nothing_beside_control_give_no_pass_at_100_per_cent_either() -> None:
    half = [minute(index, (150, 0), (150, 0), share=0.5, slow=((0, 0), (0, 0))) for index in range(30)]
    usual = [minute(index, (150, 0), (150, 0), share=0.5, slow=((75, 15), (75, 15))) for index in range(30)]
    alone = [minute(index, (300, 0), (0, 0), share=1.0, slow=((0, 0), (0, 0))) for index in range(60)]

    verdict = judge(one_after_the_other(half, alone), QUANTILES)

    assert verdict.outcome == "not_enough_evidence"
    assert "control's p50 from before the rollout says nothing" in verdict.reason
    assert verdict.needs_new_rollout == verdict.no_pass
    assert judge(one_after_the_other(usual, alone), QUANTILES).outcome == "pass"


STALE = [minute(index, (150, 0), (150, 0), share=0.5, slow=((0, 0), (0, 0))) for index in range(40)]
USUAL = [minute(index, (150, 0), (150, 0), share=0.5, slow=((75, 15), (75, 15))) for index in range(40)]


@pytest.mark.parametrize(
    ("parts", "lasts"),
    [
        pytest.param((STALE,), True, id="stale throughout"),
        pytest.param((USUAL[:4], STALE), True, id="in most bins, and in the newer half"),
        pytest.param((STALE, USUAL[:4]), False, id="in most bins, but as before in some of the newer half"),
        pytest.param((USUAL,), False, id="as before"),
    ],
)
def test_only_a_new_rollout_helps_while_the_newer_half_of_controls_bins_says_nothing_either(
    parts: Sequence[Sequence[Bin]], lasts: bool
) -> None:
    verdict = judge(one_after_the_other(*parts), QUANTILES)

    assert bool(verdict.no_pass) is (STALE in parts)
    assert bool(verdict.needs_new_rollout) is lasts
    assert set(verdict.needs_new_rollout) <= set(verdict.no_pass)


def test_quantiles_of_a_busier_or_quieter_hour_still_say_something() -> None:
    for slow in ((110, 60), (40, 4)):
        bins = [minute(index, (150, 0), (150, 0), share=0.5, slow=(slow, slow)) for index in range(200)]
        assert judge(bins, QUANTILES).outcome == "pass"


# A share that leaves control nothing

ALONE = [minute(index, (400, 2), (0, 0), share=1.0) for index in range(30)]
FAILING = [minute(index, (368, 368), (0, 0), share=1.0) for index in range(1)]


def test_treatment_that_fails_everything_at_100_per_cent_fails_though_it_passed_at_50() -> None:
    half = simulated(random.Random(4), 120, share=0.5)

    assert judge(half, GATE).outcome == "pass"
    verdict = judge(one_after_the_other(half, FAILING), GATE)
    assert verdict.outcome == "fail"
    assert "errors are higher than control's last" in verdict.reason
    assert "100 % against 0." in verdict.reason


def test_first_and_only_step_of_100_per_cent_is_compared_with_the_baseline() -> None:
    assert judge(FAILING, GATE, baseline=BEFORE).outcome == "fail"
    assert judge(ALONE, GATE, baseline=BEFORE).outcome == "pass"


def test_nothing_passes_at_100_per_cent_that_nothing_was_compared_with() -> None:
    for bins in (ALONE, FAILING):
        verdict = judge(bins, GATE)
        assert verdict.outcome == "not_enough_evidence"
        assert "control has no traffic to compare with" in verdict.reason
        assert verdict.needs_new_rollout == verdict.waits[-1:]


def test_pass_at_50_per_cent_is_none_at_100() -> None:
    half = simulated(random.Random(4), 120, share=0.5)

    assert judge(one_after_the_other(half, ALONE[:1]), GATE).outcome == "not_enough_evidence"
    assert judge(one_after_the_other(half, ALONE), GATE).outcome == "pass"


def test_slower_treatment_at_100_per_cent_fails_by_controls_last_bins() -> None:
    half = [minute(i, (150, 0), (150, 0), share=0.5, slow=((75, 15), (75, 15))) for i in range(60)]
    alone = [minute(i, (300, 0), (0, 0), share=1.0, slow=((299, 280), (0, 0))) for i in range(3)]

    verdict = judge(one_after_the_other(half, alone), QUANTILES)

    assert verdict.outcome == "fail"
    assert "latency is higher than control's last" in verdict.reason


def test_false_alarms_of_a_treatment_like_control_at_100_per_cent_stay_within_alpha() -> None:
    rng, failed, runs = random.Random(5), 0, 200
    for _ in range(runs):
        rate = 0.03
        before = [minute(-1 - i, (0, 0), (30, sum(rng.random() < rate for _ in range(30)))) for i in range(10)]
        alone = [minute(i, (30, sum(rng.random() < rate for _ in range(30))), (0, 0), share=1.0) for i in range(60)]
        failed += judge(alone, Gate(alpha=0.2, latency_quantiles=()), baseline=before).outcome == "fail"

    assert failed / runs <= 0.2


# A split that was wrong


def split_bins(served: float, count: int, *, errors: int = 0) -> list[Bin]:
    treated = round(1000 * served)
    return [minute(i, (treated, errors), (1000 - treated, 0), share=0.1) for i in range(count)]


def test_split_that_is_right_again_stops_blocking_after_a_while() -> None:
    wrong = one_after_the_other(split_bins(0.1, 30), split_bins(0.5, 20))

    assert judge(wrong, GATE).outcome == "split_is_wrong"
    assert judge(one_after_the_other(wrong, split_bins(0.1, 5)), GATE).outcome == "split_is_wrong"
    verdict = judge(one_after_the_other(wrong, split_bins(0.1, 12)), GATE)
    assert verdict.outcome == "pass"
    assert "20 bins left out in which the split was wrong; it is right again" in verdict.reason
    # And wrong once more.
    again = one_after_the_other(wrong, split_bins(0.1, 12), split_bins(0.5, 2))
    assert judge(again, GATE).outcome == "split_is_wrong"


def test_slightly_wrong_split_needs_as_long_to_be_right_again_as_to_be_found() -> None:
    rng = random.Random(6)
    slightly = [replace(bin_, share=0.1) for bin_ in simulated(rng, 400, share=0.12)]

    assert judge(slightly, GATE).outcome == "split_is_wrong"
    assert judge(one_after_the_other(slightly, simulated(rng, 10, share=0.1)), GATE).outcome == "split_is_wrong"
    assert judge(one_after_the_other(slightly, simulated(rng, 400, share=0.1)), GATE).outcome != "split_is_wrong"


def test_nothing_that_happened_while_the_split_was_wrong_counts_afterwards() -> None:
    failing = split_bins(0.5, 20, errors=400)
    bins = one_after_the_other(split_bins(0.1, 30), failing, split_bins(0.1, 12))

    verdict = judge(bins, GATE)

    assert verdict.outcome == "pass"
    assert claim(verdict, "errors are higher").e_value < 2


def test_two_days_of_a_wrong_split_are_judged_within_seconds() -> None:
    bins = one_after_the_other(split_bins(0.1, 10), split_bins(0.16, 2_990))
    begin = time.process_time()

    assert judge(bins, GATE).outcome == "split_is_wrong"
    assert time.process_time() - begin < 4
