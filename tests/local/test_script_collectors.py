"""A script with the old service's collectors runs unchanged; without their packages: tests/unit/scoring."""

import json
import signal
from pathlib import Path

from tests.local.scoring_environment import RUNTIME, environment_python, start_replica
from tests.unit.scoring.spool_reader import Record, counts, records

SCRIPT = """
import json, multiprocessing
import numpy as np
import pandas as pd
from azureml.ai.monitoring import Collector
from azureml.monitoring import ModelDataCollector

def init():
    global inputs_dc, predictions_dc, inputs, outputs
    inputs_dc = ModelDataCollector("credit", designation="inputs", feature_names=["age", "since"])
    predictions_dc = ModelDataCollector("credit", designation="predictions", feature_names=["label"])
    inputs, outputs = Collector(name="model_inputs"), Collector(name="model_outputs", on_error=print)
    ModelDataCollector("credit", collection_name="starts").collect(["begins"])
    child = multiprocessing.get_context("spawn").Process(target=in_a_process)
    child.start()
    child.join()

def in_a_process():
    ModelDataCollector("credit", collection_name="starts").collect(["in a process"])

def run(data):
    frame = pd.DataFrame(json.loads(data)["data"], columns=["age", "since"])
    frame["since"] = pd.to_datetime(frame["since"])
    correlations = inputs_dc.collect(frame, "order")
    labels = pd.DataFrame({"label": np.arange(len(frame))})
    predictions_dc.collect(predictions_dc.add_correlations(labels, correlations))
    outputs.collect(labels, inputs.collect(frame))
    outputs.collect([1])
    return [list(predictions_dc.add_correlations(labels, correlations).columns), labels["label"].tolist()]
"""
# The real one needs a native library, writes to Azure itself, and ends the process at SIGTERM.
INSTALLED = "import os\nos._exit(9)\n"
BODY = {"data": [[41, "2026-01-05"], [float("nan"), None]]}


def test_old_script_collects_frames_in_init_and_run_though_the_packages_are_installed(tmp_path: Path) -> None:
    for package in ("azureml/monitoring", "azureml/ai/monitoring"):
        (tmp_path / "site" / package).mkdir(parents=True)
        (tmp_path / "site" / package / "__init__.py").write_text(INSTALLED)
    spool = tmp_path / "spool"
    settings = {
        "CAPTURE_SPOOL": str(spool),
        "CAPTURE_ENDPOINT": "digits",
        "PYTHONPATH": f"{RUNTIME}:{tmp_path / 'site'}",
    }
    with start_replica(environment_python(), tmp_path, SCRIPT, environment=settings) as replica:
        answer = replica.score(json.dumps(BODY), X_Request_Id="r-1")
        assert answer.status == 200, replica.log
        columns, labels = answer.json
        assert "data type (list) not supported" in replica.log
        replica.process.send_signal(signal.SIGTERM)
        assert replica.wait() == 0, replica.log

    assert (len(columns), columns[:2], labels) == (9, ["label", "$aml_dc_correlation_id"], [0, 1])
    kept: dict[str, list[Record]] = {}
    for record in records(spool):
        kept.setdefault(record.head.get("collection", "exchange"), []).append(record)
    assert {name: len(found) for name, found in kept.items()} == {
        "starts": 2,
        "inputs": 1,
        "predictions": 1,
        "model_inputs": 1,
        "model_outputs": 1,
        "exchange": 1,
    }
    assert sorted(json.loads(record.bodies)[0][0] for record in kept["starts"]) == ["begins", "in a process"]
    [inputs], [predictions] = kept["inputs"], kept["predictions"]
    first, second = json.loads(inputs.bodies)
    assert (first, second[0] != second[0], second[1]) == ([41.0, "2026-01-05T00:00:00"], True, None)
    assert json.loads(predictions.bodies) == [[0], [1]]
    assert inputs.head["correlation"] == predictions.head["correlation"]
    assert inputs.head["correlation"].startswith("order-")
    [inputs], [outputs] = kept["model_inputs"], kept["model_outputs"]
    assert json.loads(outputs.bodies) == [{"label": 0}, {"label": 1}]
    assert json.loads(inputs.bodies)[1] == {"age": None, "since": None}
    assert (outputs.head["correlation"], len(outputs.head["correlation"])) == (inputs.head["correlation"], 36)
    assert outputs.head["agent"] == "azureml-ai-monitoring/1.0.0"
    assert outputs.head["collectdatatype"].endswith("DataFrame")
    assert {record.head["id"] for name, found in kept.items() if name != "starts" for record in found} == {"r-1"}
    assert counts(spool)[1:] == (0, 0)
