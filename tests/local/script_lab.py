"""Runs entry scripts in the scoring runtime without a server, each with one request, in a process of its own."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

from controlled_rollout.image.inputs.models import LINK, LINK_TARGET
from tests.local.scoring_environment import REPOSITORY, runtime_environment

__all__ = ["EntryScript", "Outcome", "run_scripts"]

DRIVER = Path(__file__).parent / "script_lab_driver.py"

# Models as they were registered: a pickled one, and a folder.
TRAINING = """
import numpy as np

class Doubler:
    def predict(self, rows):
        return np.asarray(rows, dtype=float).sum(axis=-1) * 2
"""
# Looks for a model as azureml-core 1.61 does without a workspace: in the current folder.
AZUREML_CORE_MODEL = """
import os

class Model:
    @staticmethod
    def get_model_path(model_name, version=None):
        versions = os.path.join("azureml-models", model_name)
        if os.path.isdir(versions):
            chosen = os.path.join(versions, str(version or max(map(int, os.listdir(versions)))))
            if os.path.isdir(chosen):
                [only] = os.listdir(chosen)
                return os.path.join(chosen, only)
        if os.path.exists(model_name):
            return model_name
        raise FileNotFoundError(f"no model {model_name} in azureml-models")
"""


@dataclass(frozen=True)
class EntryScript:
    """An entry script, a request to it, and what comes of it.

    Attributes:
        text: The script.
        answer: The answer's JSON, or its bytes; for a script that cannot run, the last line of its log.
        body: The request's body: JSON, text or bytes, or the files of a form.
        files: Further files of the project, by path.
        path: Where the script is in the project.
        method, url, query, headers: The rest of the request.
        variables: Further environment variables.
        status: The answer's status; 0 for a script that cannot be served.
        logged: What is in the log besides.
    """

    text: str
    answer: Any
    body: Any = field(default_factory=lambda: {"data": [[1, 2], [3, 4]]})
    files: Mapping[str, str] = field(default_factory=dict)
    path: str = "score.py"
    method: str = "POST"
    url: str = "/score"
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    logged: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a script: the answer's status (0 if it could not be served), body and headers, and the log."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    log: str


def run_scripts(
    python: Path, folder: Path, scripts: Mapping[str, EntryScript], *, azureml_core: bool = False
) -> dict[str, Outcome]:
    """Run scripts, each with one request; return what came of each, by name.

    Args:
        python: The interpreter of an environment with the scoring runtime's requirements.
        folder: Where to put projects and models.
        scripts: The scripts by name.
        azureml_core: Whether that environment has azureml-core; else a stand-in is used.
    """
    site = folder / "site"
    _write(site, {"training.py": TRAINING})
    if not azureml_core:
        _write(site, {"azureml/core/model.py": AZUREML_CORE_MODEL})
    cases = []
    for number, (name, script) in enumerate(scripts.items()):
        project = folder / str(number) / "app"
        _write(project, {script.path: dedent(script.text), **script.files})
        (project / LINK).symlink_to(LINK_TARGET)
        model_dir = folder / str(number) / "models" / "digits" / "7"
        model_dir.mkdir(parents=True)
        settings = {"AZUREML_ENTRY_SCRIPT": script.path, "AZUREML_MODEL_DIR": str(model_dir), **script.variables}
        environment = runtime_environment(project, settings)
        body = {"bytes": script.body.hex()} if isinstance(script.body, bytes) else {"json": script.body}
        request = {
            "method": script.method,
            "url": script.url,
            "query": script.query,
            "headers": dict(script.headers),
            **body,
        }
        request["headers"] = dict(script.headers)
        cases.append({"name": name, "environment": environment, "log": str(folder / f"{number}.log"), **request})
    done = subprocess.run(
        [python, DRIVER],
        input=json.dumps(cases),
        env={**runtime_environment(folder, {}), "PYTHONPATH": f"{REPOSITORY / 'docker' / 'scoring'}:{site}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    outcomes = json.loads(done.stdout)
    return {
        case["name"]: Outcome(
            outcome["status"], bytes.fromhex(outcome["body"]), outcome["headers"], Path(case["log"]).read_text()
        )
        for case, outcome in zip(cases, outcomes, strict=True)
    }


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write files, by path, into a folder."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
