"""A verdict survives JSON, infinity included, and reads as a table."""

import json
import math

import pytest

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate import (
    Claim,
    Gate,
    Outcome,
    Verdict,
    cannot_see,
    describe,
    judge,
    verdict_from_dict,
    verdict_to_dict,
)

VERDICT = Verdict(
    Outcome.FAIL,
    (
        Claim("errors are higher", "alarm", math.inf, 40.0, True, None, "5 % against control's 0.5 %"),
        Claim("split is wrong", "split", 1.25, 1000.0, False),
        Claim("errors are not worse", "pass", 3.2, 20.0, False, 12_345),
        Claim("latency is not worse", "pass", 1.0, 20.0, False, None),
        Claim("quality is not worse", "pass", 2.5e8, 20.0, True, 0),
    ),
    "errors are higher: e-value inf of 40",
    9000,
    1000,
)


@pytest.mark.parametrize("verdict", [VERDICT, judge([], Gate()), cannot_see("the store does not answer")])
def test_verdict_survives_strict_json(verdict: Verdict) -> None:
    text = json.dumps(verdict_to_dict(verdict), allow_nan=False)

    assert verdict_from_dict(json.loads(text)) == verdict


def test_invalid_verdict_is_refused_with_all_its_faults() -> None:
    with pytest.raises(EvidenceError, match=r"not a verdict: outcome: .*'pass'"):
        verdict_from_dict({"outcome": "perhaps"})


def test_table_shows_e_value_threshold_and_needed_requests() -> None:
    assert describe(VERDICT).splitlines() == [
        "claim                 e-value     of  requests still needed",
        "errors are higher         inf  40.00                  alarm",
        "split is wrong           1.25  1,000                      -",
        "errors are not worse     3.20  20.00                 12,345",
        "latency is not worse     1.00  20.00              not known",
        "quality is not worse  2.5e+08  20.00                   none",
        "treatment 1,000 requests, control 9,000",
    ]


def test_table_of_a_look_without_evidence_contains_the_reason() -> None:
    verdict = cannot_see("the store does not answer")

    assert verdict.outcome == "cannot_see"
    assert describe(verdict).splitlines() == [
        "cannot see: the store does not answer",
        "treatment 0 requests, control 0",
    ]
