import importlib
import json
from importlib.resources import files

import jsonschema
import pytest

from controlled_rollout.provider_info import get_provider_info
from controlled_rollout.tasks.workspace import WorkspaceHook
from controlled_rollout.workspace import Workspace


@pytest.mark.parametrize("schema", ["provider_info.schema.json", "provider.yaml.schema.json"])
def test_provider_info_is_what_airflow_asks_for(schema):
    loaded = json.loads(files("airflow").joinpath(schema).read_text())
    if schema == "provider.yaml.schema.json":  # the stricter one; of it only what concerns the connection's form
        loaded = loaded["properties"]["connection-types"]
        jsonschema.validate(get_provider_info()["connection-types"], loaded)
    else:
        jsonschema.validate(get_provider_info(), loaded)


def test_every_module_that_is_named_is_there():
    info = get_provider_info()
    kinds = ("operators", "sensors", "triggers", "hooks")
    named = [module for kind in kinds for entry in info[kind] for module in entry["python-modules"]]
    assert named
    for module in named:
        importlib.import_module(module)


def test_the_form_has_a_field_for_every_setting_of_a_workspace_but_its_name():
    [connection] = get_provider_info()["connection-types"]
    assert set(connection["conn-fields"]) == set(Workspace.model_fields) - {"name"}
    assert connection["connection-type"] == WorkspaceHook.conn_type
    module, _, name = connection["hook-class-name"].rpartition(".")
    assert getattr(importlib.import_module(module), name) is WorkspaceHook


def test_airflow_finds_the_connection_type_and_its_form():
    from airflow.providers_manager import ProvidersManager
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    manager = ProvidersManager()
    assert manager.providers["airflow-provider-controlled-rollout"].data["name"] == "Controlled Rollout"
    assert "extra__controlled_rollout__root" in manager.connection_form_widgets
    assert ProvidersManagerTaskRuntime().hooks[WorkspaceHook.conn_type].hook_name == WorkspaceHook.hook_name
