"""The simulated surroundings carry a whole rollout of the real task group to its end."""

import pytest

from tests.invariants.events import Event, apply
from tests.invariants.sequences import replay_sequence
from tests.invariants.simulated_airflow import State, next_state
from tests.invariants.simulated_target import NEVER
from tests.invariants.world import World


def end_of_each_run(world: World) -> dict[str, str]:
    return {task_id.rpartition(".")[2]: task.state for task_id, task in world.runs[0].tasks.items()}


def promoter(world: World) -> str:
    """Return who has made the version `two` control."""
    return next(
        revision.change.who
        for revision in world.target.revisions
        if revision.endpoint.control and revision.endpoint.control.name == "two"
    )


def test_a_good_version_is_promoted() -> None:
    world = replay_sequence([("start_run", "two", 0), ("tick", 10)])
    newest = world.newest
    assert newest is not None and newest.effective_traffic() == {"two": 100}
    assert end_of_each_run(world)["promote"] == "success"
    assert world.runs[0].state == "success"


def test_a_broken_version_is_rolled_back_and_its_run_fails() -> None:
    world = replay_sequence([("start_run", "two", 0), ("errors", "two", 1.0), ("tick", 10)])
    newest = world.newest
    assert newest is not None and newest.effective_traffic() == {"first": 100}
    assert (end_of_each_run(world)["promote"], end_of_each_run(world)["roll_back"]) == ("upstream_failed", "success")
    assert world.runs[0].state == "failed"


def test_while_the_metric_store_is_away_nothing_is_decided() -> None:
    world = replay_sequence([("start_run", "two", 0), ("store_away", 62), ("tick", 6)])
    looks = [look for look in world.decisions if look.step == "look"]
    assert {look.outcome for look in looks[:5]} == {"cannot_see"}
    assert all(look.outcome != "cannot_see" for look in looks[6:])
    assert end_of_each_run(world)["promote"] == "success"


def test_the_first_version_that_never_becomes_ready_takes_its_endpoint_with_it() -> None:
    world = replay_sequence([("starting", NEVER), ("start_run", "two", 0), ("tick", 10)], first_version=True)
    assert world.newest is None
    assert world.runs[0].state == "failed"


def test_a_question_is_answered_by_a_person() -> None:
    events = [("start_run", "two", 4), ("tick", 12), ("answer", "Approve"), ("tick", 2)]
    world = replay_sequence(events)
    assert end_of_each_run(world)["ask_50"] == "success"
    assert end_of_each_run(world)["promote"] == "success"


def test_treatment_of_an_airflow_that_is_gone_is_taken_back_and_its_run_ends_when_it_is_back() -> None:
    events: list[Event] = [("start_run", "two", 0), ("tick", 1), ("airflow_gone", 200.0), ("tick", 3)]
    traffic = []
    for more in (0, 6):
        world = World()
        for event in [*events, ("tick", more)]:
            apply(world, event)
        assert world.newest is not None
        traffic.append((world.newest.effective_traffic()["two"], world.runs[0].is_over))
        world.close()
    assert traffic == [(10, False), (0, False)]

    world = replay_sequence([*events, ("agent_gone", 20.0), ("tick", 20)])
    [back] = [decision for decision in world.decisions if decision.step == "roll_back"]
    assert back.who == "on_silence"
    assert (end_of_each_run(world)["roll_back"], end_of_each_run(world)["result"], world.runs[0].state) == (
        "success",
        "failed",
        "failed",
    )
    assert world.newest is not None and list(world.newest.versions) == ["first"]


def test_a_task_that_is_killed_is_retried_and_the_rollout_goes_on() -> None:
    kills = [event for calls in range(8) for event in (("kill", calls), ("tick", 1))]
    world = replay_sequence([("start_run", "two", 0), *kills, ("tick", 10)])
    assert end_of_each_run(world)["promote"] == "success"


def test_of_two_mapped_instances_with_one_endpoint_one_wins_and_the_other_fails() -> None:
    world = replay_sequence([("start_mapped_run", "two", 0), ("tick", 10)])
    first, second = world.runs
    assert (first.owner, second.owner) == ("weekly/run-1[0]", "weekly/run-1[1]")
    assert (first.state, second.state) == ("success", "failed")
    assert "is held by weekly/run-1[0] rolling out 'two'" in str(second.task("roll_out").failure)
    assert second.task("roll_back").state == "skipped"
    newest = world.newest
    assert newest is not None and newest.effective_traffic() == {"two": 100}


def test_two_endpoints_are_rolled_out_beside_each_other() -> None:
    events: list[Event] = [("start_run", "two", 0), ("another_endpoint", "two", 0), ("elsewhere", "errors", "two", 1.0)]
    world = replay_sequence([*events, ("tick", 12)])
    neighbour = world.neighbour
    assert neighbour is not None
    for one, split in ((world, {"two": 100}), (neighbour, {"first": 100})):
        assert one.newest is not None and one.newest.effective_traffic() == split


def test_task_for_people_in_the_run_that_rolls_out_promotes_nothing_unjudged() -> None:
    world = replay_sequence([("start_run", "two", 0), ("tick", 1), ("task_for_people", 0, "promote", "two")])
    assert promoter(world) == "weekly/run-1/rollout.promote"
    world = replay_sequence([("start_run", "two", 0), ("tick", 1), ("task_for_people", None, "promote", "two")])
    assert promoter(world).startswith("operate/manual-")


@pytest.mark.parametrize("calls", range(4))
def test_triggerer_that_is_killed_in_the_middle_of_a_look_looks_again(calls: int) -> None:
    lines: list[str] = []
    events: list[Event] = [("start_run", "two", 6), ("tick", 1), ("restart_in_look", calls), ("tick", 10)]
    world = replay_sequence(events, log=lines.append)
    assert any("triggerer killed at" in line for line in lines)
    assert end_of_each_run(world)["promote"] == "success"


@pytest.mark.parametrize(
    ("rule", "upstream", "state"),
    [
        ("all_success", ["success", "none"], None),
        ("all_success", ["success", "skipped"], "skipped"),
        ("all_success", ["upstream_failed", "none"], "upstream_failed"),
        ("none_failed", ["success", "skipped"], "run"),
        ("none_failed", ["failed", "success"], "upstream_failed"),
        ("one_failed", ["failed", "none"], "run"),
        ("one_failed", ["success", "skipped"], "skipped"),
        ("all_done", ["failed", "skipped"], "run"),
        ("all_done", ["failed", "deferred"], None),
        ("none_failed_min_one_success", ["skipped", "skipped"], "skipped"),
    ],
)
def test_trigger_rules_are_airflows(rule: str, upstream: list[State], state: str | None) -> None:
    assert next_state(rule, upstream) == state
