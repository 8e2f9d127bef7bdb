"""Reads settings in files and options, YAML or JSON, without ambiguity: what YAML would guess or drop is refused."""

import difflib
import re
from collections.abc import Collection, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from controlled_rollout.errors import ArgumentError
from controlled_rollout.text_file import read_text_file
from controlled_rollout.yaml_fault import yaml_fault

__all__ = ["nearest", "read_settings_and_lines", "read_settings_file", "read_value"]

BOOLEAN: Final = "tag:yaml.org,2002:bool"
# Only these are booleans, as in YAML 1.2 and JSON: `no` may be a country, `on` a name.
TRUE_OR_FALSE: Final = re.compile("true|True|TRUE|false|False|FALSE")
# 12:30 is a text, and no number to the base of 60.
INTEGER: Final = "tag:yaml.org,2002:int"
FLOAT: Final = "tag:yaml.org,2002:float"


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader that refuses names given twice and aliases, and guesses no booleans or sexagesimal numbers."""

    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012 - PyYAML's own attribute
        first: [
            (tag, TRUE_OR_FALSE if tag == BOOLEAN else pattern)
            for tag, pattern in resolvers
            if not (tag == BOOLEAN and first not in "tTfF")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node; raise MarkedYAMLError for an alias, by which a small file can stand for a huge one."""
        if self.check_event(yaml.AliasEvent):
            mark = self.get_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read here", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping; raise MarkedYAMLError for a name that is no text or is given twice."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem="a name has to be a text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Return a scalar's text; a number to the base of 60 is refused, because nobody means one."""
        value = super().construct_scalar(node)
        if node.tag in (INTEGER, FLOAT) and ":" in str(value):
            # Not the value, also below: it may be a secret.
            raise yaml.MarkedYAMLError(problem="put a number with `:` in it into quotes", problem_mark=node.start_mark)
        return value

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return a node's value; raise MarkedYAMLError for a number or a date that there is not."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, AttributeError, KeyError) as error:
            problem = "it is like a number or a date, and is none: put it into quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error


def read_settings_file(file: Path) -> dict[str, Any]:
    """Return the settings of a YAML or JSON file, by name.

    Raises:
        ArgumentError: It cannot be read, is larger than 2 MB, or is not one mapping of settings in which each is given
            once.
    """
    settings, _ = read_settings_and_lines(file)
    return settings


def read_settings_and_lines(file: Path) -> tuple[dict[str, Any], dict[tuple[str | int, ...], int]]:
    """Return the settings of a YAML or JSON file by name, and the line of each by the names that lead to it.

    Raises:
        ArgumentError: As of `read_settings_file`.
    """
    lines: dict[tuple[str | int, ...], int] = {}
    try:
        content = _load(read_text_file(file), lines)
    except yaml.YAMLError as error:
        raise ArgumentError(f"the file {file} is neither YAML nor JSON of settings: {yaml_fault(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        problem = "it is nested too deep" if isinstance(error, RecursionError) else error
        if isinstance(error, OSError) and error.strerror:
            problem = error.strerror  # without the number, and the file's name again
        raise ArgumentError(f"the file {file} cannot be read: {problem}") from error
    if not isinstance(content, Mapping):
        raise ArgumentError(f"the file {file} holds no settings: write one a line, such as `name: value`")
    return {str(name): value for name, value in content.items()}, lines


def read_value(text: str) -> Any:
    """Return a value that an option gives as YAML or JSON.

    Raises:
        ArgumentError: It is neither, is nested too deep, or has a name that is given twice.
    """
    try:
        return _load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = yaml_fault(error) if isinstance(error, yaml.YAMLError) else str(error)
        problem = "it is nested too deep" if isinstance(error, RecursionError) else said
        # Not the text: it may be a secret.
        raise ArgumentError(f"it is not a value of YAML: {problem}") from error


def _load(text: str, lines: dict[tuple[str | int, ...], int] | None = None) -> Any:
    """Return what a text of YAML says; raise what PyYAML, or a number or a date in it, raises.

    Args:
        text: The text.
        lines: Takes the line of each name and each item of a list.
    """
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if lines is not None:
            lines |= _lines(node, ())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _lines(node: yaml.Node, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Yield the place of each name and each item within a node, and its line, from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                inner = (*place, str(key.value))
                yield inner, key.start_mark.line + 1
                yield from _lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*place, index), item.start_mark.line + 1
            yield from _lines(item, (*place, index))


def nearest(name: str, known: Collection[str]) -> str:
    """Return the known name that is most like another one, as a question to add to an error; empty without one."""
    found = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {found[0]}?" if found else ""
