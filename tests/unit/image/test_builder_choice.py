"""The choice of a workspace's builder."""

import pytest

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.image.build import builder_for
from controlled_rollout.image.builders.pod.builder import PodBuilder
from controlled_rollout.image.builders.registry.acr_tasks import AcrTasksBuilder
from controlled_rollout.image.builders.worker.buildah import BuildahBuilder
from controlled_rollout.workspace import Workspace

ACR_ID = "/subscriptions/0/resourceGroups/models/providers/Microsoft.ContainerRegistry/registries/mine"
BUILDER_IMAGE = "quay.io/buildah/stable:v1.41"


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, BuildahBuilder),
        ({"builder": "buildah"}, BuildahBuilder),
        ({"builder": "kubernetes", "builder_image": BUILDER_IMAGE, "builder_namespace": "builds"}, PodBuilder),
        ({"builder": "acr_tasks", "acr_id": ACR_ID}, AcrTasksBuilder),
        ({"builder": "acr_tasks", "acr_id": ACR_ID.replace("resourceGroups", "resourcegroups")}, AcrTasksBuilder),
    ],
)
def test_a_workspace_chooses_its_builder(settings: dict[str, str], kind: type) -> None:
    assert isinstance(builder_for(Workspace.from_settings(settings), owner="a test"), kind)


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"builder": "kubernetes"}, "builder_image"),
        ({"builder": "kubernetes", "builder_image": BUILDER_IMAGE}, "builder_namespace"),
        ({"builder": "acr_tasks"}, "acr_id"),
    ],
)
def test_a_missing_setting_of_a_builder_is_named(settings: dict[str, str], missing: str) -> None:
    with pytest.raises(WorkspaceError, match=f"the builder '{settings['builder']}', which needs the setting {missing}"):
        builder_for(Workspace.from_settings(settings), owner="a test")


def test_pods_that_build_do_not_run_among_those_that_serve() -> None:
    settings = {"target": "kubernetes", "gateway": "edge/public", "namespace": "models", "builder_namespace": "models"}
    with pytest.raises(WorkspaceError, match="builder_namespace and namespace are both 'models'"):
        Workspace.from_settings(settings)


@pytest.mark.parametrize("setting", [{"builder": "docker"}, {"acr_id": "mine"}, {"builder_namespace": "No_Label"}])
def test_an_invalid_setting_is_refused(setting: dict[str, str]) -> None:
    with pytest.raises(WorkspaceError, match=f"settings are not valid .{next(iter(setting))}"):
        Workspace.from_settings(setting)
