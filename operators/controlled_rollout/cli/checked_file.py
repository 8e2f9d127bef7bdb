"""Files of settings, checked by their JSON Schema: what an editor marks is what the command line refuses."""

import datetime
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from controlled_rollout.cli.file_schemas import schema_of
from controlled_rollout.cli.settings_file import nearest, read_settings_and_lines
from controlled_rollout.environment_variables import check_variables
from controlled_rollout.errors import ArgumentError, ControlledRolloutError, EndpointError
from controlled_rollout.visible_text import short_text

__all__ = ["CheckedFile", "read_checked", "read_with_faults"]

T = TypeVar("T")
SettingPath: TypeAlias = tuple[str | int, ...]
# Its place, and a sentence.
Fault: TypeAlias = tuple[SettingPath, str]

# A file with more faults than that is another kind of file.
MOST_FAULTS: Final = 10
# So many of the schema's are looked for before they are ordered by line: each costs a search for the nearest name.
MOST_SOUGHT: Final = 100
# Python reads numbers of any length in base 16, and writes none of thousands of digits.
MOST_DIGITS: Final = 100
# What may be repeated of a wrong text where a number or a word was expected.
HARMLESS: Final = re.compile(r"[\w .,%+-]{0,20}")
# Here people paste keys, tokens and passwords: nothing that was found is repeated, but for a word with a slip in it.
MAY_BE_SECRET: Final = frozenset(
    {
        "auth",
        "collector_secret",
        "environment_variables",
        "image_pull_secret",
        "salt",
        "spark_remote",
        "telemetry_token_file",
    }
)
TYPES: Final = {
    "string": "a text",
    "boolean": "true or false",
    "array": "a list",
    "object": "fields by name",
    "null": "nothing",
}
# What is said of a value that is not repeated.
FOUND_KINDS: Final = {
    int: "it is a number",
    float: "it is a number",
    bool: "it is true or false",
    type(None): "it has no value",
}
# How many a value has at least and at most, by the type of the value.
SIZES: Final = {
    "string": ("minLength", "maxLength", "characters"),
    "array": ("minItems", "maxItems", "items"),
    "object": ("minProperties", "maxProperties", "names"),
}
BOUNDS: Final = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


@dataclass(frozen=True)
class CheckedFile:
    """A file of settings, and what is wrong with it.

    Attributes:
        path: The file.
        name: Its kind, one of `SCHEMA_NAMES`.
        settings: What it says, as JSON values.
        lines: The line of each setting, by the names that lead to it.
        faults: What is wrong, in the order in which it was found.
    """

    path: Path
    name: str
    settings: Mapping[str, Any]
    lines: Mapping[SettingPath, int]
    faults: list[Fault] = field(default_factory=list)

    def read(self, place: SettingPath, reader: Callable[[], T]) -> T | None:
        """Return what a reader makes of a setting; None if it, or what it is a part of, is wrong, which is noted.

        Args:
            place: The names that lead to the setting.
            reader: Reads it. An error of this package, or a ValueError, is a fault of the setting.
        """
        if not self.is_sound(*place):
            return None
        try:
            return reader()
        except (ControlledRolloutError, ValueError) as error:
            # A line that is indented goes on with the one before it.
            self.faults.extend((place, sentence) for sentence in re.split(r"\n(?=\S)", str(error)))
            return None

    def is_sound(self, *place: str | int) -> bool:
        """Return whether no fault is known of a setting, of what is in it, and of what it is in.

        Names that are missing in the whole file are no fault of the settings that are there.
        """
        return not any(wrong and all(a == b for a, b in zip(wrong, place, strict=False)) for wrong, _ in self.faults)

    def refuse_faults(self) -> None:
        """Raise if anything is wrong.

        Raises:
            ArgumentError: It is; the message has file, line, setting, what was found and what is expected, for all
                faults together, in the order of the file.
        """
        if not self.faults:
            return
        ordered = sorted(_once(self.faults), key=lambda fault: self.lines.get(_known(fault[0], self.lines), 0))
        said = [
            ": ".join(filter(None, (where_is(place, self.lines), fault))).replace("\n", "\n  ")
            for place, fault in ordered[:MOST_FAULTS]
        ]
        more = ["and more"] if len(ordered) > MOST_FAULTS else []
        raise ArgumentError(
            "\n  ".join([f"{self.path} cannot be read as the settings of {_a(self.name)}:", *said, *more])
        )


def read_checked(path: Path, name: str) -> CheckedFile:
    """Return a file's settings if they fit the schema of their kind.

    Args:
        path: The file.
        name: Its kind, one of `SCHEMA_NAMES`.

    Raises:
        ArgumentError: It cannot be read, or does not fit, see `CheckedFile.refuse_faults`.
    """
    file = read_with_faults(path, name)
    file.refuse_faults()
    return file


def read_with_faults(path: Path, name: str) -> CheckedFile:
    """Return a file's settings with all that its schema finds wrong; the caller looks further, and refuses them then.

    Args:
        path: The file.
        name: Its kind, one of `SCHEMA_NAMES`.

    Raises:
        ArgumentError: It cannot be read.
    """
    settings, lines = read_settings_and_lines(path)
    if name == "workspace":
        # What has no value there is not set.
        settings = {setting: value for setting, value in settings.items() if value not in (None, "")}
    faults = list(itertools.islice(_once(_faults(settings, schema_of(name))), MOST_SOUGHT))
    settings.pop("$schema", None)
    return CheckedFile(path, name, settings, lines, faults)


def _a(name: str) -> str:
    """Return a noun with its article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def where_is(place: SettingPath, lines: Mapping[SettingPath, int]) -> str:
    """Return a setting with its line, such as `line 3, versions.v2a.cpu_cores`; empty for the whole file."""
    known = _known(place, lines)
    parts = list(map(str, place))
    if _may_be_secret(place):
        # NAME=VALUE, as in a shell, is the name of what has no value.
        parts = [name + ("=…" if separator else "") for name, separator, _ in (part.partition("=") for part in parts)]
    dotted = ".".join(map(short_text, parts))
    return f"line {lines[known]}, {dotted}" if known in lines else dotted


def _known(place: SettingPath, lines: Mapping[SettingPath, int]) -> SettingPath:
    """Return the nearest of a place, and of what it is in, whose line is known."""
    return next(place[:length] for length in range(len(place), -1, -1) if place[:length] in lines or not length)


def _once(faults: Iterable[Fault]) -> Iterator[Fault]:
    """Yield each fault once: a validator's errors may lead to the same sentence."""
    seen: set[Fault] = set()
    for fault in faults:
        if fault not in seen:
            seen.add(fault)
            yield fault


def _faults(settings: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the place and the sentence of each fault of a file's settings."""
    from jsonschema import Draft202012Validator

    foreign = list(_foreign(settings, ()))
    yield from foreign
    if foreign:
        return  # a validator knows JSON's values only
    for error in Draft202012Validator(schema).iter_errors(settings):
        yield from _of_error(error, schema)


def _foreign(value: Any, place: SettingPath) -> Iterator[Fault]:
    """Yield a fault for each value that YAML has and JSON has not."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                where = place if _may_be_secret(place) else (*place, str(name))
                yield where, "a name has to be a text: put it into quotes"
            yield from _foreign(item, (*place, str(name)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _foreign(item, (*place, index))
    elif isinstance(value, datetime.date):
        yield place, "it is a date: put it into quotes for a text"
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, f"{value} is no finite number: give one"
    elif isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        yield place, f"it is a number of more than {MOST_DIGITS} digits: give a smaller one"
    elif not isinstance(value, str | int | float | None):
        yield place, "it is neither a text, a number, true, false, nor a list or fields of these: write it so"


def _of_error(error: Any, root: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield the place and the sentence of a validator's error.

    Args:
        error: A `jsonschema.ValidationError`.
        root: The whole schema.
    """
    place: SettingPath = tuple(error.absolute_path)
    if "propertyNames" in error.absolute_schema_path:
        yield (*place, error.instance), _of_name(error, root)
    elif error.validator == "additionalProperties":
        properties = error.schema.get("properties", {})
        known = [name for name in properties if name != "$schema"]
        listed = f"known are {', '.join(known)}"
        for name in [name for name in error.instance if name not in properties]:
            advice = nearest(name, known)
            if not advice and _may_be_secret(place):
                yield place, f"it has a name that is not known: {listed}"
            else:
                yield (*place, name), f"{short_text(name)!r} is not known{advice or f': {listed}'}"
    elif error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        for name in missing:
            text = error.schema["properties"].get(name, {}).get("description", "")
            yield place, f"{name} is missing: give it{f': {text}' if text else ''}"
    elif error.validator == "anyOf" and (likely := _likely(error)):
        for inner in likely:
            yield from _of_error(inner, root)
    else:
        nouns = [noun for least, most, noun in SIZES.values() if error.validator in (least, most)]
        found = f"it has {len(error.instance):,} {nouns[0]}" if nouns else _found(error, place, root)
        yield place, f"{found}: give {_expected(error.schema, root)}"


def _of_name(error: Any, root: Mapping[str, Any]) -> str:
    """Return the sentence of a validator's error about a name."""
    if error.validator == "not":
        # A name that is well formed and taken: the reader knows by what.
        try:
            check_variables({error.instance: ""})
        except EndpointError as taken:
            return str(taken)
    return f"it cannot have this name: give {_expected(error.schema, root)}"


def _likely(error: Any) -> list[Any]:
    """Return the errors of the one of several types that a value is of; none if it is of no or of several types."""
    branches: dict[Any, list[Any]] = {}
    for inner in error.context:
        branches.setdefault(inner.schema_path[0], []).append(inner)
    of_type = [
        errors
        for errors in branches.values()
        if not any(inner.validator in ("type", "enum") and not inner.path for inner in errors)
    ]
    return of_type[0] if len(of_type) == 1 else []


def _may_be_secret(place: SettingPath) -> bool:
    """Return whether what is at a place may be a secret that somebody has pasted."""
    return not MAY_BE_SECRET.isdisjoint(place)


def _found(error: Any, place: SettingPath, root: Mapping[str, Any]) -> str:
    """Return what was found, without what may be a secret.

    Args:
        error: A `jsonschema.ValidationError`.
        place: Where it was found.
        root: The whole schema.
    """
    value = error.instance
    if isinstance(value, Mapping):
        return "it is fields by name"
    if isinstance(value, list):
        return "it is a list"
    kinds = list(_kinds(error.schema, root))
    if isinstance(value, str) and nearest(value, [word for kind in kinds for word in kind.get("enum", ())]):
        return f"it is {json.dumps(value, ensure_ascii=False)}"
    if _may_be_secret(place) or (_expects_any_text(kinds) and place[-1] != "name"):
        return FOUND_KINDS.get(type(value), "it does not fit")
    if isinstance(value, str) and not HARMLESS.fullmatch(value):
        return "it does not fit"
    return f"it is {json.dumps(value, ensure_ascii=False)}"


def _kinds(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the schemas of the values that a schema accepts: its own, or those of which a value has to fit one."""
    if "$ref" in schema:
        yield from _kinds(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    elif "anyOf" in schema:
        for branch in schema["anyOf"]:
            yield from _kinds(branch, root)
    else:
        yield schema


def _expects_any_text(kinds: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a text is expected that is none of a few words, and not like a short example, such as `5 min`."""
    return any(
        kind.get("type", "string") == "string"
        and not {"enum", "const"} & kind.keys()
        and not all(map(HARMLESS.fullmatch, kind.get("examples", ["…"])))
        for kind in kinds
    )


def _expected(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
    """Return what a schema expects, in words."""
    if "$ref" in schema:
        return _expected(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_expected(branch, root) for branch in schema["anyOf"]))
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    kind = schema.get("type", "string")
    bounds = " and ".join(f"{words} {schema[name]:g}" for name, words in BOUNDS.items() if name in schema)
    if kind in ("number", "integer"):
        return " ".join(filter(None, ("a number" if kind == "number" else "a whole number", bounds)))
    if kind == "string" and (examples := schema.get("examples")):
        return f"a text such as {' or '.join(map(repr, examples))}"
    if not isinstance(kind, str):
        return "a text"
    form = f"of the form {schema['pattern']}" if kind == "string" and "pattern" in schema else ""
    return " ".join(filter(None, (TYPES.get(kind, "another value"), _size(kind, schema), form)))


def _size(kind: str, schema: Mapping[str, Any]) -> str:
    """Return how many a value may have, such as `with 3 to 32 characters`; empty if that is not limited."""
    least, most, noun = SIZES.get(kind, ("", "", ""))
    if most in schema:
        return f"with {schema.get(least, 0)} to {schema[most]:,} {noun}"
    return f"with {schema[least]:,} or more {noun}" if least in schema else ""
