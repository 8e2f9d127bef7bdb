from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowNotFoundException

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.hooks.workspace import WorkspaceHook, workspace_from
from tests.unit.hooks.connections import Connect, on_kubernetes


def test_a_local_workspace_asks_for_no_kubernetes_connection(connect: Connect, tmp_path: Path) -> None:
    workspace = connect(ml=("controlled_rollout", {"root": str(tmp_path / "x")})).get_workspace()
    assert workspace.open_cluster is None
    assert workspace.root == tmp_path / "x"


def test_only_the_default_workspace_may_be_missing(connect: Connect, tmp_path: Path) -> None:
    assert connect().default_conn_name == "controlled_rollout_default"
    assert WorkspaceHook().get_workspace().root == Path(tmp_path)
    with pytest.raises(AirflowNotFoundException, match="'ml' was asked for and does not exist"):
        connect().get_workspace()


def test_a_connection_names_its_cluster_by_a_connection() -> None:
    with pytest.raises(WorkspaceError, match="sets kubeconfig and kube_context, which are for the command line"):
        workspace_from("ml", {**on_kubernetes()[1], "kubeconfig": "/x", "kube_context": "y"})


def test_a_cluster_without_a_gateway_is_refused() -> None:
    with pytest.raises(WorkspaceError, match="needs the setting gateway"):
        workspace_from("ml", {"target": "kubernetes"})
