"""The command line: its arguments and its errors. Its effects are tested on a real workspace, in tests/local."""

import argparse
import os
import pwd
import re
from pathlib import Path

import pytest

from controlled_rollout import __version__
from controlled_rollout.cli import main
from controlled_rollout.cli.arguments import caller, workspace_of
from controlled_rollout.cli.workspace_file import read_workspace
from controlled_rollout.environment_variables import RESERVED
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.target.local.serve_folder import SETTINGS
from controlled_rollout.workspace import Workspace

DOCS = Path(__file__).parents[3] / "docs"
IMAGE = "models/digits@sha256:" + "0" * 64


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTROLLED_ROLLOUT_WORKSPACE", raising=False)
    monkeypatch.delenv("CONTROLLED_ROLLOUT_HOME", raising=False)


def chosen(workspace: Path | None = None, root: Path | None = None) -> Workspace:
    return workspace_of(argparse.Namespace(workspace=workspace, root=root))


@pytest.mark.parametrize(
    "command",
    [
        ["endpoint", "show", "digits"],
        ["endpoint", "score", "digits", "--data", "{}"],
        ["status"],
        ["status", "digits", "--output", "json"],
        ["logs", "digits", "one"],
        ["keys", "digits"],
        ["keys", "token", "digits"],
        ["keys", "rotate", "digits"],
        ["delete", "digits", "--yes"],
        ["deploy", "digits", "one", "--image", IMAGE, "--timeout", "0"],
        ["shift", "digits", "one", "10", "--timeout", "0"],
        ["promote", "digits", "one", "--timeout", "0"],
        ["rollback", "digits", "one", "--reason", "too slow", "--timeout", "0"],
        ["retire", "digits", "one", "--timeout", "0"],
        ["local", "status"],
    ],
)
def test_without_a_running_workspace_a_command_says_how_to_start_one(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--root", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("controlled-rollout: the supervisor of the local workspace in ")
    assert f"start it with `controlled-rollout local up --root {tmp_path}`" in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_step_retries_until_its_timeout_and_reports_it_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["promote", "digits", "one", "--timeout", "0.6", "--root", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert output.out.startswith("trying again: the supervisor of the local workspace in ")
    assert output.err.startswith("controlled-rollout: the supervisor ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", ".", "--port", "70000"], "'70000' is not a port: give a number from 1 to 65535"),
        (
            ["score", ".", "--model", "model.pkl"],
            "put the model's name before it, such as prices=model.pkl",
        ),
        (["telemetry-store", "--port", "1"], "--data"),
        (["local"], "ACTION"),
        ([], "COMMAND"),
        (["deploy", "digits", "one"], "--image"),
        (["deploy", "digits", "one", "--image", IMAGE, "--set", "cores=1"], "with one of the fields description, tags"),
        (["deploy", "digits", "one", "--image", IMAGE, "--set", "is_control=true"], "is not FIELD=VALUE"),
        (["deploy", "digits", "one", "--image", IMAGE, "--set", "cpu_cores"], "is not FIELD=VALUE"),
        (["deploy", "digits", "one", "--image", IMAGE, "--set", "tags={"], "is not a value"),
        (["deploy", "digits", "one", "--image", IMAGE, "--env", "=1"], "is not of the form NAME=VALUE"),
        (["deploy", "digits", "one", "--image", IMAGE, "--env", "NOT_SET_HERE"], "NOT_SET_HERE is not set here"),
        (["deploy", "digits", "one", "--image", IMAGE, "--secret-env", "A=b"], "is not of the form NAME=SECRET/KEY"),
        (["deploy", "digits", "one", "--image", IMAGE, "--timeout", "soon"], "is not a length of time"),
        (["promote", "digits", "one", "--timeout", "nan"], "is not a length of time"),
        (["shift", "digits", "one"], "percentile"),
        (["shift", "digits", "one", "101"], "'101' is not a per cent of the requests: give a number, 0 to 100"),
        (["shift", "digits", "one", "10%"], "'10%' is not a per cent of the requests"),
        (["shift", "digits", "one", "nan"], "'nan' is not a per cent of the requests"),
        (["status", "--interval", "5m"], "'5m' is not a length of time: give seconds, or a number with s, min, h or d"),
        (["plan", "digits", "one", "--steps", "50,10"], "'50,10' is not the per cent of each step: give numbers with"),
        (["plan", "digits", "one", "--steps", "10%"], "such as 10,50"),
        (["rollback", "digits", "one"], "--reason"),
        (["rollback", "digits", "one", "--reason", " "], "history needs a reason"),
        (["delete", "digits"], "--yes"),
        (["logs", "digits", "one", "--tail", "0"], "is not a number of lines"),
        (["keys", "digits", "--regenerate", "both"], "choose from"),
        (["deploy", "digits", "one", "--image", IMAGE, "--auth", "key,token"], "choose one of key, token, none"),
        (["deploy", "digits", "one", "--image", IMAGE, "--auth", "{issuer: a}"], "no issuer of tokens"),
        (["deploy", "digits", "one", "--image", IMAGE, "--auth", "{issuer: "], "is not a value of YAML"),
        (["status", "--workspace", "a", "--root", "b"], "not allowed with argument"),
    ],
)
def test_invalid_command_exits_with_2_and_names_the_fault(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [("--secret-env", "TOKEN=hunter2"), ("--secret-env", "hunter2"), ("--env", "=hunter2")]
)
def test_a_value_in_place_of_a_secret_is_refused_without_repeating_it(
    option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["deploy", "digits", "one", "--image", IMAGE, *option])
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(("folder", "message"), [("missing", "missing"), ("empty", "score.py")])
def test_a_folder_that_cannot_be_served_is_refused_before_anything_is_built(
    folder: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTROLLED_ROLLOUT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "requirements.txt").write_text("")

    assert main(["score", str(tmp_path / folder), "--root", str(tmp_path / "root")]) == 1

    assert message in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_reserved_variable_of_a_folder_is_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", str(tmp_path), "--root", str(tmp_path / "root"), "--env", "PYTHONPATH=/elsewhere"]) == 1
    assert "sets PYTHONPATH, which the image or the target sets" in capsys.readouterr().err


def test_every_variable_that_the_docs_name_can_be_set_for_a_folder() -> None:
    section = (
        (DOCS / "scoring.md").read_text().partition("## Environment variables")[2].partition("\n## What differs")[0]
    )
    documented = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", section))

    assert {"MAX_BODY_BYTES", "AML_CORS_ORIGINS", "WORKER_COUNT"} <= documented
    assert documented - set(RESERVED) <= set(SETTINGS)


def test_an_image_without_a_digest_is_refused_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", "digits", "one", "--image", "digits:latest", "--root", str(tmp_path)]) == 1
    assert "deploy by digest" in capsys.readouterr().err


def test_a_workspace_is_read_from_yaml_and_from_json_and_its_paths_start_at_the_file(tmp_path: Path) -> None:
    yaml = tmp_path / "staging.yaml"
    yaml.write_text(
        "target: kubernetes\ngateway: infra/shared\nnamespace: models\nkubeconfig: kube/config\n"
        "root: ~/rollouts\ncache_folder: cache\nbuilder_pod_template: pod.yaml\nregistry:\n"
    )
    json = tmp_path / "staging.json"
    json.write_text(
        '{"name": "other", "target": "kubernetes", "gateway": "infra/shared", "namespace": "models", '
        f'"kubeconfig": "{tmp_path}/kube/config", "root": "~/rollouts", "cache_folder": "{tmp_path}/cache", '
        f'"builder_pod_template": "{tmp_path}/pod.yaml"}}'
    )

    workspace = read_workspace(yaml)

    assert (workspace.name, workspace.target, workspace.gateway, workspace.namespace) == (
        "staging", "kubernetes", "infra/shared", "models",
    )  # fmt: skip
    assert workspace.kubeconfig == tmp_path / "kube" / "config"
    assert (workspace.cache_folder, workspace.builder_pod_template) == (tmp_path / "cache", tmp_path / "pod.yaml")
    assert workspace.root == Path.home() / "rollouts"
    assert workspace.registry is None
    assert read_workspace(json) == workspace.model_copy(update={"name": "other"})


def test_a_workspace_s_file_that_powershell_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "laptop.yaml").write_text("target: local\r\n", encoding="utf-16")

    assert read_workspace(tmp_path / "laptop.yaml").target == "local"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        (b"\xff", "line 1 is not utf-8: save it as UTF-8"),
        (b"- target", "holds no settings"),
        (b"", "holds no settings"),
        (b"target: [", "neither YAML nor JSON"),
        (b"cluster: aks", "cluster.*known are name, target, root.*kubeconfig"),
        (b"target: moon", "line 1, target: it is .moon.: give one of local, kubernetes"),
        (b"target: kubernetes", "needs the setting gateway"),
        (b"open_cluster: yes", "'open_cluster' is not known"),
        (b"root: 2026", "root: it is a number: give a text"),
        (b"root: ~nobody-of-this-name/x", "home folder"),
    ],
)
def test_a_workspace_s_file_that_says_nothing_usable_is_an_error(
    tmp_path: Path, content: bytes | None, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "workspace.yaml"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(WorkspaceError, match=problem) as refused:
        read_workspace(file)

    assert str(file) in str(refused.value)
    assert main(["status", "--workspace", str(file)]) == 1
    assert str(file) in capsys.readouterr().err


def test_the_option_comes_before_the_variable_and_the_variable_before_the_local_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("asked", "set"):
        (tmp_path / f"{name}.yaml").write_text(f"root: {name}")

    assert chosen() == Workspace.local()
    monkeypatch.setenv("CONTROLLED_ROLLOUT_WORKSPACE", str(tmp_path / "set.yaml"))
    assert chosen().root == tmp_path / "set"
    assert chosen(workspace=tmp_path / "asked.yaml").root == tmp_path / "asked"
    assert chosen(root=tmp_path / "local") == Workspace.local(tmp_path / "local")


def test_author_of_a_change_is_the_systems_user_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert caller(Workspace.local()).startswith(f"{pwd.getpwuid(os.getuid()).pw_name}@")


def test_author_of_a_change_without_a_user_name_is_the_users_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless(user_id: int) -> pwd.struct_passwd:
        raise KeyError(user_id)

    monkeypatch.setattr(pwd, "getpwuid", nameless)
    assert caller(Workspace.local()).partition("@")[0] == str(os.getuid())


def test_the_program_says_which_version_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"controlled-rollout {__version__}\n")
