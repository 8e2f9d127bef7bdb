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
# What the readers know besides: how settings fit each other, and the rules of texts that no pattern can say.
BEYOND_A_SCHEMA = (
    "exactly one default", "one control version", "the sum may not exceed 100", "has image and build",
    "a limit may not be below", "choose one", "gives no num_replicas", "without the autoscaler",
    "the minimum may not exceed", "has settings of collection and does not collect", "ascending percentiles",
    "percentiles that differ", "does not divide a day", "weights for", "without column", "are both given",
    "would name two metrics", "cannot be read as JSON", "suite of Great Expectations", "is not a length of time",
    "should be greater than 0 seconds", "holds '..'",
    "a secret cannot have", "is in a home folder", "needs the setting gateway", "are both 'models'",
    "is only for data_engine", "belong together", "are for the local workspace", "give a folder, or https",
    "give an address in Azure Blob Storage", "tls is set", "give the resource id", "cannot be read:", "has no text",
    # of an environment
    "Python", "requirement", "docker step", "conda packages", "conda dependency", "index_names", "is not understood",
    "dependencies name",
)  # fmt: skip


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
        said = str(error)
        assert not fits or any(known in said for known in BEYOND_A_SCHEMA), said
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
