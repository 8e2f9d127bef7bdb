"""The same argument has the same default everywhere: in tasks, commands and steps."""

import argparse
import inspect
from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest

import controlled_rollout
from controlled_rollout import steps
from controlled_rollout.cli import command_parser
from controlled_rollout.cli.endpoint_settings import RolloutSettings
from controlled_rollout.duration import parse_duration
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.image.scan import ScanPolicy, ScanSettings
from controlled_rollout.operators.rollout_check import CheckRolloutOperator

# Airflow's own convention, [operators] default_deferrable; the group waits for days, so it defers by default.
AIRFLOW_DECIDES = {"deferrable"}
# A DAG has gates that look; who deploys by hand has promised no looks (docs/adr/0072).
WHO_LOOKS = {"on_silence"}
# No task of the group: labels take weeks, and a version that has gone live stays unless they say otherwise.
WAITS_FOR_LABELS = {"interval", "decision_timeout", "on_deadline"}


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }


def defaults_of_task(task: type) -> dict[str, Any]:
    """Return the defaults of a task's arguments, those of its bases in this package included."""
    bases = [base for base in task.__mro__ if base.__module__.startswith("controlled_rollout.")]
    return {
        name: value
        for base in reversed(bases)
        for name, value in defaults_of(vars(base).get("__init__", object)).items()
    }


def options_of(command: str) -> dict[str, Any]:
    """Return the defaults of a command's options."""
    [commands] = [action for action in command_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    own = {action.dest: action.default for action in commands.choices[command]._actions if action.option_strings}
    # What a file may say as well is decided when both have been read.
    in_a_file = {**RolloutSettings().model_dump(), "timeout": RolloutSettings().ready_timeout}
    return {name: in_a_file.get(name) if value is None else value for name, value in own.items()}


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    shared = left.keys() & right.keys() - AIRFLOW_DECIDES - WHO_LOOKS
    assert shared
    assert {name: given(left[name]) for name in shared} == {name: given(right[name]) for name in shared}


def given(default: Any) -> Any:
    """Return a default; an empty collection counts as None."""
    return default or None if isinstance(default, (tuple, list, dict)) else default


GROUP = defaults_of(controlled_rollout.ControlledRollout.__init__)
TASKS = {
    name: defaults_of_task(getattr(controlled_rollout, name))
    for name in controlled_rollout.__all__
    if name.endswith(("Operator", "Sensor"))
} | {"CheckRolloutOperator": defaults_of_task(CheckRolloutOperator)}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_group_and_its_tasks_have_the_same_defaults(task: str) -> None:
    own = WAITS_FOR_LABELS if task == "JudgeByLabelsOperator" else set()
    assert_same({name: value for name, value in GROUP.items() if name not in own}, TASKS[task])


@pytest.mark.parametrize(
    ("task", "command", "step"),
    [
        ("RolloutVersionOperator", "deploy", steps.deploy),
        ("ShiftTrafficOperator", "shift", steps.shift),
        ("PromoteToControlOperator", "promote", steps.promote),
        ("RollBackOperator", "rollback", steps.roll_back),
        ("DeleteVersionOperator", "retire", steps.retire),
    ],
)
def test_a_task_its_command_and_its_step_have_the_same_defaults(
    task: str, command: str, step: Callable[..., Any]
) -> None:
    assert_same(TASKS[task], options_of(command))
    in_engine = defaults_of(step)
    if task == "RolloutVersionOperator":
        # The engine has one argument for two: not to wait at all is `on_conflict="fail"`, the default of that.
        assert in_engine.pop("conflict_timeout") == timedelta(0)
        assert TASKS[task]["on_conflict"] == "fail"
    assert_same(TASKS[task], in_engine)


@pytest.mark.parametrize("command", ["plan", "gate"])
def test_a_rollout_by_hand_and_in_a_file_has_the_defaults_of_the_group(command: str) -> None:
    assert_same(GROUP, {**RolloutSettings().model_dump(), "steps": (10, 50)})
    assert_same(GROUP, options_of(command))


def test_the_evidence_is_read_in_the_same_way_everywhere() -> None:
    window = EvidenceWindow().model_dump()
    assert_same(window, GROUP)
    assert_same(window, TASKS["TreatmentGateSensor"])


def test_a_scan_has_the_same_defaults_everywhere() -> None:
    settings, task, command = ScanSettings(), TASKS["ScanImageOperator"], options_of("scan")
    assert_same(task, command)
    engine = {field.name: getattr(settings, field.name) for field in fields(ScanSettings)}
    policy = {field.name: getattr(settings.policy, field.name) for field in fields(ScanPolicy)}
    assert_same(task, engine)
    assert_same({**task, "max_severity": policy["max_severity"]}, policy)
    assert task["max_severity"] == str(policy["max_severity"])


def test_every_length_of_time_has_a_default_that_is_one() -> None:
    lengths = (
        "bake",
        "decision_timeout",
        "interval",
        "keep_warm",
        "conflict_timeout",
        "ready_timeout",
        "roll_back_timeout",
    )
    for name in lengths:
        assert parse_duration(GROUP[name]) >= timedelta(0)
