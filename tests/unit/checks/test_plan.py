from dataclasses import replace
from datetime import timedelta
from typing import Literal

import pytest

from controlled_rollout.checks.plan import RolloutPlan, looks_too_rarely, room_for
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.rollout import OnSilence

PLAN = RolloutPlan(
    endpoint="digits", version="v2a", steps=(10, 50), bake=timedelta(minutes=10), min_requests=500,
    pass_every_step=False, decision_timeout=timedelta(days=1), on_deadline="hold", approval=False,
    on_silence=OnSilence.ROLL_BACK, silence=timedelta(minutes=30), keep_warm=timedelta(days=1), keep_treatment=False,
)  # fmt: skip


def test_the_plan_says_every_step_in_order() -> None:
    lines = str(PLAN).splitlines()
    assert [line.strip()[:2] for line in lines[1:-2]] == ["1.", "2.", "3.", "4.", "5."]
    assert "shift 10 %" in lines[2]
    assert "after 10 min and 500 requests of evidence, unless a claim alarms or nearly does" in lines[2]
    assert "shift 50 %" in lines[3]
    assert "when the gate passes" in lines[3]
    assert "promote" in lines[4]
    assert "after 1 d" in lines[5]
    assert "steps 2 to 3 are skipped" in lines[1]


def test_the_plan_says_which_gates_have_to_pass() -> None:
    assert str(PLAN).count("when the gate passes") == 1
    assert str(replace(PLAN, pass_every_step=True)).count("when the gate passes") == 2


@pytest.mark.parametrize(("on_deadline", "words"), [("ask", "it asks a person"), ("hold", "a person decides")])
def test_the_plan_says_what_happens_without_a_decision_and_who_approves(
    on_deadline: Literal["hold", "ask"], words: str
) -> None:
    plan = str(replace(PLAN, on_deadline=on_deadline, approval=True))
    assert words in plan
    assert "4. when a person approves, promote" in plan


def test_the_plan_says_what_happens_when_nobody_looks() -> None:
    assert "If nobody has looked for 30 min, such as when Airflow is gone" in str(PLAN)
    assert "nobody has looked" not in str(replace(PLAN, on_silence=OnSilence.KEEP))


@pytest.mark.parametrize(
    ("silence_s", "interval_s", "fits"), [(120, 60, True), (119, 60, False), (60, 90, False), (0.5, 0.1, False)]
)
def test_two_looks_have_to_fit_into_the_silence(silence_s: float, interval_s: float, fits: bool) -> None:
    problem = looks_too_rarely(timedelta(seconds=silence_s), timedelta(seconds=interval_s))
    assert (problem == "") == fits
    assert fits or "or more, or on_silence='keep'" in problem


def test_the_plan_says_what_becomes_of_a_version_that_fails() -> None:
    assert str(PLAN).endswith("rolled back at once and retired.")
    assert str(replace(PLAN, keep_treatment=True)).endswith("rolled back at once and kept at 0 %.")


def test_endpoint_without_room_for_the_version_is_refused_and_the_last_room_is_warned_of() -> None:
    endpoint = Endpoint(name="digits")
    for number in range(4):
        endpoint = endpoint.create_version(f"v{number}a", is_control=number == 0)
    assert room_for(endpoint, "v9a") == ("", "")
    endpoint = endpoint.create_version("v4a")
    full, warning = room_for(endpoint, "v9a")
    assert not full and "will have 6 versions" in warning and "keep_warm" in warning
    endpoint = endpoint.create_version("v5a")
    full, _ = room_for(endpoint, "v9a")
    assert "has 6 versions" in full and "'v9a' has no room: retire one" in full
    # A retry finds its own version there.
    assert room_for(endpoint, "v5a")[0] == ""
