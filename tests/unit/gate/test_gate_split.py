"""The split check: a wrong split is held and reported, never a roll-back, and stray requests are forgiven."""

import random
from dataclasses import replace

import pytest

from controlled_rollout.gate import Bin, Claim, Gate, Verdict, judge
from tests.unit.gate.rollouts import binomial, minute, simulated


def split(verdict: Verdict) -> Claim:
    return next(claim for claim in verdict.claims if claim.kind == "split")


@pytest.mark.parametrize(("served", "set_to"), [(0.2, 0.1), (0.05, 0.1), (0.5, 0.9), (0.0, 0.05), (1.0, 0.95)])
def test_wrong_split_is_detected(served: float, set_to: float) -> None:
    bins = [replace(b, share=set_to) for b in simulated(random.Random(1), 30, share=served)]

    verdict = judge(bins, Gate())

    assert verdict.outcome == "split_is_wrong"
    assert f"{100 * set_to:g} % set" in verdict.reason


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
def test_right_split_passes_the_check(share: float) -> None:
    verdict = judge(simulated(random.Random(2), 300, share=share), Gate())

    assert not split(verdict).reached


def test_false_split_alarms_are_rare() -> None:
    rng, wrong = random.Random(3), 0
    for _ in range(300):
        bins = []
        for index in range(20):
            treated = binomial(rng, 40, 0.3)
            bins.append(minute(index, (treated, 0), (40 - treated, 0), share=0.3))
        wrong += split(judge(bins, Gate(split_alpha=0.05))).reached

    assert wrong / 300 <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_split_check_follows_changes_of_the_split() -> None:
    steps = [0.01, 0.1, 0.5, 0.9]
    bins = [
        minute(40 * step + i, (round(1000 * share), 0), (round(1000 * (1 - share)), 0), share=share)
        for step, share in enumerate(steps)
        for i in range(40)
    ]

    assert split(judge(bins, Gate())).e_value < 10


def test_bins_without_a_known_split_are_not_checked() -> None:
    bins = [minute(i, (300, 0), (0, 0)) for i in range(30)]

    result = split(judge(bins, Gate()))

    assert result.e_value == 1
    assert result.detail.startswith("not checked")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_stray_requests_of_a_version_without_share_are_tolerated(share: float) -> None:
    def rollout(stray: int) -> list[Bin]:
        arms = [(stray, 0), (2000 - stray, 0)]
        return [minute(i, *(arms if share == 0 else arms[::-1]), share=share) for i in range(30)]

    assert split(judge(rollout(0), Gate())).e_value == 1
    assert not split(judge(rollout(2), Gate())).reached
    assert judge(rollout(20), Gate()).outcome == "split_is_wrong"


def test_wrong_split_is_not_a_roll_back_even_with_errors() -> None:
    bins = [minute(i, (150, 3), (150, 0), share=0.1) for i in range(60)]

    assert judge([replace(b, share=None) for b in bins], Gate()).outcome == "fail"
    assert judge(bins, Gate()).outcome == "split_is_wrong"


def test_alarm_reached_before_the_split_broke_still_rolls_back() -> None:
    failing = [minute(i, (150, 60), (150, 0), share=0.5) for i in range(5)]
    gone = [minute(5 + i, (0, 0), (300, 0), share=0.5) for i in range(20)]

    verdict = judge(failing + gone, Gate())

    assert split(verdict).reached
    assert verdict.outcome == judge(failing, Gate()).outcome == "fail"


def test_split_is_checked_during_the_warm_up_too() -> None:
    bins = [minute(i, (150, 0), (150, 0), share=0.01) for i in range(5)]

    assert judge(bins, Gate(warm_up=bins[-1].start - bins[0].start)).outcome == "split_is_wrong"
