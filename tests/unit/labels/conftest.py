from pathlib import Path

import pytest

from controlled_rollout.workspace import Workspace
from tests.unit.labels.labelled_rollout import LabelledRollout


@pytest.fixture
def rollout(tmp_path: Path) -> LabelledRollout:
    """A workspace whose storage is a folder; nothing is collected yet."""
    return LabelledRollout(Workspace(root=tmp_path, cache_folder=tmp_path / "cache"))
