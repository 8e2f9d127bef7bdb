"""`deploy` by options, by a file, or both: the same deployment, and options win."""

import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.cli import command_parser, main
from controlled_rollout.cli.deploy import Deployment, deployment, steps_to_file
from controlled_rollout.cli.endpoint_file import read_endpoint_file
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ArgumentError

IMAGE = f"registry.example/digits@sha256:{'1' * 64}"
OTHER = f"registry.example/digits@sha256:{'2' * 64}"
ONE = f"""
name: digits
auth: {{issuer: "https://a.example", audience: b, jwks_uri: "https://a.example/keys"}}
sticky: header:X-User
versions:
  one:
    image: {IMAGE}
    cpu_cores: 0.5
    num_replicas: 2
    tags: {{model: new}}
    environment_variables: {{THRESHOLD: "0.7", TOKEN: {{secret: digits, key: token}}}}
rollout:
  on_silence: roll_back
  silence: 10 min
  on_conflict: wait
  conflict_timeout: 2 h
  ready_timeout: PT5M
"""
THE_SAME = [
    "deploy", "digits", "one", "--image", IMAGE, "--set", "cpu_cores=0.5", "--set", "num_replicas=2",
    "--set", "tags={model: new}", "--env", "THRESHOLD=0.7", "--secret-env", "TOKEN=digits/token",
    "--auth", "{issuer: 'https://a.example', audience: b, jwks_uri: 'https://a.example/keys'}",
    "--sticky", "header:x-user", "--on-silence", "roll_back", "--silence", "10 min", "--on-conflict", "wait",
    "--conflict-timeout", "2 h", "--timeout", "5 min",
]  # fmt: skip
TWO = f"""
name: digits
versions:
  one: {{image: {IMAGE}, is_default: true, is_control: true, traffic_percentile: 80}}
  two: {{image: "", traffic_percentile: 20}}
"""


PLAIN = "name: digits\nversions: {one: {}}\n"


def asked(*arguments: str) -> Deployment:
    """Return what a command line of `deploy` asks for."""
    options = command_parser().parse_args([*arguments])
    return deployment(options, read_endpoint_file(options.file) if options.file else None)


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Write the file of an endpoint, and return its place."""

    def write(text: str) -> str:
        (tmp_path / "endpoint.yaml").write_text(textwrap.dedent(text))
        return str(tmp_path / "endpoint.yaml")

    return write


def test_a_file_says_what_the_options_say(file: Any) -> None:
    assert asked("deploy", "-f", file(ONE)) == asked(*THE_SAME)


def test_without_file_and_options_the_defaults_hold() -> None:
    plain = asked("deploy", "digits", "one", "--image", IMAGE)

    assert (plain.on_silence, plain.silence, plain.timeout, plain.conflict_timeout, plain.auth) == (
        "keep", timedelta(minutes=30), timedelta(minutes=10), timedelta(0), None,
    )  # fmt: skip


def test_options_win_over_the_file_and_those_that_say_something_else_are_named(file: Any) -> None:
    both = asked(
        "deploy", "staging", "one", "-f", file(ONE), "--image", OTHER, "--set", "cpu_cores=1",
        "--set", "num_replicas=2", "--env", "THRESHOLD=0.8", "--env", "MODE=fast",
        "--silence", "10 min", "--on-silence", "keep", "--timeout", "60",
    )  # fmt: skip

    assert (both.endpoint, both.image, both.timeout, both.on_silence) == (
        "staging",
        OTHER,
        timedelta(minutes=1),
        "keep",
    )
    assert both.settings == {
        "cpu_cores": 1, "num_replicas": 2, "tags": {"model": "new"},
        "environment_variables": {"THRESHOLD": "0.8", "MODE": "fast", "TOKEN": {"secret": "digits", "key": "token"}},
    }  # fmt: skip
    assert set(both.overruled) == {
        "the endpoint staging",
        "--image",
        "--set cpu_cores",
        "--env THRESHOLD",
        "--on-silence",
        "--timeout",
    }


def test_of_several_versions_the_one_that_is_named_is_deployed(file: Any) -> None:
    place = file(TWO)

    assert asked("deploy", "-f", place, "one").version == "one"
    assert asked("deploy", "two", "--file", place, "--image", OTHER).image == OTHER
    with pytest.raises(ArgumentError, match="it has the versions one, two: name the one"):
        asked("deploy", "-f", place)
    with pytest.raises(ArgumentError, match="it has no version 'three': it has one, two"):
        asked("deploy", "-f", place, "three")
    with pytest.raises(ArgumentError, match="nothing says what version 'two' runs"):
        asked("deploy", "-f", place, "two")


def test_a_version_is_built_from_places_beside_the_file_unless_its_image_is_given(file: Any, tmp_path: Path) -> None:
    place = file("{name: digits, versions: {one: {build: {folder: code, models: {m: m.bin, r: 'models:/m/1'}}}}}")

    build = asked("deploy", "-f", place).build
    given = asked("deploy", "-f", place, "--image", IMAGE)

    assert build is not None
    assert build.folder == str(tmp_path / "code")
    assert build.models == {"m": str(tmp_path / "m.bin"), "r": "models:/m/1"}
    assert (given.build, given.image, given.overruled) == (None, IMAGE, ("--image",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("one", "--set", "cpu_cores=-1"), "cpu_cores = -1"),
        (("one", "--set", "num_replicas=2", "--set", "autoscale_enabled=true"), "choose one"),
        (("Staging", "one"), "'Staging' is not valid"),
    ],
)
def test_what_an_option_says_wrong_is_refused_before_an_image_is_built(
    arguments: tuple[str, ...],
    message: str,
    file: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def built(*_: Any, **__: Any) -> str:
        raise AssertionError("an image was built")

    monkeypatch.setattr("controlled_rollout.cli.deploy.build_reference", built)
    place = file("{name: digits, versions: {one: {build: {folder: code}}}}")

    assert main(["deploy", "-f", place, *arguments]) == 1

    assert message in capsys.readouterr().err


def test_fields_of_the_endpoint_itself_are_taken_only_where_the_file_names_them(file: Any) -> None:
    named = file("{name: digits, description: Digits, enable_app_insights: false, versions: {one: {}}}")

    assert asked("deploy", "-f", named, "--image", IMAGE).about == {
        "description": "Digits",
        "enable_app_insights": False,
    }
    assert asked("deploy", "-f", file(TWO), "one").about == {}


@pytest.mark.parametrize(
    ("version", "shares", "said"),
    [
        ("two", {"one": 100, "two": 0}, ["controlled-rollout shift digits two 20"]),
        ("two", {"one": 80, "two": 20}, []),
        ("one", {"one": 100, "two": 0}, []),
        ("one", {"two": 100, "one": 0}, ["controlled-rollout promote digits one"]),
        ("zero", {"one": 70, "zero": 30}, ["controlled-rollout shift digits zero 0"]),
        ("unnamed", {"one": 70, "unnamed": 30}, []),
    ],
)
def test_what_is_left_to_do_until_a_version_is_as_in_the_file_is_said(
    version: str, shares: dict[str, float], said: list[str], file: Any
) -> None:
    stored = Endpoint(name="digits")
    for name, percent in shares.items():
        stored = stored.create_version(name, traffic_percentile=percent, is_control=not stored.versions)

    text = TWO + "  zero: {traffic_percentile: 0}\n  unnamed: {}\n"
    sentences = steps_to_file(read_endpoint_file(Path(file(text))), version, stored)

    assert len(sentences) == len(said)
    assert all(command in sentence for command, sentence in zip(said, sentences, strict=True))


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("name: digits", ["versions is missing: give it: The versions by name"]),
        ("versions: {}\nname: D",
         ["line 1, versions: it has 0 names: give", "line 2, name: it is \"D\": give a text with 3 to 32"]),
        (
            "name: digits\nversions:\n  one:\n    cpu_coers: 1\n    memory_gb: much\n",
            ["line 4, versions.one.cpu_coers: 'cpu_coers' is not known: did you mean cpu_cores?",
             'line 5, versions.one.memory_gb: it is "much": give a number above 0'],
        ),
        ("name: digits\nversions: {one: {name: one}}", ["'name' is not known"]),
        ("name: digits\nversions: {one: {run_date: 2026-01-05}}", ["run_date: it is a date: put"]),
        ("name: digits\nversions: {one: {cpu_cores: .inf}}", ["cpu_cores: inf is no finite number"]),
        ("name: digits\nversions: {one: {tags: {1: a}}}", ["tags.1: a name has to be a text: put it into quotes"]),
        ("name: digits\nversions:\n  one: {}\n  two: {is_default: true, is_control: true}\n  three: {is_control: true}",
         ["one control version"]),
        ("name: digits\nversions:\n  one: {traffic_percentile: 60}\n  two: {traffic_percentile: 60}",
         ["may not exceed 100"]),
        ("name: digits\nversions:\n  one:\n    cpu_cores: 2\n    cpu_cores_limit: 1",
         ["line 3, versions.one: version", "a limit may not"]),
        (PLAIN + "rollout:\n  steps: [50, 10]", ["line 4, rollout.steps: ", "ascending percentiles"]),
        (PLAIN + "rollout:\n  gate: none.yaml", ["line 4, rollout.gate: ", "none.yaml cannot be read"]),
        (PLAIN + "rollout: {gate: {pass_ratoi: 2}}", ["did you mean pass_ratio?"]),
        (PLAIN + "auth: {issuer: a}", ["audience is missing", "jwks_uri is missing"]),
        (PLAIN + "auth: keys", ['auth: it is "keys": give one of key, token, none or fields by']),
        (PLAIN + "sticky: header:cookie", ["does not tell one caller from another"]),
        ("name: digits\nversions: {a1a: {}, a2a: {}, a3a: {}, a4a: {}, a5a: {}, a6a: {}, a7a: {}}",
         ["versions: it has 7 names: give fields by name with 1 to 6 names"]),
        (PLAIN.replace("{}", "{num_replicas: 0x" + "f" * 5_000 + "}"), ["it is a number of more than 100 digits"]),
        (PLAIN.replace("{}", "{build: {folder: ~nobody-of-this-name/x}}"),
         ["line 2, versions.one: ", "is in a home folder"]),
        (PLAIN.replace("{}", "{build: {folder: x, models: {m: ~nobody-of-this-name/m}}}"), ["is in a home folder"]),
        (PLAIN.replace("{}", "{image: 'models/digits:latest'}"),
         ["image: it does not fit: give a text such as 'registry.example/models/digits@sha256:"]),
        (PLAIN + "rollout: {steps: []}", ["steps: it has 0 items: give a list with 1 or more items"]),
        ("name: digits\nversions: {v1: {}}",
         ["v1: it cannot have this name: give a text with 3 to 32 characters of the"]),
        (PLAIN.replace("{}", "{environment_variables: {WORKER_COUNT: '2'}}"),
         ["set the version's worker_count instead"]),
        ("{" + ", ".join(f"u{number}: 1" for number in range(30)) + "}", ["and more"]),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_line_and_setting(
    text: str, faults: list[str], file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = file(text)

    assert main(["deploy", "-f", place, "one"]) == 1

    error = capsys.readouterr().err
    assert place in error
    assert [fault for fault in faults if fault not in error] == []


def test_each_fault_is_listed_once_and_names_in_the_order_of_the_file(
    file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    place = file(
        "versions: {one: {$schema: a, zeta: 1, alpha: 2, epsilon: 3}}\nauth: {a: 1}\n"
        "rollout: {gate: {max_latency: {}, means: {score: {}}}}"
    )

    assert main(["deploy", "-f", place, "one"]) == 1

    lines = capsys.readouterr().err.splitlines()[1:]
    of_version = [line.partition("one.")[2].partition(":")[0] for line in lines if "versions.one." in line]
    assert of_version == ["$schema", "zeta", "alpha", "epsilon"]
    assert len(lines) == len(set(lines)) == 11, lines
    assert lines[-1] == "  and more"


def test_three_missing_fields_are_three_faults(file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    # A validator has an error for each of the three, and each of these names all of them.
    assert main(["deploy", "-f", file(PLAIN + "auth: {}\nnamespace: A\nsticky: b\n"), "one"]) == 1

    lines = capsys.readouterr().err.splitlines()[1:]
    assert [line.strip().partition(":")[0] for line in lines] == [
        "line 3, auth", "line 3, auth", "line 3, auth", "line 4, namespace", "line 5, sticky",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        PLAIN + "auth: SECRET",
        PLAIN + "auth: [SECRET]",
        PLAIN + "auth: {SECRET: }",
        PLAIN + "auth: {issuer: SECRET",
        PLAIN + "auth: !SECRET",
        PLAIN + "auth: *SECRET",
        PLAIN + "auth: key: SECRET",
        PLAIN + "auth: '{SECRET'",
        PLAIN + "sticky: SECRET",
        PLAIN + "description: {SECRET: 1}\ndescription: 2",
        PLAIN + "auth: !!int SECRET.x",
        PLAIN.replace("{}", "{environment_variables: {PIN: [SECRET]}}"),
        PLAIN.replace("{}", "{environment_variables: {PIN=SECRET}}"),
        PLAIN.replace("{}", "{environment_variables: {PIN=SECRET: 1}}"),
        PLAIN.replace("{}", "{environment_variables: {PIN: {secret: SECRET}}}"),
        PLAIN.replace("{}", "{environment_variables: {MAX_BODY_BYTES: SECRET}}"),
        PLAIN.replace("{}", "{image: 'https://u:SECRET@x'}"),
        PLAIN.replace("{}", "{image: SECRET}"),
    ],
)
@pytest.mark.parametrize(
    "secret", ["hunter2", "s3cr3t-K3y", "4711", "47:11", "2026-01-05", "0c4f9a5be1d34f6e8a7b2c1d0e9f8a7b"]
)
def test_what_may_be_a_secret_is_not_repeated(
    text: str, secret: str, file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", "-f", file(text.replace("SECRET", secret))]) == 1

    assert secret not in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--auth={}", "--auth={{{}", "--set=environment_variables={{A: {}", "--set=env.A={}"]
)
def test_a_secret_that_an_option_gives_in_a_wrong_place_is_not_repeated(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["deploy", "digits", "one", "--image", IMAGE, option.format("hunter2")])

    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PLAIN + "auth: keys", 'auth: it is "keys": give one of key, token, none'),
        (PLAIN + "rollout: {on_silence: rollback}", 'on_silence: it is "rollback": give one of'),
        (PLAIN + "rollout: {bake: 5 mins}", 'bake: it is "5 mins": give'),
        (PLAIN + "enable_app_insights: 'no'", 'enable_app_insights: it is "no": give true or false'),
        (PLAIN.replace("digits", "Digits"), 'name: it is "Digits": give a text with 3 to 32'),
    ],
)
def test_what_cannot_be_a_secret_is_repeated(
    text: str, said: str, file: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", "-f", file(text)]) == 1

    assert said in capsys.readouterr().err


def test_faults_that_only_the_models_find_are_said_together_with_those_of_the_schema_in_the_order_of_the_file(
    file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gate.yaml").write_text("unit: user\noverload: fail\nmax_latency: {}\n")
    place = file(
        """
rollout:
  steps: [50, 10]
  bin_width: 7 s
  bake: P1X
  gate: gate.yaml
versions:
  one: {cpu_cores: 2, cpu_cores_limit: 1, memory_gb: 2, memory_gb_limit: 1}
  two: {num_replicas: 1, autoscale_enabled: true}
  three: {cpu_coers: 1}
name: digits
sticky: header:cookie
"""
    )

    assert main(["deploy", "-f", place, "one"]) == 1

    lines = capsys.readouterr().err.splitlines()[1:]
    assert [line.strip().partition(": ")[0] for line in lines] == [
        "line 3, rollout.steps",
        "line 4, rollout.bin_width",
        "line 5, rollout.bake",
        "line 6, rollout.gate",
        "line 3, max_latency",
        "line 8, versions.one",
        "line 8, versions.one",
        "line 9, versions.two",
        "line 10, versions.three.cpu_coers",
        "line 12, sticky",
    ]


def test_rules_that_versions_break_together_are_said_together(file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    version = "{traffic_percentile: 60, is_control: true, is_default: true}"

    assert main(["deploy", "-f", file(f"name: digits\nversions: {{one: {version}, two: {version}}}"), "one"]) == 1

    error = capsys.readouterr().err
    rules = ("the sum may not exceed 100", "exactly one default", "one control version")
    assert [rule for rule in rules if rule not in error] == []
    assert error.count("line 2, versions: endpoint 'digits' ") == 3
