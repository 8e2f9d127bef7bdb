from pathlib import Path

import pytest

from controlled_rollout.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Return a local workspace without endpoints, which does not run."""
    return Workspace.local(tmp_path)
