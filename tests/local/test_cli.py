"""The command line on a real local workspace: a whole rollout by hand, and its output."""

import asyncio
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import jwt
import pytest

from controlled_rollout import record
from controlled_rollout.cli import main
from controlled_rollout.cli.arguments import caller
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.rollout import OnSilence
from tests.local.local_target_lab import CRASHING, Lab, running

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENTED_IMAGE = "registry.example/models/digits@sha256:…"
ONE_REPLICA = ["--set", "num_replicas=1"]


class Shell:
    """Runs commands on a workspace that is named by its file."""

    def __init__(self, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
        self._where = ["--workspace", str(lab.folder / "workspace.yaml")]
        self._capsys = capsys

    def __call__(self, *command: str) -> tuple[int, str, str]:
        code = main([*command, *self._where])
        output = self._capsys.readouterr()
        return code, output.out, output.err


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("cli")) as lab:
        (lab.folder / "workspace.yaml").write_text("target: local\nroot: workspace\n")
        yield lab


@pytest.fixture
def shell(lab: Lab, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(lab, capsys)


def image(lab: Lab, note: str = "first", script: str | None = None) -> str:
    return asyncio.run(lab.image(note, script))


def endpoint(lab: Lab, name: str) -> Endpoint:
    return asyncio.run(lab.target.endpoint(name))


def documented_commands() -> dict[str, list[str]]:
    """Return the commands of the first block of docs/command-line.md, by their first word."""
    block = (DOCS / "command-line.md").read_text().partition("```\n")[2].partition("```")[0]
    lines = [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("controlled-rollout ")]
    return {line[0]: line for line in lines}


def test_a_rollout_by_hand_as_documented_from_the_first_version_to_the_deleted_endpoint(lab: Lab, shell: Shell) -> None:
    name = "digits"
    first, second = image(lab, "first"), image(lab, "second")
    documented = documented_commands()
    deploy = [second if word == DOCUMENTED_IMAGE else word for word in documented["deploy"]]

    assert shell("deploy", name, "v1a", "--image", first, *ONE_REPLICA, "--reason", "begin")[0] == 0
    code, out, _ = shell(*deploy, *ONE_REPLICA, "--set", "tags={model: new}")
    assert code == 0
    assert "version 'v2a' is ready" in out
    assert endpoint(lab, name).versions["v2a"].tags == {"model": "new"}
    assert endpoint(lab, name).versions["v2a"].cpu_cores == 0.5
    assert endpoint(lab, name).effective_traffic() == {"v1a": 100.0, "v2a": 0.0}
    rollout = endpoint(lab, name).rollout
    assert rollout and rollout.owner == caller(lab.workspace)

    code, out, _ = shell(*documented["shift"])
    assert code == 0
    assert "v1a 90 %, v2a 10 %" in out
    code, out, _ = shell(*documented["status"])
    assert code == 0
    assert "v2a" in out
    assert shell("rollback", name, "v2a", "--reason", "too slow")[0] == 0
    assert endpoint(lab, name).effective_traffic()["v2a"] == 0
    assert endpoint(lab, name).rollout is None
    assert shell(*documented["promote"])[0] == 0
    assert shell("rollback", name, "v2a", "--to", "v1a", "--reason", "slower still")[0] == 0
    assert shell("promote", name, "v2a", "--reason", "back and forth")[0] == 0
    assert shell(*documented["retire"])[0] == 0
    assert list(endpoint(lab, name).versions) == ["v2a"]

    history = asyncio.run(lab.target.history(name))
    assert [revision.change.reason for revision in history] == [
        "begin", "deploy v2a", "send 10 % to v2a", "too slow", "better on the new sensors", "slower still",
        "back and forth", "retire v1a",
    ]  # fmt: skip
    assert {revision.change.who for revision in history} == {caller(lab.workspace)}
    assert [entry.step for entry in record.read(lab.workspace, name)] == [
        "deploy", "deploy", "shift", "roll_back", "promote", "promote", "promote", "retire",
    ]  # fmt: skip

    assert shell("delete", name, "--yes") == (0, f"endpoint '{name}' is deleted\n", "")
    assert shell("delete", name, "--yes") == (0, f"there is no endpoint '{name}': nothing to delete\n", "")
    assert name not in asyncio.run(lab.target.endpoints())


def test_status_is_a_table_of_one_line_a_version_in_a_pipe_and_a_document_for_programs(lab: Lab, shell: Shell) -> None:
    name = "looked-at"
    assert shell("deploy", name, "one", "--image", image(lab), *ONE_REPLICA)[0] == 0

    code, out, err = shell("status", name)

    assert (code, err) == (0, "")
    heading, columns, row = out.splitlines()
    assert heading.split() == [name, asyncio.run(lab.url(name)), "revision", "1"]
    assert columns.split() == ["version", "role", "traffic", "replicas", "state", "requests", "active"]
    assert re.split(r"\s{2,}", row.strip())[:5] == ["one", "control, default", "100 % (rest)", "1 of 1", "ready"]
    assert name in shell("status")[1]

    status = json.loads(shell("status", name, "--output", "json")[1])
    assert (status["name"], status["state"], status["rollout"]) == (name, "steady", None)
    [version] = status["versions"]
    assert (version["name"], version["traffic"]["effective"], version["health"]) == ("one", 100.0, "ready")
    assert json.loads(shell("endpoint", "show", name)[1])["endpoint"]["revision"] == status["revision"]
    assert name in [document["name"] for document in json.loads(shell("status", "--output", "json")[1])]


def test_score_uses_the_key_of_the_endpoint_until_it_is_replaced(lab: Lab, shell: Shell, tmp_path: Path) -> None:
    name = "asked"
    assert shell("deploy", name, "one", "--image", image(lab), *ONE_REPLICA)[0] == 0
    assert shell("deploy", name, "two", "--image", image(lab, "second"), *ONE_REPLICA)[0] == 0
    (tmp_path / "body.json").write_text('{"data": []}')

    code, out, err = shell("endpoint", "score", name, "--data", "{}")
    assert (code, json.loads(out)) == (0, {"bytes": 2, "note": "first"})
    assert re.fullmatch(r"200 from one after \d+ ms\n", err)
    code, out, _ = shell("endpoint", "score", name, "--data", f"@{tmp_path}/body.json", "--version", "two")
    assert (code, json.loads(out)) == (0, {"bytes": 12, "note": "second"})
    code, out, err = shell("endpoint", "score", name, "--data", "{}", "--version", "three")
    assert (code, err.split(" from ")[0]) == (1, "404")
    assert shell("endpoint", "score", name, "--data", "@nowhere")[0] == 1

    before = json.loads(shell("keys", name, "--output", "json")[1])
    code, out, _ = shell("keys", name, "--regenerate", "primary")
    assert code == 0
    primary, secondary = (line.split() for line in out.splitlines())
    assert primary[0] == "primary"
    assert primary[1] not in before.values()
    assert secondary == ["secondary", before["secondary"]]
    assert shell("endpoint", "score", name, "--data", "{}")[0] == 0


def test_plan_and_gate_of_a_treatment_show_and_change_nothing(lab: Lab, shell: Shell) -> None:
    name = "planned"
    assert shell("plan", name, "one")[::2] == (0, "")
    assert shell("deploy", name, "one", "--image", image(lab), *ONE_REPLICA)[0] == 0
    assert shell("gate", name, "one")[0] == 6
    assert shell("gate", name, "typo")[0] == 1
    planned = json.loads(shell("plan", name, "two", "--steps", "20", "--output", "json")[1])
    assert shell("deploy", name, "two", "--image", image(lab, "second"), *ONE_REPLICA)[0] == 0
    assert shell("shift", name, "two", "20")[0] == 0
    before = asyncio.run(lab.target.history(name))

    assert "at 20 % it waits for the first look at 20 %" in shell("status", name)[1]
    code, out, _ = shell("gate", name, "two", "--output", "json")
    changed = json.loads(shell("history", name, "--tail", "1", "--output", "json")[1])

    assert planned["changes"] == ["version 'two' is created at 0 %"]
    assert "shift 20 % of the traffic to it" in planned["steps"][1]
    assert planned["forecast"][0].startswith("Forecast: ")
    assert (code, json.loads(out)["action"]) == (4, "wait")
    assert asyncio.run(lab.target.history(name)) == before
    assert changed[0]["changes"] == ["one 100 → 80 %", "two 0 → 20 %"]
    assert "two 0 → 20 %" in shell("history", name)[1]
    assert json.loads(shell("status", name, "--output", "json")[1])["rollout"]["outcome"] == json.loads(out)["outcome"]
    assert shell("hold", name, "one", "--reason", "let me look")[0] == 1, "nobody rolls it out"
    assert shell("hold", name, "two", "--reason", "let me look")[0] == 0
    assert "it is on hold since" in shell("status", name)[1]
    assert {entry.step for entry in record.read(lab.workspace, name)} == {"deploy", "shift", "look", "hold"}


def test_build_prints_the_reference_of_a_folder_s_image_and_finds_it_again(
    lab: Lab, shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "score.py").write_text("def init(): pass\ndef run(data): return 1\n")
    (tmp_path / "requirements.txt").write_text("")

    code, out, err = shell("build", str(tmp_path), "--name", "built")

    assert (code, bool(err)) == (0, True)
    assert re.fullmatch(r"local/built@sha256:[0-9a-f]{64}\n", out)
    assert json.loads(shell("build", str(tmp_path), "--name", "built", "--output", "json")[1]) == {"image": out.strip()}
    assert shell("build", str(tmp_path / "nowhere"), "--name", "built")[0] == 1


def test_tokens_are_printed_for_a_shell_used_by_score_and_rotated_and_the_hook_gives_the_same(
    lab: Lab, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy = ("deploy", "with-tokens", "one", "--image", image(lab, "first"), "--auth", "token", *ONE_REPLICA)
    assert shell(*deploy)[0] == 0
    assert endpoint(lab, "with-tokens").auth is Auth.TOKEN

    code, out, err = shell("keys", "token", "with-tokens", "--lifetime", "30 min")
    printed = json.loads(shell("keys", "token", "with-tokens", "--output", "json")[1])
    head = jwt.get_unverified_header(out.strip())
    claims = jwt.decode(out.strip(), options={"verify_signature": False})
    assert (code, claims["aud"], claims["exp"] - claims["iat"]) == (0, "with-tokens", 1800)
    assert err.startswith("get another one by ")
    assert set(printed) == {"token", "refresh_by", "expires"}
    assert shell("endpoint", "score", "with-tokens", "--data", "{}")[0] == 0
    monkeypatch.setattr(WorkspaceHook, "get_workspace", lambda hook: lab.workspace)
    token, refresh_by = WorkspaceHook().get_token("with-tokens")
    assert jwt.get_unverified_header(token) == head
    assert refresh_by > datetime.now(UTC)

    assert shell("keys", "rotate", "with-tokens")[0] == 0
    assert jwt.get_unverified_header(shell("keys", "token", "with-tokens")[1].strip()) != head
    for refused in (
        ("keys", "with-tokens"),
        ("keys", "with-tokens", "--lifetime", "1 h"),
        ("keys", "rotate", "with-tokens", "--lifetime", "1 h"),
        ("keys", "token", "with-tokens", "--regenerate", "primary"),
        ("keys", "token", "with-tokens", "--lifetime", "2 d"),
        ("keys", "token", "with-tokens", "--lifetime", "0 min"),
    ):
        assert shell(*refused)[0] == 1, refused
    for log in lab.workspace.logs_folder.rglob("*.log*"):
        assert not {token, out.strip(), printed["token"]} & set(re.split(r"[\s\"']", log.read_text(errors="replace")))


def test_environment_variables_and_a_secret_from_stdin_reach_the_script(
    lab: Lab, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import os\ndef init(): pass\ndef run(data): return [os.environ['A'], os.environ['B'], os.environ['TOKEN']]"
    )
    deploy = ("deploy", "with-variables", "one", "--image", image(lab, script=script), *ONE_REPLICA)
    variables = ("--set", "environment_variables={A: text}", "--env", "B=x=y", "--secret-env", "TOKEN=store/token")
    code, _, refusal = shell(*deploy, *variables)
    monkeypatch.setattr("sys.stdin", io.StringIO("s3cret\n"))

    stored = shell("secret", "store", "token")
    deployed = shell(*deploy, *variables)

    assert (code, "controlled-rollout secret store token" in refusal) == (1, True)
    assert (stored[0], deployed[0]) == (0, 0)
    assert json.loads(shell("endpoint", "score", "with-variables", "--data", "{}")[1]) == ["text", "x=y", "s3cret"]
    shown = shell("status", "with-variables", "--output", "json")[1]
    assert not [text for text in (*stored[1:], *deployed[1:], shown) if "s3cret" in text]
    file = lab.workspace.secrets_folder / "store.json"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_version_that_crashes_fails_the_command_and_leaves_its_log(lab: Lab, shell: Shell) -> None:
    name = "crashing"
    broken = image(lab, script=CRASHING)

    code, _, err = shell("deploy", name, "one", "--image", broken, *ONE_REPLICA)

    assert code == 1
    assert "version 'one' of endpoint 'crashing' did not become ready" in err
    assert "no weights found" in err
    assert "no weights found" in shell("logs", name, "one", "--tail", "50")[1]
    assert len(shell("logs", name, "one", "--tail", "1")[1].splitlines()) == 1
    code, _, error = shell("logs", name, "typo")
    assert (code, "no version 'typo'" in error) == (1, True)
    assert "failed: " in shell("status", name)[1]


def test_command_that_conflicts_with_the_state_is_refused_and_changes_nothing(lab: Lab, shell: Shell) -> None:
    name = "refusing"
    assert shell("deploy", name, "one", "--image", image(lab), *ONE_REPLICA)[0] == 0
    before = endpoint(lab, name)

    for command, problem in (
        (["shift", name, "two", "10"], "has no version 'two'"),
        (["rollback", name, "one", "--reason", "x"], "name the version that takes its place"),
        (["rollback", name, "two", "--reason", "x"], "no version 'two' of an endpoint 'refusing' to roll back"),
        (["retire", name, "one"], "is the default"),
        (["deploy", name, "two", "--image", image(lab), "--set", "cpu_cores=-1"], "cpu_cores = -1"),
        (["deploy", name, "one", "--image", image(lab, "second")], "already has a version 'one'"),
        (["status", "nobody"], "nobody"),
        (["status", ""], "name '' is not valid"),
        (["keys", "token"], "`keys token` needs the name of an endpoint after it"),
        (["promote", "nobody", "one"], "nobody"),
    ):
        code, _, err = shell(*command)
        assert code == 1, command
        assert err.startswith("controlled-rollout: "), command
        assert problem in err, command
    assert endpoint(lab, name) == before


def test_deploy_into_the_rollout_of_another_owner_is_refused(lab: Lab, shell: Shell) -> None:
    name = "held"

    async def hold() -> None:
        first = Endpoint(name=name).create_version("one", is_control=True, image=await lab.image(), num_replicas=1)
        stored, _ = await lab.serve(first)
        rolling = stored.claim("two", owner="weekly/run-1", at=datetime.now(UTC), on_silence=OnSilence.ROLL_BACK)
        treatment = rolling.create_version("two", traffic_percentile=10, image=await lab.image(), num_replicas=1)
        await lab.apply(treatment)

    asyncio.run(hold())

    code, _, err = shell("deploy", name, "mine", "--image", image(lab, "second"), *ONE_REPLICA)

    assert code == 1
    assert "is held by weekly/run-1" in err
    status = shell("status", name)[1]
    assert "two is being rolled out by weekly/run-1" in status
    assert "if nobody looks for 30 min, the supervisor, or the cluster's agent, takes it back" in status


def test_closed_output_pipe_ends_the_command_without_a_message(lab: Lab) -> None:
    command = f"{sys.executable} -m controlled_rollout.cli status --output json | head -c 1; echo ${{PIPESTATUS[0]}}"
    environment = os.environ | {"CONTROLLED_ROLLOUT_WORKSPACE": str(lab.folder / "workspace.yaml")}

    ended = subprocess.run(["/bin/bash", "-c", command], env=environment, capture_output=True, text=True, check=True)

    assert ended.stderr == ""
    assert re.fullmatch(r"\[(0|141)\n", ended.stdout)


def test_the_local_status_also_lists_the_processes(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["local", "status", "--root", str(lab.workspace.root)]) == 0
    printed = capsys.readouterr().out.partition("pid\n")[2].splitlines()
    processes = dict(line.rsplit(maxsplit=1) for line in printed)
    assert processes["router"].isdigit()


def test_a_version_of_a_file_is_built_and_deployed_and_answers_as_the_file_says(
    lab: Lab, shell: Shell, tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "score.py").write_text(
        "import os\ndef init(): pass\ndef run(data): return os.environ['THRESHOLD']\n"
    )
    (tmp_path / "code" / "requirements.txt").write_text("")
    file = tmp_path / "endpoint.yaml"
    file.write_text(
        "name: filed\ndescription: Of a file\nversions:\n"
        "  one: {build: {folder: code}, num_replicas: 1, environment_variables: {THRESHOLD: '0.7'}}\n"
        "  two: {num_replicas: 2, traffic_percentile: 20}\n"
        "rollout: {on_silence: roll_back, silence: 20 min}\n"
    )

    assert shell("deploy", "-f", str(file), "one")[0] == 0
    code, out, err = shell("deploy", "-f", str(file), "two", "--image", image(lab), *ONE_REPLICA, "--output", "json")

    assert (code, json.loads(out)["traffic"]) == (0, {"one": 100.0, "two": 0.0})
    assert f"as given here, and not as in {file}: --set num_replicas" in err
    assert "`controlled-rollout shift filed two 20`" in err
    stored = endpoint(lab, "filed")
    assert (stored.description, stored.versions["two"].num_replicas) == ("Of a file", 1)
    assert stored.rollout and (stored.rollout.on_silence, stored.rollout.silence.seconds) == ("roll_back", 1200)
    assert json.loads(shell("endpoint", "score", "filed", "--data", "{}")[1]) == "0.7"
    assert shell("deploy", "-f", str(file), "one")[0] == 0, "what is there already is no change"
    assert endpoint(lab, "filed").revision == stored.revision
