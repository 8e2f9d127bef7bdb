import importlib
import json
from importlib.resources import files
from pathlib import Path
from typing import get_args

import jsonschema
import pytest

from controlled_rollout.hooks.cluster import DEFAULT_CONN_ID
from controlled_rollout.hooks.workspace import COMMAND_LINE_ONLY, UP_ONLY, WorkspaceHook, workspace_from
from controlled_rollout.provider_info import get_provider_info
from controlled_rollout.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]


def test_provider_info_is_valid_by_airflow_s_schema() -> None:
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


@pytest.mark.parametrize("part", ["connection-types", "integrations"])
def test_the_parts_that_airflow_shows_are_valid_by_the_stricter_schema_of_its_own_providers(part: str) -> None:
    schema = json.loads(files("airflow").joinpath("provider.yaml.schema.json").read_text())
    jsonschema.validate(get_provider_info()[part], schema["properties"][part])


def test_everything_belongs_to_an_integration_with_a_guide() -> None:
    info = get_provider_info()
    [integration] = info["integrations"]
    parts = [entry for kind in ("operators", "sensors", "triggers", "hooks") for entry in info[kind]]
    assert {entry["integration-name"] for entry in parts} == {integration["integration-name"]}
    for guide in integration["how-to-guide"]:
        assert (REPOSITORY / guide.lstrip("/")).is_file()


def test_every_module_that_is_named_is_there() -> None:
    info = get_provider_info()
    kinds = ("operators", "sensors", "triggers", "hooks")
    named = [module for kind in kinds for entry in info[kind] for module in entry["python-modules"]]
    assert named
    for module in named:
        importlib.import_module(module)


def test_the_form_has_a_field_for_every_setting_of_a_workspace_that_a_connection_may_have() -> None:
    [connection] = get_provider_info()["connection-types"]
    # The connection's own name; what is for the command line; what only code can set.
    elsewhere = {"name", *COMMAND_LINE_ONLY, *UP_ONLY, "open_cluster"}
    assert set(connection["conn-fields"]) == set(Workspace.model_fields) - elsewhere
    assert set(connection["ui-field-behaviour"]["placeholders"]) <= set(connection["conn-fields"])
    assert connection["connection-type"] == WorkspaceHook.conn_type
    module, _, name = connection["hook-class-name"].rpartition(".")
    assert getattr(importlib.import_module(module), name) is WorkspaceHook


def test_every_field_says_what_it_is_for_and_may_be_left_empty() -> None:
    [connection] = get_provider_info()["connection-types"]
    for name, field in connection["conn-fields"].items():
        assert field["label"], name
        assert field["description"].endswith("."), name
        assert "null" in field["schema"]["type"], name
    form = connection["conn-fields"]
    assert form["target"]["schema"]["enum"] == list(get_args(Workspace.model_fields["target"].annotation))
    for name, shown in connection["ui-field-behaviour"]["placeholders"].items():
        default = DEFAULT_CONN_ID if name == "kubernetes_conn_id" else Workspace.model_fields[name].default
        assert shown == str(default) or default in (None, ""), name


def test_a_form_that_was_saved_empty_is_the_local_workspace() -> None:
    [connection] = get_provider_info()["connection-types"]
    saved = dict.fromkeys(connection["conn-fields"], None) | {"namespace": "", "target": "local"}
    assert workspace_from("ml", saved) == Workspace.local().model_copy(update={"name": "ml"})


def test_airflow_finds_the_connection_type_and_its_form() -> None:
    from airflow.providers_manager import ProvidersManager
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    manager = ProvidersManager()  # type: ignore[no-untyped-call]
    assert manager.providers["airflow-provider-controlled-rollout"].data["name"] == "Controlled Rollout"
    [connection] = get_provider_info()["connection-types"]
    for name in connection["conn-fields"]:
        assert f"extra__controlled_rollout__{name}" in manager.connection_form_widgets
    hook = ProvidersManagerTaskRuntime().hooks[WorkspaceHook.conn_type]  # type: ignore[no-untyped-call]
    assert hook
    assert hook.hook_name == WorkspaceHook.hook_name
