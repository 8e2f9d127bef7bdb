"""How a command prints its result: as text for a person, or as one JSON or YAML document for a program."""

import argparse
import json
import math
from collections.abc import Iterable
from typing import Any, Final

import yaml

from controlled_rollout.cli.view import print_line

__all__ = ["add_output_option", "is_table", "json_text", "show", "yaml_text"]

FORMATS: Final = ("table", "json", "yaml")


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--output` to a command's parser."""
    parser.add_argument(
        "--output",
        choices=FORMATS,
        default="table",
        help="how the result is printed: as text, or as one document for programs (default %(default)s)",
    )


def is_table(options: argparse.Namespace) -> bool:
    """Return whether the command prints its result as text."""
    return bool(options.output == "table")


def show(options: argparse.Namespace, document: Any, lines: Iterable[str]) -> None:
    """Print a command's result in the format that `--output` names.

    Args:
        options: The command's options.
        document: The result as JSON values.
        lines: The result as text, line by line; read only for a table.
    """
    if options.output == "json":
        print_line(json_text(_finite(document)))
    elif options.output == "yaml":
        print_line(yaml_text(_finite(document)))
    else:
        for line in lines:
            print_line(line)


def yaml_text(document: Any) -> str:
    """Return JSON values as YAML; what is not printable is written as YAML's own escapes.

    Args:
        document: The values.
    """
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    if not _is_visible(text):
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=False)
    return text.removesuffix("\n")


def json_text(document: Any) -> str:
    """Return JSON values as JSON; what is not printable is written as JSON's own escapes."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return text if _is_visible(text) else json.dumps(document, indent=2)


def _is_visible(text: str) -> bool:
    """Return whether a text may be printed as it is; else `print_line` would write escapes that no parser knows."""
    return text.replace("\n", "").isprintable()


def _finite(value: Any) -> Any:
    """Return JSON values in which numbers that JSON does not have, such as an infinite e-value, are text."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
