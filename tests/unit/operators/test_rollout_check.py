import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

from controlled_rollout import ControlledRollout
from controlled_rollout.errors import ArgumentError
from controlled_rollout.gate import Gate
from controlled_rollout.operators.rollout_check import CheckRolloutOperator
from controlled_rollout.target import connect as connect_module
from controlled_rollout.workspace import Workspace
from tests.unit.evaluation.one_endpoint import OneEndpoint


def check_of(**arguments: Any) -> CheckRolloutOperator:
    with DAG("weekly", schedule=None):
        rollout = ControlledRollout(
            **{
                "endpoint": "digits",
                "version": "v2a",
                "image": "local/digits@sha256:" + "0" * 64,
                "silence": "4 d",
                **arguments,
            }
        )
    return rollout.check


def test_the_arguments_of_a_rollout_are_read_as_its_tasks_will_read_them() -> None:
    check = check_of(bake="PT5M", min_requests="500", gate='{"warm_up": "1 min"}', bin_width="10 s", keep_warm="2 h")
    plan, gate, window = check.read_arguments()
    assert (plan.bake, plan.min_requests, plan.keep_warm) == (timedelta(minutes=5), 500, timedelta(hours=2))
    assert gate == Gate(warm_up=timedelta(minutes=1))
    assert window.bin_width == timedelta(seconds=10)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("on_deadline", "promote"), ("auth", "password"), ("on_conflict", "retry"), ("on_silence", "wait")],
)
def test_unknown_choice_is_refused_when_the_dag_is_parsed_and_in_a_template_by_the_first_task(
    argument: str, value: str
) -> None:
    # What is given as auth may be a key: it is not repeated.
    found = "has an unknown value" if argument == "auth" else f"= '{value}' is not known"
    with pytest.raises(ValueError, match=f"^{argument} {found}: choose one of "):
        check_of(**{argument: value})
    check = check_of(**{argument: "{{ params.choice }}"})
    check.arguments = {**check.arguments, argument: value}  # rendered
    with pytest.raises(ArgumentError, match=f"^{argument} {found}: choose one of "):
        check.read_arguments()


def test_looks_that_come_too_rarely_for_the_silence_are_refused_at_once_and_in_a_template_by_the_first_task() -> None:
    refused = r"silence = 90 s would take a treatment back between two looks.*: give 2 min or more"
    with pytest.raises(ValueError, match=refused):
        check_of(silence="90 s", interval="1 min")
    check_of(silence="90 s", interval="1 min", on_silence="keep").read_arguments()
    check = check_of(silence="{{ params.silence }}", interval="1 min")
    check.arguments = {**check.arguments, "silence": "90 s"}  # rendered
    with pytest.raises(ArgumentError, match=refused):
        check.read_arguments()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("min_requests", "a few"),
        ("keep_warm", "10m"),
        ("bin_width", "7 s"),
        ("bake", "soon"),
        ("decision_timeout", -1),
        ("interval", "now and then"),
        ("pass_every_step", "maybe"),
        ("allowed_lag", "late"),
        ("baseline_length", "long"),
        ("gate", {"alpha": 2}),
        ("settings", {"cpu_cores": -1}),
        ("settings", "0.5 cores"),
        ("settings", {"traffic_percentile": 50}),
        ("settings", {"is_default": True}),
        ("settings", {"image": "other@sha256:3"}),
        ("settings", {"name": "other"}),
        ("settings", False),
        ("keep_warm", "P9000Y"),
        ("baseline_length", "999999999 d"),
        ("min_requests", 10**400),
        ("gate", "[" * 100_000),
        ("sticky", "x-user"),
        ("sticky", "header:authorization"),
        ("auth", {"issuer": "https://login.example", "audience": "digits"}),
        ("settings", {"collection": {"share": 2}, "collect_model_data": True}),
        ("image", None),
        ("image", "local/digits:latest"),
        ("image", "{{ none }}"),
        ("bake", "3 min"),
        ("bake", 0),
        ("decision_timeout", 0),
        ("decision_timeout", "10 min"),
        ("interval", 0),
        ("interval", "2 d"),
        ("silence", "for a while"),
        ("conflict_timeout", "1 week"),
        ("ready_timeout", None),
        ("roll_back_timeout", "soon"),
        ("scan", {"max_severity": "mild"}),
        ("scan", {"max_database_age": "old"}),
    ],
)
def test_an_argument_that_a_later_task_cannot_use_is_refused_by_the_first(argument: str, value: Any) -> None:
    faulty = next(iter(value)) if argument == "scan" else argument
    named = {
        "settings": "cpu_cores|settings|Collection is not valid: share",
        "image": "image|digits:latest",
        "auth": "auth",
    }
    with pytest.raises(ArgumentError, match=named.get(argument, faulty)):
        check_of(**{argument: value}).read_arguments()


def test_collected_data_is_refused_where_the_workspace_has_nothing_that_collects_it() -> None:
    check = check_of(settings={"collect_model_data": True})
    check.read_arguments(Workspace.local())
    with pytest.raises(ArgumentError, match=r"asks for collect_model_data, and workspace .* has no collector_image"):
        check.read_arguments(Workspace.from_settings({"target": "kubernetes", "gateway": "edge/public"}))


def test_a_cookie_is_refused_where_the_workspace_is_a_cluster() -> None:
    check = check_of(sticky="cookie:session", gate={"unit": "user"})
    check.read_arguments(Workspace.local())
    with pytest.raises(ArgumentError, match="use a header on Kubernetes"):
        check.read_arguments(Workspace.from_settings({"target": "kubernetes", "gateway": "edge/public"}))


def test_a_gate_that_counts_another_unit_than_the_split_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the arguments of a new endpoint, and by the endpoint that there is."""
    with pytest.raises(ArgumentError, match="give the gate unit='user'"):
        check_of(sticky="header:x-user").read_arguments()
    check = check_of(gate={"unit": "user"})
    _, judged, _ = check.read_arguments()
    now = datetime.now(UTC)
    target = OneEndpoint(before=now, created=now, counted=dict)
    monkeypatch.setattr(connect_module, "connect", target.connect)
    with pytest.raises(ArgumentError, match="is not sticky: no request says whose it is"):
        asyncio.run(check._check_endpoint(Workspace.local(tmp_path), judged))


@pytest.mark.parametrize("asked", [{"auth": "token"}, {"sticky": "header:x-user", "gate": {"unit": "user"}}])
def test_other_callers_than_those_of_the_endpoint_are_refused_before_anything_is_built(
    asked: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = check_of(**asked)
    check.read_arguments()
    now = datetime.now(UTC)
    target = OneEndpoint(before=now, created=now, counted=dict)
    monkeypatch.setattr(connect_module, "connect", target.connect)
    with pytest.raises(ArgumentError, match=r"was created with.*an endpoint of another name"):
        asyncio.run(check._check_endpoint(Workspace.local(tmp_path), Gate()))


def test_a_gate_of_columns_is_refused_for_versions_that_do_not_collect_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a gate could never see: it would hold the rollout until its deadline."""
    gate = {"categories": {"label": {"column": "predictions.label", "tolerance": 0.1}}}
    collecting = {"settings": {"collect_model_data": True}}
    with pytest.raises(
        ArgumentError, match=r"judges predictions\.label, and version 'v2a' does not collect its inputs"
    ):
        check_of(gate=gate).read_arguments()
    check = check_of(gate=gate, **collecting)
    _, judged, _ = check.read_arguments()
    now = datetime.now(UTC)
    target = OneEndpoint(before=now, created=now, counted=dict)
    monkeypatch.setattr(connect_module, "connect", target.connect)
    with pytest.raises(ArgumentError, match="version 'v1a' does not collect its inputs and predictions"):
        asyncio.run(check._check_endpoint(Workspace.local(tmp_path), judged))
    assert asyncio.run(check._check_endpoint(Workspace.local(tmp_path), Gate())) == ""


def test_question_without_a_task_that_asks_it_is_refused_before_anything_is_changed() -> None:
    check_of(on_deadline="ask").read_arguments()
    check = check_of(on_deadline="{{ params.on_deadline }}")
    check.arguments = {**check.arguments, "on_deadline": "ask"}
    with pytest.raises(ArgumentError, match="on_deadline = 'ask' came from a template"):
        check.read_arguments()


def test_image_that_another_task_makes_is_not_read_by_the_first() -> None:
    with DAG("weekly", schedule=None):
        build = EmptyOperator(task_id="build")
        rollout = ControlledRollout(endpoint="digits", version="v2a", image=build.output)
    rollout.check.read_arguments()
    assert rollout.check.upstream_task_ids == set()


def test_names_that_are_not_allowed_are_refused_by_the_first_task() -> None:
    with pytest.raises(ArgumentError, match="v2"):
        check_of(version="v2").read_arguments()
    with pytest.raises(ArgumentError, match="Digits"):
        check_of(endpoint="Digits").read_arguments()


def test_all_wrong_arguments_are_named_at_once() -> None:
    with pytest.raises(ArgumentError) as refused:
        check_of(bake="soon", min_requests="a few", keep_warm="10m").read_arguments()
    assert len(str(refused.value).splitlines()) == 3
