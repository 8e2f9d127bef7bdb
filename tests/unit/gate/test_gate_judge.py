"""What the gate concludes, and that it concludes the same however it is asked."""

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import accumulate, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import nchypergeom_fisher, norm

from controlled_rollout.gate import Bin, Counts, Gate, Outcome, judge
from tests.examples import examples
from tests.unit.gate.rollouts import (
    BEGIN,
    MINUTE,
    assert_never_falls,
    binomial,
    claim,
    log_normalisers,
    minute,
    odds_times,
    simulated,
)

arms = st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda pair: (max(pair), min(pair)))
rollouts = st.lists(st.tuples(arms, arms), max_size=25).map(
    lambda rows: [minute(index, treatment, control) for index, (treatment, control) in enumerate(rows)]
)


# The alarms' odds ratios and the tilts of the scores, with their weights.
RATIOS = {1.25: 1 / 22, 1.75: 6 / 22, 3.0: 3 / 22, 5.0: 11 / 22, 20.0: 1 / 22}
TILTS = {0.1: 1 / 11, 0.2: 3 / 11, 0.4: 4 / 11, 0.8: 2 / 11, 1.6: 1 / 11}


def weighed(values: Sequence[float]) -> float:
    """Return the average over the ratios, those of about two and five times the odds counting most."""
    return sum(weight * value for weight, value in zip(RATIOS.values(), values, strict=True))


def from_start(value: float) -> float:
    """Return the average with the processes that begin when the split changes: none has begun, each is 1."""
    return 0.66 * value + 0.34


# The numbers


def test_errors_alarm_is_the_mixture_of_scipys_likelihood_ratios() -> None:
    bins = [minute(0, (60, 9), (80, 6)), minute(1, (50, 8), (90, 7)), minute(2, (70, 12), (75, 5))]
    expected = []
    for ratio in RATIOS:
        likelihood_ratio = 1.0
        for b in bins:
            a, x = b.treatment.requests, b.treatment.errors
            total, events = a + b.control.requests, x + b.control.errors
            other, null = (nchypergeom_fisher(total, a, events, odds) for odds in (1.1 * ratio, 1.1))
            likelihood_ratio *= other.pmf(x) / null.pmf(x)
        expected.append(likelihood_ratio)

    result = claim(judge(bins, Gate()), "errors are higher")

    assert result.e_value == pytest.approx(from_start(weighed(expected)), rel=1e-5)


def test_rare_errors_use_the_binomial_limit() -> None:
    bins = [minute(0, (1000, 9), (1000, 2))]
    expected = weighed([(2.1 * g / (1.1 * g + 1)) ** 9 * (2.1 / (1.1 * g + 1)) ** 2 for g in RATIOS])

    assert claim(judge(bins, Gate()), "errors are higher").e_value == pytest.approx(from_start(expected), rel=1e-9)


def test_latency_alarm_is_two_fifths_its_quantiles_and_three_fifths_the_whole_distribution() -> None:
    """Written out for 8 and 10 requests: every choice of the treatment's 8 among the 18 is as likely as any other."""
    slow = ((6, 3), (4, 1))
    by_quantile = []
    for treatment, control in zip(*slow, strict=True):
        null = nchypergeom_fisher(18, 8, treatment + control, 1.0)
        ratios = [
            nchypergeom_fisher(18, 8, treatment + control, g).pmf(treatment) / null.pmf(treatment) for g in RATIOS
        ]
        by_quantile.append(weighed(ratios))
    # Normal scores of the classes below the median, up to p90, and above it.
    height, tail = norm.pdf(norm.ppf(0.5)), norm.pdf(norm.ppf(0.9))
    score = (-height / 0.5, (height - tail) / 0.4, tail / 0.1)
    every = [score[0]] * 8 + [score[1]] * 6 + [score[2]] * 4
    own_sum = 2 * score[0] + 3 * score[1] + 3 * score[2]
    sums = [sum(chosen) for chosen in combinations(every, 8)]
    tilts = [
        weight * math.exp(tilt * own_sum) / (math.fsum(math.exp(tilt * value) for value in sums) / len(sums))
        for tilt, weight in TILTS.items()
    ]

    bins = [minute(0, (8, 0), (10, 0), slow=slow)]
    result = claim(judge(bins, Gate(latency_quantiles=(0.5, 0.9))), "latency is higher")

    assert result.e_value > 1
    assert result.e_value == pytest.approx(from_start(0.4 * sum(by_quantile) / 2 + 0.6 * sum(tilts)), rel=1e-9)


def test_alpha_is_shared_over_metrics_by_weight_and_over_treatments() -> None:
    bins = [minute(0, (100, 0), (100, 0), slow=((50, 10, 5, 1), (50, 10, 5, 1)))]

    equal = judge(bins, Gate())
    weighted = judge(bins, Gate(weights={"errors": 4.0}, treatments=3))

    assert [claim(equal, name).threshold for name in ("errors are higher", "latency is higher")] == [40, 40]
    assert claim(weighted, "errors are higher").threshold == pytest.approx(3 / (0.05 * 4 / 5))
    assert claim(weighted, "latency is higher").threshold == pytest.approx(3 / (0.05 * 1 / 5))


def test_errors_get_all_of_alpha_when_latency_is_not_judged() -> None:
    verdict = judge([minute(0, (100, 0), (100, 0))], Gate())

    assert claim(verdict, "errors are higher").threshold == pytest.approx(20)
    assert "latency is not judged" in verdict.reason
    assert all("latency" not in result.name for result in verdict.claims)


# The outcomes


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_five_per_cent_errors_fail(share: float) -> None:
    verdict = judge(simulated(random.Random(2), 30, share=share, treatment_rate=0.05), Gate())

    assert verdict.outcome == "fail"
    assert "errors are higher" in verdict.reason


def test_slow_tail_fails_by_latency_though_the_median_is_the_same() -> None:
    rng = random.Random(3)
    bins = simulated(rng, 40, slow_ratio=1.0)
    slower = [
        replace(b, treatment=replace(b.treatment, slow=(b.treatment.slow[0], *(3 * n for n in b.treatment.slow[1:]))))
        for b in bins
    ]

    verdict = judge(slower, Gate())

    assert verdict.outcome == "fail"
    assert "latency is higher" in verdict.reason
    assert claim(judge(bins, Gate()), "latency is higher").reached is False


def test_healthy_treatment_passes_on_errors_and_latency() -> None:
    verdict = judge(simulated(random.Random(4), 120, slow_ratio=0.9), Gate())

    assert verdict.outcome == "pass"
    assert {result.name for result in verdict.claims if result.kind == "pass" and result.reached} == {
        "errors are not worse",
        "errors are below 10 %",
        "latency is not worse",
    }


def test_slow_tail_does_not_pass_with_an_equal_median() -> None:
    bins = [minute(i, (150, 0), (150, 0), slow=((75, 15, 7, 3), (75, 15, 7, 1))) for i in range(15)]

    verdict = judge(bins, Gate(alpha=1e-9))

    assert verdict.outcome == "not_enough_evidence"
    assert "p99" in claim(verdict, "latency is not worse").detail


@pytest.mark.parametrize(("beta", "requests"), [(0.1, 680), (0.05, 751)])
def test_error_rate_passes_absolutely_without_any_error(beta: float, requests: int) -> None:
    """Half of beta is the absolute way's: at beta = 0.1 it is the published 680 requests at level 0.05, about."""
    gate = Gate(beta=beta)

    before, after = (judge([minute(0, (n, 0), (9 * n, 0))], gate) for n in (requests - 10, requests + 1))

    assert before.outcome == "not_enough_evidence"
    assert after.outcome == "pass"
    assert 0 < (claim(before, "errors are not worse").needed_requests or 0) <= 11


def test_far_worse_treatment_is_never_evidence_for_a_pass() -> None:
    verdict = judge(simulated(random.Random(5), 60, treatment_rate=0.2), Gate())

    assert claim(verdict, "errors are not worse").e_value < 20
    assert claim(verdict, "errors are not worse").needed_requests is None


def test_higher_odds_within_the_tolerated_difference_do_not_fail() -> None:
    bins = [minute(i, (100_000, 40), (100_000, 10)) for i in range(10)]

    tolerant, strict = judge(bins, Gate()), judge(bins, Gate(error_difference=0.0001))

    assert claim(tolerant, "errors are higher").e_value > 1000
    assert tolerant.outcome == "pass"
    assert strict.outcome == "fail"


def test_incident_that_hits_both_versions_is_no_evidence_against_the_treatment() -> None:
    bins = [minute(i, (150, 60 if 10 <= i < 20 else 1), (150, 60 if 10 <= i < 20 else 1)) for i in range(40)]

    assert not claim(judge(bins, Gate()), "errors are higher").reached


def test_alarm_stays_when_the_treatment_recovers() -> None:
    bad = [minute(i, (150, 40), (150, 1)) for i in range(5)]
    good = [minute(5 + i, (150, 0), (150, 1)) for i in range(200)]

    verdict = judge(bad + good, Gate(error_difference=0.1))

    assert verdict.outcome == "fail"
    assert claim(verdict, "errors are higher").e_value >= claim(judge(bad, Gate()), "errors are higher").e_value * 0.999


def test_without_requests_the_verdict_names_the_least_number_of_needed_requests() -> None:
    verdict = judge([], Gate())

    assert verdict.outcome is Outcome.NOT_ENOUGH_EVIDENCE
    assert claim(verdict, "errors are not worse").needed_requests == pytest.approx(751, abs=1)
    assert not math.isnan(sum(result.e_value for result in verdict.claims))


def test_needed_requests_are_close_to_the_requests_that_a_pass_takes() -> None:
    def rollout(bins: int) -> list[Bin]:
        return [minute(i, (150, 3), (150, 3)) for i in range(bins)]

    early = judge(rollout(10), Gate())
    needed = claim(early, "errors are not worse").needed_requests

    assert early.outcome == "not_enough_evidence"
    assert needed is not None
    bins_needed = 10 + math.ceil(needed / 150)
    assert judge(rollout(bins_needed), Gate()).outcome == "pass"
    assert judge(rollout(bins_needed - 2), Gate()).outcome == "not_enough_evidence"


# Order, looks, monotonicity


@given(rollouts, st.randoms(use_true_random=False))
@examples(40)
def test_order_of_the_bins_does_not_matter(bins: list[Bin], rng: random.Random) -> None:
    shuffled = bins[:]
    rng.shuffle(shuffled)

    assert judge(shuffled, Gate()) == judge(bins, Gate())


@given(rollouts)
@examples(40)
def test_claim_reached_at_one_look_is_reached_at_every_later_look(bins: list[Bin]) -> None:
    gate = Gate(alpha=0.4, beta=0.4, acceptable_error_rate=0.2)
    looks = [judge(bins[:count], gate) for count in range(len(bins) + 1)]

    for name in [result.name for result in looks[0].claims]:
        history = [claim(look, name) for look in looks]
        assert [result.reached for result in history] == sorted(result.reached for result in history)
        assert_never_falls([result.e_value for result in history])


@given(rollouts.filter(bool), st.data())
@examples(60)
def test_one_more_error_of_the_treatment_never_lowers_the_alarm(bins: list[Bin], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(bins) - 1))
    b = bins[index]
    if b.treatment.errors == b.treatment.requests:
        b = replace(b, treatment=Counts(b.treatment.requests + 1, b.treatment.errors))
    worse = replace(b, treatment=replace(b.treatment, errors=b.treatment.errors + 1))
    gate = Gate()

    before = judge([*bins[:index], b, *bins[index + 1 :]], gate)
    after = judge([*bins[:index], worse, *bins[index + 1 :]], gate)

    assert claim(after, "errors are higher").e_value >= claim(before, "errors are higher").e_value * (1 - 1e-4)
    assert claim(after, "errors are not worse").e_value <= claim(before, "errors are not worse").e_value * (1 + 1e-4)


def test_long_rollout_reaches_what_its_first_part_reached() -> None:
    bins = [minute(i, (150, 3), (150, 1)) for i in range(1500)]

    whole, part = judge(bins, Gate()), judge(bins[:600], Gate())

    assert part.outcome == whole.outcome == "fail"
    assert claim(whole, "errors are higher").e_value >= claim(part, "errors are higher").e_value * (1 - 1e-9)


# Warm-up, bursts


def test_warm_up_is_left_out_and_counted_in_the_reason() -> None:
    gate = Gate(warm_up=timedelta(minutes=5))
    idle = [minute(i, (0, 0), (300, 1)) for i in range(3)]
    cold = [minute(3 + i, (150, 100), (150, 1)) for i in range(5)]
    warm = [minute(8 + i, (150, 1), (150, 1)) for i in range(10)]

    verdict = judge(idle + cold + warm, gate)

    assert judge(idle + cold + warm, Gate()).outcome == "fail"
    assert verdict.outcome != "fail"
    assert "8 bins of warm-up left out" in verdict.reason
    assert (verdict.treatment_requests, verdict.control_requests) == (1500, 1500)


def test_warm_up_alone_is_not_enough_evidence() -> None:
    verdict = judge([minute(i, (150, 100), (150, 1)) for i in range(3)], Gate(warm_up=timedelta(hours=1)))

    assert verdict.outcome == "not_enough_evidence"
    assert verdict.treatment_requests == 0


def test_bursts_before_the_rollout_reduce_the_evidence() -> None:
    bins = [minute(i, (150, 5), (150, 1)) for i in range(15)]
    calm = [minute(-1 - i, (0, 0), (300, i % 2 + 1)) for i in range(40)]
    bursty = [minute(-1 - i, (0, 0), (300, 30 if i % 20 == 0 else 0)) for i in range(40)]

    plain, tempered = judge(bins, Gate(), baseline=calm), judge(bins, Gate(), baseline=bursty)

    assert plain.outcome == "fail"
    assert plain == judge(bins, Gate())
    assert claim(tempered, "errors are higher").e_value < claim(plain, "errors are higher").e_value / 10
    assert tempered.outcome == "not_enough_evidence"


def test_errors_that_last_are_found_although_control_had_a_minute_without_an_answer_before() -> None:
    outage = [minute(-1 - i, (0, 0), (300, 300 if i == 30 else 1)) for i in range(60)]

    def outcome(bins: int, *errors: int) -> str:
        """Judge so many minutes with 1 of 300 errors in control and 0 in the treatment, but these in its last ones."""
        treatment = [0] * (bins - len(errors)) + list(errors)
        rows = [minute(i, (30, treatment[i]), (270, 1)) for i in range(bins)]
        return judge(rows, Gate(latency_quantiles=()), baseline=outage).outcome

    assert outcome(12, *[9] * 12) == outcome(30, *[3] * 30) == outcome(10, *[30] * 10) == "fail"
    # As many in the treatment as control had, or a few times less of it, are no alarm.
    assert outcome(60, 30) == outcome(60, 30, 30, 0, 0, 30) == "not_enough_evidence"


def test_evidence_of_each_quantile_is_divided_by_its_own_burstiness() -> None:
    gate = Gate(latency_quantiles=(0.5, 0.9))
    bins = [minute(i, (150, 0), (150, 0), slow=((100, 15), (75, 15))) for i in range(3)]

    def before(*columns: tuple[int, int]) -> list[Bin]:
        return [minute(-1 - i, (0, 0), (300, 0), slow=((), columns[i % 2])) for i in range(20)]

    plain = judge(bins, gate)
    other = judge(bins, gate, baseline=before((150, 0), (150, 60)))
    same = judge(bins, gate, baseline=before((300, 30), (0, 30)))

    # The median's own evidence is untouched; that of the whole distribution is tempered by its scores' bursts.
    assert claim(other, "latency is higher").e_value == pytest.approx(
        claim(plain, "latency is higher").e_value, rel=0.05
    )
    assert claim(same, "latency is higher").e_value < 2


def test_burst_cap_bounds_the_contribution_of_one_bin() -> None:
    burst = [minute(0, (150, 60), (150, 0)), minute(1, (150, 0), (150, 0))]

    assert judge(burst, Gate()).outcome == "fail"
    capped = judge(burst, Gate(burst_cap=3))
    assert claim(capped, "errors are higher").e_value == pytest.approx(from_start(3))
    assert capped.outcome == "not_enough_evidence"


def test_burst_cap_replaces_the_division_by_burstiness() -> None:
    bins = [minute(i, (150, 5), (150, 1)) for i in range(15)]
    bursty = [minute(-1 - i, (0, 0), (300, 30 if i % 20 == 0 else 0)) for i in range(40)]

    assert judge(bins, Gate(burst_cap=3), baseline=bursty) == judge(bins, Gate(burst_cap=3))


# The treatment's own latency


QUIET = Gate(latency_quantiles=(0.5, 0.9), acceptable_error_rate=0.05)


def test_latency_passes_by_the_treatments_own_rate_when_both_versions_became_somewhat_faster() -> None:
    quieter = [minute(i, (150, 0), (150, 0), slow=((20, 2), (20, 2))) for i in range(10)]

    assert judge(quieter, QUIET).outcome == "pass"


def test_latency_at_twice_the_odds_of_the_baseline_does_not_pass_without_control_traffic() -> None:
    # Twice the odds of exceeding p50 and p90 are rates of 2/3 and 2/11.
    alone = [minute(i, (330, 0), (0, 0), slow=((220, 60), ())) for i in range(200)]

    verdict = judge(alone, QUIET)

    assert claim(verdict, "latency is not worse").e_value < 2
    assert verdict.outcome == "not_enough_evidence"


# Extremes


@pytest.mark.parametrize(
    ("treatment", "control"),
    [
        ((10**9, 0), (10**9, 0)),
        ((10**9, 10**9), (10**9, 10**9)),
        ((10**9, 10**9), (10**9, 0)),
        ((10**9, 10**9 - 3), (10**9, 10**9 - 5)),
        ((10**9, 5 * 10**8), (10**9, 4 * 10**8)),
        ((10**9, 3), (10, 10)),
        ((1, 1), (10**9, 10**7)),
        ((10**9, 10**6), (0, 0)),
        ((0, 0), (10**9, 10**6)),
        ((0, 0), (0, 0)),
        ((1, 1), (1, 0)),
    ],
)
def test_extreme_counts_give_numbers(treatment: tuple[int, int], control: tuple[int, int]) -> None:
    slow = ((treatment[1],) * 4, (control[1],) * 4)

    verdict = judge([minute(i, treatment, control, slow=slow, share=0.5) for i in range(3)], Gate())

    assert not any(math.isnan(result.e_value) for result in verdict.claims)
    assert all(result.e_value >= 1 for result in verdict.claims)


def test_clear_difference_in_huge_counts_is_infinite_evidence() -> None:
    verdict = judge([minute(0, (10**9, 5 * 10**8), (10**9, 4 * 10**8))], Gate())

    assert verdict.outcome == "fail"
    assert claim(verdict, "errors are higher").e_value == math.inf


def test_without_control_traffic_a_pass_rests_on_absolute_rates() -> None:
    good = judge([minute(0, (2000, 1), (0, 0))], Gate())
    bad = judge([minute(0, (2000, 900), (0, 0))], Gate())

    assert good.outcome == "pass"
    assert bad.outcome == "not_enough_evidence"
    assert claim(bad, "errors are higher").e_value == 1


def test_verdict_counts_the_requests_it_rests_on() -> None:
    verdict = judge([Bin(BEGIN, Counts(30, 1), Counts(7, 0)), Bin(BEGIN + MINUTE, Counts(40, 0), Counts(5, 0))], Gate())

    assert (verdict.control_requests, verdict.treatment_requests) == (70, 12)


# Short cuts give what the long way gives


def long_way(bins: list[Bin], null: float, events: list[tuple[int, int]], weights: Mapping[float, float]) -> float:
    """Return the largest mixture e-value after any bin, every ratio followed to the end."""
    paths = []
    for ratio, weight in weights.items():
        a, c = [b.treatment.requests for b in bins], [b.control.requests for b in bins]
        t = [x + y for x, y in events]
        other, base = log_normalisers(a, c, t, null * ratio), log_normalisers(a, c, t, null)
        gains = [x * math.log(ratio) - up + down for (x, _), up, down in zip(events, other, base, strict=True)]
        paths.append([weight * math.exp(value) for value in accumulate(gains)])
    return max(1.0, *(math.fsum(row) for row in zip(*paths, strict=True)))


@pytest.mark.parametrize("later", [0.9, 1.1, 3.0, 7.0])
def test_paths_that_end_early_are_counted(later: float) -> None:
    rng, bins = random.Random(6), []
    for index in range(700):
        ratio = 0.7 if index < 200 else later if index < 260 else 0.9
        a, c = rng.randint(10, 20), rng.randint(10, 20)
        x, y = binomial(rng, a, odds_times(0.2, ratio)), binomial(rng, c, 0.2)
        bins.append(minute(index, (a, min(x, a - 1)), (c, min(y, c - 1)), slow=((x,), (y,))))

    verdict = judge(bins, Gate(latency_quantiles=(0.8,)))

    errors = [(b.treatment.errors, b.control.errors) for b in bins]
    slow = [(b.treatment.slow[0], b.control.slow[0]) for b in bins]
    assert claim(verdict, "errors are higher").e_value == pytest.approx(
        from_start(long_way(bins, 1.1, errors, RATIOS)), rel=1e-9
    )
    # With two classes a tilt of the scores is an odds ratio.
    height = norm.pdf(norm.ppf(0.8))
    tilts = {math.exp(tilt * (height / 0.2 + height / 0.8)): 0.6 * weight for tilt, weight in TILTS.items()}
    latency = long_way(bins, 1.0, slow, {ratio: 0.4 * weight for ratio, weight in RATIOS.items()} | tilts)
    assert claim(verdict, "latency is higher").e_value == pytest.approx(from_start(latency), rel=1e-4)


@pytest.mark.parametrize("excess", [0, 4])
def test_week_of_one_minute_bins_is_judged_within_a_second(excess: int) -> None:
    bins = []
    for i in range(10_000):
        a, c = 140 + i % 23, 160 - i % 19
        treatment = (a // 2 + i % 5, a // 10 + excess + i % 3, a // 20 + i % 2, i % 7 // 3)
        control = (c // 2 + i % 5, c // 10 + i % 3, c // 20 + i % 2, i % 5 // 2)
        bins.append(minute(i, (a, i % 3 // 2), (c, i % 4 // 3), share=0.5, slow=(treatment, control)))

    begin = time.process_time()
    judge(bins, Gate())

    # Measured: 0.05 s. A quadratic mistake would take minutes.
    assert time.process_time() - begin < 2
