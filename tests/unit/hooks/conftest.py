import json
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.hooks import cluster
from controlled_rollout.hooks.workspace import WorkspaceHook
from tests.unit.hooks.connections import Connect


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Connect:
    """Make connections as Airflow reads them from the environment; return the workspace hook."""

    def connect(**connections: tuple[str, dict[str, Any]]) -> WorkspaceHook:
        for conn_id, (conn_type, extra) in connections.items():
            value = json.dumps({"conn_type": conn_type, "extra": extra})
            monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", value)
        return WorkspaceHook("ml")

    monkeypatch.setenv("CONTROLLED_ROLLOUT_HOME", str(tmp_path))
    monkeypatch.setattr(cluster, "SERVICE_ACCOUNT_TOKEN", tmp_path / "no-token")
    return connect
