"""The options of `local up` become the settings of the workspace that is started."""

from pathlib import Path

import pytest

from controlled_rollout.cli import main
from controlled_rollout.target.local import supervisor
from controlled_rollout.workspace import Workspace


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Workspace]:
    """The workspaces that would have been started."""
    workspaces: list[Workspace] = []

    def start(workspace: Workspace, **settings: object) -> int:
        workspaces.append(workspace)
        return 0

    monkeypatch.setattr(supervisor, "start_workspace", start)
    return workspaces


def test_without_options_the_router_has_no_tls(started: list[Workspace], tmp_path: Path) -> None:
    assert main(["local", "up", "--root", str(tmp_path)]) == 0

    assert not started[0].has_tls


def test_tls_may_have_a_certificate_of_its_own_or_files(
    started: list[Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = ["--root", str(tmp_path / "workspace")]

    assert main(["local", "up", *root, "--tls", "--storage", "data"]) == 0
    files = ["--tls-certificate", "tls.crt", "--tls-key", "tls.key", "--endpoint-ca", "ca.crt"]
    assert main(["local", "up", *root, *files]) == 0

    own, given = started
    assert (own.has_tls, own.tls_certificate, own.storage_place) == (True, None, f"{tmp_path}/data")
    # Relative paths are this shell's: the supervisor runs elsewhere.
    assert (given.tls_certificate, given.tls_key) == (tmp_path / "tls.crt", tmp_path / "tls.key")
    assert given.endpoint_ca == tmp_path / "ca.crt"


@pytest.mark.parametrize("option", ["--tls-certificate", "--tls-key"])
def test_one_file_without_the_other_is_refused(
    started: list[Workspace], option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["local", "up", "--root", str(tmp_path), option, "file"]) == 1

    assert "tls_certificate and tls_key belong together" in capsys.readouterr().err
    assert not started
