"""Which folder a local workspace may have, and what becomes of a folder that is none."""

from pathlib import Path

import pytest

from controlled_rollout.cli import main
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.target.local.workspace_folder import prepare_folder


def mode(folder: Path) -> int:
    return folder.stat().st_mode & 0o777


@pytest.mark.parametrize(
    "content", [None, (), (".profile", "lost+found"), ("records", "models"), ("lock", "notes.txt")]
)
def test_a_new_folder_an_empty_one_and_a_workspace_become_private(
    content: tuple[str, ...] | None, tmp_path: Path
) -> None:
    root = tmp_path / "a folder ü"
    for name in content or ():
        (root / name).mkdir(parents=True)
    if content is not None:
        root.mkdir(exist_ok=True)
        root.chmod(0o755)

    prepare_folder(root)

    assert mode(root) == 0o700


def test_a_folder_with_other_files_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as `/tmp`, or a project: others would lose their access to it."""
    (tmp_path / "thesis.tex").write_text("")
    tmp_path.chmod(0o755)

    assert main(["local", "up", "--root", str(tmp_path)]) == 2

    assert f"the folder {tmp_path} holds other files (thesis.tex) and no workspace" in capsys.readouterr().err
    assert mode(tmp_path) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_to_stop_what_never_ran_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["local", "down", "--root", str(tmp_path)]) == 0

    assert "not running" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["local", "up"],
        ["local", "down"],
        ["local", "status"],
        ["status"],
        ["keys", "digits"],
        ["report", "digits"],
        ["replay", "digits"],
        ["clean"],
    ],
)
def test_a_root_that_is_a_file_is_named_in_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "file"
    root.write_text("")

    assert main([*command, "--root", str(root)]) == 1

    error = capsys.readouterr().err
    assert str(root) in error or "digits" in error
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(WorkspaceError, match="no local workspace can be in the folder"):
        prepare_folder(tmp_path / "file" / "below")
