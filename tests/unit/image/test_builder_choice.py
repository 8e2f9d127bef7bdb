"""The choice of a workspace's builder."""

import pytest

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.image.build import builder_for
from controlled_rollout.image.builders.pod.builder import PodBuilder
from controlled_rollout.image.builders.registry.acr_tasks import AcrTasksBuilder
from controlled_rollout.image.builders.worker.buildah import BuildahBuilder
from controlled_rollout.workspace import Workspace

ACR_ID = "/subscriptions/0/resourceGroups/models/providers/Microsoft.ContainerRegistry/registries/mine"


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, BuildahBuilder),
        ({"builder": "buildah"}, BuildahBuilder),
        ({"builder": "kubernetes", "builder_image": "quay.io/buildah/stable:v1.41"}, PodBuilder),
        ({"builder": "acr_tasks", "acr_id": ACR_ID}, AcrTasksBuilder),
        ({"builder": "acr_tasks", "acr_id": ACR_ID.replace("resourceGroups", "resourcegroups")}, AcrTasksBuilder),
    ],
)
def test_a_workspace_chooses_its_builder(settings: dict[str, str], kind: type) -> None:
    assert isinstance(builder_for(Workspace.from_settings(settings), owner="a test"), kind)


@pytest.mark.parametrize(("builder", "missing"), [("kubernetes", "builder_image"), ("acr_tasks", "acr_id")])
def test_a_missing_setting_of_a_builder_is_named(builder: str, missing: str) -> None:
    with pytest.raises(WorkspaceError, match=f"has the builder '{builder}', which needs the setting {missing}"):
        builder_for(Workspace.from_settings({"builder": builder}), owner="a test")


@pytest.mark.parametrize("setting", [{"builder": "docker"}, {"acr_id": "mine"}, {"builder_namespace": "No_Label"}])
def test_an_invalid_setting_is_refused(setting: dict[str, str]) -> None:
    with pytest.raises(WorkspaceError, match=f"settings are not valid .{next(iter(setting))}"):
        Workspace.from_settings(setting)
