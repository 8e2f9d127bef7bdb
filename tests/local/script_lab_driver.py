"""Serves entry scripts in the scoring runtime without a server: each in a fork of a process that has imported it.

Reads the cases from stdin as JSON and writes their outcomes to stdout. Runs in the environment of a version.
"""

import importlib
import io
import json
import os
import sys
from typing import Any

# What every script would import anew: most of the time that it takes to start.
PRELOADED = (
    "pandas",
    "inference_schema.schema_decorators",
    "azureml_inference_server_http.server.input_parsers",
    "azureml_inference_server_http.server.user_script",
)


def outcome_of(case: dict[str, Any]) -> dict[str, Any]:
    """Return what comes of one script, which is loaded and called in a fork of this process."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        log = os.open(case["log"], os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            os.write(write_end, json.dumps(answer_of(case)).encode())
        finally:
            sys.stdout.flush()
            os._exit(1)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    return json.loads(content) if content else {"status": 0, "body": "", "headers": {}}


def answer_of(case: dict[str, Any]) -> dict[str, Any]:
    """Load the script in this process, send it the request, and return its answer."""
    os.environ.clear()
    os.environ.update(case["environment"])
    joblib, training = map(importlib.import_module, ("joblib", "training"))
    joblib.dump(training.Doubler(), os.path.join(os.environ["AZUREML_MODEL_DIR"], "model.pkl"))
    # Imported in the fork: the runtime keeps its own descriptor of stderr, which is the script's log by now.
    application, settings = (
        importlib.import_module(f"controlled_rollout_scoring.{m}") for m in ("application", "settings")
    )
    application.load(settings.Settings.from_environment(os.environ))
    app = importlib.import_module("azureml_inference_server_http.server.entry").app
    request: dict[str, Any] = {"query_string": case["query"], "headers": case["headers"]}
    if "bytes" in case:
        request |= {"data": bytes.fromhex(case["bytes"]), "content_type": "application/octet-stream"}
    elif isinstance(case["json"], dict) and "file[]" in case["json"]:
        files = [(io.BytesIO(text.encode()), name) for name, text in case["json"]["file[]"]]
        request |= {"data": {"file[]": files}, "content_type": "multipart/form-data"}
    elif case["json"] is not None:
        request |= {"data": json.dumps(case["json"]), "content_type": "application/json"}
    answer = app.test_client().open(case["url"], method=case["method"], **request)
    return {"status": answer.status_code, "body": answer.get_data().hex(), "headers": dict(answer.headers)}


if __name__ == "__main__":
    for module in PRELOADED:
        importlib.import_module(module)
    json.dump([outcome_of(case) for case in json.load(sys.stdin)], sys.stdout)
