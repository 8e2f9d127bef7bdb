"""The folders of a workspace."""

from pathlib import Path

import pytest

from controlled_rollout.workspace import Workspace


def test_workspaces_of_a_user_share_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTROLLED_ROLLOUT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    first, second = Workspace.local(tmp_path / "first"), Workspace.from_settings({"root": str(tmp_path / "second")})

    assert first.root != second.root
    assert first.cache_folder == second.cache_folder == tmp_path / "controlled-rollout" / "images"


def test_a_variable_chooses_the_cache_of_all_workspaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROLLED_ROLLOUT_CACHE", str(tmp_path / "cache"))

    assert Workspace.local(tmp_path).cache_folder == tmp_path / "cache"


def test_a_setting_chooses_the_cache_of_one_workspace(tmp_path: Path) -> None:
    settings = {"root": str(tmp_path), "cache_folder": str(tmp_path / "own")}

    assert Workspace.from_settings(settings).cache_folder == tmp_path / "own"
