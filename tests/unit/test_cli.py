"""The command line: what it refuses and how it says so. What it starts is tested where that lives."""

from pathlib import Path

import pytest

from controlled_rollout.cli import main


def test_without_a_running_workspace_a_command_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["endpoint", "show", "digits", "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("controlled-rollout: the supervisor of the local workspace in ")
    assert "start it with `controlled-rollout local up`" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", ".", "--port", "70000"], "'70000' is not a port: give a number from 1 to 65535"),
        (["score", ".", "--model", "model.pkl"], "'model.pkl' is not of the form NAME=PATH"),
        (["telemetry-store", "--port", "1"], "--data"),
        (["local"], "ACTION"),
        ([], "COMMAND"),
    ],
)
def test_a_call_that_makes_no_sense_exits_with_2_and_says_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("folder", "message"), [("missing", "missing"), ("empty", "score.py")])
def test_a_folder_that_cannot_be_served_is_refused_before_anything_is_built(
    folder: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "requirements.txt").write_text("")

    assert main(["score", str(tmp_path / folder), "--root", str(tmp_path / "root")]) == 1

    assert message in capsys.readouterr().err
    assert not (tmp_path / "root" / "cache" / "images").exists()
