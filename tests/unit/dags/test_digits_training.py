import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.airflow_home import DAGS
from tests.faults import FAULTS, project

DIGITS = DAGS / "models" / "digits"


@pytest.fixture(scope="module")
def training() -> dict[str, Any]:
    return runpy.run_path(str(DIGITS / "train.py"))


def test_the_held_out_third_is_in_neither_part(training: dict[str, Any]) -> None:
    held_out = {row.tobytes() for row in training["held_out"]()[0]}
    first, _ = training["training_part"]("first")
    everything, _ = training["training_part"]("all")
    assert len(held_out) == 599
    assert len(everything) == 1198
    assert np.array_equal(first, everything[:599])
    assert not held_out & {row.tobytes() for row in everything}


def test_more_data_make_a_better_model_and_the_same_seed_the_same_file(
    training: dict[str, Any], tmp_path: Path
) -> None:
    first = training["train"](tmp_path / "first", part="first")
    everything = training["train"](tmp_path / "all")
    again = training["train"](tmp_path / "again")
    assert 0.9 < first["accuracy"] <= everything["accuracy"]
    assert json.loads((tmp_path / "all" / "metrics.json").read_text()) == everything == again
    assert (tmp_path / "all" / "model.joblib").read_bytes() == (tmp_path / "again" / "model.joblib").read_bytes()
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["metrics.json", "model.joblib"]


def test_the_model_is_served_with_the_versions_that_it_is_trained_with() -> None:
    import joblib
    import sklearn

    described = yaml.safe_load((DIGITS / "environment.yml").read_text())
    pins = dict(line.split("==") for line in described["dependencies"][-1]["pip"])
    assert pins == {"scikit-learn": sklearn.__version__, "numpy": np.__version__, "joblib": joblib.__version__}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_lies_beside_the_stock_script(fault: str, tmp_path: Path) -> None:
    script = project(fault, DIGITS, tmp_path / "project")
    assert {"score.py", "environment.yml", ".amlignore", script} <= {p.name for p in (tmp_path / "project").iterdir()}
    compile((tmp_path / "project" / script).read_text(), script, "exec")


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="failing, slow, crash, flaky, skewed"):
        project("sleepy", Path("nowhere"), Path("nowhere"))
