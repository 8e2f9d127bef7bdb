"""The import time of the provider on top of Airflow's SDK: DAG files are parsed all day."""

import os
import statistics
import subprocess
import sys

ROUNDS = 7
STATEMENTS = {
    "import controlled_rollout": "import controlled_rollout",
    "its operators, sensor and task group": (
        "from controlled_rollout import BuildImageOperator, ControlledRollout, Gate, TreatmentGateSensor"
    ),
}


def seconds_to_import(statement: str) -> tuple[float, float]:
    """Import Airflow's SDK, then what is measured, in a fresh interpreter; return how long each took."""
    program = (
        "import time; begun = time.perf_counter(); import airflow.sdk; from airflow.sdk import BaseOperator, DAG\n"
        f"middle = time.perf_counter(); {statement}\n"
        "print(middle - begun, time.perf_counter() - middle)"
    )
    # As installed packages are: compiled.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    sdk, more = done.stdout.splitlines()[-1].split()
    return float(sdk), float(more)


def measure() -> dict[str, float]:
    """Medians of fresh interpreters, in milliseconds."""
    figures: dict[str, float] = {}
    for name, statement in STATEMENTS.items():
        seconds_to_import(statement)
        rounds = [seconds_to_import(statement) for _ in range(ROUNDS)]
        figures["airflow.sdk"] = 1000 * statistics.median(sdk for sdk, _ in rounds)
        figures[f"{name}, after airflow.sdk"] = 1000 * statistics.median(more for _, more in rounds)
    return figures


if __name__ == "__main__":
    for what, milliseconds in measure().items():
        print(f"{what}: {milliseconds:.1f} ms")
