"""How commands print results: one document for programs, text that fits a terminal, exit codes as documented."""

import argparse
import json
import math
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.cli import command_parser, main
from controlled_rollout.cli.exit_codes import ExitCode
from controlled_rollout.cli.history import changes
from controlled_rollout.cli.output import show
from controlled_rollout.cli.view import WIDTH, endpoint_lines
from controlled_rollout.cli.watch import screen_lines
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.protocol import Change, EndpointStatus, Revision, VersionStatus
from tests.unit.steps.memory_target import MemoryTarget

DOCS = (Path(__file__).parents[3] / "docs" / "command-line.md").read_text()
REPLICAS = ["replicas", "--requests-per-second", "200", "--request-time-ms", "50"]
IMAGE = "a@sha256:1"


def subcommands() -> dict[str, argparse.ArgumentParser]:
    actions = command_parser()._actions
    found = next(action for action in actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == ExitCode.DONE
    return capsys.readouterr().out


def test_a_result_is_the_same_document_as_json_and_as_yaml_and_a_line_as_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = json.loads(printed(capsys, *REPLICAS, "--output", "json"))

    assert document == yaml.safe_load(printed(capsys, *REPLICAS, "--output", "yaml"))
    # ceil(200 requests/s x 0.05 s / 0.7 / 1): what the retired service's documentation computes.
    assert document["replicas"] == 15
    assert (
        printed(capsys, *REPLICAS) == "15 replicas: 200 requests/s of 50 ms, 1 request at once a replica, 70 % busy\n"
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--requests-per-second", "0"), ("--requests-per-second", "nan"), ("--request-time-ms", "-1"),
        ("--request-time-ms", "inf"), ("--target-utilization", "101"), ("--target-utilization", "0"),
        ("--worker-count", "0"), ("--max-concurrent-requests", "1.5"),
    ],
)  # fmt: skip
def test_a_load_that_cannot_be_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*REPLICAS, option, value])
    assert ended.value.code == ExitCode.WRONG_ARGUMENTS
    assert repr(value) in capsys.readouterr().err


def test_numbers_that_json_does_not_have_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    show(argparse.Namespace(output="json"), {"e": [math.inf, -math.inf, 1.5]}, [])

    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"e": ["inf", "-inf", 1.5]}


@pytest.mark.parametrize(("name", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
@given(reason=st.text(max_size=40) | st.just("10\u00a0% \u200d\x9b\x7f\U000e0001"))
def test_a_document_has_what_others_wrote_and_nothing_that_acts_on_a_terminal(
    name: str, read: Callable[[str], object], reason: str
) -> None:
    with redirect_stdout(StringIO()) as printed:
        show(argparse.Namespace(output=name), [{"reason": reason}], [])

    assert read(printed.getvalue()) == [{"reason": reason}]
    assert printed.getvalue().replace("\n", "").isprintable()


def test_every_exit_code_and_every_command_is_in_the_documentation() -> None:
    section = DOCS.partition("## Exit codes")[2].partition("\n## ")[0]
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)}

    assert documented == {int(code) for code in ExitCode}
    described = set(re.findall(r"^\| `([a-z-]+)[^|]*\|", DOCS, re.MULTILINE))
    assert set(subcommands()) - described - {"telemetry-store"} == set()


def test_what_commands_give_to_programs_has_one_option_for_it() -> None:
    with_documents = {
        name for name, parser in subcommands().items() if any("--output" in a.option_strings for a in parser._actions)
    }

    section = DOCS.partition("## Output for programs")[2].partition("\n## ")[0]
    assert with_documents == {
        name for row in re.findall(r"^\| ([^|]*) \|", section, re.MULTILINE) for name in re.findall(r"`([a-z-]+)`", row)
    }
    assert not any("--json" in a.option_strings for parser in subcommands().values() for a in parser._actions)


def test_a_rotation_is_a_document_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rotated = []

    class Rotates(MemoryTarget):
        async def rotate_signing_keys(self, name: str) -> None:
            rotated.append(name)

    monkeypatch.setattr("controlled_rollout.target.connect.connect", Rotates().open)

    assert json.loads(printed(capsys, "keys", "rotate", "digits", "--output", "json")) == {"endpoint": "digits"}
    assert printed(capsys, "keys", "rotate", "digits").startswith("endpoint 'digits' signs tokens with its next key")
    assert rotated == ["digits", "digits"]


def test_status_of_an_endpoint_with_the_longest_names_fits_a_terminal() -> None:
    first, second = "a" * 32, "b" * 32
    endpoint = Endpoint(name="digits").create_version(first, is_control=True, image=IMAGE)
    endpoint = endpoint.create_version(second, traffic_percentile=10.5, image=IMAGE)
    missing = {"name": second, "ready": False, "cause": "no node has room"}
    version = VersionStatus(name=first, ready=True, wanted_replicas=10, replicas=(), requests=123_456, active=10)
    status = EndpointStatus(
        name="digits", url="http://127.0.0.1:8088/api/v1/service/digits/score", revision=7, served_revision=7,
        versions={first: version, second: version.model_copy(update=missing)},
    )  # fmt: skip

    heading, *table = endpoint_lines(endpoint, status)

    assert max(map(len, table)) <= WIDTH
    assert heading.split()[0] == "digits"
    assert table[1] == first
    assert "89.5 % (rest)" in table[2]
    assert f"{second}: not ready: no node has room" in table
    short = Endpoint(name="digits").create_version("v1a", is_control=True, image=IMAGE)
    row = endpoint_lines(short, status)[2]
    assert row.split() == ["v1a", "control,", "default", "100", "%", "(rest)", "missing"]


@given(st.lists(st.text(max_size=200), max_size=60), st.integers(1, 200), st.integers(1, 60))
def test_what_is_redrawn_fits_the_terminal_whatever_its_size(lines: list[str], columns: int, rows: int) -> None:
    drawn = screen_lines(lines, columns=columns, rows=rows)

    assert len(drawn) <= rows
    assert all(len(line) <= columns and line.isprintable() for line in drawn)


def test_the_last_line_of_a_small_terminal_says_what_is_not_shown() -> None:
    assert screen_lines([str(n) for n in range(30)], columns=80, rows=4) == ["0", "1", "2", "… 27 more lines"]


def test_history_says_what_each_revision_has_changed() -> None:
    first = Endpoint(name="digits").create_version("one", is_control=True, image=IMAGE)
    second = first.create_version("two", image=IMAGE)
    shifted = second.update_version("two", traffic_percentile=10)
    larger = shifted.update_version("two", cpu_cores=0.5)
    promoted = larger.promote("two")
    retired = promoted.delete_version("one")
    states = [first, second, shifted, larger, promoted, retired]
    begun = datetime(2026, 1, 5, tzinfo=UTC)

    shown = changes(
        [
            Revision(number=n, endpoint=e, change=Change(who="ada", reason="r"), created=begun + timedelta(minutes=n))
            for n, e in enumerate(states, start=1)
        ]
    )

    assert [change["changes"] for change in shown] == [
        ["one created", "one is control", "one 0 → 100 %"],
        ["two created"],
        ["one 100 → 90 %", "two 0 → 10 %"],
        ["two.cpu_cores"],
        ["one 90 → 0 %", "two is control", "two 10 → 100 %"],
        ["one deleted"],
    ]
    assert (shown[2]["revision"], shown[2]["who"], shown[2]["traffic"]) == (3, "ada", {"one": 90.0, "two": 10.0})
