"""The schemas of files: committed as the models say, understood by every editor, and the same as the readers."""

import copy
import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from controlled_rollout.cli import main
from controlled_rollout.cli.endpoint_file import read_endpoint_file
from controlled_rollout.cli.file_schemas import SCHEMA_NAMES, schema_of
from controlled_rollout.cli.gate_file import read_gate
from controlled_rollout.cli.workspace_file import read_workspace
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.image.environment.file import read_environment

DOCS = Path(__file__).parents[3] / "docs"
READERS: dict[str, Callable[[Path], Any]] = {
    "endpoint": read_endpoint_file,
    "environment": read_environment,
    "gate": read_gate,
    "workspace": read_workspace,
}
EXAMPLES = sorted((DOCS / "files").glob("*.yaml"))
# The rules that no schema says: how settings fit each other, and what only a program can find out. Each is the whole
# beginning of its sentence, for the kind of file that can break it.
OF_A_GATE = (
    r"the gate is not valid: (gate\.(means|categories)\.[^:]* = .*: )?(column and kql are both given"
    r"|clip=\S+ without column|buckets=\S+ without column)",
    r"the gate is not valid: (gate\.warm_up = .*: )?.* is not a length of time",
    r"the gate is not valid: gate\.max_latency\S* = .*: Input should be greater than ",
    r"the gate is not valid: gate\.expectations = .*: .*suite of Great Expectations",
    r"the gate is not valid: [\w, ]+ would name two metrics",
    r"the gate is not valid: weights for [\w, ]+, which name no metric",
    r"the gate is not valid: max_latency without latency_quantiles",
    r"the gate is not valid: unit='user' with ",
    r"the gate is not valid: overload='fail' with unit='user'",
    r"the gate is not valid: an expectation is called like another metric",
)
BEYOND_A_SCHEMA = {
    "endpoint": (
        *OF_A_GATE,
        r"endpoint '\S+' would send .* the sum may not exceed 100$",
        r"endpoint '\S+' needs exactly one default version",
        r"endpoint '\S+' may have one control version",
        r"version '\S+' asks for num_replicas=\d+ and for the autoscaler",
        r"version '\S+' switches the autoscaler off and gives no num_replicas",
        r"version '\S+' sets [\w, ]+ without the autoscaler",
        r"version '\S+' asks for at least \d+ and at most \d+ replicas",
        r"version '\S+' asks for (cpu_cores|memory_gb)=\S+ and limits it to ",
        r"version '\S+' has settings of collection and does not collect",
        r"a secret cannot have the name ",
        r"the secret '.*' cannot have the key ",
        r"it has image and build: ",
        r"a path is in a home folder that is not known here",
        r"the path of the model \S+ holds '\.\.'",
        r"steps=\(.*\): give (ascending percentiles|percentiles that differ)",
        r"bin_width \S+ does not divide a day",
        r"RolloutSettings is not valid: \w+ = .* is not a length of time",
        r"the file \S+ cannot be read: ",
    ),
    "gate": OF_A_GATE,
    "workspace": tuple(
        r"the workspace's settings are not valid \(.*" + rule
        for rule in (
            "target 'kubernetes' needs the setting gateway",
            "tls_certificate and tls_key (belong together|are for the local workspace)",
            "tls is set, and endpoint_url is plain http",
            "builder_namespace and namespace are both ",
            "spark_remote is only for data_engine 'spark'",
            "storage: give a folder, or https://",
            "records: give an address in Azure Blob Storage",
            "(telemetry_resource_id|acr_id): give the resource id of ",
        )
    ),
    "environment": (
        r"conda packages .* are not known to be on the Python package index",
        r"conda dependency '.*' cannot be translated to the Python package index",
        r"dependencies name Python more than once",
        r"Python version '.*' is not understood",
        r"Python \S+ cannot be used: the scoring runtime runs on Python ",
        r"it asks for Python both under python .* and under dependencies",
        r"requirement '.*' is not understood: ",
        r"option '.*' is not taken in an environment's requirements",
        r"docker step '.*' ",
        r"index_names maps '.*' to '.*', which is not the name of a package",
    ),
}


def nodes(value: Any) -> Iterator[Any]:
    """Yield all mappings within a value."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


@pytest.mark.parametrize("name", SCHEMA_NAMES)
def test_the_committed_schema_is_that_of_the_models(name: str) -> None:
    committed = json.loads((DOCS / "schemas" / f"{name}.json").read_text())

    assert committed == schema_of(name), f"controlled-rollout schema {name} > docs/schemas/{name}.json"


@pytest.mark.parametrize("name", SCHEMA_NAMES)
def test_a_schema_is_one_of_the_draft_that_it_names_without_what_only_python_knows(name: str) -> None:
    Draft202012Validator.check_schema(schema_of(name))
    for node in nodes(schema_of(name)):
        pattern = node.get("pattern", "")
        if isinstance(pattern, str):
            assert not re.search(r"\(\?[^:=!]|\\[AZ]", pattern), f"no editor reads {pattern}"
        assert not {"ge", "gt", "le", "lt"} & set(node)


@pytest.mark.parametrize("name", SCHEMA_NAMES)
def test_every_field_of_a_schema_is_described(name: str) -> None:
    schema = schema_of(name)
    models = [schema, *schema.get("$defs", {}).values()]

    bare = [
        f"{model['title']}.{field}"
        for model in models
        for field, described in model.get("properties", {}).items()
        if not described.get("description")
    ]

    assert bare == []
    assert all(model["title"] and model["description"] for model in models)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_of_the_documentation_fits_its_schema_and_is_read(file: Path) -> None:
    first, text = file.read_text().partition("\n")[::2]

    assert first == f"# yaml-language-server: $schema=../schemas/{file.stem}.json"
    assert list(Draft202012Validator(schema_of(file.stem)).iter_errors(yaml.safe_load(text))) == []
    READERS[file.stem](file)


def test_the_page_about_files_shows_a_file_that_is_read_and_faults_as_they_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / "files.md").read_text()
    shown = page.partition("## An endpoint's file")[2].partition("```yaml\n")[2].partition("```")[0]
    faults = page.partition("## What is refused")[2].partition("```\n")[2].partition("```")[0]
    file = tmp_path / "endpoint.yaml"
    (tmp_path / "gate.yaml").write_text("pass_ratio: 1.5\n")

    file.write_text(shown.replace("…", "1" * 64))
    assert list(read_endpoint_file(file).versions) == ["v1a", "v2a"]
    file.write_text(
        "# a schema\nname: digits\nversions:\n  v1a:\n    image: ''\n    cpu_coers: 1\n    memory_gb: much\n"
    )
    assert main(["deploy", "-f", str(file)]) == 1
    assert capsys.readouterr().err == faults.replace("endpoint.yaml", str(file))


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of everything within a value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in entries:
        yield (*place, name)
        yield from places(inner, (*place, name))


VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 2, 1.5, -1, 100, 101, 1000, "", "text", "5 min", "roll_back", "none"]),
    st.sampled_from([[], {}, [1], ["a"], {"a": "b"}, {"secret": "digits", "key": "salt"}, [0.5, 0.9]]).map(
        copy.deepcopy
    ),
)


def texts(value: Any) -> Any:
    """Return a value with all scalars as YAML writes them."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        inner = {name: texts(item) for name, item in items}
        return inner if isinstance(value, dict) else list(inner.values())
    return value if isinstance(value, str) else yaml.safe_dump(value).split("\n")[0]


@functools.cache
def cached_example(name: str) -> tuple[dict[str, Any], list[str]]:
    fields = {field for node in nodes(schema_of(name)) for field in node.get("properties", {})}
    return yaml.safe_load((DOCS / "files" / f"{name}.yaml").read_text()), sorted(fields)


def example(name: str) -> tuple[dict[str, Any], list[str]]:
    """Return the example of a kind of file, and all names that its schema knows."""
    return copy.deepcopy(cached_example(name))


@st.composite
def changed(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Draw the example of a kind of file with one or two changes."""
    content, fields = example(name)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from([(), *places(content)]))
        parent = content
        for part in place[:-1]:
            parent = parent[part]
        within = parent[place[-1]] if place else content
        if isinstance(within, dict) and draw(st.booleans()):
            within[draw(st.sampled_from([*fields, "unknown", "v3a", "V4"]))] = draw(VALUES)
        elif place and draw(st.booleans()):
            parent[place[-1]] = draw(VALUES)
        elif place:
            del parent[place[-1]]
    return content


def sentences(message: str) -> list[str]:
    """Return the faults of an error's message, without file and place."""
    _, *faults = message.splitlines() if "\n  " in message else ["", message]
    return [re.sub(r"^ *((environment file |line \d+, )?\S+: )?", "", fault, count=1) for fault in faults]


@pytest.mark.parametrize("name", SCHEMA_NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_a_schema_accepts_is_read_and_what_is_read_the_schema_accepts(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = data.draw(changed(name))
    folder = tmp_path_factory.getbasetemp()
    file = folder / f"{name}.yaml"
    (folder / "gate.yaml").write_text((DOCS / "files" / "gate.yaml").read_text())
    file.write_text(yaml.safe_dump(content))
    # All that an environment's file says is text: Python 3.10 is not 3.1.
    said_there = texts(content) if name == "environment" else content
    fits = Draft202012Validator(schema_of(name)).is_valid(said_there)

    try:
        READERS[name](file)
    except ControlledRolloutError as error:
        unknown = [
            said for said in sentences(str(error)) if not any(re.match(rule, said) for rule in BEYOND_A_SCHEMA[name])
        ]
        assert not fits or not unknown, unknown
    else:
        # There what is empty is not set.
        unset = name in ("workspace", "environment")
        empty = unset and any(value in (None, "") for value in content.values())
        assert fits or empty, f"an editor would mark {content}"


def test_the_command_lists_the_kinds_and_prints_the_schema_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(SCHEMA_NAMES)
    assert main(["schema", "gate"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert main(["schema", "gate", "--output", "yaml"]) == 0
    assert printed == yaml.safe_load(capsys.readouterr().out) == schema_of("gate")
    with pytest.raises(SystemExit) as ended:
        main(["schema", "cluster"])
    assert ended.value.code == 2
