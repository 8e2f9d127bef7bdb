"""Categories: an exact two-sided test per category, a tolerance for predictions, and what follows from either."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import nchypergeom_fisher, norm

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate import Bin, Category, Claim, Counts, Gate, Verdict, judge
from controlled_rollout.gate.categories import shift_of_buckets
from controlled_rollout.gate.columns import Metric
from tests.unit.gate.rollouts import BEGIN, MINUTE

NAMES = ("de", "fr", "it", "us")
Counted = Sequence[Sequence[int]] | NDArray[np.int64]
INPUTS = Gate(categories={"country": Category()})
PREDICTIONS = Gate(categories={"label": Category(tolerance=0.1, on_difference="fail")})


def rollout(treatment: Counted, control: Counted, name: str = "country", names: Sequence[str] = NAMES) -> list[Bin]:
    """Return one bin per row of counts, a row per minute and a column per category."""

    def counts(row: Sequence[int] | NDArray[np.int64]) -> Counts:
        tally = {category: int(count) for category, count in zip(names, row, strict=True) if count}
        return Counts(int(sum(row)), 0, categories={name: tally})

    rows = enumerate(zip(treatment, control, strict=True))
    return [Bin(BEGIN + i * MINUTE, treatment=counts(x), control=counts(y)) for i, (x, y) in rows]


def drawn(
    rng: np.random.Generator, bins: int, treatment: Sequence[float], control: Sequence[float], name: str = "country"
) -> list[Bin]:
    """Return bins with counts drawn from the two distributions over the categories."""
    return rollout(rng.multinomial(30, treatment, bins), rng.multinomial(90, control, bins), name)


def claim(verdict: Verdict, kind: str) -> Claim:
    return next(
        result
        for result in verdict.claims
        if result.kind == kind and ("country" in result.name or "label" in result.name)
    )


ALIKE = (0.5, 0.3, 0.15, 0.05)


def test_evidence_is_the_exact_two_sided_test_averaged_over_categories_and_ratios() -> None:
    treatment, control = (6, 3, 1, 0), (4, 9, 6, 1)
    ratios = (1.25, 1.5, 2, 3, 5, 10, 20)
    expected = []
    for x, y in zip(treatment, control, strict=True):
        null = nchypergeom_fisher(30, 10, x + y, 1.0).pmf(x)
        for g in (*(1 / ratio for ratio in ratios), *ratios):
            if x + y > 1:
                expected.append(nchypergeom_fisher(30, 10, x + y, g).pmf(x) / null)
            else:  # one event in thirty requests: the binomial limit
                expected.append((g if x else 1) * 30 / (g * 10 + 20))

    result = claim(judge(rollout([treatment], [control]), INPUTS), "split")

    # The first categories have half of the weight; later ones share the rest.
    assert result.e_value == pytest.approx(max(1.0, math.fsum(expected) / len(expected) / 2), rel=1e-6)


def test_inputs_that_differ_hold_the_rollout_and_never_roll_it_back() -> None:
    verdict = judge(drawn(np.random.default_rng(1), 60, (0.3, 0.5, 0.15, 0.05), ALIKE), INPUTS)

    assert verdict.outcome == "split_is_wrong"
    assert "country differs" in verdict.reason


def test_late_category_of_one_version_only_is_detected() -> None:
    rng = np.random.default_rng(2)
    before = drawn(rng, 30, ALIKE, ALIKE)
    after = rollout(
        np.column_stack([rng.multinomial(25, ALIKE, 20), np.full(20, 5)]),
        np.column_stack([rng.multinomial(90, ALIKE, 20), np.zeros(20, int)]),
        names=(*NAMES, "unknown"),
    )
    bins = before + [Bin(b.start + 30 * MINUTE, b.control, b.treatment) for b in after]

    assert judge(before, INPUTS).outcome != "split_is_wrong"
    assert judge(bins, INPUTS).outcome == "split_is_wrong"


def test_false_split_alarms_on_equal_inputs_stay_within_alpha() -> None:
    rng, runs, level = np.random.default_rng(3), 150, 0.1
    gate = Gate(split_alpha=level, categories={"country": Category()})

    wrong = sum(claim(judge(drawn(rng, 40, ALIKE, ALIKE), gate), "split").reached for _ in range(runs))

    assert wrong / runs <= level + 3 * math.sqrt(level * (1 - level) / runs)


def test_predictions_fail_only_beyond_the_tolerance() -> None:
    rng = np.random.default_rng(4)
    within, beyond = (0.43, 0.37, 0.15, 0.05), (0.2, 0.6, 0.15, 0.05)

    assert not claim(judge(drawn(rng, 200, within, ALIKE, "label"), PREDICTIONS), "alarm").reached
    verdict = judge(drawn(rng, 200, beyond, ALIKE, "label"), PREDICTIONS)
    assert verdict.outcome == "fail"
    assert "label differs by more than 0.1" in verdict.reason
    assert "total variation 0.3" in verdict.reason


def test_false_alarms_on_predictions_at_the_tolerance_stay_within_alpha() -> None:
    rng, runs, level = np.random.default_rng(5), 150, 0.1
    at_the_limit = (0.4, 0.4, 0.15, 0.05)
    gate = Gate(alpha=2 * level, categories={"label": Category(tolerance=0.1, on_difference="fail")})

    wrong = sum(claim(judge(drawn(rng, 60, at_the_limit, ALIKE, "label"), gate), "alarm").reached for _ in range(runs))

    assert wrong / runs <= level + 3 * math.sqrt(level * (1 - level) / runs)


@pytest.mark.parametrize("gate", [INPUTS, Gate(categories={"country": Category(tolerance=0.05)})])
def test_reached_thresholds_stay_reached_when_new_categories_appear(gate: Gate) -> None:
    rng = np.random.default_rng(6)
    early = drawn(rng, 40, (0.2, 0.6, 0.15, 0.05), ALIKE)
    late = rollout(rng.multinomial(30, ALIKE, 20), rng.multinomial(90, ALIKE, 20), names=("at", "be", "ch", "dk"))
    bins = early + [Bin(b.start + 40 * MINUTE, b.control, b.treatment) for b in late]
    looks = [claim(judge(bins[:count], gate), "split").e_value for count in range(1, 61)]

    assert looks == sorted(looks)
    assert judge(bins[::-1], gate) == judge(bins, gate)


def test_alpha_is_shared_only_with_categories_that_can_fail() -> None:
    rng = np.random.default_rng(7)
    holding, failing = (
        judge(drawn(rng, 2, ALIKE, ALIKE), INPUTS),
        judge(drawn(rng, 2, ALIKE, ALIKE, "label"), PREDICTIONS),
    )

    assert holding.claims[0].threshold == pytest.approx(20)
    assert failing.claims[0].threshold == pytest.approx(40)
    assert claim(holding, "split").threshold == pytest.approx(1000)


@pytest.mark.parametrize("count", [-1, 1.5, True])
def test_impossible_tallies_are_refused(count: float) -> None:
    bins = [Bin(BEGIN, Counts(5, 0, categories={"country": {"de": count}}), Counts(5, 0))]  # type: ignore[dict-item]

    with pytest.raises(EvidenceError, match=r"control categories\['country'\]\['de'\] ="):
        judge(bins, INPUTS)


def test_values_that_hardly_repeat_are_refused_as_categories() -> None:
    users = {f"user-{number}": 1 for number in range(201)}
    bins = [Bin(BEGIN, Counts(201, 0, categories={"country": users}), Counts(5, 0))]

    with pytest.raises(EvidenceError, match=r"categories\['country'\] = 'user-200'.*is one more than 200"):
        judge(bins, INPUTS)


def test_metric_missing_in_all_bins_is_named_in_the_reason() -> None:
    assert "country is not judged" in judge([Bin(BEGIN, Counts(5, 0), Counts(5, 0))], INPUTS).reason


def test_empty_tallies_are_no_evidence() -> None:
    verdict = judge([Bin(BEGIN, Counts(5, 0, categories={"country": {}}), Counts(5, 0))], INPUTS)

    assert claim(verdict, "split").e_value == 1


BUCKETS = ("01 up to 1", "02 to 2", "03 to 3", "04 above 3", "$null")
BUCKETED = Gate(categories={"country": Category(column="inputs.age", buckets=4)})


def test_small_shift_of_a_number_in_buckets_is_found_where_no_bucket_shows_it() -> None:
    control = [(75, 75, 75, 75, 6)] * 50

    for treatment in ((22, 24, 26, 28, 2), (28, 26, 24, 22, 2)):
        bins = rollout([treatment] * 50, control, names=BUCKETS)
        assert judge(bins, INPUTS).outcome != "split_is_wrong"
        assert judge(bins, BUCKETED).outcome == "split_is_wrong"


def test_order_of_buckets_is_that_of_their_numbers_and_not_of_their_appearance() -> None:
    rng = np.random.default_rng(12)
    x, y = rng.multinomial(10, (0.25, 0.25, 0.25, 0.2, 0.05), 30), rng.multinomial(40, (0.2,) * 5, 30)
    order = (3, 4, 1, 0, 2)

    first, second = (
        claim(judge(rollout(x[:, columns], y[:, columns], names=[BUCKETS[one] for one in columns]), BUCKETED), "split")
        for columns in (range(5), order)
    )

    assert second.e_value == pytest.approx(first.e_value)


@pytest.mark.parametrize("buckets", [2, 4, 10])
def test_shift_of_buckets_is_fair_while_the_versions_are_alike(buckets: int) -> None:
    """Also with fewer or more buckets than were asked for, and values that are no numbers."""
    sizes, drawn, mean, total = (4, 3, 2, 3, 1), 4, 0.0, 0
    for way in product(*(range(size + 1) for size in sizes)):
        if sum(way) == drawn:
            chance = math.prod(math.comb(size, taken) for size, taken in zip(sizes, way, strict=True))
            rows = zip(BUCKETS, way, sizes, strict=True)
            counts = {name: Metric(np.array([float(x)]), np.array([float(size - x)])) for name, x, size in rows}
            paths, weights = shift_of_buckets(counts, buckets)
            mean += chance * sum(weight * math.exp(path[0]) for path, weight in zip(paths, weights, strict=True))
            total += chance

    assert mean / total == pytest.approx(1)


@pytest.mark.parametrize("buckets", [None, 4])
@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_bins_without_any_value_decide_nothing(buckets: int | None, tolerance: float) -> None:
    gate = Gate(categories={"country": Category(column="inputs.age", buckets=buckets, tolerance=tolerance)})
    empty = Counts(10, 0, categories={"country": {}})

    verdict = judge([Bin(BEGIN + index * MINUTE, control=empty, treatment=empty) for index in range(3)], gate)

    assert verdict.outcome == "not_enough_evidence"
    assert claim(verdict, "split").e_value == 1


def predicted(buckets: int | None) -> Gate:
    return Gate(
        categories={"label": Category(column="predictions.score", buckets=buckets, tolerance=0.1, on_difference="fail")}
    )


def test_number_that_is_higher_beyond_the_tolerance_is_found_sooner_in_buckets_than_as_labels() -> None:
    """A total variation of 0.2, spread over ten buckets."""
    rng = np.random.default_rng(14)
    names = [f"{number:02} to {number}" for number in range(1, 11)]
    higher = np.diff(norm.cdf(norm.ppf(np.arange(11) / 10) - 0.5))
    minutes = {}
    for buckets in (None, 10):
        rng = np.random.default_rng(14)
        found = []
        for _ in range(9):
            bins = rollout(rng.multinomial(30, higher, 60), rng.multinomial(270, [0.1] * 10, 60), "label", names)
            found.append(
                next((k for k in range(2, 61, 2) if judge(bins[:k], predicted(buckets)).outcome == "fail"), 99)
            )
        minutes[buckets] = sorted(found)[4]

    assert minutes[10] < minutes[None] <= 60


def test_number_that_is_drawn_together_is_found_in_buckets_as_well() -> None:
    bins = rollout([(4, 11, 11, 4, 0)] * 60, [(68, 67, 68, 67, 0)] * 60, "label", BUCKETS)

    assert judge(bins, predicted(4)).outcome == "fail"


def test_false_alarms_on_a_number_at_the_tolerance_stay_within_alpha() -> None:
    rng, runs, level = np.random.default_rng(15), 150, 0.1
    at_the_limit = (0.15, 0.25, 0.25, 0.35, 0.0)
    gate = predicted(4).model_copy(update={"alpha": 2 * level})

    wrong = sum(
        claim(
            judge(
                rollout(
                    rng.multinomial(30, at_the_limit, 60),
                    rng.multinomial(90, (0.25,) * 4 + (0.0,), 60),
                    "label",
                    BUCKETS,
                ),
                gate,
            ),
            "alarm",
        ).reached
        for _ in range(runs)
    )

    assert wrong / runs <= level + 3 * math.sqrt(level * (1 - level) / runs)
