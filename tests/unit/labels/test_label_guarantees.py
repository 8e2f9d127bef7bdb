"""How often a healthy version is stopped by its labels, looked at each hour; more runs are in the gate's benchmark."""

import random
from datetime import timedelta

import pytest

from controlled_rollout.evidence.bins import since_epoch
from controlled_rollout.gate import Outcome, judge
from controlled_rollout.labels import Labels
from controlled_rollout.labels.bins import Requests, label_bins
from controlled_rollout.labels.measures import LabelledRequest, Measures
from controlled_rollout.labels.periods import Period
from tests.unit.labels.labelled_rollout import HOUR, T0

HALF = T0 + 6 * HOUR
PERIODS = (Period(T0, HALF), Period(HALF, T0 + 12 * HOUR))


def healthy(draw: random.Random, requests: int) -> tuple[list[LabelledRequest], list[Requests]]:
    """Draw the labelled requests of two equal models, and how many requests each period has.

    In the first half of the time a tenth of the requests are the treatment's, in the second three fifths, and requests
    become harder with time; a hard request's label comes later, and less often.
    """
    labelled: list[LabelledRequest] = []
    totals = [[0, 0], [0, 0]]
    for number in range(requests):
        at = T0 + 12 * HOUR * draw.random()
        period = int(at >= HALF)
        treatment = draw.random() < (0.1, 0.6)[period]
        totals[period][treatment] += 1
        hardness = (at - T0) / (12 * HOUR) * draw.random()
        if draw.random() < 0.9 - 0.5 * hardness:
            label = int(draw.random() < 0.4)
            score = min(1.0, max(0.0, draw.gauss(0.35 + 0.3 * label, 0.1 + 0.5 * hardness)))
            known = at + timedelta(hours=draw.expovariate(1 / (2 + 20 * hardness)))
            rows = [(int(score > 0.5), score)]
            labelled.append(LabelledRequest(treatment, str(number), at, known, label, rows))
    labelled.sort(key=lambda one: (since_epoch(one.known, HOUR), one.time))
    return labelled, [Requests(*total) for total in totals]


@pytest.mark.parametrize("metrics", [["accuracy", "recall"], ["log_loss", "auc"]])
def test_false_alarms_while_labels_trickle_in_stay_within_alpha(metrics: list[str]) -> None:
    labels = Labels.model_validate({"metrics": metrics, "probability": "predictions.p", "positive": 1})
    draw, runs = random.Random(7), 25
    outcomes = []
    for _ in range(runs):
        requests, totals = healthy(draw, 1_500)
        bins = label_bins(requests, labels, Measures(labels), PERIODS, totals).bins
        assert len(bins) > 20
        outcomes.append(judge(bins, labels.gate()).outcome)
    assert outcomes.count(Outcome.FAIL) <= runs * (0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5)
    assert outcomes.count(Outcome.SPLIT_IS_WRONG) <= 1
