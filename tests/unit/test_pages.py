"""The pages of the documentation: what their code names exists, and what their commands say can be parsed."""

import argparse
import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

import controlled_rollout
import tests.airflow_home  # noqa: F401 - before anything of Airflow
from controlled_rollout.cli import command_parser
from controlled_rollout.version import check_name
from tests.pages import PAGES, REPOSITORY, Block, command_lines, inline_code, read_blocks, table_rows

BLOCKS = [block for page in PAGES for block in read_blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
DAGS = [block for block in PYTHON if re.search(r"\bDAG\(|^@dag", block.text, re.MULTILINE)]
DATA = [block for block in BLOCKS if block.language in ("yaml", "json")]
COMMANDS = [command for block in BLOCKS for command in command_lines(block)]
TARGETS = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def subparser(arguments: Iterable[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser of the command that arguments begin with, and the words that chose it."""
    parser, chosen = command_parser(), []
    for word in arguments:
        choices = next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
        if not isinstance(choices, Mapping) or word not in choices:
            break
        parser = choices[word]
        chosen.append(word)
    return parser, chosen


def unknown(arguments: Iterable[str]) -> list[str]:
    """Return what the command that arguments begin with does not know: itself, or options."""
    words = [word for argument in arguments if (word := argument.partition("=")[0]) and word != "…"]
    parser, chosen = subparser(words)
    if not chosen:
        return words[:1]
    return [word for word in words if word.startswith("--") and word not in parser._option_string_actions]


def accepted(function: Any) -> set[str] | None:
    """Return the names of the arguments that a class or function takes; None if it takes any."""
    if isinstance(function, type) and issubclass(function, BaseModel):
        return set(function.model_fields)
    names: set[str] = set()
    kinds = inspect.Parameter
    for one in function.__mro__ if isinstance(function, type) else [function]:
        if isinstance(function, type) and "__init__" not in vars(one):
            continue
        parameters = inspect.signature(vars(one)["__init__"] if isinstance(function, type) else one).parameters
        names.update(parameters)
        if not any(parameter.kind is kinds.VAR_KEYWORD for parameter in parameters.values()):
            return names
    return None


def imported(tree: ast.Module) -> dict[str, Any]:
    """Return what a block imports of this project, by the names that it has there.

    Raises:
        AttributeError: There is no such thing.
        ImportError: There is no such module.
    """
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "controlled_rollout":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                found[alias.asname or alias.name] = getattr(module, alias.name)
    return found


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_python_block_compiles_and_what_it_uses_of_this_project_exists(block: Block) -> None:
    tree = ast.parse(block.text)
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    public = {name: getattr(controlled_rollout, name) for name in controlled_rollout.__all__}
    known = public | imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and callable(known.get(node.func.id)):
            names = accepted(known[node.func.id])
            if names is not None:
                assert {keyword.arg for keyword in node.keywords if keyword.arg} <= names, ast.unparse(node)


@pytest.mark.parametrize("block", DAGS, ids=str)
def test_a_block_with_a_dag_is_a_file_that_airflow_takes(block: Block, tmp_path: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    (tmp_path / "dag_of_a_page.py").write_text(block.text, encoding="utf-8")
    # Not in safe mode, which leaves out files that do not speak of Airflow.
    bag = DagBag(tmp_path, safe_mode=False)
    assert not bag.import_errors
    assert bag.dags


@pytest.mark.parametrize("block", DATA, ids=str)
def test_a_block_of_data_can_be_loaded(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
    else:
        # It raises what is wrong; a block may be a comment alone.
        list(yaml.safe_load_all(block.text))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.place} {command.arguments[0]}")
def test_a_command_line_in_a_block_is_one_that_the_program_takes(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if command.is_shortened:
        assert not unknown(command.arguments)
        return
    try:
        options = command_parser().parse_args(command.arguments)
    except SystemExit as refusal:
        assert refusal.code == 0, capsys.readouterr().err
        return
    for name in {getattr(options, argument, None) for argument in ("endpoint", "version")}:
        if name is not None and not name.startswith("$"):
            check_name(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_in_a_sentence_has_options_that_it_knows(page: Path) -> None:
    names = subparser([])[0]._subparsers
    assert names
    wrong = []
    for line, code in inline_code(page):
        words = code.removeprefix("controlled-rollout ").split()
        is_command = code.startswith("controlled-rollout ") or ("--" in code and subparser(words)[1])
        if is_command and (strange := unknown(words)):
            wrong.append(f"{page.name}:{line}: `{code}`: {', '.join(strange)}")
    assert not wrong


def test_the_page_of_the_command_line_names_every_command_and_options_that_it_has() -> None:
    named, wrong = set(), []
    for first, *others in table_rows(REPOSITORY / "docs" / "command-line.md"):
        for command in first:
            parser, chosen = subparser(command.split())
            if not chosen:
                continue
            named.add(chosen[0])
            options = [word for cell in others for code in cell for word in code.split()[:1] if word.startswith("--")]
            wrong += [f"{command} {option}" for option in options if option not in parser._option_string_actions]
    commands = next(a.choices for a in command_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert not wrong
    assert named == set(commands)


def test_every_target_of_make_on_a_page_exists() -> None:
    codes = [code for page in PAGES for _, code in inline_code(page)]
    codes += [line for block in BLOCKS if block.language in ("", "bash") for line in block.text.splitlines()]
    named = {found[1] for code in codes if (found := re.match(r"make ([a-z][a-z-]*)", code))}
    assert named >= {"demo", "test"}
    assert not named - set(TARGETS)
