"""Small entry scripts that use what public entry scripts of the old service use.

What is in them was found in thirty public scripts; no text is theirs. Their models are replaced by one that doubles.
"""

import json

from tests.local.script_lab import EntryScript

__all__ = ["SCRIPTS"]

LOADS_JOBLIB = """
import json, os
import joblib
import numpy as np

def init():
    global model
    model = joblib.load(os.path.join(os.getenv("AZUREML_MODEL_DIR"), "model.pkl"))
"""
GETS_PATH = """
import json, os
import joblib
import numpy as np
from azureml.core.model import Model
"""
RAW = """
from azureml.contrib.services.aml_request import AMLRequest, rawhttp
from azureml.contrib.services.aml_response import AMLResponse

def init():
    print("initialised")
"""
DATA = [[1, 2], [3, 4]]
DOUBLED = [6.0, 14.0]

SCRIPTS = {
    "joblib model, rows as data": EntryScript(
        LOADS_JOBLIB + "def run(raw): return model.predict(np.array(json.loads(raw)['data'])).tolist()", DOUBLED
    ),
    "pathlib, records with features": EntryScript(
        LOADS_JOBLIB
        + """
def run(raw):
    rows = [one["features"] for one in json.loads(raw)["inputs"]]
    return {"predictions": [float(value) for value in model.predict(rows)]}
""",
        {"predictions": DOUBLED},
        {"inputs": [{"features": row} for row in DATA]},
    ),
    "every exception returned as text": EntryScript(
        LOADS_JOBLIB
        + """
def run(data):
    try:
        return model.predict(json.loads(data)["data"]).tolist()
    except Exception as error:
        return str(error)
""",
        "'data'",
        {"other": 1},
    ),
    "data frame in, text of JSON out": EntryScript(
        LOADS_JOBLIB
        + """
import pandas as pd

def run(data):
    frame = pd.DataFrame(json.loads(data)["data"])
    frame["when"] = pd.to_datetime(frame["when"]).dt.dayofweek
    return json.dumps({"result": model.predict(frame.to_numpy()).tolist()})
""",
        json.dumps({"result": [8.0]}),
        {"data": [{"when": "2026-01-05", "a": 1, "b": 3}]},
    ),
    "the values of an object, one int out": EntryScript(
        LOADS_JOBLIB
        + """
def run(data):
    print("received", data)
    values = list(json.loads(data).values())
    return int(model.predict(np.array(values, ndmin=2))[0])
""",
        6,
        {"a": 1, "b": 2},
        logged='received {"a": 1, "b": 2}',
    ),
    "an object as one transposed row": EntryScript(
        LOADS_JOBLIB
        + """
import logging
import pandas as pd

def run(input_json: str) -> list:
    logging.info("scored")
    row = pd.DataFrame.from_dict(json.loads(input_json), orient="index").T
    return model.predict(row).tolist()
""",
        [6.0],
        {"a": 1, "b": 2},
    ),
    "get_model_path by name": EntryScript(
        GETS_PATH
        + """
def init():
    global model
    model = joblib.load(Model.get_model_path("digits"))

def run(data): return model.predict(json.loads(data)["data"]).tolist()
""",
        DOUBLED,
    ),
    "get_model_path by name and version": EntryScript(
        GETS_PATH
        + """
def init():
    global model
    model = joblib.load(Model.get_model_path(model_name="digits", version=7))

def run(data): return {"result": model.predict(json.loads(data)["data"]).tolist()}
""",
        {"result": DOUBLED},
    ),
    "get_model_path by the name in AZUREML_MODEL_DIR": EntryScript(
        GETS_PATH
        + """
def init():
    global model
    model = joblib.load(Model.get_model_path(os.getenv("AZUREML_MODEL_DIR").split("/")[-2]))

def run(data, request_headers):
    return {"result": model.predict(json.loads(data)["data"]).tolist(), "by": request_headers.get("X-Caller")}
""",
        {"result": DOUBLED, "by": "me"},
        headers={"X-Caller": "me"},
    ),
    "azureml-models by hand": EntryScript(
        """
import json, os, joblib

def init():
    global model
    root = os.path.join(os.environ["AML_APP_ROOT"], "azureml-models", "digits")
    model = joblib.load(os.path.join(root, max(os.listdir(root)), "model.pkl"))

def run(data): return model.predict(json.loads(data)["data"]).tolist()
""",
        DOUBLED,
    ),
    "a file of the project, and the time taken": EntryScript(
        """
import json, time

def init():
    global factor
    with open("model/factor.txt") as file:
        factor = float(file.read())

def run(data):
    try:
        begun = time.time()
        result = [sum(row) * factor for row in json.loads(data)["data"]]
        return {"result": result, "quick": time.time() - begun < 10}
    except Exception as error:
        return {"error": str(error)}
""",
        {"result": DOUBLED, "quick": True},
        files={"model/factor.txt": "2"},
    ),
    "the only file under AZUREML_MODEL_DIR": EntryScript(
        """
import json, os
from pathlib import Path
import joblib

model = None

def init():
    global model
    files = [file for file in Path(os.getenv("AZUREML_MODEL_DIR")).glob("**/*") if file.is_file()]
    if len(files) > 1:
        raise RuntimeError(files)
    model = joblib.load(files[0])

def run(data): return model.predict(json.loads(data)["data"]).tolist()
""",
        DOUBLED,
    ),
    "models that are found by walking the project": EntryScript(
        """
import json, os
from fnmatch import fnmatch

def init():
    global models
    models = {}
    for folder in [entry[0] for entry in os.walk(".") if fnmatch(entry[0], "*MLModel")]:
        with open(os.path.join(folder, "factor.txt")) as file:
            models[folder.split("/")[-1]] = float(file.read())

def run(data):
    request = json.loads(data)
    return [row["x"] * models[request["model_name"]] for row in json.loads(request["data"])]
""",
        [9.0],
        {"model_name": "secondMLModel", "data": '[{"x": 3}]'},
        files={"firstMLModel/factor.txt": "2", "secondMLModel/factor.txt": "3"},
    ),
    "a script in a folder, with modules of the project": EntryScript(
        """
import json, os, sys
sys.path.append(os.path.dirname(os.path.abspath(__file__)))
from preparation import prepared
from src.factors import FACTOR

def init(): pass

def run(data): return [sum(row) * FACTOR for row in prepared(json.loads(data))]
""",
        DOUBLED,
        path="src/score.py",
        files={"src/preparation.py": "def prepared(body): return body['data']", "src/factors.py": "FACTOR = 2.0"},
    ),
    "a class of the script, pickled by itself": EntryScript(
        """
from __future__ import annotations
import json, pickle
from dataclasses import asdict, dataclass
from typing import ClassVar, Optional
from pydantic import BaseModel

@dataclass
class Reading:
    kind: ClassVar[str] = "reading"
    values: list[float]
    note: Optional[str] = None

class Node(BaseModel):
    value: float
    children: list[Node] = []

def init(): pass

def run(data):
    reading = pickle.loads(pickle.dumps(Reading(json.loads(data)["data"][0])))
    return [asdict(reading), Node(value=1, children=[{"value": 2}]).model_dump()]
""",
        [{"values": [1, 2], "note": None}, {"value": 1.0, "children": [{"value": 2.0, "children": []}]}],
    ),
    "arguments with defaults, and a main part": EntryScript(
        """
import argparse, json

def init():
    global factor
    parser = argparse.ArgumentParser()
    parser.add_argument("--factor", type=float, default=2)
    factor = parser.parse_known_args()[0].factor

def run(data): return [sum(row) * factor for row in json.loads(data)["data"]]

if __name__ == "__main__":
    init()
    print(run('{"data": []}'))
""",
        DOUBLED,
    ),
    "a root logger on stdout": EntryScript(
        """
import json, logging, sys

root = logging.getLogger()
root.setLevel(logging.DEBUG)
handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(logging.Formatter("%(name)s / %(levelname)s / %(message)s"))
root.addHandler(handler)

def init(): logging.debug("loaded")

def run(data): return json.loads(data)["data"]
""",
        DATA,
        logged="root / DEBUG / loaded",
    ),
    "a logging set-up that disables all other loggers": EntryScript(
        """
import json, logging.config

def init():
    logging.config.dictConfig({"version": 1})
    logging.disable(logging.CRITICAL)

def run(data):
    print("print", "all the same")
    raise ValueError("raised all the same")
""",
        {"message": "An unexpected error occurred in scoring script. Check the logs for more info."},
        status=500,
        logged="ValueError: raised all the same",
    ),
    "a data collector, where there is one": EntryScript(
        """
import json
try:
    from azureml.monitoring import ModelDataCollector
except ImportError:
    class ModelDataCollector:
        def __init__(self, *args, **settings): pass
        def __getattr__(self, name): return lambda *args, **settings: None

def init():
    global inputs
    inputs = ModelDataCollector("model", designation="inputs", feature_names=["a", "b"])

def run(data):
    inputs.collect(json.loads(data)["data"])
    return json.loads(data)["data"]
""",
        DATA,
    ),
    "inference-schema with arrays": EntryScript(
        LOADS_JOBLIB
        + """
from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
from inference_schema.schema_decorators import input_schema, output_schema

@input_schema("data", NumpyParameterType(np.array([[1, 2]])))
@output_schema(NumpyParameterType(np.array([6.0])))
def run(data): return model.predict(data).tolist()
""",
        DOUBLED,
    ),
    "inference-schema as AutoML writes it": EntryScript(
        LOADS_JOBLIB
        + """
import pandas as pd
from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
from inference_schema.parameter_types.pandas_parameter_type import PandasParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
from inference_schema.schema_decorators import input_schema, output_schema

rows = PandasParameterType(pd.DataFrame({"a": pd.Series([0], dtype="int64"), "b": pd.Series([0], dtype="int64")}))
results = {"Results": NumpyParameterType(np.array([0.0]))}

@input_schema("Inputs", StandardPythonParameterType({"data": rows}))
@input_schema("GlobalParameters", StandardPythonParameterType(1.0), convert_to_provided_type=False)
@output_schema(StandardPythonParameterType(results))
def run(Inputs, GlobalParameters=1.0):
    return {"Results": (model.predict(Inputs["data"].to_numpy()) * GlobalParameters).tolist()}
""",
        {"Results": [6.0]},
        {"Inputs": {"data": [{"a": 1, "b": 2}]}, "GlobalParameters": 1.0},
    ),
    "inference-schema for one of two arguments, and scripts by name": EntryScript(
        """
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
from inference_schema.schema_decorators import input_schema
import score_one, score_two

def init():
    global by_name
    by_name = {"one": score_one, "two": score_two}
    for module in by_name.values():
        module.init()

@input_schema(param_name="model_name", param_type=StandardPythonParameterType("model_name"))
def run(model_name, payload):
    return by_name[model_name].run(payload)
""",
        [2, 1],
        {"model_name": "two", "payload": [1, 2]},
        files={
            "score_one.py": "def init(): pass\ndef run(payload): return payload",
            "score_two.py": "def init(): pass\ndef run(payload): return payload[::-1]",
        },
    ),
    "rawhttp: files of a form": EntryScript(
        RAW
        + """
@rawhttp
def run(request: AMLRequest):
    files = request.files.getlist("file[]")
    return {"response": [{"name": one.filename, "size": len(one.stream.read())} for one in files]}
""",
        {"response": [{"name": "a.png", "size": 3}, {"name": "b.png", "size": 4}]},
        {"file[]": [["a.png", "123"], ["b.png", "1234"]]},
    ),
    "rawhttp: bytes in, an image and its headers out": EntryScript(
        RAW
        + """
@rawhttp
def run(request):
    if request.method == "POST":
        answer = AMLResponse(bytes(reversed(request.get_data(False))), 200, {"Content-Type": "image/png"})
        answer.headers["Access-Control-Allow-Origin"] = "http://www.example.com"
        return answer
    return AMLResponse("bad request", 500)
""",
        b"\x03\x02\x01",
        b"\x01\x02\x03",
    ),
    "rawhttp: an empty object": EntryScript(
        RAW + "@rawhttp\ndef run(input_data): return AMLResponse({}, 200, json_str=True)", {}, logged="initialised"
    ),
    "rawhttp: another method": EntryScript(
        RAW
        + """
@rawhttp
def run(request):
    if request.method == "GET":
        return AMLResponse(request.full_path, 200)
    return AMLResponse("bad request", 500)
""",
        b"/score?name=x",
        None,
        method="GET",
        query="name=x",
    ),
    "rawhttp: a header chooses the model, and every header is read": EntryScript(
        RAW
        + """
@rawhttp
def run(request):
    received = {}
    for name, value in request.headers:
        received[name] = received[name] + ", " + value if name in received else value
    return AMLResponse({"model": received["Model"], "value": request.json["value"]}, 201, json_str=True)
""",
        {"model": "small", "value": 3},
        {"value": 3},
        headers={"Model": "small"},
        status=201,
    ),
    "sklearn.externals": EntryScript(
        "from sklearn.externals import joblib\ndef init(): pass\ndef run(data): pass",
        "No module named 'sklearn",
        status=0,
    ),
    "sklearn.externals inside init": EntryScript(
        "def init():\n    from sklearn.externals import joblib\ndef run(data): pass",
        "No module named 'sklearn",
        status=0,
    ),
    "the service's first SDK": EntryScript(
        "from azureml.api.schema.dataTypes import DataTypes\ndef init(): pass\ndef run(data): pass",
        "No module named 'azureml.api'",
        status=0,
    ),
}  # fmt: skip
