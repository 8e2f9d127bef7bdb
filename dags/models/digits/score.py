"""The entry script of the digits model: `{"data": [[64 pixels, 0 to 16], …]}` gives `{"predictions": [digit, …]}`."""

import json
import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from azureml.contrib.services.aml_response import AMLResponse  # from azureml-inference-server-http, inside a version

MAX_ROWS = 1_000
model: Any = None


def init() -> None:
    """Load the model once, before the first request."""
    global model
    model = joblib.load(Path(os.environ["AZUREML_MODEL_DIR"]) / "model.joblib")


def run(data: str) -> Any:
    """Score one request; invalid input is the caller's error (400), not the model's."""
    try:
        rows = parse_pixels(json.loads(data))
    except ValueError as error:
        return AMLResponse({"error": str(error)}, 400, json_str=True)
    return {"predictions": model.predict(rows).tolist()}


def parse_pixels(request: Any) -> Any:
    """Validate a request and return its rows as an array of shape (n, 64).

    Raises:
        ValueError: The request is not of the form `{"data": [[64 numbers from 0 to 16], …]}`.
    """
    if not isinstance(request, dict) or not isinstance(request.get("data"), list) or not request["data"]:
        raise ValueError('a JSON object {"data": [[64 numbers], …]} with at least one row was expected')
    if len(request["data"]) > MAX_ROWS:
        raise ValueError(f"at most {MAX_ROWS} rows were expected, found {len(request['data'])}")
    for number, row in enumerate(request["data"]):
        if not isinstance(row, list) or len(row) != 64 or not all(type(value) in (int, float) for value in row):
            raise ValueError(f"data[{number}]: 64 numbers were expected")
        if not all(0 <= value <= 16 for value in row):  # also refuses NaN
            raise ValueError(f"data[{number}]: numbers from 0 to 16 were expected")
    return np.asarray(request["data"], dtype=np.float64)
