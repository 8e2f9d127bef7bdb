"""The rules that the gate on data is compared with decide as their sources do, value by value."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2_contingency, chisquare, ks_2samp, wasserstein_distance

from controlled_rollout.gate import judge
from controlled_rollout.labels.bins import Requests, label_bins
from controlled_rollout.labels.measures import LabelledRequest, Measures
from controlled_rollout.labels.periods import Period
from controlled_rollout.labels.settings import LABELLED
from tests.benchmarks.gate.data import rules
from tests.benchmarks.gate.data.cells import CELLS
from tests.benchmarks.gate.data.late_labels import SETTINGS, Late, bins_of_labels, labelled_requests
from tests.benchmarks.gate.data.rollouts import (
    BASELINE_VALUES,
    LOOKS,
    Distribution,
    Seen,
    log_normal,
    normal,
    seen_numbers,
)
from tests.benchmarks.gate.data.run import bins_of, deciding_bin, deciding_bins


def labels(seed: int) -> Seen:
    """Return the labels of a small rollout."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(6, 2.0), 2)
    treatment, control = (
        rng.multinomial(number, share, LOOKS).astype(float) for number, share in zip((5, 40), shares, strict=True)
    )
    return Seen(treatment, control, rng.multinomial(BASELINE_VALUES, shares[1]).astype(float))


@pytest.mark.parametrize("seed", range(4))
def test_labels_are_compared_as_the_sources_compare_them(seed: int) -> None:
    seen = labels(seed)
    for look in (5, 30, 59):
        x, y = (arm[: look + 1].sum(axis=0) for arm in (seen.treatment, seen.control))
        p, q, before = x / x.sum(), y / y.sum(), seen.baseline / seen.baseline.sum()

        assert rules.psi(seen)[look] == pytest.approx(
            sum((max(a, 1e-4) - max(b, 1e-4)) * np.log(max(a, 1e-4) / max(b, 1e-4)) for a, b in zip(p, q, strict=True))
        )
        both = chi2_contingency(np.array([x, y])[:, x + y > 0], correction=False).pvalue
        assert rules.two_sample_p_value(seen)[look] == pytest.approx(both)
        if y.sum() <= rules.SMALL_REFERENCE:
            drifts = chisquare(x[y > 0], y[y > 0] * x.sum() / y.sum()).pvalue < 0.05 if not x[y == 0].sum() else True
        else:
            drifts = jensenshannon(q, p) >= 0.1
        assert rules.evidently(seen)[look] == drifts
        largest = np.abs(p - before).max()
        correction = 1.8 * np.sqrt((x.sum() + BASELINE_VALUES) / (x.sum() * BASELINE_VALUES))
        assert rules.sagemaker(seen, robust=False)[look] == (largest > 0.1)
        assert rules.sagemaker(seen, robust=True)[look] == (largest - correction > 0.1)


@pytest.mark.parametrize("distribution", [normal, log_normal(1.0)], ids=["normal", "log-normal"])
def test_rules_on_binned_numbers_agree_with_scipy(distribution: Distribution) -> None:
    rng = np.random.default_rng(1)
    sizes = rng.poisson(20, LOOKS), rng.poisson(120, LOOKS)
    values = [distribution.draw(rng, int(size.sum())) + more for size, more in zip(sizes, (0.2, 0.0), strict=True)]
    baseline = distribution.draw(rng, BASELINE_VALUES)
    seen = seen_numbers(values, sizes, baseline, distribution)

    for look in (2, 20, 59):
        x, y = (arm[: size[: look + 1].sum()] for arm, size in zip(values, sizes, strict=True))
        # In 215 cells, not value by value.
        exact = wasserstein_distance(y, x) / y.std()
        assert rules.wasserstein(seen)[look] == pytest.approx(exact, abs=0.01, rel=0.05)
        assert seen.spread is not None
        assert seen.spread[look] == pytest.approx(y.std())
        test = ks_2samp(x, y, method="asymp")
        assert rules.two_sample_p_value(seen)[look] == pytest.approx(test.pvalue, abs=0.1)
        cuts = distribution.quantile(np.arange(1, 10) / 10)
        p, q = (np.bincount(np.searchsorted(cuts, arm), minlength=10) / len(arm) for arm in (x, y))
        p, q = np.maximum(p, 1e-4), np.maximum(q, 1e-4)
        assert rules.psi(seen)[look] == pytest.approx(((p - q) * np.log(p / q)).sum())
        far = ks_2samp(x, baseline).statistic - 0.1
        if abs(far) > 0.01:
            assert rules.sagemaker(seen, robust=False)[look] == (far > 0)


@pytest.mark.parametrize("family", sorted({cell.family for cell in CELLS}))
def test_simulated_rollouts_are_decided_as_judge_decides_them(family: str) -> None:
    bad = [cell for cell in CELLS if cell.family == family and cell.kind == "bad"][-1]
    rng = np.random.default_rng(2)
    rollouts = [bad.draw(rng) for _ in range(10)]
    decisions = deciding_bins(rollouts, bad.gate)

    assert decisions == [deciding_bin(rollout.columns, bad.gate) for rollout in rollouts]
    columns, decided = next(
        (rollout.columns, bin_) for rollout, bin_ in zip(rollouts, decisions, strict=True) if bin_ is not None
    )
    bins, stopped = bins_of(columns), {"fail", "split_is_wrong"}
    assert judge(bins[: decided + 1], bad.gate).outcome in stopped
    assert decided == 0 or judge(bins[:decided], bad.gate).outcome not in stopped


def test_simulated_labels_are_put_into_the_bins_that_a_judgement_by_labels_makes() -> None:
    late = Late(per_hour=60, shares=(0.1, 0.25, 0.5), wrong=(0.3, 0.1), delay=(20.0, 5.0))
    arms, totals = labelled_requests(np.random.default_rng(3), late)
    hour, begin = timedelta(hours=1), datetime(2026, 3, 1, tzinfo=UTC)
    requests = [
        LabelledRequest(
            is_treatment=number == 0,
            request_id=f"{number}-{index}",
            time=begin + float(arm.time[index]) * hour,
            known=begin + int(arm.arrival[index]) * hour,
            label=1,
            rows=[[0 if arm.wrong[index] else 1]],
        )
        for number, arm in enumerate(arms)
        for index in range(len(arm.time))
    ]
    requests.sort(key=lambda one: (one.known, one.time))
    periods = [Period(begin + number * 8 * hour, begin + (number + 1) * 8 * hour) for number in range(3)]
    all_requests = [Requests(control=int(y), treatment=int(x)) for x, y in zip(*totals, strict=True)]

    expected = label_bins(requests, SETTINGS, Measures(SETTINGS), periods, all_requests).bins

    simulated = bins_of_labels(arms, totals)
    assert len(simulated) == len(expected) > 10
    for one, other in zip(simulated, expected, strict=True):
        assert one.interval == (other.start - begin) // hour
        assert one.labels == (other.treatment.requests, other.control.requests)
        for index, counts in enumerate((other.treatment, other.control)):
            assert counts.categories["accuracy"]["yes"] == one.wrong[index]
            assert counts.categories[LABELLED]["not yet"] == one.unlabelled[index]
