"""`python -m scripts.page_schema`: prints the JSON Schema of all answers of the page's API."""

import json
import sys

from pydantic.json_schema import models_json_schema

from controlled_rollout.view.models import Actions, EndpointDetail, LogTail, Overview

__all__ = ["schema"]

ANSWERS = (Overview, EndpointDetail, LogTail, Actions)


def schema() -> dict[str, object]:
    """Return one JSON Schema with a property for each kind of answer."""
    references, definitions = models_json_schema([(model, "serialization") for model in ANSWERS])
    described = {**definitions, "$defs": {name: _as_answered(model) for name, model in definitions["$defs"].items()}}
    properties = {model.__name__: references[(model, "serialization")] for model in ANSWERS}
    return {**described, "title": "Answers", "type": "object", "properties": properties, "required": list(properties)}


def _as_answered(model: dict[str, object]) -> dict[str, object]:
    """Return a model's schema with all fields required, and without their titles, which would become types."""
    properties = model.get("properties")
    assert isinstance(properties, dict)  # noqa: S101 - each of them is an object
    bare = {name: {k: v for k, v in field.items() if k != "title"} for name, field in properties.items()}
    # What has a default is in every answer as well.
    return {**model, "properties": bare, "required": list(bare)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema()))
