"""The JSON Schemas of the files that people write, made of the models that read them. Pure.

Editors complete and check by them, and so does the command line before a model reads what a file says.
"""

import functools
import inspect
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticOmit, core_schema

from controlled_rollout.duration import format_duration

__all__ = ["SCHEMA_NAMES", "schema_of"]

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_NAMES: Final = {
    "endpoint": "An endpoint, its versions and their rollout: `deploy -f`",
    "environment": "What is installed for a version: `build --environment`",
    "gate": "What a treatment has to show: `gate --gate`",
    "workspace": "Where endpoints live and what they need: `--workspace`",
}
# A name, or several with the same text, in the section `Attributes` of a docstring.
ATTRIBUTE: Final = re.compile(r"(?P<names>[a-z_0-9]+(?:, [a-z_0-9]+)*): (?P<text>.*)")
# What pydantic writes beside a choice of types, although it is about one of them only.
OF_ONE_TYPE: Final = ("minLength", "maxLength", "minItems", "maxItems", "minimum", "exclusiveMinimum")
# What pydantic writes of a number that is checked before it is read.
BOUNDS: Final = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
# Words of Python in a description, and what they are in a file.
WORDS: Final = {"None": "null", "True": "true", "False": "false"}
PYTHON: Final = re.compile(rf"\b({'|'.join(WORDS)})\b")


@functools.cache
def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema (Draft 2020-12) of a kind of file.

    Args:
        name: The kind, one of `SCHEMA_NAMES`.
    """
    schema = _model(name).model_json_schema(schema_generator=_FileSchema)
    if name != "environment":
        # What is a comment for an editor in YAML is a field in JSON.
        schema["properties"]["$schema"] = {"type": "string", "description": "The place of this schema, for an editor."}
    if name == "workspace":
        # In a file the default is the file's own name.
        del schema["properties"]["name"]["default"]
    return {"$schema": DRAFT, **schema, "title": name.capitalize(), "description": f"{SCHEMA_NAMES[name]}."}


def _model(name: str) -> type[BaseModel]:
    """Return the model of a kind of file."""
    if name == "endpoint":
        from controlled_rollout.cli.endpoint_settings import EndpointFile

        return EndpointFile
    if name == "environment":
        from controlled_rollout.image.environment.file_keys import EnvironmentFile

        return EnvironmentFile
    if name == "gate":
        from controlled_rollout.gate import Gate

        return Gate
    from controlled_rollout.workspace import Workspace

    return Workspace


class _FileSchema(GenerateJsonSchema):
    """Makes a schema as people write files: docstrings are descriptions, lengths of time are text."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Return a model's schema, each field described as in the model's docstring."""
        made = super().model_schema(schema)
        lines = (inspect.getdoc(schema["cls"]) or "").splitlines()
        made["description"] = lines[0] if lines else ""
        texts = _descriptions(schema["cls"])
        for name, field in made.get("properties", {}).items():
            if name in texts:
                field["description"] = PYTHON.sub(lambda word: WORDS[word[0]], texts[name])
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return that a field has no title: it would be the field's name again."""
        return False

    def callable_schema(self, schema: core_schema.CallableSchema) -> JsonSchemaValue:
        """Leave out what only code can give."""
        raise PydanticOmit

    def encode_default(self, dft: Any) -> Any:
        """Return a default as a person writes it."""
        return format_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)

    def generate(self, schema: Any, mode: Any = "validation") -> JsonSchemaValue:
        """Return the whole schema without what no validator, or no editor, understands."""
        made: JsonSchemaValue = _portable(super().generate(schema, mode))
        return made


def _descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a model and of its bases say of each field."""
    texts: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        _, found, section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
        names: list[str] = []
        for line in section.splitlines() if found else []:
            if match := ATTRIBUTE.fullmatch(line.strip()) if re.match(r" {4}\S", line) else None:
                names = match["names"].split(", ")
                texts |= dict.fromkeys(names, match["text"])
            elif line.strip():
                texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return texts


def _portable(value: Any) -> Any:
    """Return a part of a schema without what pydantic writes and other validators of JSON Schema refuse or miss."""
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    node = {BOUNDS.get(name, name): _portable(item) for name, item in value.items()}
    if "anyOf" in node:
        node = {name: item for name, item in node.items() if name not in OF_ONE_TYPE}
    # Flags within a pattern are Python's only, and `path` is a format of pydantic's only.
    if str(node.get("pattern", "")).startswith("(?i)"):
        del node["pattern"]
    if node.get("format") == "path":
        del node["format"]
    # The pattern of a mapping's names does not refuse others by itself.
    if "patternProperties" in node:
        [(pattern, node["additionalProperties"])] = node.pop("patternProperties").items()
        node["propertyNames"] = {"pattern": pattern, **node.get("propertyNames", {})}
    return node
