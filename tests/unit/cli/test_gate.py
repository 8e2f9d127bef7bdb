"""The commands `gate` and `plan`, without a workspace: arguments, exit codes, what would change."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.checks.plan import RolloutPlan
from controlled_rollout.cli import main
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.gate import differences
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.evaluation import next_action
from controlled_rollout.evaluation.next_action import GateTerms, LookResult, NextAction
from controlled_rollout.rollout import OnSilence
from tests.unit.steps.memory_target import MemoryTarget

IMAGE = "a@sha256:1"
GATE = ["gate", "digits", "v2a"]
PLAN = RolloutPlan(
    endpoint="digits", version="v2a", steps=(10, 50), bake=timedelta(minutes=10), min_requests=1, pass_every_step=False,
    decision_timeout=timedelta(days=1), on_deadline="hold", approval=False, on_silence=OnSilence.KEEP,
    silence=timedelta(minutes=30), keep_warm=timedelta(days=1), keep_treatment=False,
)  # fmt: skip
FIRST = Endpoint(name="digits").create_version("v1a", is_control=True, image=IMAGE)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[GateTerms]]:
    """Let the command's looks have these next actions."""

    def answer(*actions: NextAction) -> list[GateTerms]:
        asked: list[GateTerms] = []
        answers = iter(actions)

        async def take_look(workspace: Any, terms: GateTerms, log: Callable[[str], None], *, acts: bool) -> LookResult:
            assert not acts, "a person who asks lets no run go on, and ends no hold"
            asked.append(terms)
            log("on the way")
            return LookResult(next(answers), "because", "pass", "a table")

        monkeypatch.setattr(next_action, "take_look", take_look)
        return asked

    return answer


@pytest.mark.parametrize(
    ("action", "code"),
    [
        (NextAction.GO_ON, 0), (NextAction.FAIL, 3), (NextAction.WAIT, 4), (NextAction.HOLD, 5),
        (NextAction.NOTHING_TO_COMPARE, 6), (NextAction.CONFLICT, 1),
    ],
)  # fmt: skip
def test_the_verdict_of_one_look_is_the_exit_code(
    action: NextAction, code: int, looks: Callable[..., list[GateTerms]], tmp_path: Path, capsys: Any
) -> None:
    asked = looks(action)

    assert main([*GATE, "--root", str(tmp_path), "--bake", "5 min"]) == code

    assert [(terms.endpoint, terms.version, terms.owner, terms.bake) for terms in asked] == [
        ("digits", "v2a", None, timedelta(minutes=5))
    ]
    assert ("because" in capsys.readouterr().err) == (action is NextAction.CONFLICT)


def test_a_gate_waits_for_its_decision_and_gives_a_document_with_what_goes_on_on_stderr(
    looks: Callable[..., list[GateTerms]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = looks(NextAction.WAIT, NextAction.WAIT, NextAction.GO_ON)
    (tmp_path / "gate.yaml").write_text("pass_ratio: 1.2\n")
    more = ["--wait", "--interval", "0.01", "--gate", str(tmp_path / "gate.yaml"), "--only-alarms", "--output", "json"]

    assert main([*GATE, "--root", str(tmp_path), *more]) == ExitCode.DONE

    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"action": "go_on", "outcome": "pass", "reason": "because", "table": "a table"}
    assert printed.err == "on the way\n" * 3
    assert (asked[0].gate.pass_ratio, asked[0].require_pass) == (1.2, False)
    assert len({terms.waiting_since for terms in asked}) == 1, "the time before the first look counts"


def test_a_gate_asks_for_what_the_endpoint_s_file_says_and_options_overrule_what_it_names(
    looks: Callable[..., list[GateTerms]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, gate, other = tmp_path / "endpoint.yaml", tmp_path / "gate.yaml", tmp_path / "other.yaml"
    gate.write_text("pass_ratio: 1.2\n")
    other.write_text("pass_ratio: 1.5\n")
    begin = "name: digits\nversions: {v1a: {}, v2a: {}}\nrollout: {bake: 5 min, bin_width: 10 s"
    asked = looks(*[NextAction.GO_ON] * 4)
    command = ["gate", "-f", str(file), "v2a", "--root", str(tmp_path)]

    file.write_text(f"{begin}, gate: gate.yaml}}\n")
    assert main(command) == ExitCode.DONE
    assert capsys.readouterr().err == ""
    assert main([*command, "--gate", str(other), "--bake", "1 min", "--min-requests", "7"]) == ExitCode.DONE
    assert capsys.readouterr().err == f"as given here, and not as in {file}: --gate, --bake\n"
    assert main(["gate", "-f", str(file), "staging", "v2a", "--root", str(tmp_path)]) == ExitCode.DONE
    assert capsys.readouterr().err == f"as given here, and not as in {file}: the endpoint staging\n"
    file.write_text(f"{begin}}}\n")
    assert main([*command, "--gate", str(other)]) == ExitCode.DONE
    assert capsys.readouterr().err == "", "the file has no gate that an option could overrule"

    assert [(terms.endpoint, terms.version) for terms in asked] == [
        ("digits", "v2a"), ("digits", "v2a"), ("staging", "v2a"), ("digits", "v2a"),
    ]  # fmt: skip
    assert [(terms.gate.pass_ratio, terms.bake.seconds, terms.min_requests) for terms in asked] == [
        (1.2, 300, 0), (1.5, 60, 7), (1.2, 300, 0), (1.5, 300, 0),
    ]  # fmt: skip
    assert {terms.window.bin_width for terms in asked} == {timedelta(seconds=10)}
    assert main(["gate", "-f", str(file), "--root", str(tmp_path)]) == ExitCode.FAILED
    assert f"{file}: it has the versions v1a, v2a: name the one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("- 1", "holds no settings"),
        ("pass_ratio: [", "neither YAML nor JSON"),
        ("pass_ratoi: 1.2", "did you mean pass_ratio?"),
        ("pass_ratio: 0.5", "pass_ratio"),
        ("1: 2", "'1' is not known"),
    ],
)
def test_a_file_that_is_no_gate_is_refused_before_anything_is_asked(
    content: str | None, message: str, looks: Callable[..., list[GateTerms]], tmp_path: Path, capsys: Any
) -> None:
    asked = looks()
    if content is not None:
        (tmp_path / "gate.yaml").write_text(content)

    assert main([*GATE, "--root", str(tmp_path), "--gate", str(tmp_path / "gate.yaml")]) == ExitCode.FAILED

    error = capsys.readouterr().err
    assert message in error
    assert asked == []


@pytest.mark.parametrize(
    "option", [("--steps", "50,10"), ("--steps", "0"), ("--steps", "ten"), ("--steps", "nan"), ("--min-requests", "-1")]
)
def test_a_plan_that_cannot_be_is_refused(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "digits", "v2a", *option])
    assert ended.value.code == ExitCode.WRONG_ARGUMENTS
    assert option[1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits", "v1"), "name 'v1' is not valid"),
        (("Digits", "v2a"), "name 'Digits' is not valid"),
        (("digits", "v2a", "--image", "models/digits:latest"), "is not of the form name@sha256:"),
    ],
)
def test_a_plan_refuses_what_deploy_would_refuse_before_anything_is_asked(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("controlled_rollout.target.connect.connect", lambda _: pytest.fail("a target was asked"))

    assert main(["plan", *arguments]) == ExitCode.FAILED
    assert message in capsys.readouterr().err


def test_a_plan_says_what_would_be_created_or_why_it_could_not_begin() -> None:
    held = FIRST.create_version("v2a", image=IMAGE).claim(
        "v2a", owner="weekly/run-1", at=datetime(2026, 1, 5, tzinfo=UTC), on_silence=OnSilence.KEEP
    )
    full = FIRST
    for number in range(5):
        full = full.create_version(f"old{number}", image=IMAGE)
    third = _with_version("v3a")

    assert differences(None, PLAN, None)[0][0] == "endpoint 'digits' is created"
    assert differences(FIRST, PLAN, IMAGE) == (["version 'v2a' is created at 0 %"], [])
    assert differences(held, PLAN, IMAGE) == (["version 'v2a' exists, and stays as it is"], [])
    assert "exists with the image a@sha256:1" in differences(held, PLAN, "b@sha256:2")[1][0]
    assert "is held by weekly/run-1 for 'v2a'" in differences(held, third, None)[1][0]
    assert "is the control already" in differences(FIRST, _with_version("v1a"), None)[1][0]
    assert "has no room" in differences(full, PLAN, None)[1][0]


def _with_version(version: str) -> RolloutPlan:
    return replace(PLAN, version=version)


def test_a_plan_says_which_of_the_file_it_does_not_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, image = tmp_path / "endpoint.yaml", f"models/digits@sha256:{'1' * 64}"
    file.write_text("name: digits\nversions: {v2a: {build: {folder: code}}}\n")
    monkeypatch.setattr("controlled_rollout.target.connect.connect", MemoryTarget().open)

    main(["plan", "-f", str(file), "staging", "v2a", "--image", image, "--root", str(tmp_path)])

    assert capsys.readouterr().err == f"as given here, and not as in {file}: the endpoint staging, --image\n"
