"""Which alias a version's model gets, and what is refused before anything is deployed."""

from typing import Any

import pytest
from airflow.sdk import DAG

from controlled_rollout import BuildImageOperator, ControlledRollout
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ArgumentError
from controlled_rollout.image import ModelSource
from controlled_rollout.model_registry import alias_properties, follow_control, resolve_model, stale_alias, with_alias
from controlled_rollout.operators.image_build import with_versions

IMAGE = "models/digits@sha256:" + "1" * 64
PROPERTIES = {"mlflow_alias": "champion", "mlflow_model": "models:/digits/7"}


def test_a_version_s_properties_say_which_alias_its_model_gets() -> None:
    assert alias_properties("champion", "models:/digits/7") == PROPERTIES
    assert with_alias({"cpu_cores": 1}, None, "models:/digits/7") == {"cpu_cores": 1}
    assert with_alias({"properties": {"team": "ml"}}, "champion", "models:/digits/7") == {
        "properties": {"team": "ml", **PROPERTIES}
    }


@pytest.mark.parametrize("alias", ["latest", "Latest", "v7", "V12", "", "a b", "a@b", "x" * 256])
def test_an_alias_that_mlflow_would_not_take_is_refused(alias: str) -> None:
    with pytest.raises(ArgumentError, match="is no alias for MLflow"):
        alias_properties(alias, "models:/digits/7")


@pytest.mark.parametrize(
    "model", ["models:/digits", "models:/digits@champion", "models:/digits/0", "runs:/1/model", "7"]
)
def test_what_is_no_version_of_a_model_is_refused(model: str) -> None:
    with pytest.raises(ArgumentError, match="give models:/<name>/<version>"):
        alias_properties("champion", model)


def test_an_alias_without_a_model_is_refused_with_what_to_give() -> None:
    with pytest.raises(ArgumentError, match="give mlflow_model="):
        alias_properties("champion", None)
    with pytest.raises(ArgumentError, match="give a mapping of texts"):
        with_alias({"properties": "ml"}, "champion", "models:/digits/7")


def test_a_control_without_an_alias_moves_none() -> None:
    endpoint = Endpoint(name="digits").create_version("old", is_control=True, image=IMAGE)
    assert follow_control(endpoint, progress=pytest.fail) is None
    assert follow_control(Endpoint(name="digits"), progress=pytest.fail) is None


def test_an_alias_that_stays_at_the_model_of_a_former_control_is_named_with_what_to_do() -> None:
    first = Endpoint(name="digits").create_version("old", is_control=True, image=IMAGE, properties=PROPERTIES)
    followed = first.create_version("new", image=IMAGE, properties=PROPERTIES).promote("new")
    left = first.create_version("new", image=IMAGE).promote("new")

    assert stale_alias(left, "old") == (
        "the alias 'champion' in MLflow's registry stays at models:/digits/7 of 'old', which is control no longer: "
        "'new' was deployed without mlflow_alias; move the alias by hand if it should follow, or delete it"
    )
    assert stale_alias(followed, "old") is None
    for changed in ({"mlflow_alias": "best"}, {"mlflow_model": "models:/letters/1"}):
        other = first.create_version("new", image=IMAGE, properties=PROPERTIES | changed).promote("new")
        assert "'champion' in MLflow's registry stays at models:/digits/7 of 'old'" in (stale_alias(other, "old") or "")
    newer = first.create_version("new", image=IMAGE, properties=PROPERTIES | {"mlflow_model": "models:/digits/8"})
    assert stale_alias(newer.promote("new"), "old") is None
    assert stale_alias(left, None) is None
    assert stale_alias(left.create_version("other", image=IMAGE).promote("other"), "new") is None


def test_only_an_alias_has_to_be_asked_for_its_version() -> None:
    assert resolve_model("models:/digits/7") == "models:/digits/7"
    assert with_versions([ModelSource("digits", "az://models/digits")])[0].path == "az://models/digits"


def group(**arguments: Any) -> ControlledRollout:
    with DAG("weekly", schedule=None):
        return ControlledRollout(endpoint="digits", **{"image": IMAGE, **arguments})


def test_the_group_gives_the_alias_to_the_model_that_is_built_into_the_image() -> None:
    with DAG("weekly", schedule=None):
        build = BuildImageOperator(task_id="build", source_dir=".", name="digits", models={"m": "models:/digits@new"})
        rollout = ControlledRollout(endpoint="digits", image=build.output, mlflow_alias="champion")
    assert rollout.roll_out.mlflow_alias == "champion"
    assert rollout.roll_out.mlflow_model == "{{ ti.xcom_pull(task_ids='build', key='mlflow_model') or '' }}"
    assert "mlflow_model" in rollout.roll_out.template_fields
    assert group(mlflow_alias="champion", mlflow_model="models:/digits/7").roll_out.mlflow_model == "models:/digits/7"
    assert group().roll_out.mlflow_model is None


def test_an_alias_whose_model_nobody_can_know_is_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(ValueError, match="mlflow_alias='champion' was given, and which model gets it is not known"):
        group(mlflow_alias="champion")


def test_a_model_without_an_alias_which_would_change_nothing_is_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(ValueError, match="give the alias as well"):
        group(mlflow_model="models:/digits/7")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"mlflow_alias": "latest", "mlflow_model": "models:/digits/7"}, "mlflow_alias = 'latest' is no alias"),
        ({"mlflow_alias": "champion", "mlflow_model": "digits"}, "mlflow_model = 'digits' is no model version"),
    ],
)
def test_the_first_task_refuses_an_alias_or_a_model_that_cannot_be_used(
    arguments: dict[str, Any], problem: str
) -> None:
    check = group(version="v1", **arguments).check
    with pytest.raises(ArgumentError, match=problem):
        check.read_arguments()
