"""Opening a cluster."""

from pathlib import Path

import pytest

from controlled_rollout.cluster.api import Api
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.workspace import Workspace

UNFINISHED = """
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, token: a-secret}]
"""


async def test_what_is_wrong_with_a_kubeconfig_is_said_without_its_secrets(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(UNFINISHED)
    workspace = Workspace.from_settings({"target": "kubernetes", "gateway": "a/b", "kubeconfig": str(file)})

    with pytest.raises(WorkspaceError, match="does not lead to a cluster") as refused:
        async with Api.open(workspace):
            pass
    assert "a-secret" not in str(refused.value)
