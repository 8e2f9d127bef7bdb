from collections.abc import Sequence
from datetime import timedelta

import pytest

from controlled_rollout.gate import Gate
from controlled_rollout.operators.plan import Traffic, plan_in_words, power_in_words

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def shown(traffic: Traffic | None, steps: Sequence[float] = (10, 50)) -> list[str]:
    return power_in_words(Gate(), steps, traffic, bake=10 * MINUTE, decision_timeout=HOUR).splitlines()


def test_every_step_says_what_it_can_show_at_the_present_traffic() -> None:
    header, tenth, half = shown(Traffic(36_000, 180, HOUR))
    assert header == "What the steps can show, at control's 10 requests/s of late, 0.5 % of them errors:"
    assert tenth.strip().startswith("10 % of 10 requests/s: ")
    assert half.strip().startswith("50 % of 10 requests/s: ")
    assert "within 10 min" in tenth


def test_with_few_requests_the_error_rate_is_taken_to_be_usual() -> None:
    assert "errors taken to be 0.5 %" in shown(Traffic(100, 50, HOUR))[0]


@pytest.mark.parametrize(
    ("traffic", "words"),
    [
        (None, "first version"),
        (Traffic(0, 0, HOUR), "no requests that the evidence knows of"),
        (Traffic(10, 0, timedelta(0)), "not known"),
    ],
)
def test_without_traffic_there_is_nothing_to_say(traffic: Traffic | None, words: str) -> None:
    [line] = shown(traffic)
    assert words in line


def test_with_all_the_traffic_there_is_nothing_to_compare_with() -> None:
    assert "no requests to compare with" in shown(Traffic(3_600, 18, HOUR), steps=(100,))[1]


@pytest.mark.parametrize(("on_no_decision", "words"), [("ask", "it asks a person"), ("hold", "a person decides")])
def test_the_plan_says_what_happens_without_a_decision_and_who_approves(on_no_decision: str, words: str) -> None:
    plan = plan_in_words(
        "digits", "v2a", (10,), bake="10 min", min_requests=500, decision_timeout="1 d", on_no_decision=on_no_decision,
        keep_warm="1 d", keep_treatment=False, approval=True,
    )  # fmt: skip
    assert words in plan
    assert "3. when a person approves, promote" in plan
